"""Which ways of quantising are served, why others are not, and what their tensors are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.errors import UnsupportedError

__all__ = ["REFUSED", "SERVED", "method_of", "split_name"]

# ending of a name on disk, ending of the weight it belongs to, role; the first that fits is taken
_FP8 = (
    ("_scale_inv", "", "_scale_inv"),
    (".activation_scale", ".weight", "_activation_scale"),
    ("_activation_scale", "", "_activation_scale"),
    (".qscale_weight", ".weight", "_scale_inv"),
    (".scale", ".weight", "_scale_inv"),
)
_ENDINGS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "fp8": _FP8,
    "mxfp8": _FP8,
    "mxfp4": (("_blocks", "", "_blocks"), ("_scales", "", "_scales")),
}

SERVED: tuple[str, ...] = tuple(_ENDINGS)
"""Values of ``quant_method`` that are served."""

_PACKAGE = "transformers itself reads it only with the package {}"
_NO_EXPERTS = "transformers reads it for linear layers only, with the package gptqmodel, and leaves the experts random"
REFUSED: Mapping[str, str] = {
    "aqlm": _PACKAGE.format("aqlm"),
    "auto-round": _PACKAGE.format("auto-round"),
    "awq": _NO_EXPERTS,
    "bitnet": "its activations are quantised too, so that there are no float weights to compute with",
    "bitsandbytes": _PACKAGE.format("bitsandbytes"),
    "compressed-tensors": _PACKAGE.format("compressed-tensors"),
    "eetq": "transformers reads it on GPUs only",
    "fbgemm_fp8": "transformers reads it on GPUs only",
    "fouroversix": _PACKAGE.format("fouroversix"),
    "fp_quant": "transformers reads it on GPUs only",
    "gemma": "its activations are rounded too, and transformers reads it for linear layers, not for experts",
    "gguf": "Coterie reads safetensors",
    "gptq": _NO_EXPERTS,
    "higgs": "transformers reads it on GPUs only",
    "hqq": _PACKAGE.format("hqq"),
    "metal": "it is made for Apple's GPUs, and its packed integers are not read",
    "nvfp4": "transformers makes such weights but does not read them",
    "quanto": _PACKAGE.format("optimum-quanto"),
    "quark": _PACKAGE.format("amd-quark"),
    "sinq": _PACKAGE.format("sinq"),
    "spqr": "transformers reads it on GPUs only",
    "torchao": _PACKAGE.format("torchao"),
    "vptq": "transformers reads it on GPUs only",
}
"""``quant_method`` -> why it is not served."""


def method_of(quantization: Mapping[str, Any] | None, where: str = "the checkpoint") -> str | None:
    """``quant_method`` of a ``quantization_config``; None where nothing is quantised.

    Raises:
        UnsupportedError: it is not served; the text says what is, and why this is not.
    """
    if not quantization:
        return None
    method = quantization.get("quant_method", "unnamed") if isinstance(quantization, Mapping) else "unnamed"
    if method in SERVED:
        return str(method)
    reason = REFUSED.get(str(method), "Coterie does not know it")
    raise UnsupportedError(
        f"{where} is quantised with {method}, which is not served: {reason}. Choose the checkpoint in bfloat16, "
        f"float16 or float32, or one quantised with {' or '.join(SERVED)}."
    )


def split_name(name: str, method: str | None) -> tuple[str, str]:
    """Name of a tensor on disk -> name of the weight it belongs to, and its role there.

    A tensor whose own name is one of the model's is a weight, whatever it ends in: ask that first.

    >>> split_name("experts.0.up_proj.weight_scale_inv", "fp8")
    ('experts.0.up_proj.weight', '_scale_inv')
    >>> split_name("experts.down_proj_blocks", "mxfp4")
    ('experts.down_proj', '_blocks')
    >>> split_name("experts.0.up_proj.weight", "fp8")
    ('experts.0.up_proj.weight', '')
    """
    for ending, weight, role in _ENDINGS.get(method or "", ()):
        if name.endswith(ending):
            return name.removesuffix(ending) + weight, role
    return name, ""
