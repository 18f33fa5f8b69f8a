"""Experts that choose their items."""

from __future__ import annotations

from typing import Literal

from coterie.routers.base import Router
from coterie.routers.presets.build import PRESETS
from coterie.routers.score import LinearScore
from coterie.routers.select import ExpertChoice
from coterie.routers.weigh import Raw


@PRESETS.register("expert_choice")
def expert_choice(
    width: int,
    num_experts: int,
    k: int,
    *,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    bias: bool = False,
) -> Router:
    """Every expert takes its best ``k * T / E`` items (arXiv 2202.09368); weights are the probabilities.

    Loads are equal without a loss. Not causal: for encoders, images and scoring, not for decoding.

    Args:
        width: D.
        num_experts: E.
        k: experts per item on average.
        activation: of the logits, over all experts or each.
        bias: learn a bias per expert.

    Raises:
        OptionError: ``k`` is not in 1..E.
    """
    return Router(LinearScore(width, num_experts, bias=bias), ExpertChoice(k, num_experts), Raw(activation))
