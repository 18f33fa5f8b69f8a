"""Equal weights, whatever the scores."""

from __future__ import annotations

from torch import Tensor

from coterie.routers.base import Scores, Weigh
from coterie.routers.weigh.activations import softmax


class Uniform(Weigh):
    """Each of an item's n routes weighs ``scale / n``, or ``scale`` where ``divided`` is False. No gradient flows.

    Args:
        scale: the sum of an item's weights, or each of them. E makes the experts of a dense layer that was cut in E
            parts an unbiased estimate of it, whatever k is.
        divided: share ``scale`` among the routes.
    """

    def __init__(self, scale: float = 1.0, *, divided: bool = True) -> None:
        super().__init__()
        self.scale, self.divided = scale, divided

    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Softmax over all allowed routes: the chances of a draw."""
        return softmax(logits, allowed)

    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        taken = chosen < scores.probs.shape[1]
        weights = taken.to(scores.probs.dtype) * self.scale
        return weights / taken.sum(1, keepdim=True).clamp(min=1) if self.divided else weights
