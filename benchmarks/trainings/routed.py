"""Our layer under every router: the experts of the contest, with routers that use k of them, or half as many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from layers.arms import OURS, Contest
from layers.shapes import LayerShape
from torch import Tensor, nn

from coterie.layers import MoE
from coterie.routers import Router, SiteShape, build_routers
from coterie.routing import RouteContext


@dataclass(frozen=True)
class Setting:
    """One router: a preset with options, and how it comes to its number of experts.

    Attributes:
        share: mean experts per token over the shape's k.
        tuned: name of the request-time option that a bisection sets so that the share is met; None: it is by itself.
    """

    name: str
    preset: str
    options: Callable[[LayerShape], dict[str, Any]] = field(default=lambda shape: {})
    share: float = 1.0
    tuned: str | None = None


SETTINGS = (
    Setting("sigmoid_bias", "sigmoid_bias"),
    Setting("group_limited", "group_limited", lambda shape: {"num_groups": 4, "keep_groups": 2}),
    Setting("top_p", "top_p", tuned="p"),
    Setting("adamoe", "adamoe", lambda shape: {"k": 2 * shape.top_k, "num_nulls": shape.experts}),
    Setting("rmoe", "rmoe"),
    Setting("smoe_dropout", "smoe_dropout"),
    Setting("thor", "thor"),
    Setting("expert_choice", "expert_choice"),
    Setting("cosine", "cosine"),
    Setting("top_p, half", "top_p", share=0.5, tuned="p"),
    Setting("adamoe, half", "adamoe", lambda shape: {"num_nulls": shape.experts}, share=0.5),
)
"""In the order of the report. Nulls and experts are as many, so half of the choices fall on nothing."""


class Routed:
    """Our layer of a contest under one router: a layer per copy of the weights, over the contest's own experts.

    Attributes:
        mean: experts per token that the router was found to use.
    """

    def __init__(self, contest: Contest, setting: Setting, seed: int) -> None:
        torch.manual_seed(seed)
        shape = contest.shape
        site = SiteShape(shape.width, shape.experts, shape.top_k, vocab_size=1)
        ours: list[Any] = contest.layers[OURS]
        self.layers = []
        for layer in ours:
            (router,) = build_routers(setting.preset, [site], setting.options(shape))
            self.layers.append(MoE(_spread(router).to(contest.dtype), layer.experts))
        x = contest.tokens(512, seed + 1)
        self.overrides = {} if setting.tuned is None else {setting.tuned: _tuned(self, x, setting, shape)}
        self.mean = self.count(x)

    def context(self, x: Tensor) -> RouteContext:
        """Who the items are: every one at a place of its own in one sequence."""
        place = torch.arange(len(x))
        return RouteContext(position=place, sequence=torch.zeros_like(place), training=True, overrides=self.overrides)

    @torch.no_grad()
    def count(self, x: Tensor) -> float:
        """Mean experts per token."""
        return self.layers[0].router(x, self.context(x)).num_assignments / len(x)

    def forget_gradients(self) -> None:
        for layer in self.layers:
            layer.zero_grad(set_to_none=True)


def _spread(router: Router) -> Router:
    """Rows large enough to tell tokens apart, as a trained router does."""
    for parameter in router.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return router


def _tuned(routed: Routed, x: Tensor, setting: Setting, shape: LayerShape) -> float:
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        routed.overrides = {str(setting.tuned): middle}
        enough = routed.count(x) >= setting.share * shape.top_k
        low, high = (low, middle) if enough else (middle, high)
    return high


def loop_of(layer: MoE) -> MoE:
    """The same layer with the plain method of its experts, one after the other, over the same parameters."""
    from coterie.experts import FFN

    experts = layer.experts
    assert isinstance(experts, FFN)
    with torch.device("meta"):
        plain = FFN(experts.num_experts, experts.shape, "loop")
    for name in experts.shape.weight_shapes():
        setattr(plain, name, getattr(experts, name))
    return MoE(layer.router, plain)
