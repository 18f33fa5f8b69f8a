"""Running sums behind `coterie.models.statistics`: what one layer did, forward after forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from coterie.errors import CheckpointError
from coterie.models.channel_statistics import ChannelUse
from coterie.models.statistics import DomainUse, SiteStatistics

_Counted = TypeVar("_Counted", DomainUse, ChannelUse)


class Sample:
    """The n rows of smallest priority among all that were offered. Deterministic.

    Args:
        size: n.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._priority = torch.empty(0)
        self._tables: dict[str, Tensor] = {}

    def offer(self, priority: Tensor, **tables: Tensor) -> None:
        """Rows with their priorities [T]; what belongs to a row may lie in several tables [T, ...]."""
        merged = torch.cat([self._priority, priority])
        kept = merged.argsort(stable=True)[: self.size].sort().values
        old, new = kept[kept < len(self._priority)], kept[kept >= len(self._priority)] - len(self._priority)
        self._priority = merged[kept]
        for name, table in tables.items():
            before = self._tables.get(name)
            chosen = table[new.to(table.device)].detach().cpu()
            self._tables[name] = chosen.clone() if before is None else torch.cat([before[old], chosen])

    def __getitem__(self, name: str) -> Tensor:
        return self._tables[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tables


class _Use:
    """Counts of one domain."""

    def __init__(self, experts: int, inner: int) -> None:
        self.tokens = 0
        self.usage = torch.zeros(experts, dtype=torch.int64)
        self.gate = torch.zeros(experts, dtype=torch.float64)
        self.channel = torch.zeros(experts, inner)

    def frozen(self) -> DomainUse:
        return DomainUse(self.tokens, self.usage.float(), self.gate.float(), per_token(self.channel, self.usage))


class SiteSums:
    """Sums of one layer with experts. Rows come one expert at a time; their order changes no bit.

    Args:
        name, layer, top_k, experts_of: as of `SiteStatistics`.
        experts, width, inner: E, D, F.
        sample: n.
    """

    def __init__(
        self, name: str, layer: int, top_k: int, experts_of: tuple[int, ...] | None, experts: int, width: int,
        inner: int, sample: int,
    ) -> None:  # fmt: skip
        self.name, self.layer, self.top_k, self.experts_of = name, layer, top_k, experts_of
        self._experts, self._inner = experts, inner
        self._uses: dict[str, _Use] = {}
        self._norm, self._reap = (torch.zeros(experts, dtype=torch.float64) for _ in range(2))
        self._input = torch.zeros(experts, width)
        self._gram: Tensor | None = None
        self._logit = torch.empty(0)
        self._logit_tokens = 0
        self.sample = Sample(sample)
        self.sample_output, self.sample_channel = torch.zeros(experts, width), torch.zeros(experts, inner)

    @property
    def heard(self) -> bool:
        """Whether any token came through."""
        return any(use.tokens for use in self._uses.values())

    def add_tokens(self, domain: str, count: int) -> None:
        """Tokens of a domain that came to the layer."""
        self._use(domain).tokens += count

    def add_logits(self, logits: Tensor) -> None:
        """[T, R] of the router.

        Raises:
            CheckpointError: there is a NaN among them.
        """
        wide = logits.detach().cpu().double()
        if bool(torch.isnan(wide).any()):
            raise CheckpointError(not_finite(f"the router of {self.name}"))
        wide = wide[torch.isfinite(wide).all(1)]  # routers that forbid an expert say so with -inf
        if self._gram is None:
            self._gram = torch.zeros(wide.shape[1], wide.shape[1], dtype=torch.float64)
            self._logit = torch.zeros(wide.shape[1], dtype=torch.float64)
        self._gram += wide.T @ wide
        self._logit += wide.sum(0)
        self._logit_tokens += len(wide)

    def add_rows(
        self, domain: str, expert: int, weight: Tensor, inputs: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """What one expert did in a forward: weights [m], inputs [m, D], activations [m, F] and outputs [m, D]."""
        norm = torch.linalg.vector_norm(output, dim=1, dtype=_wide(output)).double().cpu()
        wide = weight.detach().double().cpu()
        use = self._use(domain)
        use.usage[expert] += len(wide)
        use.gate[expert] += wide.sum()
        use.channel[expert] += magnitude(hidden)
        self._norm[expert] += norm.sum()
        self._reap[expert] += (wide * norm).sum()
        self._input[expert] += inputs.sum(0, dtype=torch.float32).cpu()

    def frozen(self) -> SiteStatistics:
        """The statistics so far.

        Raises:
            CheckpointError: they are not finite.
        """
        uses = {name: use.frozen() for name, use in self._uses.items()}
        usage = sum((use.usage for use in self._uses.values()), torch.zeros(self._experts, dtype=torch.int64))
        gate = sum((use.gate for use in self._uses.values()), torch.zeros(self._experts, dtype=torch.float64))
        channel = sum((use.channel for use in self._uses.values()), torch.zeros(self._experts, self._inner))
        made = SiteStatistics(
            self.name, self.layer, self.top_k, sum(use.tokens for use in self._uses.values()), usage.float(),
            gate.float(), per_token(self._norm, usage), per_token(self._reap, usage), per_token(self._input, usage),
            per_token(channel, usage), self.sample["inputs"], self.sample_output, self.sample_channel,
            logit_gram=self._gram,
            logit_mean=None if self._gram is None else (self._logit / max(1, self._logit_tokens)).float(),
            logit_tokens=self._logit_tokens, experts_of=self.experts_of, domains=named(uses),
        )  # fmt: skip
        check_finite(self.name, made.output_norm, made.channel, made.sample_output, made.sample_channel)
        return made

    def _use(self, domain: str) -> _Use:
        if domain not in self._uses:
            self._uses[domain] = _Use(self._experts, self._inner)
        return self._uses[domain]


def magnitude(rows: Tensor) -> Tensor:
    """[m, F] -> [F] float32 or wider: the sum of absolute values, without such a copy of all rows."""
    return torch.linalg.vector_norm(rows.detach(), 1, dim=0, dtype=_wide(rows)).cpu()


def _wide(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def per_token(sums: Tensor, counts: Tensor) -> Tensor:
    """Means as float32, 0 where nothing was counted."""
    divisor = counts.clamp(min=1).view(-1, *[1] * (sums.dim() - 1))
    return (sums / divisor).float()


def check_finite(name: str, *tables: Tensor) -> None:
    """Refuse statistics that say nothing.

    Raises:
        CheckpointError: a number is NaN or infinite.
    """
    if not all(bool(torch.isfinite(table).all()) for table in tables):
        raise CheckpointError(not_finite(name))


def not_finite(where: str) -> str:
    """What to tell the owner of a model that computes NaN."""
    return (
        f"The model computes numbers that are not finite in {where}: a weight there or below is NaN or far too large. "
        "Copy or download the checkpoint again, or train it on from an earlier one."
    )


def named(uses: Mapping[str, _Counted]) -> dict[str, _Counted]:
    """Those of domains; text that was given without one has no name."""
    return {name: use for name, use in uses.items() if name}
