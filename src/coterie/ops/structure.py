"""Which rows, columns or hidden neurons of what is left of a matrix are worth keeping (MC-SMoE, section 3.2).

The paper's text removes columns by summed score, its code rows by mean score: here the unit is named, and the score
is the mean, which compares units of unequal size. The published formula of the schedule exceeds 1 where it begins;
this is the form of the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["UNITS", "check_schedule", "keep_units", "kept_share", "neuron_scores", "smoothed", "unit_scores"]

UNITS = ("row", "col", "neuron")
"""An output, an input, or a hidden neuron: its rows of gate and up and its column of down together."""

_MEMORY = 0.85


def smoothed(before: Tensor | None, weight: Tensor, gradient: Tensor, memory: float = _MEMORY) -> Tensor:
    """Importance |s dL/ds| of every number, averaged over steps: memory x before + (1 - memory) x now. New memory.

    The first step counts in full, so that scores of few steps are not all small.
    """
    now = (weight.detach().float() * gradient.detach().float()).abs()
    return now if before is None else before.lerp(now, 1 - memory)


def unit_scores(importance: Tensor, unit: str) -> Tensor:
    """[m, n] scores of numbers -> the mean of each row ("row") [m] or column ("col") [n].

    Raises:
        OptionError: another unit.
    """
    if unit not in ("row", "col"):
        raise OptionError(f"A matrix is pruned by 'row' or by 'col', not by {unit!r}.")
    return importance.mean(1 if unit == "row" else 0)


def neuron_scores(importances: Mapping[str, Tensor]) -> Tensor:
    """[F] mean over a hidden neuron's numbers: its column of ``down_proj [D, F]``, its rows of the others [F, D]."""
    parts = [each.T if name == "down_proj" else each for name, each in importances.items()]
    return torch.cat([part.float() for part in parts], dim=1).mean(1)


def keep_units(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks [u] bool of the best ``share`` of all units of all lists together: as many as the rounded share says.

    Equal scores fall to the earlier list and the lower unit.

    Raises:
        OptionError: a share outside 0 to 1, a score that is no number.
    """
    if not 0 <= share <= 1:
        raise OptionError(f"A share lies between 0 and 1, not {share}.")
    everything = torch.cat([each.flatten().double() for each in scores]) if scores else torch.zeros(0)
    if bool(everything.isnan().any()):
        raise OptionError("A score is not a number: the loss or a weight was not finite.")
    count = round(share * len(everything))
    mask = torch.zeros(len(everything), dtype=torch.bool)
    mask[everything.argsort(descending=True, stable=True)[:count]] = True
    return [part.view(each.shape) for part, each in zip(mask.split([e.numel() for e in scores]), scores, strict=True)]


def kept_share(step: int, total: int, begin: int, end: int, final: float) -> float:
    """P_t, the share of units that survives at ``step``.

    It is 1 for the first ``begin`` steps and ``final`` for the last ``end``; between them it falls as a cube, fast at
    first: final + (1 - final) (1 - (t - begin) / (total - begin - end))^3.

    Raises:
        OptionError: see `check_schedule`.
    """
    check_schedule(total, begin, end, final)
    if step < begin:
        return 1.0
    if step >= total - end:
        return float(final)
    left = 1 - (step - begin) / (total - begin - end)
    return float(final + (1 - final) * left**3)


def check_schedule(total: int, begin: int, end: int, final: float) -> None:
    """Whether there is such a schedule.

    Raises:
        OptionError: a share outside 0 to 1, or more steps at the beginning and end than there are.
    """
    if not 0 <= final <= 1:
        raise OptionError(f"The share that is kept lies between 0 and 1, not {final}.")
    if min(begin, end) < 0 or total < 1 or begin + end > total:
        raise OptionError(
            f"{begin} steps before pruning and {end} after it do not fit into {total}. Give fewer, or train longer."
        )
