"""Clusters by average linkage: of whatever size they turn out to be."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.errors import MissingExtraError, OptionError

__all__ = ["average_linkage"]


def average_linkage(distance: Tensor, count: int) -> Tensor:
    """[R] int64: the cluster of each item, 0 to ``count`` - 1 in the order of their first items.

    Starts from items alone and joins the two clusters with the smallest mean distance, until ``count`` are left
    (HC-SMoE, arXiv 2410.08589, algorithm 1).

    Args:
        distance: [R, R], symmetric, zero on the diagonal.
        count: 1 to R.

    Raises:
        OptionError: ``count`` is not within 1 and R.
        MissingExtraError: scipy is not installed.
    """
    items = len(distance)
    if not 1 <= count <= items:
        raise OptionError(f"{items} experts make 1 to {items} clusters, not {count}.")
    if items == 1:
        return torch.zeros(1, dtype=torch.int64)
    try:
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise MissingExtraError("scipy, which makes clusters,", extra="surgery") from error
    pairs = squareform(distance.detach().double().cpu().numpy(), checks=False)
    members = {item: [item] for item in range(items)}
    for number, (one, other) in enumerate(linkage(pairs, "average")[: items - count, :2].astype(int).tolist()):
        members[items + number] = members.pop(one) + members.pop(other)
    labels = torch.empty(items, dtype=torch.int64)
    for cluster, some in enumerate(sorted(members.values(), key=min)):
        labels[some] = cluster
    return labels
