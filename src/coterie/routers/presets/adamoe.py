"""A router that may also choose nothing: fewer experts for items that need fewer."""

from __future__ import annotations

from typing import Literal

import torch

from coterie.errors import OptionError
from coterie.routers.base import Router, Score, Select, Weigh
from coterie.routers.presets.build import PRESETS
from coterie.routers.presets.weighing import weighing
from coterie.routers.routes import RouteTable
from coterie.routers.score import LinearScore, WithNulls
from coterie.routers.select import AtLeastTrue, CopiesBeside, TopK, TopP
from coterie.routers.weigh import TrueOnly


@PRESETS.register("adamoe")
def adamoe(
    width: int,
    num_experts: int,
    k: int,
    *,
    num_nulls: int = 8,
    null: Literal["zero", "identity"] = "zero",
    min_true: int = 0,
    select: Literal["top_k", "top_p"] = "top_k",
    p: float = 0.4,
    copied: bool = False,
    pinned: int = 0,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    renormalise: bool = True,
    scale: float = 1.0,
    bias: bool = False,
    float32: bool = False,
    rounded: bool = False,
    corrected: bool = False,
) -> Router:
    """The best ``k`` of E experts and ``num_nulls`` null routes, weighted by softmax (AdaMoE, arXiv 2406.13233).

    ``num_nulls`` and ``k`` are the budget: where a balance loss evens all routes out, an item has
    ``k * E / (E + num_nulls)`` true experts on average. The nulls learn from that loss alone.

    Args:
        width: D.
        num_experts: E, the true ones.
        k: choices per item, nulls included: 1 to E + num_nulls.
        num_nulls: M. 0 is top-k with weights that sum to one.
        null: ``zero`` adds nothing and the weights of the true experts sum to one; ``identity`` adds the item
            itself, with the share its nulls have. The router is then over E + 1 experts, and the last must
            be an identity: `coterie.experts.with_identity` adds it.
        min_true: 0 is the paper's: an item may end without any expert. 1 gives such an item its best one.
        select: ``top_k`` takes k routes, ``top_p`` the fewest best whose probabilities reach ``p``, k at most.
        p: above 0, up to 1.
        copied: start each null's row as a copy of an expert's row, in turn, instead of drawing it.
        pinned: start with this many nulls far above every expert and the others far below, so that an item has
            ``k - pinned`` experts; let go by ``router.score.offset.mul_(0.99)``. See `add_nulls`.
        activation, renormalise, scale, rounded: how the true experts are weighed, as in `top_k`: the paper's way
            unless a checkpoint had another.
        bias: learn a bias per true expert.
        float32: compute the logits in float32 whatever the dtype of the items.
        corrected: choose by probability plus a correction of every route, nulls too, as in `top_k`. Not with
            ``top_p``, nor with ``copied`` or ``pinned``, which place the nulls by their logits.

    Raises:
        OptionError: ``k`` is not in 1..E + M, options do not go together, or one has a value that is not named here.
    """
    if select not in ("top_k", "top_p"):
        raise OptionError(f"select={select!r} is not allowed: write 'top_k' or 'top_p'.")
    if null not in ("zero", "identity"):
        raise OptionError(f"null={null!r} is not allowed: write 'zero' or 'identity'.")
    if corrected and (select == "top_p" or copied or pinned):
        raise OptionError("corrected=True goes with select='top_k' alone: leave it out, or copied, pinned and top_p.")
    true = LinearScore(width, num_experts, bias=bias, dtype=torch.float32 if float32 else None)
    nulls = WithNulls(true, num_nulls, width) if num_nulls else None
    if nulls is not None and copied:
        nulls.copy_rows(true.weight, true.bias)
    if pinned and not 0 < pinned <= min(num_nulls, k - 1):
        raise OptionError(f"pinned={pinned} is not allowed: pin 1 to {min(num_nulls, k - 1)} of the nulls, or none.")
    if nulls is not None and pinned:
        nulls.pin(pinned)
    score = true if nulls is None else nulls
    num_routes = num_experts + num_nulls
    chooses: Select = TopK(k, num_routes, corrected=corrected) if select == "top_k" else TopP(p, num_routes, k_max=k)
    if nulls is not None and copied:
        chooses = CopiesBeside(chooses, num_experts, num_nulls)
    weigh = weighing(activation, renormalise, scale, rounded)
    return nullable(score, chooses, num_experts, num_nulls, weigh=weigh, min_true=min_true, identity=null == "identity")


def nullable(
    score: Score, select: Select, num_true: int, num_nulls: int, *, weigh: Weigh, min_true: int = 0,
    identity: bool = False,
) -> Router:  # fmt: skip
    """The router of N true and M null routes, from what scores and selects among them and weighs the true ones.

    Raises:
        OptionError: ``min_true`` is neither 0 nor 1.
    """
    if min_true not in (0, 1):
        raise OptionError(f"min_true={min_true!r} is not allowed: 0 leaves items of nulls alone, 1 mends them.")
    if min_true:
        select = AtLeastTrue(select, num_true)
    if identity:
        return Router(score, select, weigh, RouteTable.with_identity_nulls(num_true, num_nulls))
    return Router(score, select, TrueOnly(num_true, weigh), RouteTable.with_nulls(num_true, num_nulls))
