"""Clusters of equal size: which rows belong together, when every cluster must have the same number of them.

Experts cut from one dense layer must be of one size, so a plain k-means will not do. `balanced_assignment` gives
every row a cluster at nearly the least cost, `balanced_kmeans` repeats it around means, and
`balanced_partition` cuts a graph that is only known by what its matrix does to others.

Everything here is deterministic: ties go to the lower index, and what is drawn hangs on ``seed`` alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.partition import even_channels

__all__ = ["balanced_assignment", "balanced_kmeans", "balanced_partition", "members"]

# how often a cost may be lowered before we call it low enough; each round costs E x E / 2 sorts
_ROUNDS = 50


def balanced_assignment(cost: Tensor, start: Tensor | None = None) -> Tensor:
    """Labels [n] int64 that give each of E clusters n / E rows at little total ``cost``.

    Rows first take the cheapest cluster that has room, those with most to lose going first; then pairs of rows
    change places while that lowers the sum. No exchange of two rows is left that would.

    Args:
        cost: [n, E] floats, finite; of row i in cluster e.
        start: [n] labels, balanced, to begin the exchanges from instead.

    Raises:
        OptionError: E does not divide n, or a cost is not a number.
    """
    rows, clusters = cost.shape
    even_channels(rows, clusters)
    if not cost.isfinite().all():
        raise OptionError("Costs of an assignment must be finite numbers; some are not.")
    cost = cost.double()
    labels = _proposals(cost) if start is None else start.clone()
    return _exchanged(cost, labels)


def balanced_kmeans(rows: Tensor, clusters: int, *, seed: int = 0, iterations: int = 30) -> tuple[Tensor, Tensor]:
    """Labels [n] int64 and centres [E, D] of k-means whose clusters are of equal size.

    Args:
        rows: [n, D]. Scale them to length one for directions alone.
        clusters: E, a divisor of n.
        seed: of the first centres, which are rows far from each other.
        iterations: at most; it ends when nothing moves.

    Raises:
        OptionError: E does not divide n.
    """
    even_channels(len(rows), clusters)
    rows = rows.float()
    centres, labels = _spread(rows, clusters, seed), None
    for _ in range(iterations):
        moved = balanced_assignment(_squared_distance(rows, centres), labels)
        if labels is not None and torch.equal(moved, labels):
            break
        labels = moved
        centres = torch.zeros(clusters, rows.shape[1]).index_add_(0, labels, rows) * (clusters / len(rows))
    assert labels is not None
    return labels, centres


def balanced_partition(
    affinity: Callable[[Tensor], Tensor], rows: int, clusters: int, *, seed: int = 0, iterations: int = 30
) -> Tensor:
    """Labels [n] int64 of a graph cut into E parts of equal size that keep much of its weight inside.

    A spectral start (balanced k-means on the leading eigenvectors, found by subspace iteration), then rows move to
    where most of their weight is as long as that keeps more.

    Args:
        affinity: multiplies the symmetric matrix [n, n] of weights, none negative, with [n, m].
        rows, clusters: n, and E, a divisor of n.
        seed: of the subspace's start.

    Raises:
        OptionError: E does not divide n.
    """
    even_channels(rows, clusters)
    labels, _ = balanced_kmeans(_embedding(affinity, rows, clusters, seed), clusters, seed=seed)
    kept = torch.tensor(-1.0)
    best = labels
    for _ in range(iterations):
        inside = affinity(torch.nn.functional.one_hot(labels, clusters).float())
        now = inside.gather(1, labels[:, None]).sum()
        if now <= kept:
            break
        kept, best = now, labels
        labels = balanced_assignment(-inside, labels)
    return best


def members(labels: Tensor, clusters: int) -> Tensor:
    """[E, n / E] int64: the rows of each cluster, ascending; of balanced ``labels``."""
    return labels.argsort(stable=True).view(clusters, -1)


def _proposals(cost: Tensor) -> Tensor:
    """Rows propose to the cheapest cluster with room; a cluster takes those that would lose most elsewhere."""
    rows, clusters = cost.shape
    labels = torch.full((rows,), -1)
    room = torch.full((clusters,), rows // clusters)
    while (free := (labels < 0).nonzero()[:, 0]).numel():
        open_cost = cost[free].masked_fill(room == 0, torch.inf)
        cheapest, wanted = open_cost.min(dim=1)
        second = open_cost.scatter(1, wanted[:, None], torch.inf).min(dim=1).values
        loss = second - cheapest  # inf where one cluster alone has room: whoever is left goes there
        for cluster in range(clusters):
            asking = (wanted == cluster).nonzero()[:, 0]
            taken = asking[loss[asking].argsort(descending=True, stable=True)[: int(room[cluster])]]
            labels[free[taken]] = cluster
            room[cluster] -= len(taken)
    return labels


def _exchanged(cost: Tensor, labels: Tensor) -> Tensor:
    """``labels`` after exchanges of two rows, none of which would lower the cost any more."""
    clusters = cost.shape[1]
    tiny = 1e-12 * (float(cost.abs().max()) + 1e-30) if cost.numel() else 0.0
    for _ in range(_ROUNDS):
        moved = False
        for first in range(clusters):
            for second in range(first + 1, clusters):
                moved |= _exchange(cost, labels, first, second, tiny)
        if not moved:
            break
    return labels


def _exchange(cost: Tensor, labels: Tensor, first: int, second: int, tiny: float) -> bool:
    """Exchange as many pairs between two clusters as pays; changes ``labels``."""
    here, there = (labels == first).nonzero()[:, 0], (labels == second).nonzero()[:, 0]
    go, go_order = (cost[here, second] - cost[here, first]).sort(stable=True)
    come, come_order = (cost[there, first] - cost[there, second]).sort(stable=True)
    count = int((go + come < -tiny).sum())  # both ascend, so that the sums do
    labels[here[go_order[:count]]] = second
    labels[there[come_order[:count]]] = first
    return count > 0


def _spread(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """[E, D] rows to begin from: each drawn with probability by its squared distance to those before (k-means++)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = torch.full((len(rows),), torch.inf)
    while len(chosen) < clusters:
        nearest = torch.minimum(nearest, _squared_distance(rows, rows[chosen[-1:]])[:, 0])
        # draws by the inverse of the cumulative sum: multinomial has a limit on the number of categories
        sums = nearest.double().cumsum(0)
        point = torch.rand(1, generator=generator, dtype=torch.float64) * sums[-1]
        chosen.append(min(int(torch.searchsorted(sums, point)), len(rows) - 1))
    return rows[chosen].clone()


def _squared_distance(rows: Tensor, centres: Tensor) -> Tensor:
    return (rows.square().sum(1, keepdim=True) - 2 * rows @ centres.T + centres.square().sum(1)).clamp(min=0)


def _embedding(affinity: Callable[[Tensor], Tensor], rows: int, clusters: int, seed: int) -> Tensor:
    """[n, E] of length one: leading eigenvectors of the affinity divided by the square roots of both degrees."""
    degrees = affinity(torch.ones(rows, 1))[:, 0].clamp(min=1e-12)
    root = degrees.sqrt()[:, None]
    generator = torch.Generator().manual_seed(seed)
    width = min(rows, clusters + 4)  # a few more than wanted make the wanted ones converge
    basis = torch.linalg.qr(torch.randn(rows, width, generator=generator)).Q
    for _ in range(20):
        basis = torch.linalg.qr(affinity(basis / root) / root).Q
    small = basis.T @ (affinity(basis / root) / root)
    vectors = basis @ torch.linalg.eigh((small + small.T) / 2).eigenvectors.flip(1)[:, :clusters]
    return torch.nn.functional.normalize(vectors, dim=1)
