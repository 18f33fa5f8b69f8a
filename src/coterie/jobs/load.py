"""`coterie.load`: a transformers model whose experts live in a bounded store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from coterie.errors import OptionError, PromptError
from coterie.jobs.budget import Budget, split_budget
from coterie.jobs.locate import locate
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.footprint import footprint
from coterie.models.language import load_host
from coterie.store import Blob, DiskTier, Key, Store, StoreExperts, Tier
from coterie.store.base import StoreStats
from coterie.store.machine import anonymous_memory


@dataclass
class Residence:
    """Where a loaded model lives: ``model.coterie``. Reading is thread-safe; `close` ends the model's use."""

    checkpoint: Checkpoint
    budget: Budget
    store: Store
    libraries: int
    context: int
    batch: int

    def stats(self) -> StoreStats:
        """Hits, misses, bytes and seconds since loading or the last ``store.reset_stats()``."""
        return self.store.stats()

    @property
    def resident_bytes(self) -> int:
        """Bytes of experts in memory now."""
        return self.store.resident * self.budget.slot_bytes

    def describe(self) -> str:
        """The budget and the store's numbers, for people."""
        return f"{self.budget.describe()}\n{self.stats().describe()}"

    def close(self) -> None:
        """Stop the readers and give the arena back. The model cannot run afterwards."""
        self.store.close()


def load(
    model: str | Path | Checkpoint,
    memory: str | int | None = None,
    *,
    context: int | None = None,
    batch: int = 1,
    policy: str = "stale-first",
    prefetch: str = "none",
    readers: int = 1,
    slots: int | None = None,
    revision: str | None = None,
    tier: Tier | None = None,
) -> Any:
    """A transformers model that generates within ``memory``; exact: the bits do not depend on the budget.

    Args:
        model: a checkpoint directory, a hub name, "pocket", or an opened `Checkpoint`.
        memory: such as "6GiB" or bytes: dense weights, experts, KV cache and workspace together. None takes
            what the machine has free. The interpreter and its libraries are not counted.
        context: tokens of prompt and answer together that the budget makes room for; default 2048 or the
            model's own limit.
        batch: sequences at a time that the budget makes room for.
        policy: which expert leaves: "stale-first", "lru", "lfu".
        prefetch: "none", "previous-step" or "next-gate"; switched off by itself where it does not pay.
        readers: threads that read from disk.
        slots: fewer expert slots than the budget allows (for experiments).
        tier: where bytes come from, for tests; the disk by default.

    Returns the model in eval mode, without gradients, with a `Residence` as ``model.coterie``. Blocks while
    it reads the dense weights; experts are read when first used.

    Raises:
        CheckpointError, UnsupportedError: the checkpoint cannot be served, and why.
        BudgetError: ``memory`` is below the floor or above the machine.
        OptionError: an unknown policy or predictor.
    """
    libraries = anonymous_memory()
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    context = _context(checkpoint, context)
    blobs = {Key(site.name, e): Blob(site.parts(e)) for site in checkpoint.sites for e in range(site.num_experts)}
    slot_bytes = max(blob.slot_bytes for blob in blobs.values())
    budget = split_budget(checkpoint, footprint(checkpoint, batch, context), memory, slot_bytes)
    if slots is not None:
        budget = _with_slots(budget, slots)
    store = Store(budget.slots, budget.slot_bytes, tier=tier or DiskTier(), policy=policy, readers=readers)
    layers = {site.name: site.layer for site in checkpoint.sites}
    for key, blob in blobs.items():
        store.register(key, blob, layer=layers[key.site])

    def factory(site: ExpertSite) -> StoreExperts:
        return StoreExperts(store, site.name, site.num_experts, site.shape)

    try:
        host = load_host(checkpoint, factory)
        _prefetcher(store, host, prefetch)
    except BaseException:
        store.close()
        raise
    host.coterie = Residence(checkpoint, budget, store, libraries, context, batch)
    host.register_forward_pre_hook(_guard, with_kwargs=True)
    return host


def _context(checkpoint: Checkpoint, context: int | None) -> int:
    limit = checkpoint.context_length
    if context is None:
        return min(2048, limit or 2048)
    if limit is not None and context > limit:
        raise OptionError(f"A context of {context} tokens is more than the model's {limit}. Give {limit} or less.")
    return context


def _with_slots(budget: Budget, slots: int) -> Budget:
    if not 1 <= slots <= budget.slots:
        raise OptionError(f"slots must be between 1 and the {budget.slots} that the budget allows, not {slots}.")
    return replace(budget, slots=slots)


def _guard(host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a forward that would outgrow the KV cache the budget made room for, before it allocates."""
    residence: Residence = host.coterie
    inputs = kwargs.get("input_ids", args[0] if args else None)
    inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
    if inputs is None:
        return
    cache = kwargs.get("past_key_values")
    length = inputs.shape[1] + (cache.get_seq_length() if cache is not None else 0)
    if length > residence.context or inputs.shape[0] > residence.batch:
        raise PromptError(
            f"{inputs.shape[0]} sequences of {length} tokens are more than the budget made room for: {residence.batch} "
            f"of {residence.context}. Load with context={length} and batch={inputs.shape[0]}, or more."
        )
