"""What the routers of one model share during one forward.

transformers calls a block with its hidden states and nothing else, so who the items are, and the carry from layer
to layer, are the one state that is not passed. A `Session` holds it for one model, one forward at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from coterie.errors import OptionError, UnsupportedError
from coterie.models.items import Items, cache_of, items_of
from coterie.routers import RouterLike
from coterie.routing import RouteContext, Routing

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


class Given(NamedTuple):
    """What a site was given, and what its router chose, when it was called first."""

    carry: Tensor | None
    chosen: Tensor | None


@dataclass(eq=False)
class Frame:
    """One forward: its items, the carry as far as it has come, and what each site was given.

    A backward pass that computes a layer anew finds here what the layer had the first time. No layer but those
    with routers touches the carry: dense ones pass it on.
    """

    context: RouteContext = field(default_factory=RouteContext)
    carry: Tensor | None = None
    given: dict[str, Given] = field(default_factory=dict)


@dataclass
class Usage:
    """Experts used, counted over sites and forwards; padding is nobody. ``items`` counts an item once per site."""

    assignments: int = 0
    items: int = 0

    @property
    def mean_experts(self) -> float:
        """Per item and site; 0 where nothing was counted."""
        return self.assignments / self.items if self.items else 0.0


class Session:
    """State of one forward at a time, and what is set between forwards. Not thread-safe.

    Attributes:
        base: where every forward's context starts: step, micro_step, total_steps, seed, overrides, bias... What the
            forward itself knows (mask, sequence, position, ids, pass_id, training) is put in its place.
        passes: the batch is this many copies of the same sequences, one after another: sequence is the row modulo
            B / passes, pass_id the row divided by it.
        sequences: [B / passes] int64, ids of the sequences, so that a sequence's keyed draws do not depend on its row;
            where the batch has several rows of each (beams), these lie side by side. None: their rows.
        keep: keep the routings of a forward, graph attached, in ``routings`` until the next begins.
        routings: site name -> routing; of the last forward, where ``keep``.
        counting: add up ``usage``.
        usage: since it was last put back to ``Usage()``.
        causal: no router reads later items. Those that do are refused where a cache is read.
    """

    def __init__(self, *, causal: bool = True) -> None:
        self.base = RouteContext()
        self.passes = 1
        self.sequences: Tensor | None = None
        self.keep = self.counting = False
        self.routings: dict[str, Routing] = {}
        self.usage = Usage()
        self.causal = causal
        self._frame = Frame()

    def begin(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the base model.

        Raises:
            UnsupportedError: a router that reads later items, and a cache; or reentrant gradient checkpointing.
            OptionError: the batch is not ``passes`` copies, or not of ``sequences``.
        """
        if not self.causal and cache_of(body, args, kwargs) is not None:
            raise UnsupportedError(
                "This router chooses by the whole text, later tokens included, so that it cannot generate token by "
                "token with a KV cache. Generate with use_cache=False, or route by a causal router such as top_k."
            )
        if torch.is_grad_enabled() and body.training:
            for layer in body.modules():
                self._follow_checkpointing(layer)
        self.routings = {}
        self._frame = Frame(self._context(items_of(body, args, kwargs), body.training))

    def end(self, *_: object) -> None:
        """A forward hook of the base model: a block called on its own afterwards knows nothing of these items."""
        if not torch.is_grad_enabled():  # else the backward pass may yet compute layers anew, with the same items
            self._frame = Frame()

    def route(self, site: str, router: RouterLike, x: Tensor) -> Routing:
        """What ``router`` decides at ``site`` for ``x`` [T, D].

        A second call of a site within one forward is the backward pass computing a checkpointed layer anew: it
        gets the carry of the first, and its choice is replayed, so that rounding cannot give it other experts.
        """
        frame = self._frame
        before = frame.given.get(site)
        if before is not None and (before.chosen is None or before.chosen.shape[0] == x.shape[0]):
            return router(x, replace(frame.context.at(site, before.carry), chosen=before.chosen))
        carry = frame.carry
        routing = router(x, frame.context.at(site, carry))
        if torch.is_grad_enabled():
            frame.given[site] = Given(carry, routing.chosen)
        if routing.carry is not None:
            frame.carry = routing.carry
        self._note(site, routing)
        return routing

    def peek(self, site: str, router: RouterLike, x: Tensor) -> Routing:
        """What ``router`` would decide now, leaving no trace: for those who guess ahead."""
        return router(x, self._frame.context.at(site, self._frame.carry))

    def checkpointed(self) -> Contexts:
        """Contexts of one checkpointed layer for torch: the first call's, and that of computing it anew."""
        return nullcontext(), self._again(self._frame)

    @contextmanager
    def _again(self, frame: Frame) -> Iterator[None]:
        """Another forward may have begun since: go back to the one the layer belongs to."""
        now, self._frame = self._frame, frame
        try:
            yield
        finally:
            self._frame = now

    def _note(self, site: str, routing: Routing) -> None:
        if self.keep:
            self.routings[site] = routing
        if self.counting:
            mask = self._frame.context.mask
            self.usage.assignments += routing.num_assignments
            self.usage.items += routing.num_items if mask is None else int(mask.sum())

    def _context(self, items: Items, training: bool) -> RouteContext:
        sequence, pass_id = self._who(items)
        return replace(
            self.base, mask=items.mask, sequence=sequence, position=items.position, ids=items.ids, pass_id=pass_id,
            training=training,
        )  # fmt: skip

    def _who(self, items: Items) -> tuple[Tensor, Tensor | int]:
        """[T] sequence of each item, and the pass it belongs to."""
        if self.passes == 1 and self.sequences is None:
            return items.sequence, 0
        rows, left = divmod(items.batch, self.passes)
        if left:
            raise OptionError(f"A batch of {items.batch} rows is not {self.passes} passes over one batch: repeat it.")
        row = items.sequence % rows
        passes = 0 if self.passes == 1 else items.sequence // rows
        if self.sequences is None:
            return row, passes
        each, left = divmod(rows, len(self.sequences))
        if left or not each:
            raise OptionError(f"{len(self.sequences)} sequence ids do not fit {rows} rows: give one for each.")
        return self.sequences.to(row.device)[row // each], passes

    def _follow_checkpointing(self, layer: Any) -> None:
        """See to it that a checkpointed layer, computed anew, finds the forward it belongs to."""
        checkpoint = getattr(layer, "_gradient_checkpointing_func", None)
        if not getattr(layer, "gradient_checkpointing", False) or not isinstance(checkpoint, partial):
            return
        if checkpoint.keywords.get("use_reentrant"):
            raise UnsupportedError(
                "Routers need gradient checkpointing that is not reentrant, or the backward pass would choose other "
                'experts than the forward. Enable it with {"use_reentrant": False}, which is the default.'
            )
        if (contexts := checkpoint.keywords.get("context_fn")) != self.checkpointed and not _is_ours(contexts, self):
            ours = self.checkpointed if contexts is None else partial(_both, self.checkpointed, contexts)
            layer._gradient_checkpointing_func = partial(
                checkpoint.func, *checkpoint.args, **{**checkpoint.keywords, "use_reentrant": False, "context_fn": ours}
            )


def _both(ours: Callable[[], Contexts], others: Callable[[], Contexts]) -> Contexts:
    """Contexts inside contexts."""
    (first, again), (their_first, their_again) = ours(), others()
    return _nested(first, their_first), _nested(again, their_again)


@contextmanager
def _nested(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


def _is_ours(contexts: Any, session: Session) -> bool:
    return isinstance(contexts, partial) and contexts.func is _both and contexts.args[0] == session.checkpointed


def forget_checkpointing(body: nn.Module, session: Session) -> None:
    """Give layers back the checkpointing they had before ``session`` followed it."""
    for layer in body.modules():
        checkpoint: Any = getattr(layer, "_gradient_checkpointing_func", None)
        if not isinstance(checkpoint, partial):
            continue
        contexts = checkpoint.keywords.get("context_fn")
        if contexts == session.checkpointed or _is_ours(contexts, session):
            keywords = {name: value for name, value in checkpoint.keywords.items() if name != "context_fn"}
            if isinstance(contexts, partial):
                keywords["context_fn"] = contexts.args[1]
            layer._gradient_checkpointing_func = partial(checkpoint.func, *checkpoint.args, **keywords)  # type: ignore[assignment]
