"""Which experts the others gather around, or which are kept, and how many of them each layer gets.

Both rules here give an order to each layer's experts with a value for each place in it; `spread` then fills a total
over all layers with the places of the largest value. Where a router confines itself to groups of experts, the blocks
of consecutive experts it counts in, places are taken one in every block at a time, so that blocks stay equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["best_scores", "check_total", "coverage_dominants", "frequency_dominants", "spread"]


def frequency_dominants(
    usage: Sequence[Tensor], total: int, *, least: int = 1, blocks: int = 1, uniform: bool = False
) -> list[tuple[int, ...]]:
    """The most used experts of all layers together, each layer's most used one among them (MC-SMoE, section 3.2).

    Ties go to the earlier layer, then to the lower expert.

    Args:
        usage: of each layer [E], any scale: shares of the layer's assignments are compared.
        total: of dominant experts in all layers.
        least: of them in each layer.
        blocks: groups of the router; 1 where it has none.
        uniform: the same number in every layer.

    Returns:
        for each layer its dominants, ascending.

    Raises:
        OptionError: ``total`` does not fit; says what does.
    """
    return best_scores([_shares(each) for each in usage], total, least=least, blocks=blocks, uniform=uniform)


def coverage_dominants(
    usage: Sequence[Tensor], similarity: Sequence[Tensor], total: int, *, least: int = 1, blocks: int = 1,
    uniform: bool = False,
) -> list[tuple[int, ...]]:  # fmt: skip
    """Experts such that every expert that is much used is like one of them.

    Each time the expert is added that most raises ``sum_i A_i max_d (1 + sim(i, d)) / 2``; then every dominant gives
    its place to the most used of the experts nearest to it. Frequency alone may take two copies of one kind of expert
    and leave out another kind.

    Args:
        similarity: of each layer [E, E], such as `coterie.ops.similarity.logit_similarity`.
        usage, total, least, blocks, uniform: as `frequency_dominants`.

    Returns, raises: as `frequency_dominants`.
    """
    shares = [_shares(each) for each in usage]
    orders, gains = [], []
    for share, alike in zip(shares, similarity, strict=True):
        order, gain = _cover(share, alike.double(), blocks)
        orders.append(order)
        gains.append(gain)
    counts = spread(gains, total, least=least, blocks=blocks, uniform=uniform)
    return [
        _most_used(order[:count], share, alike.double(), blocks)
        for order, count, share, alike in zip(orders, counts, shares, similarity, strict=True)
    ]


def best_scores(
    scores: Sequence[Tensor], total: int, *, least: int = 1, blocks: int = 1, uniform: bool = False
) -> list[tuple[int, ...]]:
    """The experts with the largest ``scores`` [E] of each layer, ascending; arguments as `frequency_dominants`."""
    places = [_in_blocks(each, blocks).sort(dim=1, descending=True, stable=True) for each in scores]
    values = [place.values.mean(0).repeat_interleave(blocks) for place in places]
    counts = spread(values, total, least=least, blocks=blocks, uniform=uniform)
    found = []
    for place, count in zip(places, counts, strict=True):
        starts = torch.arange(blocks)[:, None] * place.indices.shape[1]
        found.append(tuple(sorted((place.indices[:, : count // blocks] + starts).flatten().tolist())))
    return found


def spread(
    values: Sequence[Tensor], total: int, *, least: int = 1, blocks: int = 1, uniform: bool = False
) -> list[int]:
    """How many places each layer gets of ``total``: the places with the largest values, at least ``least`` each.

    Args:
        values: of each layer [E], what its first, second, ... place is worth, falling; equal within ``blocks`` places
            in a row, which are given together.

    Raises:
        OptionError: ``total`` does not fit; says what does.
    """
    sizes = [len(each) for each in values]
    check_total(total, sizes, least=least, blocks=blocks, uniform=uniform)
    if uniform:
        return [total // len(sizes)] * len(sizes)
    first = math.ceil(least / blocks) * blocks
    units = [
        (-math.inf if place < first else -float(each[place]), layer, place)
        for layer, each in enumerate(values)
        for place in range(0, len(each), blocks)
    ]
    counts = [0] * len(sizes)
    for _, layer, _ in sorted(units)[: total // blocks]:
        counts[layer] += blocks
    return counts


def check_total(total: int, sizes: Sequence[int], *, least: int = 1, blocks: int = 1, uniform: bool = False) -> None:
    """Whether ``total`` places fit layers of ``sizes`` experts with ``least`` in each.

    Raises:
        OptionError: they do not; says what does.
    """
    first = math.ceil(least / blocks) * blocks
    allowed = f"{first * len(sizes)} to {sum(sizes)}"
    if total % blocks or any(size % blocks for size in sizes):
        raise OptionError(
            f"The router chooses among {blocks} equal groups of experts, so what stays must be a multiple of {blocks}."
        )
    if not first * len(sizes) <= total <= sum(sizes):
        layers = f"{len(sizes)} layer{'s' * (len(sizes) > 1)}"
        raise OptionError(
            f"{total} experts in {layers} do not fit: {allowed} do, with {first} in each layer at least."
        )  # fmt: skip
    if uniform and (total % len(sizes) or total // len(sizes) % blocks or total // len(sizes) > min(sizes)):
        raise OptionError(
            f"{total} experts do not fall evenly on {len(sizes)} layers of {min(sizes)} experts and more. Choose a "
            f"number for each layer, {first} to {min(sizes)}."
        )


def _cover(share: Tensor, alike: Tensor, blocks: int) -> tuple[list[int], Tensor]:
    """All experts in the order of the greedy rule, and what each place brought, made equal within a round."""
    likeness = (1 + alike) / 2
    covered = torch.zeros_like(share)
    size = len(share) // blocks
    order: list[int] = []
    gains = torch.empty(len(share), dtype=torch.float64)
    for place in range(len(share)):
        gain = (share[:, None] * (likeness - covered[:, None]).clamp(min=0)).sum(0)
        this_round = order[place - place % blocks :]
        taken = order + [e for one in this_round for e in range(one // size * size, one // size * size + size)]
        gain[taken] = -math.inf
        best = _first_best(gain, share)
        gains[place] = gain[best]
        covered = torch.maximum(covered, likeness[:, best])
        order.append(best)
    return order, gains.view(-1, blocks).mean(1).repeat_interleave(blocks)


def _first_best(gain: Tensor, share: Tensor) -> int:
    """The largest gain; of equal ones the more used, then the lower expert."""
    equal = gain >= gain.max() - 1e-12
    return int(torch.where(equal, share, -1.0).argmax())


def _most_used(dominants: list[int], share: Tensor, alike: Tensor, blocks: int) -> tuple[int, ...]:
    """The most used member of each dominant's cluster, within the dominant's own block."""
    size = len(share) // blocks
    chosen = torch.tensor(sorted(dominants))
    nearest = chosen[alike[:, chosen].argmax(dim=1)]
    nearest[chosen] = chosen
    found = []
    for dominant in chosen.tolist():
        cluster = [e for e in (nearest == dominant).nonzero()[:, 0].tolist() if e // size == dominant // size]
        best = max(float(share[e]) for e in cluster)
        found.append(dominant if float(share[dominant]) == best else next(e for e in cluster if share[e] == best))
    return tuple(sorted(found))


def _in_blocks(scores: Tensor, blocks: int) -> Tensor:
    if len(scores) % blocks:
        raise OptionError(f"{len(scores)} experts do not fall into {blocks} equal groups.")
    return scores.double().view(blocks, -1)


def _shares(usage: Tensor) -> Tensor:
    """[E] float64 that sum to 1: even ones where nothing was used."""
    usage = usage.double()
    total = usage.sum()
    return usage / total if total > 0 else torch.full_like(usage, 1 / len(usage))
