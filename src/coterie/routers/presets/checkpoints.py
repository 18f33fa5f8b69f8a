"""The routers that checkpoints in the wild have."""

from __future__ import annotations

from typing import Literal

import torch

from coterie.errors import OptionError
from coterie.routers.base import Router, Weigh
from coterie.routers.presets.build import PRESETS
from coterie.routers.score import HashScore, LinearScore, random_table
from coterie.routers.select import GroupLimited, TopK
from coterie.routers.weigh import Raw, Selected


@PRESETS.register("top_k")
def top_k(
    width: int,
    num_experts: int,
    k: int,
    *,
    softmax: Literal["before", "after"] = "before",
    renormalise: bool = True,
    rounded: bool = False,
    bias: bool = False,
    float32: bool = False,
    corrected: bool = False,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    scale: float = 1.0,
) -> Router:
    """The ``k`` experts of highest logit, weighted by softmax.

    ``top_k(D, E, k)`` is Mixtral; with ``rounded=True`` Qwen3-MoE; and with ``renormalise=False`` too
    OLMoE; ``softmax="after", bias=True, rounded=True`` is gpt-oss.

    Args:
        width: D.
        num_experts: E.
        k: choices per item.
        softmax: over all experts before the selection, or over the chosen after it.
        renormalise: make an item's weights sum to one; after selection they always do.
        rounded: round the weights to the dtype of the logits.
        bias: learn a bias per expert.
        float32: compute the logits in float32 whatever the dtype of the items.
        corrected: choose by probability plus a correction that a training loop moves, as in `sigmoid_bias`.
        activation: of the logits before the selection, ``softmax`` or ``sigmoid``.
        scale: multiplies the weights, after renormalising.

    Raises:
        OptionError: ``k`` is not in 1..E, or softmax after selection is asked for something that it has no place for.
    """
    if softmax not in ("before", "after"):
        raise OptionError(f"softmax={softmax!r} is not allowed: write 'before' or 'after' (the selection).")
    if softmax == "after" and not renormalise:
        raise OptionError("softmax after selection always sums to one: leave renormalise=False out, or use 'before'.")
    after = softmax == "after"
    if after and activation != "softmax":
        raise OptionError(f"softmax='after' leaves no place for activation={activation!r}: leave one of them out.")
    weigh: Weigh = (
        Selected(rounded=rounded, scale=scale)
        if after
        else Raw(activation, renormalise=renormalise, eps=_eps(activation), scale=scale, rounded=rounded)
    )
    score = LinearScore(width, num_experts, bias=bias, dtype=torch.float32 if float32 else None)
    return Router(score, TopK(k, num_experts, corrected=corrected), weigh)


@PRESETS.register("sigmoid_bias")
def sigmoid_bias(width: int, num_experts: int, k: int, *, renormalise: bool = True, scale: float = 1.0) -> Router:
    """The ``k`` experts of highest sigmoid plus correction, weighted by the sigmoid alone.

    Loss-free balancing (arXiv 2408.15664): a training loop moves ``router.select.correction``
    by `coterie.ops.corrected`.
    Logits are float32 whatever the dtype of the items.

    Raises:
        OptionError: ``k`` is not in 1..E.
    """
    return Router(
        LinearScore(width, num_experts, dtype=torch.float32),
        TopK(k, num_experts, corrected=True),
        Raw("sigmoid", renormalise=renormalise, eps=1e-20, scale=scale),
    )


@PRESETS.register("group_limited")
def group_limited(
    width: int,
    num_experts: int,
    k: int,
    *,
    num_groups: int,
    keep_groups: int,
    renormalise: bool = True,
    scale: float = 1.0,
    activation: Literal["softmax", "sigmoid"] = "sigmoid",
    best: int = 2,
    corrected: bool = True,
) -> Router:
    """DeepSeek-V3's router (arXiv 2412.19437, equations 12 to 16): `sigmoid_bias` inside the best groups.

    Args:
        width: D.
        num_experts: E, a multiple of ``num_groups``.
        k: choices per item.
        num_groups: ``n_group`` of a checkpoint's config.
        keep_groups: ``topk_group``.
        renormalise: ``norm_topk_prob``.
        scale: ``routed_scaling_factor``.
        activation: ``sigmoid``, or ``softmax`` as in DeepSeek-V2.
        best: how many of a group's best experts say how good it is; 1 in DeepSeek-V2.
        corrected: choose by the activation plus a correction.

    Raises:
        OptionError: the groups do not divide E, or hold fewer than ``k`` experts.
    """
    return Router(
        LinearScore(width, num_experts, dtype=torch.float32),
        GroupLimited(k, num_experts, num_groups=num_groups, keep_groups=keep_groups, best=best, corrected=corrected),
        Raw(activation, renormalise=renormalise, eps=_eps(activation), scale=scale),
    )


@PRESETS.register("hash_routing")
def hash_routing(vocab_size: int, num_experts: int, k: int = 1, *, seed: int = 0) -> Router:
    """``k`` experts by a random table of token ids, equal weights that sum to one (arXiv 2106.04426).

    Reads `RouteContext.ids`; nothing is learned.

    Raises:
        OptionError: ``k`` is not in 1..E.
    """
    table = random_table(vocab_size, num_experts, k, seed=seed)
    return Router(HashScore(table, num_experts), TopK(k, num_experts), Selected())


def _eps(activation: str) -> float:
    """Sigmoids may all be 0; the sum of a softmax never is."""
    return 1e-20 if activation == "sigmoid" else 0.0
