"""Equal weights for whatever was chosen."""

from __future__ import annotations

from torch import Tensor

from coterie.routers.base import Scores, Weigh
from coterie.routers.weigh.activations import read_at, softmax


class Uniform(Weigh):
    """``scale / n`` for each of the n routes an item chose. No gradient flows: the router only selects.

    Args:
        scale: what an item's weights sum to. N makes the experts of a dense layer that was cut in N parts
            an unbiased estimate of it, whatever k is.
    """

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Softmax over all allowed routes."""
        return softmax(logits, allowed)

    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        _, taken = read_at(scores.logits, chosen)
        share = taken.to(scores.probs.dtype)
        return self.scale * share / share.sum(dim=1, keepdim=True).clamp(min=1)
