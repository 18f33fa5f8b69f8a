"""`coterie.load`: a transformers model whose experts live in a bounded store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts import Compile, wants_kernel
from coterie.jobs.locate import locate
from coterie.jobs.running.budget import Budget, split_budget
from coterie.jobs.running.residence import Residence, guard
from coterie.jobs.running.warm import checked_statistics, fill, most_used, primed, rates
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.find import MoESite, find_sites
from coterie.models.footprint import footprint
from coterie.models.language import load_host
from coterie.models.linears import use_kernel
from coterie.models.requests import RouteOptions
from coterie.models.statistics import Statistics
from coterie.store import (
    POLICIES,
    PREDICTORS,
    Blob,
    Governor,
    Key,
    Predictor,
    Prefetcher,
    Store,
    StoreExperts,
    Tier,
)
from coterie.store.predict import NextLayerGate, NoPredictor

# tokens of a prompt that are read at once, so that the workspace does not grow with the prompt
PREFILL = 512


def load(
    model: str | Path | Checkpoint,
    memory: str | int | None = None,
    *,
    context: int | None = None,
    batch: int = 1,
    prefill: int = PREFILL,
    all_logits: bool = False,
    policy: str = "stale-first",
    prefetch: str = "none",
    readers: int = 1,
    slots: int | None = None,
    revision: str | None = None,
    tier: Tier | None = None,
    compile: Compile = "auto",
    route: RouteOptions | None = None,
    statistics: str | Path | Statistics | None = None,
) -> Any:
    """A transformers model that generates within ``memory``. Exact: the bits do not depend on the budget.

    Args:
        model: a checkpoint directory, a hub name, "pocket", or an opened `Checkpoint`.
        memory: such as "6GiB" or bytes: dense weights, experts, KV cache and workspace together. None takes
            what the machine has free. The interpreter and its libraries are not counted.
        context: tokens of prompt and answer together that the budget makes room for; default 2048 or the
            model's own limit.
        batch: sequences at a time that the budget makes room for.
        prefill: most tokens of a sequence in one forward; ``generate`` reads longer prompts in pieces. The few
            families that cannot continue a prompt read it whole.
        all_logits: make room for logits of all tokens of a forward, where ``generate`` needs the last only.
        policy: which expert leaves: "stale-first", "lru", "lfu".
        prefetch: "none", "previous-step" or "next-gate"; switched off by itself where it does not pay.
        readers: threads that read from disk.
        slots: fewer expert slots than the budget allows (for experiments).
        tier: where bytes come from, for tests; the disk by default.
        compile: compute single tokens with a kernel that the machine's C compiler makes (a second or two, once per
            process), about twice as fast as torch's products; other bits than without. "auto" does where a token
            reads so much that it pays and there is a compiler: the same for every budget.
        route: what requests will ask of the routers, so that there is memory for it: with ``k`` or
            ``draw="average"`` more than the model was saved with. `coterie.models.routed_as` asks.
        statistics: of this model on a text like what is to come (`coterie.jobs.collect_statistics`, or its file): the
            experts that it used most are read now, and "lfu" begins with what it counted. Reads that the first request
            would have waited for are waited for here.

    Returns the model in eval mode, without gradients, with a `Residence` as ``model.coterie``. Blocks while
    it reads the dense weights; experts are read when first used.

    Raises:
        CheckpointError, UnsupportedError: the checkpoint cannot be served, and why; or the statistics are of another.
        BudgetError: ``memory`` is below the floor or above the machine.
        OptionError: an unknown policy or predictor, or a number out of range.
    """
    predictor = PREDICTORS.get(prefetch)
    POLICIES.get(policy)  # an unknown name is refused before anything is read
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    checkpoint = checkpoint if route is None else with_room(checkpoint, route)
    used = {} if statistics is None else rates(checkpoint, checked_statistics(statistics, checkpoint))
    context = context_of(checkpoint, context)
    prefill = prefill if checkpoint.reads_in_pieces else context
    blobs = blobs_of(checkpoint)
    slot_bytes = max(blob.slot_bytes for blob in blobs.values())
    needs = footprint(checkpoint, batch, context, chunk=prefill, all_logits=all_logits)
    budget = _with_slots(split_budget(checkpoint, needs, memory, slot_bytes), slots)
    store = Store(budget.slots, slot_bytes, tier, policy=primed(policy, used), readers=readers)
    try:
        host = _host(checkpoint, store, blobs)
        _read_ahead(host, store, predictor)
        compiled = wants_kernel(compile, checkpoint.bytes_per_token)
        use_kernel(host, compiled)
        layers = {site.name: site.layer for site in checkpoint.sites}
        warm = fill(store, most_used(used, budget.slots), layers) if used else 0
    except BaseException:
        store.close()
        raise
    routed = checkpoint.stored is not None and checkpoint.stored.router is not None
    most = None if not routed else max(site.room for site in checkpoint.sites)
    host.coterie = Residence(checkpoint, budget, store, context, batch, prefill, compiled, most, warm)
    if host.can_generate() and checkpoint.reads_in_pieces:
        host.generation_config.prefill_chunk_size = prefill
    host.register_forward_pre_hook(guard, with_kwargs=True)
    return host


def _host(checkpoint: Checkpoint, store: Store, blobs: Mapping[Key, Blob]) -> Any:
    layers = {site.name: site.layer for site in checkpoint.sites}
    for key, blob in blobs.items():
        store.register(key, blob, layer=layers[key.site])
    scratches: dict[str, Mapping[str, Tensor]] = {}

    def experts(site: ExpertSite) -> StoreExperts:
        alike = repr(site.storage)  # layers compute one after another: those alike share the memory
        if alike not in scratches:
            scratches[alike] = site.storage.scratch(site.dtype)
        return StoreExperts(
            store, site.name, site.num_experts, site.shape, storage=site.storage, scratch=scratches[alike],
            kind=site.kind,
        )  # fmt: skip

    return load_host(checkpoint, experts)


def _read_ahead(host: nn.Module, store: Store, make: Callable[..., Predictor]) -> None:
    """Give every layer the one prefetcher, or none where there is nothing to predict."""
    found = find_sites(host)
    sites = {site.name: partial(_guess, site) for site in found}
    predictor = make(list(sites), sites)
    if isinstance(predictor, NoPredictor):
        return
    if isinstance(predictor, NextLayerGate) and not all(site.gate_takes_rows for site in found):
        raise OptionError(
            "The routers of this model decide by more than their input, so that they cannot be asked ahead. Instead of "
            '"next-gate" choose "previous-step" or "none".'
        )
    prefetcher = Prefetcher(store, predictor, list(sites)[-1], Governor())
    for module in host.modules():
        if isinstance(module, StoreExperts):
            module.prefetcher = prefetcher


def _guess(site: MoESite, x: Tensor) -> Tensor:
    """Experts that the router of ``site`` would choose for the rows, in a list."""
    chosen = site.choices(x)
    experts = site.experts_at(chosen)
    return experts[experts < site.num_stored]


def blobs_of(checkpoint: Checkpoint) -> dict[Key, Blob]:
    """Where each expert lies, as the store reads it."""
    return {Key(site.name, e): Blob(site.parts(e)) for site in checkpoint.sites for e in range(site.num_experts)}


def with_room(checkpoint: Checkpoint, route: RouteOptions) -> Checkpoint:
    """The checkpoint with memory for what ``route`` asks of its routers."""

    def room(site: ExpertSite) -> int:
        if route.draw == "average":
            return site.num_experts
        return site.room if route.k is None else min(route.k, site.num_experts)

    return replace(checkpoint, sites=tuple(replace(site, most=room(site)) for site in checkpoint.sites))


def context_of(checkpoint: Checkpoint, context: int | None) -> int:
    """Tokens to make room for where ``context`` was asked for, None being 2048 or the model's own limit.

    Raises:
        OptionError: it is more than the model was made for.
    """
    limit = checkpoint.context_length
    if context is None:
        return min(2048, limit or 2048)
    if limit is not None and context > limit:
        raise OptionError(f"A context of {context} tokens is more than the model's {limit}. Give {limit} or less.")
    return context


def _with_slots(budget: Budget, slots: int | None) -> Budget:
    if slots is None:
        return budget
    if not 1 <= slots <= budget.slots:
        raise OptionError(f"slots must be between 1 and the {budget.slots} that the budget allows, not {slots}.")
    return replace(budget, slots=slots)
