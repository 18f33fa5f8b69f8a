"""One expert of a split without a second copy of anything: the dense model with the other channels hidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.models.feed_forwards import find_ffns
from coterie.surgery.channels import Channels

__all__ = ["masked"]


@contextmanager
def masked(model: Any, channels: Channels, expert: int) -> Iterator[Any]:
    """Inside the ``with``, every dense feed-forward of ``model`` computes with the channels of ``expert`` alone.

    Exactly what the feed-forward cut to those channels computes, to the order of addition. Mutates nothing: hooks hide
    the other channels from the projection down, and go again. Gradients flow.

    Args:
        model: a live transformers model, the one that was split.
        channels: of the split.
        expert: which.

    Raises:
        OptionError: the channels are of another model, or have no such expert.
    """
    sites = {site.name: site for site in find_ffns(model)}
    handles = []
    try:
        for name, layer in channels.layers.items():
            if name not in sites or sites[name].inner != layer.inner:
                raise OptionError(
                    f"The channels are of a model with {layer.inner} of them in {name}, and this one "
                    + (f"has {sites[name].inner}." if name in sites else "has no such layer.")
                    + " Take the model that was split."
                )
            if not 0 <= expert < layer.num_experts:
                raise OptionError(f"There is no expert {expert} in {name}: there are 0 to {layer.num_experts - 1}.")
            down = sites[name].block.get_submodule(sites[name].down)
            handles.append(down.register_forward_pre_hook(_Hide(layer.of(expert), layer.inner)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


class _Hide:
    """Zeroes all channels but some."""

    def __init__(self, keep: Tensor, inner: int) -> None:
        self._mask = torch.zeros(inner)
        self._mask[keep] = 1

    def __call__(self, down: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden * self._mask.to(hidden), *args[1:])
