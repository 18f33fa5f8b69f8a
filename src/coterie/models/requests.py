"""What a request may ask of the routers: fewer or more experts, another draw. Lossy, and never by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from coterie.errors import OptionError
from coterie.models.attach import RouterBridge, session_of
from coterie.models.session import Session
from coterie.routers import Router
from coterie.routers.select import Draw
from coterie.routers.select.threshold import Threshold
from coterie.routing import RouteContext

_OPTIONS = ("k", "p", "mean_experts", "draw")


@dataclass(frozen=True)
class RouteOptions:
    """Request-time options of routers; None leaves what the model was saved with. **Lossy** where it differs.

    Attributes:
        k: experts per token; of a router with a threshold, at most so many.
        p: the threshold.
        mean_experts: experts per token on average, by the calibration stored with the model.
        draw: of a router by lot: token, sequence, batch, average, fixed:0...
        seed: of the draws.

    Raises:
        OptionError: a value that no router could take.
    """

    k: int | None = None
    p: float | None = None
    mean_experts: float | None = None
    draw: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise OptionError(f"k={self.k} is not allowed: ask for 1 expert per token or more.")
        if self.p is not None and not 0 < self.p <= 1:
            raise OptionError(f"p={self.p:g} is not allowed: give a number above 0, up to 1.")
        if self.mean_experts is not None and not self.mean_experts > 0:
            raise OptionError(f"mean_experts={self.mean_experts:g} is not allowed: give a number above 0.")

    @property
    def overrides(self) -> dict[str, Any]:
        """As `coterie.routing.RouteContext` has them."""
        return {name: value for name in _OPTIONS if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        return ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.overrides.items())


def understood(router: Any) -> frozenset[str]:
    """The options that ``router`` reads, found by asking: one item is routed, and every name looked up is noted."""
    asked = _Asked()
    width = getattr(router.score, "width", 0) or 1 if isinstance(router, Router) else 0
    if width:
        one = torch.zeros(1, dtype=torch.int64)
        place = next((tensor.device for tensor in router.state_dict().values()), one.device)
        one = one.to(place)
        context = RouteContext(sequence=one, position=one, ids=one, overrides=asked, mask=one == 0)
        with torch.no_grad():
            router(torch.zeros(1, width, device=place), context)
    names = set(asked.names)
    if _threshold(router) is not None and _threshold(router).stored_curve() is None:  # type: ignore[union-attr]
        names.discard("mean_experts")
    return frozenset(names)


@contextmanager
def routed_as(model: Any, options: RouteOptions) -> Iterator[Session | None]:
    """Route by ``options`` inside the ``with``, counting the experts used; what was set before comes back.

    Raises:
        OptionError: the model's routers do not know such an option.
    """
    session = session_of(model)
    _check(model, session, options)
    if session is None:
        yield None
        return
    before, counted, used = session.base, session.counting, session.usage
    seed = before.seed if options.seed is None else options.seed
    session.base = replace(before, overrides={**before.overrides, **options.overrides}, seed=seed)
    session.counting, session.usage = True, type(used)()
    try:
        yield session
    finally:
        session.base, session.counting, session.usage = before, counted, used


def refuse_unrouted(options: RouteOptions) -> None:
    """For a model without routers of ours.

    Raises:
        OptionError: something is asked of the routers.
    """
    if options.overrides:
        raise OptionError(
            f"{options} asks the routers, and this model has its family's own, which take no such options. Give it "
            "routers of Coterie and train them: coterie train --help"
        )


def most_experts(router: Any, k: int, options: RouteOptions | None = None) -> int:
    """Experts an item may have at most, as far as memory is concerned; ``k`` where the router does not say."""
    overrides: Mapping[str, Any] = {} if options is None else options.overrides
    if not isinstance(router, Router):
        return k
    parts = list(router.select.modules())
    most: int = overrides.get("k") or next((part.k for part in parts if isinstance(part, _HasK)), k)
    if (threshold := _threshold(router)) is not None:
        most = overrides.get("k") or threshold.k_max or router.num_experts
    draw = next((part for part in parts if isinstance(part, Draw)), None)
    if draw is not None and overrides.get("draw", draw.level) == "average":
        most = router.num_experts
    return min(most, router.num_experts)


@runtime_checkable
class _HasK(Protocol):
    """A selection of a number of routes."""

    k: int


class _Asked(Mapping[str, Any]):
    """No options at all, and a note of those that were looked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _threshold(router: Any) -> Threshold | None:
    if not isinstance(router, Router):
        return None
    return next((part for part in router.select.modules() if isinstance(part, Threshold)), None)


def _check(model: Any, session: Session | None, options: RouteOptions) -> None:
    if not options.overrides:
        return
    if session is None:
        refuse_unrouted(options)
        return
    gate = next(module for module in model.modules() if isinstance(module, RouterBridge))
    known = understood(gate.inner)
    for name in options.overrides:
        if name in known:
            continue
        if name == "mean_experts" and "p" in known:
            raise OptionError(
                "--mean-experts needs a calibrated model, and this one is not: call coterie.models.calibrate(model, "
                "ids, target) and save it, or give --p."
            )
        takes = ", ".join(f"--{each.replace('_', '-')}" for each in _OPTIONS if each in known) or "no options"
        raise OptionError(f"The routers of this model do not know --{name.replace('_', '-')}; they take {takes}.")
