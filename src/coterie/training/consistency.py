"""Two passes of one batch must agree: THOR's consistency (arXiv 2110.04260), for any router.

The batch is put through the model twice in one forward. Routers that draw, draw anew for the second copy, dropout
differs too, and the predictions p and q of the copies are drawn together:

    CR   = mean over tokens of 1/2 sum_v (p - q)(log p - log q)          the mean of both Kullback-Leibler divergences
    loss = (CE_1 + CE_2) / 2 + alpha / 2 * CR                            in nats per token

This is the published objective CE_1 + CE_2 + alpha CR, halved, so that losses compare with those of one pass; its
gradient has the same direction. Gradient flows through both copies. With one expert it is R-Drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError


@dataclass(frozen=True)
class Consistency:
    """How strongly two passes are drawn together.

    Attributes:
        alpha: as published; 0 keeps the two passes and lets them differ.
        warmup: the share of the run in which alpha rises from 0 to its value; a large alpha early slows learning.
    """

    alpha: float = 1.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not self.alpha >= 0 or not 0 <= self.warmup <= 1:
            raise OptionError(f"alpha must be at least 0 and warmup 0 to 1, not {self.alpha} and {self.warmup}.")

    def weight(self, step: int, total: int) -> float:
        """What the divergence is multiplied with at a step: alpha / 2, or what of it the warm-up allows."""
        rising = self.warmup * total
        return self.alpha / 2 * (1.0 if step >= rising else step / rising)


def divergence(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over valid rows of the symmetric divergence of two predictions, in float32 or wider.

    From log-softmax, so that classes whose probability is 0 give 0 and not NaN.

    Args:
        first, second: [..., V] logits.
        mask: [...] bool, False where padding; without valid rows the result is 0 and so is its gradient.
    """
    if mask is not None:
        first, second = first[mask], second[mask]
    a, b = (torch.log_softmax(each if each.dtype == torch.float64 else each.float(), -1) for each in (first, second))
    rows = (a.exp() - b.exp()) * (a - b)
    return rows.sum() / 2 / max(1, rows[..., 0].numel())


def doubled(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch followed by itself: the first axis of every tensor twice as long."""
    return {name: torch.cat([value, value]) if isinstance(value, Tensor) else value for name, value in inputs.items()}
