"""As many experts as an item needs: by a threshold instead of a number."""

from __future__ import annotations

from typing import Literal

from coterie.errors import OptionError
from coterie.routers.base import Router
from coterie.routers.presets.build import PRESETS
from coterie.routers.score import LinearScore
from coterie.routers.select import MinP, TopP
from coterie.routers.weigh import Raw

Normalise = Literal["none", "sum", "scale"]
Activation = Literal["softmax", "sigmoid"]


@PRESETS.register("top_p")
def top_p(
    width: int,
    num_experts: int,
    *,
    p: float = 0.4,
    strict: bool = False,
    k_max: int | None = None,
    normalise: Normalise = "none",
    scale: float = 1.0,
    activation: Activation = "softmax",
    bias: bool = False,
    rounded: bool = False,
) -> Router:
    """The fewest best experts whose probabilities reach ``p`` (arXiv 2403.07652).

    A router trained from scratch goes with 0.4. A fresh one is undecided and takes ``p * E`` experts: warm p up, or
    cap it. A top-k checkpoint wants its p calibrated, its own ``normalise``, and ``k_max`` at its k.

    Args:
        width: D.
        num_experts: E.
        p: above 0, up to 1 (all experts).
        strict: the sum must pass p, as in the authors' code.
        k_max: experts an item may have at most.
        normalise: ``none``: weights are the probabilities; ``sum``: divided by their sum; ``scale``: times ``scale``.
        scale: for ``scale``; with ``sum`` it is what the weights add up to.
        activation: of the logits, over all experts or each.
        bias: learn a bias per expert.
        rounded: round the weights to the dtype of the logits.

    Raises:
        OptionError: p is not in (0, 1], ``k_max`` not in 1..E, or a word is not known.
    """
    _above_zero("p", p)
    select = TopP(p, num_experts, strict=strict, k_max=k_max)
    return Router(LinearScore(width, num_experts, bias=bias), select, _weigh(activation, normalise, scale, rounded))


@PRESETS.register("min_p")
def min_p(
    width: int,
    num_experts: int,
    *,
    ratio: float = 0.5,
    k_max: int | None = None,
    normalise: Normalise = "sum",
    scale: float = 1.0,
    activation: Activation = "softmax",
    bias: bool = False,
    rounded: bool = False,
) -> Router:
    """The experts with at least ``ratio`` times the probability of the item's best one.

    Args:
        width: D.
        num_experts: E.
        ratio: above 0, up to 1 (the best expert alone, and its equals).
        k_max, normalise, scale, activation, bias, rounded: as for `top_p`.

    Raises:
        OptionError: the ratio is not in (0, 1], ``k_max`` not in 1..E, or a word is not known.
    """
    _above_zero("ratio", ratio)
    select = MinP(ratio, num_experts, k_max=k_max)
    return Router(LinearScore(width, num_experts, bias=bias), select, _weigh(activation, normalise, scale, rounded))


def _weigh(activation: Activation, normalise: Normalise, scale: float, rounded: bool) -> Raw:
    if normalise not in ("none", "sum", "scale"):
        raise OptionError(f"normalise={normalise!r} is not allowed: write 'none', 'sum' or 'scale'.")
    if normalise == "none" and scale != 1.0:
        raise OptionError(f"scale={scale} changes nothing with normalise='none': write normalise='scale'.")
    return Raw(activation, renormalise=normalise == "sum", scale=scale, rounded=rounded)


def _above_zero(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise OptionError(f"{what}={value!r} is not allowed: give a number above 0, up to 1.")
