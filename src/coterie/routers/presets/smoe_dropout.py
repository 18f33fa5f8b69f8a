"""A random router that never learns, for experts that are to serve at any k."""

from __future__ import annotations

from coterie.routers.base import Router, Weigh
from coterie.routers.presets.build import PRESETS
from coterie.routers.score import Frozen
from coterie.routers.select import TopK
from coterie.routers.weigh import Selected, Uniform


@PRESETS.register("smoe_dropout")
def smoe_dropout(
    width: int,
    num_experts: int,
    k: int,
    *,
    seed: int = 0,
    bias: bool = True,
    orthogonal: bool = False,
    uniform: bool = False,
    output_scale: float = 1.0,
    follow: Router | None = None,
) -> Router:
    """The ``k`` best experts by a frozen random matrix, softmax over them (SMoE-Dropout, arXiv 2303.01610).

    What makes it SMoE-Dropout is a schedule that lets ``k`` grow to E during training; with one ``k``
    throughout it is the fixed random router that others call by that name. After the growth any ``k`` may be
    asked for at run time.

    Args:
        width: D.
        num_experts: E.
        k: choices per item; ``overrides["k"]`` replaces it.
        seed: of the first layer's matrix; each layer that follows has the next one.
        bias: keep a bias per expert, zero until `Frozen.calibrate`.
        orthogonal: rows at right angles.
        uniform: weights 1/k in place of the softmax.
        output_scale: what an item's weights sum to; E for the parts of a trained dense layer, 1 from scratch.
        follow: the router of the layer before.

    Raises:
        OptionError: ``k`` is not in 1..E, or there are more orthogonal rows than D.
    """
    if follow is not None and isinstance(follow.score, Frozen):
        seed = int(follow.score.seed) + 1
    weigh: Weigh = Uniform(scale=output_scale) if uniform else Selected(scale=output_scale)
    score = Frozen(width, num_experts, seed=seed, bias=bias, orthogonal=orthogonal)
    return Router(score, TopK(k, num_experts), weigh)
