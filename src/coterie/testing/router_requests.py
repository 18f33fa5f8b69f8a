"""The checks of the router battery on what a context asks: overrides, permissions, replays, draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from coterie.errors import OptionError
from coterie.testing.router_asserts import assert_count, assert_probs
from coterie.testing.router_case import RouterCase, limited_contexts


def check_override(case: RouterCase) -> None:
    """``overrides["k"]`` sets the number of choices, or its limit or mean, from 1 to the most; else it is refused."""
    router = case.make()
    x, ctx = case.items()
    for k in (1, case.most):
        assert_count(case, router(x, replace(ctx, overrides={"k": k})).check(), k)
    wrong: tuple[Any, ...] = (0, -1, case.most + 1, 1.5, "2", True)
    for value in wrong:
        text = _refusal(partial(router, x, replace(ctx, overrides={"k": value})))
        assert str(case.most) in text, f"the refusal of k={value!r} does not say what is allowed: {text}"


def check_allowed(case: RouterCase) -> None:
    """Forbidden experts are improbable and not used, by all items or by single ones; with none nobody computes."""
    router = case.make()
    x, ctx = case.items()
    some = torch.arange(router.num_experts) % 2 == 0
    table = torch.stack([some.roll(t) for t in range(len(x))])
    for allowed in (some, table):
        routing = router(x, replace(ctx, allowed=allowed)).check()
        allowed = allowed.expand(len(x), -1)
        assert bool(allowed[routing.item, routing.expert].all())
        assert_probs(routing, router.routes.per_route(allowed, True))
    nobody = router(x, replace(ctx, allowed=torch.zeros_like(some)))
    assert nobody.num_assignments == 0
    assert_probs(nobody, router.routes.per_route(torch.zeros_like(table), True))


def check_replay(case: RouterCase) -> None:
    """A decision that is replayed gives the same bits, with whatever was asked for or drawn."""
    router = case.make()
    for ctx_name, x, ctx in limited_contexts(case, router.num_experts):
        first = router(x, ctx)
        again = router(x, replace(ctx, chosen=first.chosen))
        for name in ("item", "expert", "weight", "chosen"):
            assert torch.equal(getattr(first, name), getattr(again, name)), f"{name} under {ctx_name}"


def check_draws(case: RouterCase) -> None:
    """Draws change with seed, site and pass, in training with the step too; without draws nothing of it matters."""
    router = case.make()
    x, ctx = case.items()
    training = replace(ctx, training=True)
    always: dict[str, Any] = {"seed": range(10, 18), "site": "abcdefgh", "pass_id": range(1, 9)}
    steps: dict[str, Any] = {"step": range(1, 9), "micro_step": range(1, 9)}
    for base, names, moves in ((ctx, always, True), (training, {**always, **steps}, True), (ctx, steps, False)):
        chosen = router(x, base).chosen
        for name, values in names.items():
            others = [router(x, replace(base, **{name: value})).chosen for value in values]
            same = [torch.equal(chosen, other) for other in others]
            assert all(same) != (case.stochastic and moves), name


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except OptionError as error:
        return str(error)
    raise AssertionError("a wrong option was accepted")
