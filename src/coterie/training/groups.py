"""Which parameters learn, how fast, and which weight decay they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import nn

from coterie.errors import OptionError
from coterie.models.attach import RouterBridge
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import is_experts
from coterie.training.trainer import Options

Role = Literal["router", "experts", "embeddings", "rest"]


@dataclass(frozen=True)
class Group:
    """A group's own learning rate and weight decay; None is that of the run."""

    rate: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        for what, value in (("rate", self.rate), ("weight_decay", self.weight_decay)):
            if value is not None and not 0 <= value < float("inf"):
                raise OptionError(f"{what}={value} is not allowed: write a number from 0 on.")


@dataclass(frozen=True)
class Groups:
    """Router, experts and the rest, each with its own. Biases, norms and null rows never decay.

    A null row learns from the balance loss alone; decay would pull its logit to 0 and so move the budget.

    Attributes:
        router, experts, embeddings: own rates and decays.
        frozen: roles (router, experts, embeddings, rest) or patterns of parameter names, such as ``*.self_attn.*``:
            what takes no part in learning, decay included.
    """

    router: Group = field(default_factory=Group)
    experts: Group = field(default_factory=Group)
    embeddings: Group = field(default_factory=Group)
    frozen: tuple[str, ...] = ()


def freeze(model: nn.Module, frozen: tuple[str, ...]) -> None:
    """Take parameters out of learning, in place; see `Groups.frozen`.

    Raises:
        OptionError: a role or pattern meets no parameter, or none is left to learn.
    """
    roles = dict(_roles(model))
    for wanted in frozen:
        met = [p for name, p in model.named_parameters() if wanted == roles[name] or fnmatchcase(name, wanted)]
        if not met:
            raise OptionError(
                f"There is nothing called {wanted!r} to freeze. Write router, experts, embeddings or rest, or a "
                f"pattern of parameter names, such as {next(iter(roles), '*')!r}."
            )
        for parameter in met:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError("Everything is frozen, so nothing would be learned. Freeze less.")


def optimizer(model: nn.Module, groups: Groups, options: Options) -> torch.optim.Optimizer:
    """AdamW over the parameters that take a gradient, in groups. Frozen ones are not in it."""
    own: Mapping[str, Group] = {"router": groups.router, "experts": groups.experts, "embeddings": groups.embeddings}
    roles, kept = dict(_roles(model)), _without_decay(model)
    sorted_out: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = own.get(roles[name], Group())
        decay = options.weight_decay if group.weight_decay is None else group.weight_decay
        key = (options.rate if group.rate is None else group.rate, 0.0 if name in kept else decay)
        sorted_out.setdefault(key, []).append(parameter)
    ordered = sorted(sorted_out.items(), key=lambda item: item[0][0] != options.rate)  # the log tells the first rate
    made: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in ordered
    ]
    return torch.optim.AdamW(made, lr=options.rate, betas=options.betas, eps=1e-8, fused=True)


def _roles(model: nn.Module) -> Iterator[tuple[str, Role]]:
    """(parameter name, role)."""
    prefixes: dict[str, Role] = {}
    for name, module in model.named_modules():
        if isinstance(module, RouterBridge):
            prefixes[f"{name}."] = "router"
        elif isinstance(module, ExpertsBridge) or is_experts(module):
            prefixes[f"{name}."] = "experts"
        elif isinstance(module, nn.Embedding):
            prefixes[f"{name}."] = "embeddings"
    assert set(prefixes.values()) <= set(get_args(Role))
    for name, _ in model.named_parameters():
        yield name, next((role for prefix, role in prefixes.items() if name.startswith(prefix)), "rest")


def _without_decay(model: nn.Module) -> set[str]:
    """Biases, norms, and the rows of null routes."""
    names = set()
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if parameter.dim() < 2 or "norm" in name.lower() or last.startswith("null") or ".null" in name:
            names.add(name)
    return names
