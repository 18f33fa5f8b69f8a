"""Training steps of one layer: peers and ours, then ours under every router, then the routers alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from layers.answers import TOLERANCE, error, errors, results
from layers.arms import DENSE, OURS, PEERS, Contest
from layers.limits import measure
from layers.shapes import SHAPES
from layers.timing import Flush, interleaved
from torch import Tensor

from coterie.layers import MoE
from coterie.routing import RouteContext
from trainings.routed import SETTINGS, Routed, loop_of

SLOW = 6.0  # seconds of a first run, above which it is the only one

Record = dict[str, Any]
Say = Callable[[str], None]
Step = Callable[[Tensor], None]


@dataclass(frozen=True)
class Choice:
    """What the user asked for."""

    shapes: tuple[str, ...]
    tokens: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    seed: int


def run(choice: Choice, say: Say) -> Iterator[Record]:
    """A record per case, as they end, and one of kind "limits" per dtype."""
    flush = Flush()
    for dtype in choice.dtypes:
        limits = measure(dtype)
        yield {"kind": "limits", "dtype": str(dtype), "bandwidth": limits.bandwidth, "flops": limits.flops}
        for name in choice.shapes:
            contest = Contest(SHAPES[name], dtype, choice.seed)
            routed = {s.name: Routed(contest, s, choice.seed) for s in SETTINGS}
            for tokens in choice.tokens:
                say(f"{name}, {dtype}, {tokens} tokens")
                bound = limits.seconds(SHAPES[name], dtype, tokens, True)
                yield _case(contest, routed, tokens, flush, choice.seed) | {"kind": "case", "bound": bound}
                yield _routers_alone(contest, routed, tokens, flush, choice.seed) | {"kind": "routers"}


def _case(contest: Contest, routed: dict[str, Routed], tokens: int, flush: Flush, seed: int) -> Record:
    x = contest.tokens(tokens, seed)
    wrong, slow = _peers_wrong(contest, x)
    for name, one in routed.items():
        if not (off := _routed_error(contest, one, x)) <= TOLERANCE[contest.dtype]:
            wrong[name] = off
    steps: dict[str, list[Step]] = {
        arm: [partial(_train, layer) for layer in contest.layers[arm]]
        for arm in (DENSE, *PEERS, OURS)
        if arm not in wrong and arm not in slow
    }
    for name, one in routed.items():
        if name not in wrong:
            steps[name] = [partial(_train_routed, layer, one) for layer in one.layers]
    seconds = _timed(contest, routed, steps, tokens, flush, seed)
    return {
        "shape": contest.shape.name, "dtype": str(contest.dtype), "tokens": tokens, "wrong": wrong,
        "seconds": seconds | {arm: [first] for arm, first in slow.items() if arm not in wrong}, "once": sorted(slow),
        "mean": {name: one.mean for name, one in routed.items()},
    }  # fmt: skip


def _routers_alone(contest: Contest, routed: dict[str, Routed], tokens: int, flush: Flush, seed: int) -> Record:
    """Router forward and backward without experts: the gradient of a sum of the weights."""
    ours: list[Any] = contest.layers[OURS]
    steps: dict[str, list[Step]] = {"top_k": [partial(_decide, layer.router, None) for layer in ours]}
    for name, one in routed.items():
        steps[name] = [partial(_decide, layer.router, one) for layer in one.layers]
    seconds = _timed(contest, routed, steps, tokens, flush, seed)
    return {"shape": contest.shape.name, "dtype": str(contest.dtype), "tokens": tokens, "seconds": seconds}


def _timed(
    contest: Contest, routed: dict[str, Routed], steps: dict[str, list[Step]], tokens: int, flush: Flush, seed: int
) -> dict[str, list[float]]:
    """Seconds per layer. Every run meets tokens of its own: libraries make kernels for numbers of rows they meet."""
    names = list(steps)

    def run_of(name: str, number: int) -> Callable[[], None]:
        own = contest.tokens(tokens, seed + 1 + number * len(names) + names.index(name))
        return lambda: [step(own) for step in steps[name]] and None

    def prepare() -> None:
        contest.forget_gradients()
        for one in routed.values():
            one.forget_gradients()
        flush()

    taken = interleaved({name: partial(run_of, name) for name in names}, prepare)
    prepare()
    return {name: [s / contest.shape.copies for s in each] for name, each in taken.items()}


def _peers_wrong(contest: Contest, x: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of the arms that compute something else than the first peer; seconds of those that are too slow."""
    arms = contest.arms(True)
    found, first = {}, {}
    for arm in arms:
        began = time.perf_counter()
        found[arm] = results(contest, arm, x, True)
        first[arm] = time.perf_counter() - began
    off = errors(found, next(peer for peer in PEERS if peer in arms))
    wrong = {arm: e for arm, e in off.items() if not e <= TOLERANCE[contest.dtype]}
    left_out = {arm: float("inf") for arm in PEERS if arm not in arms}
    return wrong | left_out, {arm: taken for arm, taken in first.items() if taken >= SLOW}


def _routed_error(contest: Contest, one: Routed, x: Tensor) -> float:
    """Outputs and all gradients, beside the plain loop over experts that takes the same choice."""
    layer, context = one.layers[0], one.context(x)
    _, routing = layer.route_and_run(x, context)
    again = replace(context, chosen=routing.chosen)
    fast, plain = (_gradients(contest, one, found, x, again) for found in (layer, loop_of(layer)))
    return error(fast, plain)


def _gradients(contest: Contest, one: Routed, layer: MoE, x: Tensor, context: RouteContext) -> list[Tensor]:
    contest.forget_gradients()
    one.forget_gradients()
    x = x.detach().requires_grad_()
    y = layer(x, context)
    y.backward(torch.ones_like(y))
    found = [y.detach(), x.grad, *(p.grad for p in layer.experts.parameters())]
    one.forget_gradients()
    return [tensor for tensor in found if tensor is not None]


def _train(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    y = layer(x.detach().requires_grad_())
    y.backward(torch.ones_like(y))


def _train_routed(layer: MoE, one: Routed, x: Tensor) -> None:
    y = layer(x.detach().requires_grad_(), one.context(x))
    y.backward(torch.ones_like(y))


def _decide(router: Any, one: Routed | None, x: Tensor) -> None:
    weight = router(x.detach().requires_grad_(), None if one is None else one.context(x)).weight
    if weight.requires_grad:
        weight.sum().backward()
