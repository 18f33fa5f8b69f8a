"""How alike experts are: by what the router says of them, by their weights, by what they compute.

All similarities are [R, R] float64, symmetric, ones on the diagonal, at most 1. What is all zero (a route nobody was
sent to) is like nothing but itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Redundancy",
    "centred_cosine_of_gram",
    "centred_gram",
    "cosine_of_gram",
    "cosine_of_rows",
    "logit_similarity",
    "random_similarity",
    "redundancy",
    "weight_similarity",
]


# of the mean square: what differences of sums in float64 leave of columns that are the same
_ROUNDING = 1e-12


def cosine_of_gram(gram: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Cosines from inner products ``gram`` [R, R].

    Args:
        floor: squares up to it count as zero: what rounding left of them points anywhere.
    """
    gram = gram.double()
    squares = gram.diagonal()
    found = squares > floor
    lengths = torch.where(found, squares, 1).sqrt()
    cosine = gram / lengths[:, None] / lengths
    cosine = torch.where(found[:, None] & found, (cosine + cosine.T) / 2, 0).clamp(-1, 1)
    return cosine.fill_diagonal_(1.0)


def centred_cosine_of_gram(gram: Tensor) -> Tensor:
    """Cosines after `centred_gram`. A column that is every item's mean logit is nothing then, not a direction."""
    return cosine_of_gram(centred_gram(gram), _ROUNDING * gram.double().diagonal().mean())


def centred_gram(gram: Tensor) -> Tensor:
    """Inner products of logit columns less each item's mean logit, from those of the columns, [R, R].

    A softmax does not see what is added to all logits of an item; a cosine does.
    """
    gram = gram.double()
    # taking the mean off every row of Z is a product with I - 1/R, so Z itself need not be known
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def cosine_of_rows(rows: Tensor) -> Tensor:
    """Cosine of every two of ``rows`` [R, P]: router rows, mean expert outputs."""
    rows = rows.detach().double().flatten(1)
    return cosine_of_gram(rows @ rows.T)


def logit_similarity(logits: Tensor, *, centre: bool = False) -> Tensor:
    """Cosine of every two columns of ``logits`` [T, R]: equation 1 of MC-SMoE (arXiv 2310.01334).

    Args:
        centre: take each item's mean logit away first.
    """
    columns = logits.detach().double()
    gram = columns.T @ columns
    return centred_cosine_of_gram(gram) if centre else cosine_of_gram(gram)


def weight_similarity(weights: Mapping[str, Tensor]) -> Tensor:
    """Cosine of all weights of every two experts, laid end to end; ``weights`` are stacked [E, ...].

    Hidden neurons in another order make experts unlike here that compute the same.
    """
    return cosine_of_gram(torch.stack([_gram(weight) for weight in weights.values()]).sum(0))


def random_similarity(count: int, generator: torch.Generator | None = None) -> Tensor:
    """[count, count] drawn at random: groups by it are what any other grouping must beat."""
    drawn = torch.rand(count, count, generator=generator, dtype=torch.float64).triu(1)
    return (drawn + drawn.T).fill_diagonal_(1.0)


@dataclass(frozen=True)
class Redundancy:
    """What a similarity [R, R] says of a layer.

    Attributes:
        nearest: how alike an expert and the one most like it are, on average over experts.
        typical: how alike any two are, on average.
        effective: how many different experts there are in effect: exp of the entropy of the similarity's spectrum,
            R where none is like another, 1 where all are the same.
    """

    nearest: float
    typical: float
    effective: float


def redundancy(similarity: Tensor) -> Redundancy:
    """How much of a layer is there more than once. A layer of one expert has nothing twice."""
    count = len(similarity)
    if count < 2:
        return Redundancy(0.0, 0.0, float(count))
    others = similarity.double().clone()
    typical = float((others.sum() - others.trace()) / (count * (count - 1)))
    shares = torch.linalg.eigvalsh(others).clamp(min=0)
    shares = shares / shares.sum()
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    nearest = float(others.fill_diagonal_(-math.inf).max(dim=1).values.mean())
    return Redundancy(nearest, typical, math.exp(entropy))


def _gram(weight: Tensor) -> Tensor:
    """Inner products of the [E, ...] laid flat; a few columns at a time, since it is widened."""
    flat = weight.detach().flatten(1)
    step = max(1, (1 << 24) // len(flat))
    parts = [some.float() for some in flat.split(step, dim=1)]
    return torch.stack([(part @ part.T).double() for part in parts]).sum(0)
