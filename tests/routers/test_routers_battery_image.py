"""The battery over routers of images, and over weights that are one with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from coterie.routers import Router, Score, Weigh
from coterie.routers.score import LinearScore, PooledScore, ResidualScore, SmallConvScore
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw, StraightThrough
from coterie.routing import RouteContext
from coterie.testing import ROUTER_CHECKS, RouterCase
from coterie.testing.router_rules import softmax_rule, unit_rule

E = 3


def image_router(score: Score, weigh: Weigh) -> Router:
    """In eval mode, where a route is of its image alone."""
    return Router(score, TopK(1, E), weigh).eval()


def settle(router: Router) -> None:
    """Weights as built, norms off their start, and a head that tells images apart."""
    deep = isinstance(router.score, ResidualScore)
    for module in router.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    head = router.score.head
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=1.5 if deep else 4.0)
    nn.init.zeros_(head.bias)
    with torch.no_grad():  # what all images have in common would send them all one way
        head.bias -= router.score(torch.randn(30, router.score.channels, 8, 8), RouteContext())[0].mean(0)


OF_IMAGES: dict[str, Any] = {"k": 1, "most": E, "scope": "image"}
ROWS = [
    RouterCase(
        "straight-through", lambda: Router(LinearScore(8, 6), TopK(2, 6), StraightThrough()), unit_rule(), k=2, most=6
    ),
    RouterCase(
        "straight-through, selected", lambda: Router(LinearScore(8, 6), TopK(2, 6), StraightThrough("selected")),
        unit_rule(), k=2, most=6,
    ),
    RouterCase(
        "pooled", lambda: image_router(PooledScore(E, 4), StraightThrough()), unit_rule(), shape=(4, 5, 3),
        settle=settle, **OF_IMAGES,
    ),
    RouterCase(
        "pooled, prob", lambda: image_router(PooledScore(E, 4), Raw()), softmax_rule(renormalise=False),
        shape=(4, 5, 3), settle=settle, **OF_IMAGES,
    ),
    RouterCase(
        "small", lambda: image_router(SmallConvScore(E), StraightThrough()), unit_rule(), shape=(1, 8, 8),
        settle=settle, **OF_IMAGES,
    ),
    RouterCase(
        "residual", lambda: image_router(ResidualScore(E, depth=8, width=4), StraightThrough()), unit_rule(),
        shape=(3, 8, 8), settle=settle, **OF_IMAGES,
    ),
    RouterCase(
        "residual, selected and bounded",
        lambda: image_router(ResidualScore(E, 2, depth=14, width=3, bound=5.0), StraightThrough("selected")),
        unit_rule(), shape=(2, 9, 7), settle=settle, **OF_IMAGES,
    ),
    RouterCase(
        "residual, prob", lambda: image_router(ResidualScore(E, depth=8, width=4), Raw()),
        softmax_rule(renormalise=False), shape=(3, 8, 8), settle=settle, **OF_IMAGES,
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", ROUTER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_router_of_images(case: RouterCase, check: Callable[[RouterCase], None]) -> None:
    check(case)


def test_the_rows_tell_items_apart() -> None:
    for case in ROWS:
        x, ctx = case.items(40)
        with torch.no_grad():
            assert (case.make()(x, ctx).items_per_expert() > 0).sum() > 1, case.name
