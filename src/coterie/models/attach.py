"""Putting our routers and experts into a live transformers model, and taking them out again.

Gate and experts are replaced separately, never the block between them: families call their gates in
ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.experts import Experts
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import accept_sentinels, install_recorders, is_experts, recorders_installed
from coterie.models.find import MoESite, find_sites
from coterie.models.items import items_of
from coterie.routers import RouterLike
from coterie.routing import RouteContext

ExpertsFactory = Callable[[MoESite, nn.Module], Experts]
RouterFactory = Callable[[MoESite, nn.Module], RouterLike]


class Session:
    """What the routers of one model share during one forward: items, and the carry from layer to layer.

    transformers calls a block with its hidden states and nothing else, so this is the one state that is not
    passed. One forward at a time.
    """

    def __init__(self) -> None:
        self.context = RouteContext()
        self.carry: Tensor | None = None

    def begin(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the base model."""
        items = items_of(body, args, kwargs)
        self.carry = None
        self.context = RouteContext(
            mask=items.mask, sequence=items.sequence, position=items.position, ids=items.ids, training=body.training
        )

    def end(self, *_: object) -> None:
        """A forward hook of the base model: a block called on its own afterwards knows nothing of these items."""
        if not torch.is_grad_enabled():  # else the backward pass may yet recompute layers, with the same items
            self.context, self.carry = RouteContext(), None


class RouterBridge(nn.Module):
    """Stands where transformers has a router and calls ours. Always subclassed together with the router's class."""

    inner: Any
    site: str
    session: Session
    top_k: int
    num_experts: int

    def take(self, site: MoESite, router: Any, session: Session) -> None:
        """In place of ``__init__``, which would be that of the router's class."""
        nn.Module.__init__(self)
        self.inner, self.site, self.session = router, site.name, session
        self.top_k, self.num_experts = site.top_k, router.num_experts

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., D] -> logits [T, R], weights and indices [T, K]; index E is no expert."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = self.inner(x, self.session.context.at(self.site, self.session.carry))
        self.session.carry = routing.carry
        weights, indices = routing.padded()
        logits = routing.dense() if routing.logits is None else routing.logits
        return logits, weights, indices


@dataclass(frozen=True, eq=False)
class Attachment:
    """What `attach` did; ``undo`` takes it back, as leaving a ``with`` does."""

    model: Any
    sites: tuple[MoESite, ...]
    _undo: Callable[[], None]

    def undo(self) -> None:
        """Put the original modules back, with recorders in working order."""
        self._undo()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def attach(model: Any, experts: ExpertsFactory | None = None, router: RouterFactory | None = None) -> Attachment:
    """Replace experts and/or routers of every MoE block of ``model``, in place.

    Args:
        model: a live transformers model, or one of `coterie.models.load_host`.
        experts: (site, its experts) -> ours, such as ``lambda site, old: experts_from(old)``.
        router: (site, its gate) -> ours, such as ``lambda site, old: router_from(old, model.config)``.

    ``generate`` and ``output_router_logits`` keep working. Parameters of ours are the model's from then on;
    what is saved loads without Coterie only if nothing was attached. Not thread-safe: one forward at a time
    where routers are attached.

    Raises:
        UnsupportedError: the model does not route; or a router that carries from layer to layer meets gradient
            checkpointing, which would call it out of order.
    """
    sites = tuple(find_sites(model))
    if not sites:
        raise UnsupportedError(f"{type(model).__name__} has no mixture-of-experts layer. Attach to an MoE model.")
    undo: list[Callable[[], None]] = []
    if router is not None:
        undo.append(_attach_routers(model, sites, router))
    if experts is not None:
        undo.append(_attach_experts(model, sites, experts))

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return Attachment(model, sites, undo_all)


def _attach_experts(model: Any, sites: tuple[MoESite, ...], factory: ExpertsFactory) -> Callable[[], None]:
    made = [ExpertsBridge(factory(site, site.experts), site.experts) for site in sites]
    for site, bridge in zip(sites, made, strict=True):
        model.set_submodule(site.name, bridge)

    def undo() -> None:
        for site in sites:
            model.set_submodule(site.name, site.experts)

    return undo


def _attach_routers(model: Any, sites: tuple[MoESite, ...], factory: RouterFactory) -> Callable[[], None]:
    for site in sites:
        if not site.gate_takes_rows:
            raise UnsupportedError(
                f"The router {site.gate_name} decides by more than its input; one that is given the input alone cannot "
                "take its place. Attach experts only."
            )
    if not all(site.gate_is_usual for site in sites) or model.config.is_encoder_decoder:
        raise UnsupportedError(
            f"The layers of {type(model).__name__} call their routers in a way of their own, which no router of ours "
            "can answer. Attach experts alone."
        )
    body, session = model.base_model, Session()
    made = [_bridged(site, factory(site, site.gate), session) for site in sites]
    if any(gate.inner.carries for gate in made) and getattr(model, "is_activation_checkpointing", False):
        raise UnsupportedError(
            "A router that carries from layer to layer cannot be attached under gradient checkpointing. "
            "Call model.activation_checkpointing_disable() first."
        )
    recorded = recorders_installed(body)
    for site, gate in zip(sites, made, strict=True):
        if recorded:
            install_recorders(body, gate)
        model.set_submodule(site.gate_name, gate)
    skipping = [(site.experts, accept_sentinels(site.experts)) for site in sites if is_experts(site.experts)]
    handles = [
        body.register_forward_pre_hook(session.begin, with_kwargs=True),
        body.register_forward_hook(session.end),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for module, before in skipping:
            accept_sentinels(module, before)
        for site in sites:
            if recorders_installed(body) and not recorded:
                install_recorders(body, site.gate)
            model.set_submodule(site.gate_name, site.gate)

    return undo


def _bridged(site: MoESite, router: Any, session: Session) -> RouterBridge:
    """A `RouterBridge` that is an instance of the class it replaces, so that recorder hooks match."""
    original = type(site.gate)
    kind: Any = type(f"Bridged{original.__name__}", (RouterBridge, original), {"__module__": RouterBridge.__module__})
    bridge: RouterBridge = kind.__new__(kind)
    bridge.take(site, router, session)
    return bridge.train(site.gate.training)
