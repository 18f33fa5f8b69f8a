"""Listening to a live model with experts and adding up what `coterie.models.statistics` holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from coterie.errors import OptionError, UnsupportedError
from coterie.experts import Aliased, Experts, FFNShape, Mixed, expert_forward
from coterie.models.attach import attach
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import called_body
from coterie.models.convert import experts_from
from coterie.models.find import MoESite, find_sites
from coterie.models.items import items_of
from coterie.models.statistics import SiteStatistics
from coterie.models.sums import SiteSums, magnitude
from coterie.ops.dispatch import dispatch, group_by_expert
from coterie.routing import Routing

__all__ = ["SAMPLE", "Collection", "collect"]

SAMPLE = 256
# rows of the sample that one expert computes at a time
_ROWS = 512


class Visited(Protocol):
    """Experts that can be had one at a time: `coterie.experts.FFN` and `KindExperts`, `coterie.store.StoreExperts`."""

    num_experts: int
    shape: FFNShape

    def visit(
        self, experts: Sequence[int], dtype: torch.dtype | None = None
    ) -> Iterator[tuple[int, Mapping[str, Tensor]]]: ...


class Collection:
    """What `collect` has heard. Filled by one thread.

    Attributes:
        domain: of the text that is read now; empty where it has none. May be set between forwards.
    """

    def __init__(self, sample: int, seed: int) -> None:
        self.domain = ""
        self.size = sample
        self.sites: dict[str, SiteSums] = {}
        self._experts: dict[str, Visited] = {}
        self._draw = torch.Generator().manual_seed(seed)
        self._mask = torch.empty(0, dtype=torch.bool)
        self._priority = torch.empty(0)

    @torch.no_grad()
    def statistics(self, say: Callable[[int, int], None] = lambda done, total: None) -> dict[str, SiteStatistics]:
        """Everything heard, by site. Applies every expert to the shared sample first: reads each of them once.

        Sites that no token came to (experts for another kind of input) are left out. Blocks. ``say`` is told how many
        layers of how many are done.

        Raises:
            OptionError: nothing was heard.
            CheckpointError: the model computes NaN.
        """
        heard = [sums for sums in self.sites.values() if sums.heard]
        if not heard:
            raise OptionError("Nothing was heard: call the model inside collect.")
        for number, sums in enumerate(heard):
            say(number, len(heard))
            self._apply(sums, self._experts[sums.name])
        return {sums.name: sums.frozen() for sums in heard}

    def _apply(self, sums: SiteSums, experts: Visited) -> None:
        inputs = sums.sample["inputs"]
        for expert, weights in experts.visit(range(experts.num_experts), inputs.dtype):
            output, channel = torch.zeros_like(sums.sample_output[0]), torch.zeros_like(sums.sample_channel[0])
            for rows in inputs.split(_ROWS):
                hidden: list[Tensor] = []
                made = _computed(experts, _beside(rows, weights), weights, hidden.append)
                output += made.sum(0, dtype=torch.float32).cpu()
                channel += magnitude(hidden[0])
            sums.sample_output[expert] = output / max(1, len(inputs))
            sums.sample_channel[expert] = channel / max(1, len(inputs))

    def _begin(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the whole text begins: which of its tokens are real, and each one's lot in the sample."""
        self._mask = items_of(body, args, kwargs).mask.cpu()
        self._priority = torch.rand(len(self._mask), generator=self._draw)

    def _real(self, rows: int) -> Tensor:
        """[rows] which rows of a layer's items are real: all, where the layer does not see the forward's own items."""
        return self._mask if rows == len(self._mask) else torch.ones(rows, dtype=torch.bool)

    def _decided(self, site: MoESite) -> Callable[..., None]:
        """Hears the router: its logits, and its inputs where the experts are not sent plain ones."""

        def listen(gate: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            logits, sums = site.logits(output), self.sites[site.name]
            if isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape[-1] >= site.num_true:
                table = logits.reshape(-1, logits.shape[-1])
                sums.add_logits(table[self._real(len(table)).to(table.device)])
            if _scaled(site) and args:
                self._sample(sums, args[0].reshape(-1, args[0].shape[-1]))

        return listen

    def _arrived(self, site: MoESite, x: Tensor, copies: int) -> Tensor:
        """Items came to a layer; returns which of the rows [T] are real."""
        sums, real = self.sites[site.name], self._real(len(x) // copies)
        sums.add_tokens(self.domain, int(real.sum()))
        if not _scaled(site):
            self._sample(sums, x)
        return real.repeat(copies)

    def _sample(self, sums: SiteSums, x: Tensor) -> None:
        whole = len(x) == len(self._priority)
        priority = self._priority if whole else torch.rand(len(x), generator=self._draw)
        real = self._real(len(x))
        sums.sample.offer(priority[real], inputs=x[real.to(x.device)])


class _Watched(Experts):
    """Experts that compute one after another and tell what each did. The bits of experts in a store."""

    def __init__(self, inner: Visited, site: MoESite, collection: Collection) -> None:
        super().__init__()
        self.inner = cast(Any, inner)
        self.num_experts, self.shape = inner.num_experts, inner.shape
        self._site, self._collection = site, collection

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        sent, collection = dispatch(x, routing), self._collection
        sums = collection.sites[self._site.name]
        real = collection._arrived(self._site, x, self._site.num_experts if _scaled(self._site) else 1)
        rows = sent.new_empty(sent.shape)
        hit = dict(group_by_expert(routing).hit())
        everybody = bool(real.all())
        for expert, weights in self.inner.visit(list(hit), sent.dtype) if hit else ():
            place, hidden = hit[expert], []  # type: ignore[var-annotated]
            inputs = sent[place]
            made = _computed(self.inner, inputs, weights, hidden.append)
            rows[place] = made
            weight, active = routing.weight[place], hidden[0]
            if not everybody:
                own = real.to(place.device)[routing.item[place]]
                weight, inputs, active, made = weight[own], inputs[own], active[own], made[own]
            if len(weight):
                sums.add_rows(collection.domain, expert, weight, inputs, active, made)
        return rows


@contextmanager
def collect(model: Any, *, sample: int = SAMPLE, seed: int = 0) -> Iterator[Collection]:
    """Add up statistics of every forward of ``model`` inside the ``with``. Padding (by the attention mask) is left out.

    The model's experts compute one after another meanwhile, in the bits of `coterie.load`'s; afterwards everything is
    as it was. Forwards run without gradients. One thread.

    Args:
        model: a live transformers model with experts, or one of `coterie.load`, whose store then reads each expert once
            per forward that uses it and layer: few large forwards read little.
        sample: hidden states of each layer that are kept, and that every expert is applied to.
        seed: of the choice of that sample.

    >>> with collect(model) as collection:         # doctest: +SKIP
    ...     model(**tokens)
    ...     sites = collection.statistics()

    Raises:
        OptionError: a sample below one.
        UnsupportedError: the model has no experts, or experts that are kept in a way which tells no activations.
    """
    if sample < 1:
        raise OptionError(f"The sample needs 1 hidden state or more, not {sample}. Try {SAMPLE}.")
    if not find_sites(model):
        raise UnsupportedError(f"{type(model).__name__} has no mixture-of-experts layer. Collect from an MoE model.")
    collection = Collection(sample, seed)
    with attach(model, experts=lambda site, old: _watched(collection, site, old)):
        handles = [called_body(model).register_forward_pre_hook(collection._begin, with_kwargs=True)]
        handles += [site.gate.register_forward_hook(collection._decided(site)) for site in find_sites(model)]
        try:
            with torch.no_grad():
                yield collection
        finally:
            for handle in handles:
                handle.remove()


def _watched(collection: Collection, site: MoESite, old: nn.Module) -> Experts:
    inner: Any = old.inner if isinstance(old, ExpertsBridge) else experts_from(old)
    found, made = _around(inner, site, collection)
    shape = found.shape
    collection._experts[site.name] = found
    collection.sites[site.name] = SiteSums(
        site.name, site.layer, site.top_k, getattr(site, "experts_of", None), found.num_experts, shape.width,
        shape.inner, collection.size,
    )  # fmt: skip
    return made


def _around(experts: Any, site: MoESite, collection: Collection) -> tuple[Visited, Experts]:
    """The experts with weights, and the whole with a listener around them."""
    if isinstance(experts, Aliased):
        found, made = _around(experts.inner, site, collection)
        return found, Aliased(made, experts.experts_of)
    if isinstance(experts, Mixed) and isinstance(experts.parts[0], Experts):
        found, made = _around(experts.parts[0], site, collection)
        rest = [part for part in experts.parts[1:] if isinstance(part, Experts)]
        if not any(hasattr(part, "visit") for part in rest):
            return found, Mixed([made, *rest])
    elif hasattr(experts, "visit"):
        return experts, _Watched(experts, site, collection)
    raise UnsupportedError(
        f"The experts of {site.name} are kept in a way of their own ({type(experts).__name__}) that tells no "
        "activations. Collect the statistics from the model as it was before."
    )


def _scaled(site: MoESite) -> bool:
    """Whether experts get every item once each, scaled by the router, instead of the hidden states (Llama 4)."""
    return site.own is not None and site.own.repeats


def _computed(experts: Visited, rows: Tensor, weights: Mapping[str, Tensor], watch: Callable[[Tensor], None]) -> Tensor:
    """One expert's outputs [n, D], in the bits that it gives unwatched."""
    kind = getattr(experts, "kind", None)
    if kind is None:
        return expert_forward(rows, weights, experts.shape, watch=watch)
    made: Tensor = kind.forward(rows, weights, watch=watch)
    return made


def _beside(rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The rows where the weights are."""
    device = next(iter(weights.values())).device
    return rows.to(device)
