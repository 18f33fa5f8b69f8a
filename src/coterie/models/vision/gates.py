"""Who decides in a network of experts: the router that looks at images, and those of single layers."""

from __future__ import annotations

from coterie.models.vision.spec import VisionSpec
from coterie.routers import Router, Score, Weigh
from coterie.routers.score import PooledScore, ResidualScore, SmallConvScore
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw, StraightThrough

__all__ = ["image_router", "layer_router"]

_DEPTHS = {"resnet20": 20, "resnet14": 14, "resnet8": 8}


def image_router(spec: VisionSpec) -> Router:
    """The router of ``placement="image"``: images to one expert each."""
    return _top_1(spec, image_score(spec))


def layer_router(spec: VisionSpec, channels: int) -> Router:
    """The router of one step of ``channels`` inputs under ``placement="layer"``."""
    return _top_1(spec, PooledScore(spec.experts, channels, bound=spec.router_bound))


def image_score(spec: VisionSpec) -> Score:
    """Images to logits, by the net that the spec names."""
    if spec.router == "small":
        return SmallConvScore(spec.experts, spec.channels, bound=spec.router_bound)
    return ResidualScore(
        spec.experts, spec.channels, depth=_DEPTHS[spec.router], width=spec.router_width, bound=spec.router_bound
    )  # fmt: skip


def _top_1(spec: VisionSpec, score: Score) -> Router:
    weigh: Weigh = Raw("softmax") if spec.gate == "prob" else StraightThrough(spec.gate)
    return Router(score, TopK(1, spec.experts), weigh)
