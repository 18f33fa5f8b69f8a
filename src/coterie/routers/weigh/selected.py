"""Softmax after selection: the weights of an item sum to one by construction."""

from __future__ import annotations

from torch import Tensor

from coterie.routers.base import Scores, Weigh
from coterie.routers.weigh.activations import read_at, softmax


class Selected(Weigh):
    """Softmax over the logits of the chosen routes.

    The same weights as softmax over all routes renormalised over the chosen, without the division
    that loses them when the chosen hold almost no mass.

    Args:
        rounded: round the weights to the dtype of the logits (gpt-oss).
        scale: what an item's weights sum to.
    """

    def __init__(self, *, rounded: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.rounded, self.scale = rounded, scale

    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Softmax over all allowed routes."""
        return softmax(logits, allowed)

    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        logits, taken = read_at(scores.logits, chosen)
        weights = softmax(logits, taken)
        weights = weights if self.scale == 1 else weights * self.scale
        return weights.to(scores.logits.dtype).to(weights.dtype) if self.rounded else weights
