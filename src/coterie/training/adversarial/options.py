"""How to learn under attack: regime, losses, attack, optimisers of experts and router."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from coterie.errors import OptionError
from coterie.training.adversarial.attacks import Attack

Regime = Literal["joint", "alternating", "released"]
Form = Literal["trades", "pgd"]
Precision = Literal["no", "bf16", "fp16"]
RouterNorm = Literal["batch", "running", "moving"]


@dataclass(frozen=True)
class RobustLosses:
    """What a step costs, in nats; the terms of the router cost nothing in a phase in which it does not learn.

    Attributes:
        form: "trades": CE(f(x), y) + beta * KL(f(x) || f(x')), or "pgd": CE(f(x'), y).
        beta: of the divergence.
        drift: eta, of KL(s(x) || s(x')), the router's own divergence. In the released regime it weighs both terms of
            the router, as published.
        balance: of N * sum_e f_e P_e, 1 where routes are used evenly; the mean of clean and perturbed images.
        z: of the mean squared log-sum-exp of the router's logits, which bounds them.

    Raises:
        OptionError: an unknown form, or a coefficient below 0.
    """

    form: Form = "trades"
    beta: float = 6.0
    drift: float = 0.0
    balance: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        _check_word("form", self.form, Form)
        for name in ("beta", "drift", "balance", "z"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise OptionError(f"losses: {name} must be at least 0, not {getattr(self, name)}.")

    @property
    def of_router(self) -> tuple[str, ...]:
        """Names of the terms that need a router and are not 0."""
        return tuple(name for name in ("drift", "balance", "z") if getattr(self, name))


@dataclass(frozen=True)
class Descent:
    """An optimiser. The rate falls along half a cosine to 0 at the last step.

    Attributes:
        kind: "sgd" with momentum, or "adam".
        rate: at the first step.
        momentum: of SGD.
        weight_decay: of all parameters.

    Raises:
        OptionError: a value is not allowed.
    """

    kind: Literal["sgd", "adam"] = "sgd"
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        _check_word("kind", self.kind, Literal["sgd", "adam"])
        if not (math.isfinite(self.rate) and self.rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise OptionError(
                f"rate must be above 0, momentum in [0, 1) and weight_decay at least 0, not {self.rate}, "
                f"{self.momentum} and {self.weight_decay}."
            )

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A torch optimiser of ``parameters``."""
        if self.kind == "adam":
            return torch.optim.Adam(parameters, lr=self.rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay
        )  # fmt: skip

    def rate_at(self, step: int, steps: int) -> float:
        """At ``step`` (updates done before it) of ``steps``."""
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class RobustOptions:
    """Everything of a robust training but model and images.

    Attributes:
        regime: "joint": one step of everything, which is also how a dense network learns; "alternating": AdvMoE, the
            experts' step and the router's in turn, on batches of their own; "released": the published code's, whose
            router learns the label modulo the number of experts, for comparison.
        epochs, batch: passes over the images, and images of a step. An epoch leaves out the images that do not fill a
            batch, by lot.
        losses, attack: of every step. Without an attack: 10 steps of 2/255 within 8/255, with the aim of the regime.
        experts, router: how the experts, with all they share, and the router descend; None: the router as they do.
        router_norm: what the experts' batch norms go by while the router learns: those of the "batch", as while the
            experts learn, or the "running" ones; neither moves the running ones. "moving" is "batch" and does.
        augment: crop (4 pixels) and flip.
        precision: "no" is float32; "bf16" and "fp16" are mixed, the latter on a GPU alone.
        save_every, validate_every: epochs.
        validation: the attack that best checkpoints are chosen by; None: that of training, from a uniform start, on
            the cross entropy.
        log_every: steps.

    Raises:
        OptionError: a value is not allowed.
    """

    regime: Regime = "joint"
    epochs: int = 100
    batch: int = 128
    losses: RobustLosses = field(default_factory=RobustLosses)
    attack: Attack | None = None
    experts: Descent = field(default_factory=Descent)
    router: Descent | None = None
    router_norm: RouterNorm = "batch"
    augment: bool = True
    precision: Precision = "no"
    save_every: int = 1
    validate_every: int = 1
    validation: Attack | None = None
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for what, kind in (("regime", Regime), ("precision", Precision), ("router_norm", RouterNorm)):
            _check_word(what, getattr(self, what), kind)
        for name in ("epochs", "batch", "save_every", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"A seed is a whole number from 0 to 4294967295, not {self.seed}.")

    @property
    def ascent(self) -> Attack:
        """The attack that is trained on."""
        return self.attack or training_attack(self.regime, self.losses.form)

    @property
    def judge(self) -> Attack:
        """The attack that best checkpoints are chosen by."""
        if self.validation is not None:
            return self.validation
        return Attack(self.ascent.epsilon, self.ascent.steps, self.ascent.step_size)

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        return asdict(self)


def training_attack(
    regime: Regime, form: Form = "trades", *, epsilon: float = 8 / 255, steps: int = 10, step_size: float = 2 / 255
) -> Attack:
    """The attack that a regime trains on: TRADES' own, with the router's divergence where that is asked to hold.

    Raises:
        OptionError: a value is not allowed.
    """
    if form == "pgd":
        return Attack(epsilon, steps, step_size, start="uniform", aim="ce")
    return Attack(epsilon, steps, step_size, start="gaussian", aim="kl" if regime == "joint" else "kl+router")


def check_options(model: Any, options: RobustOptions) -> None:
    """Refuse what a model cannot be asked.

    Raises:
        OptionError: a dense network with terms of a router, or in a regime that teaches one.
    """
    routed = bool(model.router_parameters())
    if not routed and options.regime != "joint":
        raise OptionError(
            f"The regime {options.regime!r} teaches a router, and this model has none. Write 'joint', or give it "
            "experts."
        )
    if not routed and options.losses.of_router:
        raise OptionError(
            f"losses: {', '.join(options.losses.of_router)} need a router, and this model has none. Leave them out."
        )


def differing(one: Mapping[str, Any], other: Mapping[str, Any], free: tuple[str, ...] = ("rate",)) -> list[str]:
    """Names at which two records differ, nested ones included; ``free`` names may."""
    found = []
    for name in one.keys() | other.keys():
        here, there = one.get(name), other.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += [f"{name}.{each}" for each in differing(here, there, free)]
        elif here != there and name not in free:
            found.append(name)
    return sorted(found)


def _check_word(what: str, found: str, kind: object) -> None:
    if found not in get_args(kind):
        raise OptionError(f"{what}={found!r} is not known. Write one of: {', '.join(get_args(kind))}.")
