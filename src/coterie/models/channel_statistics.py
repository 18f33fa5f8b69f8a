"""What the channels of a dense model do on a calibration text: the dense half of `coterie.models.statistics`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ChannelUse", "FFNStatistics", "pack_bits", "unpack_bits"]


@dataclass(frozen=True, eq=False)
class ChannelUse:
    """What the channels of a dense feed-forward did with the texts of one domain.

    Attributes:
        tokens: of the domain.
        channel: [F] mean |activation|, the input of the projection down.
        top: [F] share of tokens in which the channel is among the most active.
        gradient: [F] mean |activation x its gradient of the loss|; None where not asked for.
    """

    tokens: int
    channel: Tensor
    top: Tensor
    gradient: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FFNStatistics:
    """One dense feed-forward.

    Attributes:
        name: module path of the feed-forward, such as "model.layers.0.mlp".
        layer: number of the decoder layer.
        tokens: that came through, padding left out.
        channel: [F] mean |activation|, the input of the projection down.
        top: [F] share of tokens in which the channel is among the ``top_fraction`` most active.
        top_fraction: of the channels that count as active in a token, such as 0.1.
        inputs: [n, D] a random sample of hidden states, the same tokens in every layer, in the dtype they had.
        active: [n, ceil(F / 8)] uint8, one bit per channel: active in the token of the sample. See `activity`.
        gradient: [F] mean |activation x its gradient of the loss|; None where not asked for.
        domains: name -> the same per domain of text; empty where none was named.
    """

    name: str
    layer: int
    tokens: int
    channel: Tensor
    top: Tensor
    top_fraction: float
    inputs: Tensor
    active: Tensor
    gradient: Tensor | None = None
    domains: Mapping[str, ChannelUse] = field(default_factory=dict)

    @property
    def inner(self) -> int:
        """F."""
        return self.channel.shape[0]

    @cached_property
    def activity(self) -> Tensor:
        """[n, F] bool: which channels were among the most active in which token of the sample."""
        return unpack_bits(self.active, self.inner)

    def coactivation(self, channels: Tensor | None = None) -> Tensor:
        """[C, C] float32: in how many tokens of the sample two channels were active together.

        Args:
            channels: [C] ids; all F of them by default, which takes 4 x F x F bytes.
        """
        active = (self.activity if channels is None else self.activity[:, channels]).float()
        return active.T @ active


def pack_bits(table: Tensor) -> Tensor:
    """[n, F] bool -> [n, ceil(F / 8)] uint8, the first channel in the lowest bit."""
    padded = F.pad(table.to(torch.uint8), (0, -table.shape[1] % 8)).unflatten(1, (-1, 8))
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    return (padded * weights).sum(-1).to(torch.uint8)


def unpack_bits(packed: Tensor, inner: int) -> Tensor:
    """[n, ceil(F / 8)] uint8 -> [n, F] bool."""
    bits = torch.arange(8, dtype=torch.uint8)
    return ((packed[..., None] >> bits) & 1).flatten(1)[:, :inner].bool()
