"""A dense feed-forward cut into experts: which of its channels each one gets, and its weights.

``down(act(up(x)))`` is a sum over the inner channels, so it is the sum of N experts that have F/N of them
each, plus the output bias. Weighted alike and scaled by N, any k of the N experts are an estimate of the dense
layer whose mean over all choices is the layer itself, and all N are the layer. Nothing is approximated.

Matrices are [out, in], as `torch.nn.Linear` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["DenseSplit", "even_channels", "split_columns", "split_dense", "split_rows"]


@dataclass(frozen=True, eq=False)
class DenseSplit:
    """A dense layer as experts.

    Attributes:
        experts: stacked [N, ...] under the names of ``coterie.experts.FFN``'s state dict.
        bias: [D], to be added once, whichever experts are on; None where the layer has none.
        output_scale: what an item's weights must sum to: N.
        channels: [N, m] int64, the inner channels each expert has.
    """

    experts: Mapping[str, Tensor]
    bias: Tensor | None
    output_scale: float
    channels: Tensor


def even_channels(inner: int, num_experts: int, order: Tensor | None = None) -> Tensor:
    """[N, m] int64: the inner channels cut into N equal shares, neighbours together.

    Args:
        inner: F, a multiple of N.
        num_experts: N.
        order: [F], a permutation of the channels that is cut in place of 0..F-1: what belongs together side by side.

    Raises:
        OptionError: N does not divide F, or ``order`` is no permutation.
    """
    if num_experts < 1 or inner % num_experts:
        divisors = [n for n in range(1, inner + 1) if inner % n == 0]
        near = min(divisors, key=lambda n: abs(n - num_experts), default=1)
        raise OptionError(f"{inner} channels do not fall into {num_experts} equal experts. Try {near}.")
    channels = torch.arange(inner) if order is None else order.long()
    everyone = torch.arange(inner, device=channels.device)
    if channels.shape != (inner,) or not torch.equal(channels.sort().values, everyone):
        raise OptionError(f"order must be a permutation of 0 to {inner - 1}, each once.")
    return channels.view(num_experts, inner // num_experts)


def split_rows(weight: Tensor, channels: Tensor) -> Tensor:
    """``weight [F, ...]`` of a projection up, or its bias [F], to [N, m, ...]."""
    return weight[channels.to(weight.device)]


def split_columns(weight: Tensor, channels: Tensor) -> Tensor:
    """``weight [D, F]`` of the projection down to [N, D, m]."""
    return weight[:, channels.to(weight.device)].transpose(0, 1).contiguous()


def split_dense(weights: Mapping[str, Tensor], channels: Tensor, *, fused: bool = False) -> DenseSplit:
    """Cut a dense feed-forward.

    Args:
        weights: ``up_proj [F, D]`` and ``down_proj [D, F]``, with ``gate_proj [F, D]`` where it is gated, and the
            biases of any of them under ``<name>_bias``.
        channels: [N, m], such as `even_channels`; every channel once.
        fused: join gate and up into ``gate_up_proj [N, 2m, D]``.

    Returns:
        the experts' weights, in the dtype of the layer's. An expert has its share of the inner biases and, since
        experts have all biases or none, an output bias of zero; the layer's own is ``bias``.

    Raises:
        OptionError: a name that is unknown or missing, shapes that do not fit each other, channels left out or
            taken twice, or ``fused`` without a gate.
    """
    ups = _check(weights, channels)
    if fused and "gate_proj" not in ups:
        raise OptionError("fused joins gate and up, and this layer has no gate: leave fused=False.")
    down = weights["down_proj"]
    experts = {name: split_rows(weights[name], channels) for name in ups}
    experts["down_proj"] = split_columns(down, channels)
    if any(name.endswith("_bias") for name in weights):
        for name in ups:
            bias = weights.get(f"{name}_bias", weights[name].new_zeros(weights[name].shape[0]))
            experts[f"{name}_bias"] = split_rows(bias, channels)
        experts["down_proj_bias"] = down.new_zeros(len(channels), down.shape[0])
    if fused:
        experts = _fused(experts)
    return DenseSplit(experts, weights.get("down_proj_bias"), float(len(channels)), channels)


def _fused(experts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined = {
        f"gate_up_proj{end}": torch.cat([experts[f"gate_proj{end}"], experts[f"up_proj{end}"]], dim=1)
        for end in ("", "_bias") if f"gate_proj{end}" in experts
    }  # fmt: skip
    return joined | {name: weight for name, weight in experts.items() if name.startswith("down_proj")}


def _check(weights: Mapping[str, Tensor], channels: Tensor) -> tuple[str, ...]:
    """The names of the projections up, after everything was looked at."""
    ups = ("gate_proj", "up_proj") if "gate_proj" in weights else ("up_proj",)
    known = {name + end for name in (*ups, "down_proj") for end in ("", "_bias")}
    missing, unknown = {*ups, "down_proj"} - set(weights), set(weights) - known
    if missing or unknown:
        raise OptionError(
            f"a dense layer has up_proj, down_proj, perhaps gate_proj, and biases named up_proj_bias and so on; "
            f"missing: {', '.join(sorted(missing)) or 'none'}, unknown: {', '.join(sorted(unknown)) or 'none'}."
        )
    width, inner = weights["down_proj"].shape
    shapes = dict.fromkeys(ups, (inner, width)) | {f"{name}_bias": (inner,) for name in ups}
    shapes |= {"down_proj": (width, inner), "down_proj_bias": (width,)}
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise OptionError(
                f"{name} must be {shapes[name]} beside a down_proj of {(width, inner)}, found {tuple(weight.shape)}."
            )
    if channels.dim() != 2:
        raise OptionError(f"channels must be [N, m], found {tuple(channels.shape)}.")
    even_channels(inner, len(channels), channels.flatten())
    return ups
