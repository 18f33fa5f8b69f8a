"""Putting our routers and experts into a live transformers model, and taking them out again.

Gate and experts are replaced separately, never the block between them: families call their gates in
ways of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.experts import Experts
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import accept_sentinels, called_body, install_recorders, is_experts, recorders_installed
from coterie.models.find import MoESite, find_sites
from coterie.models.session import Session, forget_checkpointing
from coterie.routers import Router, RouterLike

ExpertsFactory = Callable[[MoESite, nn.Module], Experts]
RouterFactory = Callable[[MoESite, nn.Module], RouterLike]


class RouterBridge(nn.Module):
    """Stands where transformers has a router and calls ours. Always subclassed together with the router's class."""

    inner: Any
    site: str
    session: Session
    top_k: int
    num_experts: int
    extra_experts: int

    def take(self, site: MoESite, router: Any, session: Session) -> None:
        """In place of ``__init__``, which would be that of the router's class."""
        nn.Module.__init__(self)
        if type(router) is Router:  # its parts take the gate's place by name too: "...gate.score.weight"
            self.__dict__["inner"] = router
            for name, part in router.named_children():
                self.add_module(name, part)
        else:
            self.inner = router
        self.site, self.session = site.name, session
        self.top_k, self.num_experts = site.top_k, router.num_experts
        self.extra_experts = router.num_experts - site.num_true
        self._is_hf_initialized = True  # transformers would initialise what the class it replaces has

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., D] -> logits [T, R], weights and indices [T, K]; index E is no expert."""
        routing = self.session.route(self.site, self.inner, hidden_states.reshape(-1, hidden_states.shape[-1]))
        weights, indices = routing.padded()
        if not indices.shape[1]:  # nobody goes anywhere; tables without columns are not for everyone
            weights, indices = routing.padded(1)
        logits = routing.dense() if routing.logits is None else routing.logits
        return logits, weights, indices

    def choices(self, x: Tensor) -> Tensor:
        """[T, K] experts it would choose for ``x`` [T, D], E where none; recorded nowhere."""
        return self.session.peek(self.site, self.inner, x).padded()[1]


@dataclass(frozen=True, eq=False)
class Attachment:
    """What `attach` did; ``undo`` takes it back, as leaving a ``with`` does.

    Attributes:
        model: changed in place.
        sites: with the modules that were there before.
        session: of the routers attached; where none were, of those the model has.
    """

    model: Any
    sites: tuple[MoESite, ...]
    session: Session
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

    Gradient checkpointing may be on or off, as long as it is not reentrant.

    Raises:
        UnsupportedError: the model does not route, or calls its routers in a way of its own.
    """
    sites = tuple(find_sites(model))
    if not sites:
        raise UnsupportedError(f"{type(model).__name__} has no mixture-of-experts layer. Attach to an MoE model.")
    undo: list[Callable[[], None]] = []
    session = session_of(model) or Session()
    if router is not None:
        session = Session()
        undo.append(_attach_routers(model, sites, router, session))
    if experts is not None:
        undo.append(_attach_experts(model, sites, experts))

    def undo_all() -> None:
        while undo:
            undo.pop()()

    return Attachment(model, sites, session, undo_all)


def _attach_experts(model: Any, sites: tuple[MoESite, ...], factory: ExpertsFactory) -> Callable[[], None]:
    made = [ExpertsBridge(factory(site, site.experts), site.experts) for site in sites]
    for site, bridge in zip(sites, made, strict=True):
        model.set_submodule(site.name, bridge)

    def undo() -> None:
        for site in sites:
            model.set_submodule(site.name, site.experts)

    return undo


def session_of(model: Any) -> Session | None:
    """The session of the routers attached to ``model``; None where there are none."""
    return next((module.session for module in model.modules() if isinstance(module, RouterBridge)), None)


def _attach_routers(
    model: Any, sites: tuple[MoESite, ...], factory: RouterFactory, session: Session
) -> Callable[[], None]:
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
    body, called = model.base_model, called_body(model)
    made = [_bridged(site, factory(site, site.gate), session) for site in sites]
    session.causal = all(gate.inner.causal for gate in made)
    recorded = recorders_installed(body)
    for site, gate in zip(sites, made, strict=True):
        if recorded:
            install_recorders(body, gate)
        model.set_submodule(site.gate_name, gate)
    skipping = [(site.experts, accept_sentinels(site.experts)) for site in sites if is_experts(site.experts)]
    handles = [
        called.register_forward_pre_hook(session.begin, with_kwargs=True),
        called.register_forward_hook(session.end, always_call=True),
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        forget_checkpointing(body, session)
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
    kind: Any = original
    if not issubclass(original, RouterBridge):  # else a router of ours is replaced by another
        kind = type(f"Bridged{original.__name__}", (RouterBridge, original), {"__module__": RouterBridge.__module__})
    bridge: RouterBridge = kind.__new__(kind)
    bridge.take(site, router, session)
    return bridge.train(site.gate.training)
