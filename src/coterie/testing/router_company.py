"""Rules in plain Python for selections that look beyond an item's k best: thresholds, capacity, expert choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from coterie.routing import RouteContext
from coterie.testing.router_case import RuleOfAll

Item = Mapping[int, float]


def top_p_rule(
    p: float,
    *,
    strict: bool = False,
    k_max: int | None = None,
    normalise: bool = False,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    true: int | None = None,
) -> RuleOfAll:
    """Routes in descending probability until their sum reaches (``strict``: passes) p; nulls from ``true`` on."""

    def one(probs: Item, p: float) -> list[int]:
        total, so_far, taken = sum(probs.values()), 0.0, []
        for route in _ranking(probs):
            taken.append(route)
            so_far += probs[route] / total
            if p < 1 and (so_far > p if strict else so_far >= p):
                break
        return taken

    return _threshold_rule(one, p, k_max, normalise, activation, true)


def min_p_rule(ratio: float, *, k_max: int | None = None, normalise: bool = True) -> RuleOfAll:
    """Routes with at least ``ratio`` times the best probability."""

    def one(probs: Item, ratio: float) -> list[int]:
        return [route for route in _ranking(probs) if probs[route] >= ratio * max(probs.values())]

    return _threshold_rule(one, ratio, k_max, normalise, "softmax", None)


def expert_choice_rule(k: int, num_routes: int) -> RuleOfAll:
    """Each route takes its best ceil(k * T / R) of the T items that have any."""

    def rule(items: Sequence[Item], asked: int | None, ctx: RouteContext) -> list[dict[int, float]]:
        probs = [_probs(item, "softmax") for item in items]
        real = [t for t in _by_place(ctx, len(items)) if items[t]]
        count = math.ceil((k if asked is None else asked) * len(real) / num_routes)
        taken: list[dict[int, float]] = [{} for _ in items]
        for route in range(num_routes):
            able = [t for t in real if route in probs[t]]
            for t in sorted(able, key=lambda t: -probs[t][route])[:count]:
                taken[t][route] = probs[t][route]
        return taken

    return rule


def capacity_rule(
    k: int, num_routes: int, factor: float | None, eval_factor: float | None, *, by_position: bool = False,
    true: int | None = None,
) -> RuleOfAll:  # fmt: skip
    """Top-k of softmax, of which a route keeps its share times the factor; the rest is scaled to sum to one."""

    def rule(items: Sequence[Item], asked: int | None, ctx: RouteContext) -> list[dict[int, float]]:
        probs = [_probs(item, "softmax") for item in items]
        chosen = [_ranking(row)[: k if asked is None else asked] for row in probs]
        limit = factor if ctx.training else eval_factor
        if limit is not None:
            places = math.ceil(limit * sum(map(len, chosen)) / num_routes - 1e-9)
            order = _by_place(ctx, len(items))
            for route in range(num_routes if true is None else true):
                queue = [t for t in order if route in chosen[t]]
                if not by_position:
                    queue.sort(key=lambda t: -probs[t][route])
                for t in queue[places:]:
                    chosen[t].remove(route)
        return [_weights(row, routes, normalise=True, true=true) for row, routes in zip(probs, chosen, strict=True)]

    return rule


def _threshold_rule(
    one: Callable[[Item, float], list[int]], value: float, k_max: int | None, normalise: bool, activation: str,
    true: int | None,
) -> RuleOfAll:  # fmt: skip
    def rule(items: Sequence[Item], asked: int | None, ctx: RouteContext) -> list[dict[int, float]]:
        cap = k_max if asked is None else asked
        setting = ctx.overrides.get("p", value)
        probs = [_probs(item, activation) for item in items]
        chosen = [one(row, setting)[:cap] if row else [] for row in probs]
        return [_weights(row, routes, normalise, true) for row, routes in zip(probs, chosen, strict=True)]

    return rule


def _weights(probs: Item, routes: Sequence[int], normalise: bool, true: int | None) -> dict[int, float]:
    kept = [route for route in routes if true is None or route < true]
    total = sum(probs[route] for route in kept) if normalise else 1.0
    return {route: probs[route] / total for route in kept}


def _probs(logits: Item, activation: str) -> dict[int, float]:
    if activation == "sigmoid":
        return {route: 1 / (1 + math.exp(-value)) for route, value in logits.items()}
    top = max(logits.values(), default=0.0)
    powers = {route: math.exp(value - top) for route, value in logits.items()}
    total = sum(powers.values())
    return {route: power / total for route, power in powers.items()}


def _ranking(values: Item) -> list[int]:
    return sorted(values, key=lambda route: (-values[route], route))


def _by_place(ctx: RouteContext, num_items: int) -> list[int]:
    position, sequence = ctx.position, ctx.sequence
    if position is None or sequence is None:
        return list(range(num_items))
    return sorted(range(num_items), key=lambda t: (int(position[t]), int(sequence[t])))
