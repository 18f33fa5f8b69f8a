"""Which experts of a layer become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.linkage import average_linkage

__all__ = ["Grouping", "cluster_grouping", "nearest_dominant", "salient_grouping"]


@dataclass(frozen=True)
class Grouping:
    """Every expert in one group, every group with one dominant.

    Attributes:
        dominants: of each group, ascending.
        members: of each group, ascending; the dominant is one of them.
    """

    dominants: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, labels: Sequence[int], dominants: Sequence[int]) -> Grouping:
        """From ``labels``: for each expert its dominant."""
        order = tuple(sorted(dominants))
        members = tuple(tuple(e for e, label in enumerate(labels) if label == one) for one in order)
        assert all(one in some for one, some in zip(order, members, strict=True)), (labels, dominants)
        assert sum(map(len, members)) == len(labels), (labels, dominants)
        return cls(order, members)

    @property
    def num_experts(self) -> int:
        """E, before."""
        return sum(map(len, self.members))

    @property
    def labels(self) -> tuple[int, ...]:
        """For each of the E experts the number of its group."""
        group_of = {expert: group for group, some in enumerate(self.members) for expert in some}
        return tuple(group_of[expert] for expert in range(self.num_experts))

    def describe(self) -> str:
        """Such as "0: 3 9 · 4 · 7: 1 2": each dominant and who joins it."""
        return " · ".join(
            f"{one}: {' '.join(str(e) for e in some if e != one)}" if len(some) > 1 else str(one)
            for one, some in zip(self.dominants, self.members, strict=True)
        )


def nearest_dominant(similarity: Tensor, dominants: Sequence[int], capacity: int | None = None) -> Grouping:
    """Every other expert joins the dominant it is most like (MC-SMoE, section 3.2); ties go to the lower one.

    Args:
        similarity: [E, E].
        dominants: expert ids.
        capacity: most experts in a group, the dominant included; those most like their dominant go first.

    Raises:
        OptionError: there is not room for all.
    """
    count, order = len(similarity), sorted(dominants)
    _check_capacity(count, len(order), capacity)
    labels = [-1] * count
    room = dict.fromkeys(order, (capacity or count) - 1)
    for one in order:
        labels[one] = one
    others = [expert for expert in range(count) if labels[expert] < 0]
    pairs = [(-float(similarity[expert, one]), expert, one) for expert in others for one in order]
    for _, expert, one in sorted(pairs):
        if labels[expert] < 0 and room[one]:
            labels[expert] = one
            room[one] -= 1
    return Grouping.of(labels, order)


def salient_grouping(
    similarity: Tensor, saliency: Tensor, centres: Sequence[int], capacity: int = 16
) -> Grouping:  # fmt: skip
    """The ``centres``, the most salient first, each take the nearest that are left (REAM, arXiv 2604.04356).

    A few large groups form around the most salient and many of the other experts stay alone: close to pruning, without
    the loss of what is pruned.

    Args:
        similarity: [E, E].
        saliency: [E], such as REAP's.
        centres: expert ids.
        capacity: most experts in a group, the centre included.

    Raises:
        OptionError: there is not room for all.
    """
    total = len(similarity)
    _check_capacity(total, len(centres), capacity)
    order = sorted(centres, key=lambda one: (-float(saliency[one]), one))
    labels = {one: one for one in order}
    left = [expert for expert in range(total) if expert not in labels]
    for one in order:
        near = sorted(left, key=lambda expert: (-float(similarity[expert, one]), expert))[: capacity - 1]
        labels |= dict.fromkeys(near, one)
        left = [expert for expert in left if expert not in labels]
    return Grouping.of([labels[expert] for expert in range(total)], order)


def cluster_grouping(features: Tensor, usage: Tensor, count: int) -> Grouping:
    """Clusters of average linkage; the most used of each is its dominant (HC-SMoE, arXiv 2410.08589).

    Args:
        features: [E, P], such as each expert's mean output on a common sample; distances are Euclidean.
        usage: [E].
        count: of groups.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    features = features.double()
    clusters = average_linkage(torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist"), count)
    used = usage.double()
    dominants = [
        max((clusters == cluster).nonzero()[:, 0].tolist(), key=lambda expert: (float(used[expert]), -expert))
        for cluster in range(count)
    ]
    return Grouping.of([dominants[cluster] for cluster in clusters.tolist()], dominants)


def _check_capacity(experts: int, groups: int, capacity: int | None) -> None:
    if capacity is not None and capacity * groups < experts:
        raise OptionError(
            f"{groups} groups of at most {capacity} have no room for {experts} experts. Allow {-(-experts // groups)} "
            "in a group, or ask for more groups."
        )
