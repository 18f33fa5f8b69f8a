"""A dense feed-forward cut into experts by lists of channels: the weights, and what exactly is kept.

The weights of an item sum to one in the models that are made here, so the factor on the experts' outputs is folded
into their ``down_proj``, and the output bias is every expert's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.partition import split_columns, split_rows
from coterie.surgery.channels import LayerChannels
from coterie.surgery.feed_forward import FeedForward

__all__ = ["SplitLayer", "expert_outputs", "fitted_scale", "one_expert", "split_layer"]


@dataclass(frozen=True, eq=False)
class SplitLayer:
    """A layer in parts.

    Attributes:
        experts: ``up_proj [E, m, D]``, ``down_proj [E, D, m]``, ``gate_proj`` and biases where the layer has them.
        shared: the same names without the E, of the expert that every item passes with weight one; None without.
        scale: the factor in ``down_proj`` of the experts.
    """

    experts: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] | None
    scale: float


def split_layer(
    layer: FeedForward, channels: LayerChannels, *, scale: float = 1.0, own_size: int = 0, shared_size: int = 0
) -> SplitLayer:
    """Cut ``layer``.

    With weights that sum to 1 the output is ``shared + sum_e w_e (scale x own_e) + bias``. Where every channel was
    dealt out once and ``scale`` is E, all experts alike weighted are the dense layer.

    Args:
        scale: factor on the experts' outputs, not on the bias.
        own_size: channels of each expert after filling up with zeros, for layers that must be of one shape.
        shared_size: the same of the shared expert.

    Raises:
        OptionError: the channels are of a layer of another size, or a size is below what there is.
    """
    if channels.inner != layer.inner:
        raise OptionError(f"The channels are of a layer with {channels.inner} of them, this one has {layer.inner}.")
    bias = layer.weights.get("down_proj_bias")
    experts = _cut(layer, channels.own)
    experts["down_proj"] = _scaled(experts["down_proj"], scale)
    if _has_bias(layer):
        zero = layer.weights["down_proj"].new_zeros(layer.width)
        experts["down_proj_bias"] = (zero if bias is None else bias).expand(channels.num_experts, -1).contiguous()
    shared = None
    if len(channels.shared) or shared_size:
        shared = {name: part[0] for name, part in _padded(_cut(layer, channels.shared[None]), shared_size).items()}
        if _has_bias(layer):
            shared["down_proj_bias"] = layer.weights["down_proj"].new_zeros(layer.width)
    return SplitLayer(_padded(experts, own_size), shared, scale)


def one_expert(layer: FeedForward, channels: LayerChannels, expert: int, size: int = 0) -> dict[str, Tensor]:
    """A dense feed-forward of the channels of ``expert`` and the shared ones alone, without factor: the slice.

    Args:
        size: channels after filling up with zeros.
    """
    own = {name: part[0] for name, part in _padded(_cut(layer, channels.of(expert)[None]), size).items()}
    if (bias := layer.weights.get("down_proj_bias")) is not None:
        own["down_proj_bias"] = bias
    return own


def expert_outputs(layer: FeedForward, channels: LayerChannels, activity: Tensor) -> tuple[Tensor, Tensor]:
    """What every expert's own channels write, [E, n, D], and the shared ones, [n, D]; float32, without factor or bias.

    Args:
        activity: [n, F] activations of the dense layer.
    """
    down = layer.weights["down_proj"].float()
    own = torch.stack([activity[:, part] @ down[:, part].T for part in channels.own])
    return own, activity[:, channels.shared] @ down[:, channels.shared].T


def fitted_scale(own: Tensor, chosen: Tensor) -> float:
    """The factor on the mean of the chosen experts' outputs that comes nearest to the sum of all: least squares.

    Args:
        own: [E, n, D], of `expert_outputs`, with every channel dealt out once.
        chosen: [n, K] the experts of each item.

    Returns:
        at least K, at most E: chosen experts are never made less than they are in the dense layer.
    """
    k, experts = chosen.shape[1], len(own)
    mean = picked_mean(own, chosen)
    ratio = float((own.sum(0) * mean).sum() / mean.square().sum().clamp(min=1e-30))
    return min(max(ratio, float(k)), float(experts))


def picked_mean(own: Tensor, chosen: Tensor) -> Tensor:
    """[n, D]: the mean over the chosen experts of each item."""
    items = torch.arange(own.shape[1])
    picked = [own[chosen[:, rank], items] for rank in range(chosen.shape[1])]
    return torch.stack(picked).mean(0)


def _cut(layer: FeedForward, lists: Tensor) -> dict[str, Tensor]:
    """Stacked parts by channel lists [N, m]; inner biases too, no output bias."""
    ups = [name for name in ("gate_proj", "up_proj") if name in layer.weights]
    parts = {name: split_rows(layer.weights[name], lists) for name in ups}
    parts["down_proj"] = split_columns(layer.weights["down_proj"], lists)
    if _has_bias(layer):
        for name in ups:
            none = layer.weights[name].new_zeros(layer.inner)
            parts[f"{name}_bias"] = split_rows(layer.weights.get(f"{name}_bias", none), lists)
    return parts


def _has_bias(layer: FeedForward) -> bool:
    return any(name.endswith("_bias") for name in layer.weights)


def _scaled(weight: Tensor, scale: float) -> Tensor:
    return weight if scale == 1 else (weight.float() * scale).to(weight.dtype)


def _padded(parts: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Channels of zeros after the others: they read and write nothing."""
    have = parts["down_proj"].shape[-1]
    if size and size < have:
        raise OptionError(f"An expert of {have} channels does not go into {size}.")
    more = max(0, size - have)
    if not more:
        return dict(parts)
    full = {}
    for name, part in parts.items():
        inner_last = name == "down_proj" or (name.endswith("_bias") and name != "down_proj_bias")
        if name == "down_proj_bias":
            full[name] = part
        else:
            full[name] = F.pad(part, (0, more) if inner_last else (0, 0, 0, more))
    return full
