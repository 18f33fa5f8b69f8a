"""The router with a memory over depth."""

from __future__ import annotations

from typing import Literal

import torch

from coterie.errors import OptionError
from coterie.routers.base import Router, Score
from coterie.routers.presets.build import PRESETS
from coterie.routers.presets.weighing import weighing
from coterie.routers.score import Blend, LinearScore, Recurrent
from coterie.routers.select import TopK


@PRESETS.register("rmoe")
def rmoe(
    width: int,
    num_experts: int,
    k: int,
    *,
    state: int = 128,
    cell: Literal["gru", "rnn", "lstm"] = "gru",
    projector: Literal["per_layer", "shared"] = "per_layer",
    carry: Literal["full", "detach", "none"] = "full",
    residual: float = 0.0,
    detach_residual: bool = False,
    readout: Literal["linear", "cosine"] = "linear",
    keep_linear: bool = False,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    renormalise: bool = True,
    scale: float = 1.0,
    bias: bool = False,
    float32: bool = False,
    rounded: bool = False,
    corrected: bool = False,
    follow: Router | None = None,
) -> Router:
    """The ``k`` best experts by a recurrent state that passes from layer to layer (RMoE, arXiv 2408.06793).

    Args:
        width: D.
        num_experts: E.
        k: choices per item; their weights sum to one.
        state: p, numbers in an item's state.
        cell: ``gru``, ``rnn`` (tanh) or ``lstm``; one for all layers.
        projector: ``per_layer``, or one that all layers ``shared`` (S-proj).
        carry: ``full``, ``detach`` (no gradient from layer to layer) or ``none`` (NP: no memory).
        residual: share of the previous layer's logits that is added: 0.5 and 1 in the paper.
        detach_residual: without their gradient.
        readout: from state to logits, ``linear`` or ``cosine`` (XMoE).
        keep_linear: score by one matrix as usual, plus a learned share of the recurrence that starts from 0: a
            trained router begins as it was. See `add_recurrence`.
        activation, renormalise, scale, rounded: how the chosen are weighed, as in `top_k`: the paper's way unless a
            checkpoint had another.
        bias, float32: of the linear score.
        corrected: choose by probability plus a correction, as in `top_k`.
        follow: the router of the layer before, whose cell is used; the first layer has none.

    Raises:
        OptionError: ``k`` is not in 1..E, an option has a value that is not allowed, or ``follow`` is unlike.
    """
    recurrent = Recurrent(
        width, num_experts, state=state, cell=cell, projector=projector, carry=carry, residual=residual,
        detach_residual=detach_residual, readout=readout, follow=recurrent_of(follow),
    )  # fmt: skip
    score: Score = recurrent
    if keep_linear:
        score = Blend(LinearScore(width, num_experts, bias=bias, dtype=torch.float32 if float32 else None), recurrent)
    return Router(score, TopK(k, num_experts, corrected=corrected), weighing(activation, renormalise, scale, rounded))


def recurrent_of(router: Router | None) -> Recurrent | None:
    """The recurrent part of a router, also where it is inside another score.

    Raises:
        OptionError: there is none.
    """
    if router is None:
        return None
    found = next((part for part in router.score.modules() if isinstance(part, Recurrent)), None)
    if found is None:
        raise OptionError(f"a recurrent router cannot follow one that scores by {type(router.score).__name__}.")
    return found
