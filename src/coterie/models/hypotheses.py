"""The ways to score, choose and weigh that the field knows, and which of them explains what was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# relative difference that rounding explains
_CLOSE = 2e-3

SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "sqrt softplus": lambda logits: F.softplus(logits).sqrt(),
}
"""Logits [T, R] -> scores [T, R]."""


@dataclass(frozen=True)
class Weighing:
    """How weights follow from logits; ``score`` is None where several score functions fit."""

    score: str | None
    renormalised: bool
    scale: float


@dataclass(frozen=True)
class Groups:
    """A choice confined to the ``kept`` best of ``count`` groups; a group is as good as its best or two best."""

    count: int
    kept: int
    rule: str

    def describe(self) -> str:
        return f"from the {self.kept} best of {self.count} groups (by their {self.rule})"


def weighed_as(logits: Tensor, indices: Tensor, weights: Tensor, noise: float = 0.0) -> Weighing | None:
    """How [T, K] ``weights`` of the experts ``indices`` follow from [T, R] ``logits``; None if in no known way.

    ``noise`` is the threshold of the sparse mixer (SparseMixer-v2), whose weights depend on it.
    """
    fits = [
        Weighing(name, *found)
        for name, score in SCORES.items()
        if (found := _fit(score(logits).gather(1, indices), weights)) is not None
    ]
    if indices.shape[1] == 2 and _near(_sparse_mixer(logits, noise), weights):
        return Weighing("sparsemixer", False, 1.0)
    if len(fits) < 2:
        return fits[0] if fits else None
    same = {(fit.renormalised, round(fit.scale, 3)) for fit in fits}
    return Weighing(None, fits[0].renormalised, fits[0].scale) if len(same) == 1 else None


def _fit(scores: Tensor, weights: Tensor) -> tuple[bool, float] | None:
    """(renormalised, scale), where the weights are the scores times one number, or times one per item."""
    used = weights > 0
    ratio = weights / scores
    if not bool(used.any()):
        return None
    if _constant(ratio[used]):
        return False, float(ratio[used].mean())
    rows = used.all(-1)
    within = ratio[rows]
    if len(within) and bool(((within.amax(-1) / within.amin(-1) - 1) < _CLOSE).all()):
        sums = weights[rows].sum(-1)
        return (True, float(sums.mean())) if _constant(sums) else None
    return None


def _constant(values: Tensor) -> bool:
    return bool(values.max() / values.min() - 1 < _CLOSE)


def _near(expected: Tensor, found: Tensor) -> bool:
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=_CLOSE, atol=1e-5)


def _sparse_mixer(logits: Tensor, noise: float) -> Tensor:
    """[T, 2] weights of SparseMixer-v2 without noise: each choice by a softmax over those near the best so far."""
    weights, left = [], logits
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp_min(best) > 2 * noise
        weights.append(left.masked_fill(far, -torch.inf).softmax(-1).gather(1, index))
        left = left.scatter(1, index, -torch.inf)
    return torch.cat(weights, 1)


def chosen_as(scores: Tensor, k: int) -> Tensor:
    """[T, K] of the largest of [T, R]."""
    return scores.topk(k, -1).indices


def confined(logits: Tensor, score: str, count: int, kept: int, rule: str) -> Tensor:
    """[T, R] scores, -inf in the groups that an item may not use."""
    scores = SCORES[score](logits)
    members = scores.unflatten(-1, (count, -1))
    best = members.topk(2, -1).values.sum(-1) if rule == "two best" else members.amax(-1)
    keep = torch.zeros_like(best).scatter(1, best.topk(kept, -1).indices, 1.0).bool()
    return members.masked_fill(~keep[..., None], -torch.inf).flatten(1)


def same_choice(found: Tensor, expected: Tensor, weights: Tensor | None = None) -> bool:
    """Whether two [T, K] tables name the same experts, in any order; items with a weight of 0 are left out."""
    rows = torch.ones(len(found), dtype=torch.bool) if weights is None else (weights > 0).all(-1)
    return torch.equal(found[rows].sort(-1).values, expected[rows].sort(-1).values)
