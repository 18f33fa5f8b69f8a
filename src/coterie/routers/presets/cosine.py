"""The router that compares directions."""

from __future__ import annotations

from coterie.routers.base import Router
from coterie.routers.presets.build import PRESETS
from coterie.routers.score import Cosine
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw


@PRESETS.register("cosine")
def cosine(
    width: int,
    num_experts: int,
    k: int,
    *,
    dimension: int = 0,
    temperature: float = 0.3,
    min_temperature: float = 0.01,
    renormalise: bool = True,
) -> Router:
    """The ``k`` experts whose direction is nearest in a few dimensions (XMoE, arXiv 2204.09179).

    Args:
        width: D.
        num_experts: E.
        k: choices per item.
        dimension: of the space; 0 is half the number of experts, as in the paper.
        temperature: of the softmax, to start from; learned.
        min_temperature: where it is cut.
        renormalise: make an item's weights sum to one. The paper routes to one expert without: with ``k=1``
            a renormalised weight is always 1, and the router learns nothing from it.

    Raises:
        OptionError: ``k`` is not in 1..E, or a temperature is not allowed.
    """
    score = Cosine(
        width, num_experts, dimension=dimension, temperature=temperature, min_temperature=min_temperature
    )  # fmt: skip
    return Router(score, TopK(k, num_experts), Raw("softmax", renormalise=renormalise))
