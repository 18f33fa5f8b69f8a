"""Hidden neurons of one expert matched with those of another, and put in their order.

The inner channels of a feed-forward expert have no order of their own: ``P`` applied to the rows of gate and up (and
their biases) and to the columns of down leaves the function as it is. Two experts that compute the same may have
unlike weights for that reason alone, and the mean of the two would be neither. So before weights are averaged the
neurons of one are matched with those of the other.

A neuron is described by a row: all weights that touch it (weight matching, arXiv 2209.04836; section 3.1 of MC-SMoE,
arXiv 2310.01334), or what it said on tokens that both experts saw (activation matching). Matching maximises the sum
of the inner products of matched rows.

Matrices are [out, in], as `torch.nn.Linear` has them: gate_proj and up_proj [F, D], down_proj [D, F].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.errors import MissingExtraError, OptionError
from coterie.ops.matching import greedy_match

__all__ = ["activation_rows", "align", "match_rows", "neuron_rows", "permute_neurons"]

_EXACT = 4096  # neurons up to which the best assignment is found; the scores of more take gigabytes and minutes


def neuron_rows(weights: Mapping[str, Tensor]) -> Tensor:
    """[F, P] float32: of each hidden neuron its row of gate and up, its biases, and its column of down.

    The inner product of two such rows is the sum of the gate, up, bias and down terms of section 3.1.

    Args:
        weights: ``up_proj [F, D]``, ``down_proj [D, F]``, with ``gate_proj``, ``up_proj_bias [F]`` and so on where
            the expert has them. The output bias belongs to no neuron.
    """
    names = [name for name in ("gate_proj", "up_proj") if name in weights]
    rows = [weights[name].float() for name in names]
    rows += [weights[f"{name}_bias"].float()[:, None] for name in names if f"{name}_bias" in weights]
    return torch.cat([*rows, weights["down_proj"].float().T], dim=1)


def activation_rows(features: Tensor) -> Tensor:
    """[F, n] float32 from ``features`` [n, F], what each neuron said on n tokens: the inner product of two rows is
    their correlation. A neuron that always says the same correlates with none."""
    rows = features.float().T
    rows = rows - rows.mean(dim=1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def match_rows(reference: Tensor, target: Tensor, *, exact: bool | None = None) -> Tensor:
    """[F] int64: ``order[i]`` is the row of ``target`` [F, P] that goes with row i of ``reference`` [F, P].

    The sum of the inner products is never below that of leaving ``target`` as it is, and ties go to leaving it so.

    Args:
        exact: the best assignment there is: F x F scores and about F^3 steps. False: the most alike first, then
            improved block by block; memory grows with F alone. None: exact up to 4096 rows.

    Raises:
        OptionError: rows of different shapes, or values that are not finite.
        MissingExtraError: scipy is not installed.
    """
    if reference.shape != target.shape or reference.dim() != 2:
        raise OptionError(
            f"Neurons of {_shape(reference)} cannot be matched with neurons of {_shape(target)}: experts of one shape "
            "can be merged, others cannot."
        )
    same = torch.arange(len(reference))
    reference, target = reference.detach().float().cpu(), target.detach().float().cpu()
    if not (_finite(reference) and _finite(target)):
        raise OptionError("Weights that are not finite cannot be matched. Check the checkpoint: coterie doctor MODEL")
    if torch.equal(reference, target):
        return same
    if len(reference) <= _EXACT if exact is None else exact:
        scores = reference @ target.T
        order = _best(scores)
        return order if _picked(scores, order) > _picked(scores, same) else same
    order = greedy_match(reference, target, _best)
    return order if _score(reference, target[order]) > _score(reference, target) else same


def permute_neurons(weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The same expert with its hidden neurons in another order; what belongs to no neuron is passed on.

    Args:
        weights: as in `neuron_rows`.
        order: [F] int64, such as `match_rows`.
    """
    order = order.to(weights["down_proj"].device)
    moved = {
        name: weight[order] for name, weight in weights.items() if name.startswith(("gate_proj", "up_proj"))
    } | {"down_proj": weights["down_proj"][:, order]}  # fmt: skip
    return {name: moved.get(name, weight) for name, weight in weights.items()}


def align(
    reference: Mapping[str, Tensor], target: Mapping[str, Tensor], *, exact: bool | None = None
) -> dict[str, Tensor]:
    """``target`` with its hidden neurons in the order of those of ``reference``, by weight matching.

    Exact: the function of the expert is unchanged. Arguments, errors: as `match_rows`.
    """
    return permute_neurons(target, match_rows(neuron_rows(reference), neuron_rows(target), exact=exact))


def _finite(rows: Tensor) -> bool:
    """A sum that is finite has nothing else in it, and is several times as fast as looking at each."""
    return bool(torch.isfinite(rows.sum())) or bool(torch.isfinite(rows).all())


def _best(scores: Tensor) -> Tensor:
    """[F] the columns, one for each row, with the largest sum of ``scores`` [F, F]."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError("scipy, which matches neurons,", extra="surgery") from error
    return torch.from_numpy(linear_sum_assignment(scores.numpy(), maximize=True)[1]).long()


def _picked(scores: Tensor, order: Tensor) -> float:
    return float(scores.gather(1, order[:, None]).double().sum())


def _score(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _shape(rows: Tensor) -> str:
    return "x".join(map(str, rows.shape))
