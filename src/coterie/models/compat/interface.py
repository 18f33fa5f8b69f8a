"""What a transformers experts module says about itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from coterie.experts import FFNShape
from coterie.models.compat.gating import gating
from coterie.models.compat.own_layouts import own_layout

# set by transformers' `use_experts_implementation` on every instance of a decorated class
_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")


def is_experts(module: nn.Module) -> bool:
    """Whether the module is a fused experts module behind transformers' experts interface."""
    return all(hasattr(module, flag) for flag in _FLAGS) and hasattr(module, "num_experts")


def ffn_shape(
    module: Any, *, fused: bool = True, transposed: bool | None = None, interleaved: bool | None = None
) -> FFNShape:
    """The shape of one expert of a fused experts module, on any device.

    Args:
        module: `is_experts`, or one with an `own_layout`.
        fused: whether the weights to be described keep gate and up in one matrix, as the module does.
        transposed, interleaved: how the weights to be described lie, where it is not as in the module.

    Raises:
        UnsupportedError: the module computes in a way that we cannot follow.
    """
    if (own := own_layout(module)) is not None:
        return replace(own.shape(module), fused=fused)
    last, before = module.down_proj.shape[-1], module.down_proj.shape[-2]
    inner, width = (before, last) if module.is_transposed else (last, before)
    return FFNShape(
        width=width, inner=inner, gated=module.has_gate, bias=module.has_bias, fused=fused,
        transposed=module.is_transposed if transposed is None else transposed,
        interleaved=module.has_gate and fused and (not module.is_concatenated if interleaved is None else interleaved),
        **gating(module), **_post_norm(module),
    )  # fmt: skip


def _post_norm(module: Any) -> dict[str, Any]:
    norm = module.post_expert_norm if module.has_post_expert_norm else None
    return {} if norm is None else {"post_norm": True, "post_norm_eps": norm.eps}


def accept_sentinels(module: nn.Module, accept: bool = True) -> bool:
    """Let the module's fast implementations skip index E ("no expert"). Returns what was set before.

    The eager implementation always skips it. Without this flag grouped_mm multiplies memory that was never
    written by the zero weight, which is no number when that memory is not, and batched_mm fails.
    """
    before = bool(module._is_expert_parallel)
    module._is_expert_parallel = accept  # type: ignore[assignment]
    return before


def recorders_installed(body: Any) -> bool:
    """Whether ``output_router_logits`` and its like were asked of the base model before; hooks stay from then on."""
    return bool(getattr(body, "_output_capturing_hooks_installed", False))


def install_recorders(body: Any, module: nn.Module) -> None:
    """Give ``module`` the recorder hooks it would have had, had it been in the base model at the first request.

    Hooks match by isinstance: a replacement must subclass what it replaces, and one that comes after the
    first request gets its hooks here.
    """
    from transformers.utils import output_capturing

    for key, recorders in output_capturing._CAN_RECORD_REGISTRY.get(body).items():
        for recorder in recorders if isinstance(recorders, list) else [recorders]:
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type) and isinstance(module, target):
                output_capturing.install_output_capuring_hook(module, key, getattr(recorder, "index", 0))
