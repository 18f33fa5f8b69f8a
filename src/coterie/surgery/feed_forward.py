"""A dense feed-forward as surgery sees it: its matrices, what its channels do on a sample, what of it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.errors import OptionError
from coterie.models.channel_statistics import FFNStatistics
from coterie.surgery.dense import DenseLayer

__all__ = ["FeedForward", "feed_forward"]

# tokens whose activations are made at once: 4 x 14336 x 512 bytes are 28 MiB
_ROWS = 512


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One dense feed-forward ``down(hidden(up(x), gate(x)))``.

    Attributes:
        weights: ``up_proj [F, D]`` and ``down_proj [D, F]``, with ``gate_proj [F, D]`` where it is gated, and biases
            under ``<name>_bias``; any float dtype.
        hidden: (up [n, F], gate [n, F] or None) -> [n, F], such as `coterie.experts.FFNShape.hidden`.
        layer: number of the decoder layer; part of what is drawn hangs on it.
        inputs: [n, D] a sample of what comes in; None without calibration text.
        active: [n, F] bool, the most active channels of each token of the sample; made from ``inputs`` if None.
        scores: domain -> [F] how much the channel does in texts of that domain.
        overall: [F] how much it does in all of them.
        gradients: domain -> [F] the same by |activation x gradient|; empty where not collected.
    """

    weights: Mapping[str, Tensor]
    hidden: Callable[[Tensor, Tensor | None], Tensor] = field(repr=False)
    layer: int = 0
    inputs: Tensor | None = None
    active: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    overall: Tensor | None = None
    gradients: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inner(self) -> int:
        """F."""
        return self.weights["up_proj"].shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.weights["up_proj"].shape[1]

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return "gate_proj" in self.weights

    def sample(self) -> Tensor:
        """[n, D] float32: the inputs of the calibration text.

        Raises:
            OptionError: there are none.
        """
        if self.inputs is None or not len(self.inputs):
            raise OptionError(
                "This needs to see the model at work on some text. Give --text FILE, or --statistics FILE of "
                "coterie trace."
            )
        return self.inputs.float()

    def activations(self, x: Tensor) -> Tensor:
        """[n, F] float32: what the projection down reads for ``x [n, D]``."""
        return torch.cat([self._activations(rows) for rows in x.float().split(_ROWS)])

    @cached_property
    def activity(self) -> Tensor:
        """[n, F] float32 activations on the sample; 4 x n x F bytes, kept while this object is.

        Raises:
            OptionError: there is no sample.
        """
        return self.activations(self.sample())

    @cached_property
    def most_active(self) -> Tensor:
        """[n, F] bool: of every token of the sample the tenth of the channels that is most active.

        Raises:
            OptionError: there is no sample.
        """
        if self.active is not None:
            return self.active
        count = max(1, self.inner // 10)
        top = self.activity.abs().topk(count, dim=1).indices
        return torch.zeros_like(self.activity, dtype=torch.bool).scatter_(1, top, True)

    def importance(self) -> Tensor:
        """[F] float32: how much a channel does: mean |activation| on the text times the length of what it writes.

        Without a text, the product of the lengths of what it reads and writes.
        """
        written = self.weights["down_proj"].float().norm(dim=0)
        if self.overall is not None:
            return self.overall.float() * written
        if self.inputs is not None:
            return self.activity.abs().mean(0) * written
        read = [self.weights[name].float().norm(dim=1) for name in ("gate_proj", "up_proj") if name in self.weights]
        return torch.stack(read).prod(0) * written

    def _activations(self, x: Tensor) -> Tensor:
        up = self._linear("up_proj", x)
        return self.hidden(up, self._linear("gate_proj", x) if self.gated else None)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}_bias")
        return F.linear(x, self.weights[name].float(), None if bias is None else bias.float())


def feed_forward(layer: DenseLayer, seen: FFNStatistics | None = None) -> FeedForward:
    """One layer of a dense checkpoint, with what statistics say of it."""
    if seen is None:
        return FeedForward(layer.weights, layer.shape.hidden, layer.ffn.layer)
    return FeedForward(
        layer.weights, layer.shape.hidden, layer.ffn.layer, seen.inputs, seen.activity,
        {name: use.channel for name, use in seen.domains.items()}, seen.channel,
        {name: use.gradient for name, use in seen.domains.items() if use.gradient is not None},
    )  # fmt: skip
