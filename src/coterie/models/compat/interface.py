"""What a transformers experts module says about itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from coterie.errors import OptionError, UnsupportedError
from coterie.experts import FFNShape

# set by transformers' `use_experts_implementation` on every instance of a decorated class
_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")


def is_experts(module: nn.Module) -> bool:
    """Whether the module is a fused experts module behind transformers' experts interface."""
    return all(hasattr(module, flag) for flag in _FLAGS) and hasattr(module, "num_experts")


def ffn_shape(module: Any, *, fused: bool = True) -> FFNShape:
    """The shape of one expert of a fused experts module, on any device.

    Args:
        module: `is_experts`.
        fused: whether the weights to be described keep gate and up in one matrix, as the module does.

    Raises:
        UnsupportedError: the module gates in a way of its own, or has an activation we do not know.
    """
    from transformers.integrations.moe import _default_apply_gate

    name = type(module).__name__
    if module.has_gate and type(module)._apply_gate is not _default_apply_gate:
        raise UnsupportedError(f"{name} gates its experts in a way of its own, which Coterie does not serve yet.")
    last, before = module.down_proj.shape[-1], module.down_proj.shape[-2]
    inner, width = (before, last) if module.is_transposed else (last, before)
    try:
        return FFNShape(
            width=width, inner=inner, gated=module.has_gate, bias=module.has_bias, fused=fused,
            transposed=module.is_transposed, interleaved=module.has_gate and fused and not module.is_concatenated,
            activation=module.config.hidden_act, post_norm=module.has_post_expert_norm,
        )  # fmt: skip
    except OptionError as error:
        raise UnsupportedError(f"{name} cannot be served: {error}") from error


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
