"""Running sums of one dense feed-forward, forward after forward."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.models.channel_statistics import ChannelUse, FFNStatistics, pack_bits
from coterie.models.sums import Sample, check_finite, magnitude, named

__all__ = ["FFNSums"]


class _Channels:
    """Counts of one domain in a dense feed-forward."""

    def __init__(self, inner: int) -> None:
        self.tokens = 0
        self.channel, self.gradient = torch.zeros(inner, dtype=torch.float64), torch.zeros(inner, dtype=torch.float64)
        self.top = torch.zeros(inner, dtype=torch.int64)


class FFNSums:
    """Sums of one dense feed-forward.

    Args:
        name, layer: as of `FFNStatistics`.
        inner: F.
        top_fraction: of the channels that count as active in a token.
        sample: n.
    """

    def __init__(self, name: str, layer: int, inner: int, top_fraction: float, sample: int) -> None:
        self.name, self.layer, self.inner, self.top_fraction = name, layer, inner, top_fraction
        self.sample = Sample(sample)
        self.with_gradient = False
        self._count = max(1, round(top_fraction * inner))
        self._uses: dict[str, _Channels] = {}

    def add_activations(self, domain: str, hidden: Tensor, inputs: Tensor, priority: Tensor) -> None:
        """Activations [T, F], what made them [T, D], and priorities [T] in the sample; padding left out."""
        size = hidden.abs()
        top = size.topk(self._count, dim=1).indices
        active = torch.zeros_like(size, dtype=torch.bool).scatter_(1, top, True)
        use = self._use(domain)
        use.tokens += len(hidden)
        use.channel += magnitude(hidden).double()
        use.top += active.sum(0).cpu()
        self.sample.offer(priority, inputs=inputs, active=active)

    def add_gradient(self, domain: str, product: Tensor) -> None:
        """Activation times gradient [T, F]."""
        self.with_gradient = True
        self._use(domain).gradient += magnitude(product).double()

    def frozen(self) -> FFNStatistics:
        """The statistics so far.

        Raises:
            CheckpointError: they are not finite.
        """
        uses = list(self._uses.values())
        tokens = sum(use.tokens for use in uses)
        channel = torch.stack([use.channel for use in uses]).sum(0) / max(1, tokens)
        top = torch.stack([use.top for use in uses]).sum(0) / max(1, tokens)
        gradient = torch.stack([use.gradient for use in uses]).sum(0) / max(1, tokens) if self.with_gradient else None
        check_finite(self.name, channel, *([] if gradient is None else [gradient]))
        return FFNStatistics(
            self.name, self.layer, tokens, channel.float(), top.float(), self.top_fraction, self.sample["inputs"],
            pack_bits(self.sample["active"]), None if gradient is None else gradient.float(),
            named({name: self._of_domain(use) for name, use in self._uses.items()}),
        )  # fmt: skip

    def _of_domain(self, use: _Channels) -> ChannelUse:
        count = max(1, use.tokens)
        gradient = (use.gradient / count).float() if self.with_gradient else None
        return ChannelUse(use.tokens, (use.channel / count).float(), (use.top / count).float(), gradient)

    def _use(self, domain: str) -> _Channels:
        if domain not in self._uses:
            self._uses[domain] = _Channels(self.inner)
        return self._uses[domain]
