"""`coterie.load`: a transformers model whose experts live in a bounded store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coterie.errors import OptionError, PromptError
from coterie.experts import Compile, wants_kernel
from coterie.jobs.locate import locate
from coterie.jobs.running.budget import Budget, split_budget
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.find import MoESite, find_sites
from coterie.models.footprint import footprint
from coterie.models.language import load_host
from coterie.models.linears import use_kernel
from coterie.models.requests import RouteOptions
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
    StoreStats,
    Tier,
)
from coterie.store.machine import anonymous_memory
from coterie.store.predict import NextLayerGate, NoPredictor

# tokens of a prompt that are read at once, so that the workspace does not grow with the prompt
PREFILL = 512


@dataclass
class Residence:
    """Where a loaded model lives: ``model.coterie``. Reading is thread-safe; `close` ends the model's use.

    Attributes:
        context, batch, prefill: tokens and sequences the budget made room for, and most tokens at once of each.
        compiled: single tokens are computed with the kernel the machine made.
        most_experts: per token, that the budget made room for; None where it is the family's own number.
    """

    checkpoint: Checkpoint
    budget: Budget
    store: Store
    context: int
    batch: int
    prefill: int
    compiled: bool = False
    most_experts: int | None = None

    def stats(self) -> StoreStats:
        """Hits, misses, bytes and seconds since loading or the last ``store.reset_stats()``."""
        return self.store.stats()

    @property
    def resident_bytes(self) -> int:
        """Bytes of experts in memory now."""
        return self.store.resident * self.checkpoint.bytes_per_expert

    @property
    def libraries(self) -> int:
        """Bytes of the process now that the budget does not count: interpreter, libraries and their kernels."""
        return max(0, anonymous_memory() - self.budget.fixed - self.resident_bytes)

    def describe(self) -> str:
        """The budget and the store's numbers, for people."""
        return f"{self.budget.describe()}\n{self.stats().describe()}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Residence:
        """Copies of a model live where the model does."""
        return self

    def close(self) -> None:
        """Stop the readers and give the arena back. The model cannot run afterwards."""
        self.store.close()


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

    Returns the model in eval mode, without gradients, with a `Residence` as ``model.coterie``. Blocks while
    it reads the dense weights; experts are read when first used.

    Raises:
        CheckpointError, UnsupportedError: the checkpoint cannot be served, and why.
        BudgetError: ``memory`` is below the floor or above the machine.
        OptionError: an unknown policy or predictor, or a number out of range.
    """
    policies, predictor = POLICIES.get(policy), PREDICTORS.get(prefetch)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    checkpoint = checkpoint if route is None else with_room(checkpoint, route)
    context = context_of(checkpoint, context)
    prefill = prefill if checkpoint.reads_in_pieces else context
    blobs = blobs_of(checkpoint)
    slot_bytes = max(blob.slot_bytes for blob in blobs.values())
    needs = footprint(checkpoint, batch, context, chunk=prefill, all_logits=all_logits)
    budget = _with_slots(split_budget(checkpoint, needs, memory, slot_bytes), slots)
    store = Store(budget.slots, slot_bytes, tier, policy=policies(), readers=readers)
    try:
        host = _host(checkpoint, store, blobs)
        _read_ahead(host, store, predictor)
        compiled = wants_kernel(compile, checkpoint.bytes_per_token)
        use_kernel(host, compiled)
    except BaseException:
        store.close()
        raise
    routed = checkpoint.stored is not None and checkpoint.stored.router is not None
    most = None if not routed else max(site.room for site in checkpoint.sites)
    host.coterie = Residence(checkpoint, budget, store, context, batch, prefill, compiled, most)
    if host.can_generate() and checkpoint.reads_in_pieces:
        host.generation_config.prefill_chunk_size = prefill
    host.register_forward_pre_hook(_guard, with_kwargs=True)
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


def _guard(host: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a forward that would outgrow the KV cache the budget made room for, before it allocates."""
    residence: Residence = host.coterie
    inputs = kwargs.get("input_ids", args[0] if args else None)
    for name in ("inputs_embeds", "decoder_input_ids"):  # a decoder with an encoder beside it has a text of its own
        inputs = kwargs.get(name) if inputs is None else inputs
    if inputs is None:
        return
    if inputs.shape[1] > residence.prefill:
        raise PromptError(
            f"{inputs.shape[1]} tokens at once are more than the budget made room for: {residence.prefill}. "
            f"Load with prefill={inputs.shape[1]}, or use generate, which reads a prompt in pieces."
        )
    cache = kwargs.get("past_key_values")
    length = inputs.shape[1] + (cache.get_seq_length() if cache is not None else 0)
    if length > residence.context or inputs.shape[0] > residence.batch:
        raise PromptError(
            f"{inputs.shape[0]} sequences of {length} tokens are more than the budget made room for: {residence.batch} "
            f"of {residence.context}. Load with context={length} and batch={inputs.shape[0]}, or more."
        )
