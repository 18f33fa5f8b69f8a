"""How a family's experts gate: found by holding what we can compute against the family's own function.

Families name the same few formulas in many ways (and one name can stand for two), so the formula is
recognised by its values: the first of ours with the very same numbers is theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from coterie.errors import UnsupportedError
from coterie.experts import FFNShape
from coterie.experts.shape import ACTIVATIONS

_CLAMPS, _ALPHAS = ("limit", "swiglu_limit"), ("alpha", "swiglu_alpha")


def gating(module: Any) -> dict[str, Any]:
    """The options of `FFNShape` that say what a fused experts module computes between its matrices.

    Args:
        module: a transformers experts module, on any device. One that does not say whether it has a gate has one,
            before the up projection in their one matrix.

    Raises:
        UnsupportedError: it computes in a way we cannot follow.
    """
    own = functools.partial(_own_gate, module) if getattr(module, "has_gate", True) else None
    try:
        return next(options for options in _candidates(module) if _same(module, options, own))
    except StopIteration:
        pass
    if own is not None and _follows(own):
        return {"gate_fn": own}
    raise UnsupportedError(f"{type(module).__name__} has an activation of its own, which Coterie does not serve.")


def activation_of(function: Any) -> str:
    """The name of `ACTIVATIONS` that gives the very same numbers as a family's activation, on any device.

    Raises:
        UnsupportedError: none does.
    """
    values = [up for _, up in _probes()]
    for name, ours in ACTIVATIONS.items():
        if all(torch.equal(ours(up), function(up)) for up in values):
            return name
    raise UnsupportedError(f"{type(function).__name__} is an activation of its own, which Coterie does not serve.")


def _candidates(module: Any) -> Iterator[dict[str, Any]]:
    """Ours, likeliest first."""
    config = getattr(module, "config", None)
    named = [getattr(config, name, None) for name in ("hidden_act", "hidden_activation", "mlp_hidden_act")]
    activations = [name for name in dict.fromkeys([*named, *ACTIVATIONS]) if name in ACTIVATIONS]
    yield from ({"activation": name} for name in activations)
    if getattr(module, "has_gate", True):
        clamps, alphas = _numbers(module, _CLAMPS), _numbers(module, _ALPHAS)
        yield from ({"activation": name, "clamp": clamp} for clamp in clamps for name in activations)
        yield from ({"clamp": clamp, "alpha": alpha} for clamp in clamps for alpha in alphas)


def _numbers(module: Any, names: tuple[str, ...]) -> list[float]:
    return [float(value) for name in names if isinstance(value := getattr(module, name, None), int | float)]


def _probes() -> Iterator[tuple[Tensor, Tensor]]:
    """[2, 16] gate and up: small, large of either sign, beyond every clamp; in two dtypes, since some round between."""
    line = torch.cat([torch.linspace(-limit, limit, 16, device="cpu") for limit in (3, 60)])
    for dtype in (torch.float32, torch.bfloat16):
        yield line.view(2, 16).to(dtype), line.flip(0).roll(5).view(2, 16).to(dtype)


def _same(module: Any, options: dict[str, Any], own: Any) -> bool:
    ours = FFNShape(width=1, inner=16, gated=own is not None, **options)
    try:
        if own is None:
            return all(torch.equal(ours.hidden(up), module.act_fn(up)) for _, up in _probes())
        return all(torch.equal(ours.hidden(up, gate), own(gate, up)) for gate, up in _probes())
    except (RuntimeError, NotImplementedError):  # it has parameters, and they are on another device
        return False


def _own_gate(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    """The family's own function, which wants gate and up in one tensor, laid out as its matrix has them."""
    beside = getattr(module, "is_concatenated", True)
    fused = torch.cat([gate, up], -1) if beside else torch.stack([gate, up], -1).flatten(-2)
    return module._apply_gate(fused)


def _follows(own: Any) -> bool:
    """Whether the function runs outside its module and treats each row alone."""
    try:
        return all(torch.equal(own(gate, up)[1:], own(gate[1:], up[1:])) for gate, up in _probes())
    except (RuntimeError, NotImplementedError):
        return False
