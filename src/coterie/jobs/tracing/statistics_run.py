"""A model over a calibration text, once: from the store where it has experts, resident where it is dense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import BudgetError
from coterie.jobs.running.budget import default_memory
from coterie.jobs.running.load import load
from coterie.jobs.tracing.calibration import Part, tables
from coterie.models.checkpoint import Checkpoint
from coterie.models.collect import Collection, collect
from coterie.models.compat import takes, text_inputs
from coterie.models.feed_forwards import ChannelCollection, collect_channels
from coterie.models.language import load_host
from coterie.models.resident import resident_experts
from coterie.units import format_bytes, parse_bytes

__all__ = ["Found", "Run", "collected_bytes"]

# tokens of a forward: experts that are not resident are read once for each forward
_FORWARD = 4096

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Found:
    sites: dict[str, Any]
    ffns: dict[str, Any]
    budget: str
    hit_rate: float | None = None
    bytes_read: int | None = None


class Run:
    """The model over all texts, once."""

    def __init__(
        self, checkpoint: Checkpoint, parts: Sequence[Part], memory: str | int | None, window: int,
        sample: int, seed: int, slots: int | None, say: Say,
    ) -> None:  # fmt: skip
        self.checkpoint, self.parts, self.memory, self.window = checkpoint, parts, memory, window
        self.sample, self.seed, self.slots, self.say = sample, seed, slots, say
        self.batch = max(1, _FORWARD // window)
        self.batch = min(self.batch, max(len(part.text.ids) // window for part in parts) or 1)

    def experts(self) -> Found:
        """From the store."""
        self.say("Loading")
        host = self._hosted(self.checkpoint)
        given: dict[str, Any] = {"logits_to_keep": 1} if takes(host, "logits_to_keep") else {}
        if takes(host, "use_cache"):
            given["use_cache"] = False
        try:
            with collect(host, sample=self.sample, seed=self.seed) as collection:
                for ids in self._pieces(collection):
                    host(input_ids=ids, **text_inputs(host, ids), **given)
                sites = collection.statistics(self._applying)
            stats, budget = host.coterie.stats(), host.coterie.budget.describe()
        finally:
            host.coterie.close()
        words = f"{format_bytes(self._collected(self.checkpoint))} for statistics beside {budget}"
        return Found(sites, {}, words, stats.hit_rate, stats.bytes_read)

    def dense(self, gradients: bool) -> Found:
        """Resident."""
        held = format_bytes(self.checkpoint.dense_bytes)
        _check_memory(self.checkpoint, self.memory)
        self.say(f"Loading {held}: a dense model is resident whole")
        model = load_host(self.checkpoint, resident_experts)
        with collect_channels(model, sample=self.sample, seed=self.seed) as collection:
            for ids in self._pieces(collection):
                if gradients:
                    from coterie.training.saliency import add_saliency

                    add_saliency(model, collection, ids)
                else:
                    with torch.no_grad():
                        model(input_ids=ids, use_cache=False)
            ffns = collection.statistics()
        return Found({}, ffns, f"{held} of weights, all resident")

    def _pieces(self, collection: Collection | ChannelCollection) -> Iterator[Tensor]:
        """[B, N] tables of full windows, the domain set for each; a shorter rest is a table of its own."""
        total, done, began = sum(len(part.text.ids) for part in self.parts), 0, time.monotonic()
        for part in self.parts:
            collection.domain = part.domain
            for ids in tables(part.text.ids, self.window, self.batch):
                left = (time.monotonic() - began) / done * (total - done) if done else None
                self.say(
                    f"Reading {part.text.name}: {done:,} of {total:,} tokens"
                    + ("" if left is None else f", about {left:.0f} s left")
                )
                yield ids
                done += ids.numel()

    def _applying(self, done: int, total: int) -> None:
        self.say(f"Applying every expert to the sample: layer {done + 1} of {total}")

    def _collected(self, checkpoint: Checkpoint) -> int:
        return collected_bytes(checkpoint, len({part.domain for part in self.parts}), self.sample)

    def _hosted(self, checkpoint: Checkpoint) -> Any:
        """The model, with as many sequences per forward as the budget has room for beside the statistics."""
        extra = self._collected(checkpoint)
        total = default_memory() if self.memory is None else parse_bytes(self.memory)
        while True:
            try:
                return load(
                    checkpoint, max(1, total - extra), context=self.window, batch=self.batch, prefill=self.window,
                    slots=self.slots, compile=False,
                )  # fmt: skip
            except BudgetError as error:
                if self.batch == 1:
                    raise BudgetError(
                        f"Of {format_bytes(total)}, {format_bytes(extra)} are for what is collected. What is left for "
                        f"the model, {format_bytes(max(0, total - extra))}, is not enough. {error} Add "
                        f"{format_bytes(extra)} to that."
                    ) from error
                self.batch //= 2


def collected_bytes(checkpoint: Checkpoint, domains: int, sample: int) -> int:
    """Sums of all layers, and the statistics made of them."""
    total = 0
    for site in checkpoint.sites:
        experts, width, inner = site.num_experts, site.shape.width, site.shape.inner
        sums = experts * (inner * (domains + 1) + 2 * width) * 4
        total += 2 * sums + 2 * sample * width * checkpoint.compute_dtype.itemsize + 2 * 8 * experts * experts
    return total


def _check_memory(dense: Checkpoint, memory: str | int | None) -> None:
    if memory is None:
        return
    given, need = parse_bytes(memory), dense.dense_bytes
    if given < need:
        raise BudgetError(
            f"--memory {memory} ({format_bytes(given)}) is below the weights of this model, {format_bytes(need)}: a "
            "dense model has no experts that could stay on disk, so all of it is resident. Give more than that."
        )
