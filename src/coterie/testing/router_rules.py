"""The rules of routers in plain Python, one item at a time: what the battery compares with.

A rule takes the logits of the routes an item may use and k, and returns the weight of each route
it takes. Nothing here touches a tensor or the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from coterie.testing.router_case import Rule


def softmax_rule(*, renormalise: bool) -> Rule:
    """Softmax over all open routes, the k best, divided by their sum where ``renormalise``."""

    def rule(logits: Mapping[int, float], k: int) -> Mapping[int, float]:
        probs = _softmax(logits)
        taken = {route: probs[route] for route in _best(logits, k)}
        total = sum(taken.values()) if renormalise else 1.0
        return {route: weight / total for route, weight in taken.items()}

    return rule


def softmax_after_rule() -> Rule:
    """The k best, softmax over them alone."""

    def rule(logits: Mapping[int, float], k: int) -> Mapping[int, float]:
        return _softmax({route: logits[route] for route in _best(logits, k)})

    return rule


def uniform_rule(scale: float = 1.0) -> Rule:
    """The k best, with equal shares of ``scale``."""

    def rule(logits: Mapping[int, float], k: int) -> Mapping[int, float]:
        taken = _best(logits, k)
        return {route: scale / len(taken) for route in taken}

    return rule


def unit_rule() -> Rule:
    """The k best, each with weight 1."""

    def rule(logits: Mapping[int, float], k: int) -> Mapping[int, float]:
        return dict.fromkeys(_best(logits, k), 1.0)

    return rule


def true_only_rule(num_true: int, min_true: int = 0) -> Rule:
    """The k best, softmax over those below ``num_true``; where there are none, the ``min_true`` best of them."""

    def rule(logits: Mapping[int, float], k: int) -> Mapping[int, float]:
        true = {route: value for route, value in logits.items() if route < num_true}
        taken = [route for route in _best(logits, k) if route < num_true] or _best(true, min_true)
        return _softmax({route: logits[route] for route in taken})

    return rule


def sigmoid_rule(
    correction: Sequence[float], *, num_groups: int = 1, keep_groups: int = 1, scale: float = 1.0
) -> Rule:  # fmt: skip
    """DeepSeek-V3: sigmoid plus correction chooses groups, then routes; sigmoid alone weighs, to a sum of ``scale``."""
    size = len(correction) // num_groups

    def rule(logits: Mapping[int, float], k: int) -> Mapping[int, float]:
        sigmoid = {route: 1 / (1 + math.exp(-value)) for route, value in logits.items()}
        ranking = {route: value + correction[route] for route, value in sigmoid.items()}
        groups = {}
        for group in sorted({route // size for route in logits}):
            members = sorted((v for route, v in ranking.items() if route // size == group), reverse=True)
            groups[group] = sum(members[:2])
        kept = _best(groups, keep_groups)
        taken = _best({route: v for route, v in ranking.items() if route // size in kept}, k)
        total = sum(sigmoid[route] for route in taken)
        return {route: scale * sigmoid[route] / total for route in taken}

    return rule


def _best(values: Mapping[int, float], k: int) -> list[int]:
    """The k keys of highest value, the lower key where values are equal; -inf is nobody."""
    alive = [key for key, value in values.items() if value != -math.inf]
    return sorted(alive, key=lambda key: (-values[key], key))[:k]


def _softmax(logits: Mapping[int, float]) -> dict[int, float]:
    if not logits:
        return {}
    top = max(logits.values())
    if top == -math.inf:
        return dict.fromkeys(logits, 0.0)
    powers = {route: math.exp(value - top) for route, value in logits.items()}
    total = sum(powers.values())
    return {route: power / total for route, power in powers.items()}
