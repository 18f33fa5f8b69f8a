"""A matrix as a product of two thin ones: the best there is, what it misses, what it costs.

Letters: m rows (outputs), n columns (inputs), r rank. MC-SMoE (arXiv 2310.01334, section 3.2) writes an expert's
matrix W as U V + S; `coterie.ops.structure` says which rows or columns of S are worth keeping.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["factored_parameters", "low_rank", "paying_rank", "residual", "spectrum", "stable_rank"]

_EXACT = 1024  # matrices whose smaller side is larger are decomposed by subspace iteration where the rank is small
_SMALL = 4  # times the rank asked for must fit into the smaller side for that
_BEYOND = 32  # directions beside those asked for
_ROUNDS = 6
_DAMPING = 1e-3  # of the mean input power, given to directions in which nothing came in


def low_rank(weight: Tensor, rank: int, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The factors U [m, r] and V [r, n] whose product is nearest to ``weight [m, n]``: float32.

    Nearest in the sum of squares; with ``inputs`` in the mean square of the outputs on rows with these moments. The
    singular values are shared evenly between the two (MC-SMoE, section 3.2). Where both sides of a matrix are above
    1024 and ``rank`` is below a quarter of them, subspace iteration finds them, to about a thousandth of what is
    missed. Deterministic; leaves the global random state alone.

    Args:
        weight: floating, finite.
        rank: r, from 1 to min(m, n).
        inputs: [n] mean square of each input, or [n, n] mean products of two inputs; None: all alike.

    Raises:
        OptionError: a rank that is not there, inputs of another shape, numbers that are not finite.
    """
    m, n = _checked(weight)
    if not 1 <= rank <= min(m, n):
        raise OptionError(f"A matrix {m} by {n} has ranks from 1 to {min(m, n)}, not {rank}.")
    stretched, back = _stretched(weight.float(), inputs)
    if rank == min(m, n):  # nothing is missed, whatever counts: weighing would only round
        stretched, back = _stretched(weight.float(), None)
    left, values, right = _decomposed(stretched, rank)
    root = values.sqrt()
    return (left * root).contiguous(), back(root[:, None] * right).contiguous()


def residual(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """S = W - U V [m, n] float32: what the product of ``up [m, r]`` and ``down [r, n]`` misses."""
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=-1)


def spectrum(weight: Tensor, inputs: Tensor | None = None) -> Tensor:
    """[min(m, n)] float64, descending: squares of the singular values; what rank r misses is the sum from r on.

    Args:
        weight: [m, n], floating, finite.
        inputs: as in `low_rank`.

    Raises:
        OptionError: inputs of another shape, numbers that are not finite.
    """
    m, n = _checked(weight)
    wide = _stretched(weight.float(), inputs)[0].double()
    gram = wide @ wide.T if m <= n else wide.T @ wide
    return torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)


def stable_rank(weight: Tensor) -> float:
    """Sum of the squared singular values over the largest (MC-SMoE, eq. 3): from 1 to min(m, n); 0 for zeros.

    Raises:
        OptionError: numbers that are not finite.
    """
    values = spectrum(weight)
    return float(values.sum() / values[0]) if float(values[0]) > 0 else 0.0


def paying_rank(m: int, n: int) -> int:
    """The largest rank whose two factors have no more numbers than the matrix: m n / (m + n), rounded down."""
    return m * n // (m + n)


def factored_parameters(m: int, n: int, rank: int, kept: int = 0, unit: str = "row") -> int:
    """Numbers in U, V and the kept rows or columns of S; twice that are the operations for one row.

    Args:
        m, n: of the matrix.
        rank: r.
        kept: rows ("row", n numbers each) or columns ("col", m numbers each) of S.
        unit: which.

    Raises:
        OptionError: another unit.
    """
    if unit not in ("row", "col"):
        raise OptionError(f"A matrix is pruned by 'row' or by 'col', not by {unit!r}.")
    return rank * (m + n) + kept * (n if unit == "row" else m)


def _checked(weight: Tensor) -> tuple[int, int]:
    if weight.dim() != 2 or not weight.is_floating_point():
        raise OptionError(f"Only matrices of floats can be factored, found {weight.dtype} {list(weight.shape)}.")
    if not bool(torch.isfinite(weight).all()):
        raise OptionError("A matrix holds numbers that are not finite and cannot be factored.")
    return weight.shape[0], weight.shape[1]


def _stretched(weight: Tensor, inputs: Tensor | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The matrix as it acts on inputs that are all alike, and what takes right factors back."""
    if inputs is None:
        return weight, lambda right: right
    n = weight.shape[1]
    if tuple(inputs.shape) not in ((n,), (n, n)):
        raise OptionError(f"A matrix of {n} columns has [{n}] or [{n}, {n}] moments, found {list(inputs.shape)}.")
    power = inputs if inputs.dim() == 1 else inputs.diagonal()
    floor = _DAMPING * float(power.mean()) or 1.0
    if inputs.dim() == 1:
        scale = (inputs.float() + floor).sqrt()
        return weight * scale, lambda right: right / scale
    root = torch.linalg.cholesky(inputs.double() + floor * torch.eye(n, dtype=torch.float64)).float()
    return weight @ root, lambda right: torch.linalg.solve_triangular(root, right, upper=False, left=False)


def _decomposed(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], values [r], V [r, n]."""
    smaller = min(matrix.shape)
    if smaller <= _EXACT or _SMALL * (rank + _BEYOND) > smaller:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, turned = torch.svd_lowrank(matrix, rank + _BEYOND, niter=_ROUNDS)
        right = turned.T
    return left[:, :rank], values[:rank], right[:rank]
