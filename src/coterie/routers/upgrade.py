"""Giving a trained router something new without a jolt: on the first day it decides as before.

Both upgrades take a `Router`, leave it as it is and return another that holds copies of its parts.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.select import check_k
from coterie.routers.base import Router, Select
from coterie.routers.presets.adamoe import nullable
from coterie.routers.presets.rmoe import recurrent_of
from coterie.routers.score import Blend, Frozen, LinearScore, Recurrent, WithNulls
from coterie.routers.select import CopiesBeside, TopK

__all__ = ["add_nulls", "add_recurrence"]


def add_nulls(
    router: Router,
    num_nulls: int,
    k: int,
    *,
    start: Literal["copied", "pinned"] = "copied",
    offset: float = 1e4,
    min_true: int = 0,
) -> Router:
    """A top-k router with null routes beside its experts (AdaMoE, arXiv 2406.13233).

    With the E experts and k_0 choices of the router given, two starts are **exact**, each item keeps its
    experts with their weights:

    - ``copied`` with ``num_nulls = m * E`` and ``k = k_0 * (1 + m)``, for m = 1, 2...: every row is copied m times,
      so that an item takes its k_0 experts and all their copies (`coterie.routers.select.CopiesBeside` orders ties);
    - ``pinned`` with ``num_nulls >= k - k_0``: that many nulls lie ``offset`` above any expert and fill what k was
      raised by, the others as far below. Let the offset fade in training: ``router.score.offset.mul_(0.99)``.

    Copies need not have all their places: since equal scores go to the true expert, any k above
    ``(k_0 - 1) * (1 + m)`` keeps k_0 experts too, as long as a copy's score comes out equal to the last bit. So
    do the paper's numbers, 8 nulls and k=3 for 8 experts and k_0=2. A smaller k starts with fewer experts.

    Args:
        router: chooses the k best logits; whatever weighs the chosen goes on weighing the true ones.
        num_nulls: M, 1 or more.
        k: choices per item from now on, nulls included.
        start: as above. Rows are copies either way.
        offset: of pinned nulls, in logits.
        min_true: 1 gives an item that chose nulls alone its best expert.

    Raises:
        OptionError: the router chooses otherwise, or has no rows to copy; or the numbers do not fit.
    """
    score, select = router.score, router.select
    if not isinstance(select, TopK) or select.correction is not None or not router.routes.is_identity:
        raise OptionError("nulls can be added to a router that takes the k best logits, with a route for each expert.")
    if not isinstance(score, LinearScore | Frozen):
        raise OptionError(f"nulls start as copies of rows, and {type(score).__name__} has none for each expert.")
    if start not in ("copied", "pinned"):
        raise OptionError(f"start={start!r} is not allowed: write 'copied' or 'pinned'.")
    if num_nulls < 1:
        raise OptionError(f"num_nulls={num_nulls} is not allowed: add 1 or more.")
    check_k(k, router.num_experts + num_nulls)
    if start == "pinned" and not 0 <= k - select.k <= num_nulls:
        raise OptionError(
            f"pinned nulls fill what k is raised by: from {select.k}, {num_nulls} nulls allow k={select.k} to "
            f"{select.k + num_nulls}, asked is {k}."
        )
    nulls = _copied(score, num_nulls)
    if start == "pinned":
        nulls.pin(k - select.k, offset)
    chooses: Select = TopK(k, nulls.num_routes)
    if start == "copied":
        chooses = CopiesBeside(chooses, router.num_experts, num_nulls)
    made = nullable(
        nulls, chooses, router.num_experts, num_nulls, min_true=min_true, weigh=deepcopy(router.weigh)
    )  # fmt: skip
    return made.train(router.training)


def add_recurrence(
    router: Router,
    *,
    state: int = 128,
    cell: Literal["gru", "rnn", "lstm"] = "gru",
    projector: Literal["per_layer", "shared"] = "per_layer",
    readout: Literal["linear", "cosine"] = "linear",
    gamma: float = 0.0,
    follow: Router | None = None,
) -> Router:
    """A router with a memory over depth beside its own score: ``logits + gamma * recurrent logits``.

    With ``gamma = 0`` the logits are the same, bit for bit; it is learned from there. An extension of RMoE
    (arXiv 2408.06793), which trains from scratch: no linear router is a recurrent one exactly.

    Args:
        router: any whose score takes items.
        state, cell, projector, readout: as in `rmoe`.
        gamma: to start from.
        follow: the upgraded router of the layer before, whose cell is used; the first layer has none.

    Raises:
        OptionError: an option is not allowed, ``follow`` has no recurrence, or the router carries already or
            scores no items.
    """
    if router.carries:
        raise OptionError("this router carries from layer to layer already: start from one that does not.")
    score = deepcopy(router.score)
    width = getattr(score, "width", None)
    if not isinstance(width, int):
        raise OptionError(f"{type(score).__name__} does not score items of some width: there is nothing to remember.")
    extra = Recurrent(
        width, score.num_routes, state=state, cell=cell, projector=projector, readout=readout,
        follow=recurrent_of(follow),
    )  # fmt: skip
    blend = Blend(score, extra.to(_device(score)), gamma)
    made = Router(blend.to(_device(score)), deepcopy(router.select), deepcopy(router.weigh), router.routes)
    return made.train(router.training)


def _copied(score: LinearScore | Frozen, num_nulls: int) -> WithNulls:
    """The score with nulls that repeat its rows, of its device and dtype."""
    nulls = WithNulls(deepcopy(score), num_nulls, score.width).to(score.weight.device)
    nulls.null_rows.data = nulls.null_rows.data.to(score.weight.dtype)
    nulls.copy_rows(score.weight, score.bias)
    return nulls


def _device(module: torch.nn.Module) -> torch.device:
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
