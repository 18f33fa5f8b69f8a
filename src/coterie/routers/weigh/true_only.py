"""Weights among the true experts alone, where null routes were chosen beside them."""

from __future__ import annotations

from torch import Tensor

from coterie.errors import OptionError
from coterie.routers.base import Scores, Weigh
from coterie.routers.weigh.activations import wide
from coterie.routers.weigh.selected import Selected


class TrueOnly(Weigh):
    """The weights that ``inner`` would give if there were no null routes (AdaMoE, arXiv 2406.13233).

    With `Selected`, the default, they are softmax over the true logits chosen: the paper's division of
    probabilities by their sum over the true ones, without its 0/0 where nulls hold all the mass. An item
    that chose nulls alone has no weight at all. Nulls get no gradient from the weights, exactly none:
    what trains them is a loss on `Routing.probs`, which are those of ``inner`` over all routes.

    Args:
        num_true: N; routes N and above are null.
        inner: weighs the true ones.

    Raises:
        OptionError: there is no true route.
    """

    def __init__(self, num_true: int, inner: Weigh | None = None) -> None:
        super().__init__()
        if num_true < 1:
            raise OptionError(f"num_true={num_true} is not allowed: at least one route leads to an expert.")
        self.num_true = num_true
        self.inner = Selected() if inner is None else inner
        self.stochastic, self.scope, self.causal = self.inner.stochastic, self.inner.scope, self.inner.causal

    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Of ``inner``, over true and null routes together."""
        return self.inner.probs(logits, allowed)

    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        logits = scores.logits[:, : self.num_true]
        allowed = None if scores.allowed is None else scores.allowed[:, : self.num_true]
        true = chosen.clamp(max=self.num_true)
        weights = self.inner(Scores(logits, self.inner.probs(logits, allowed), allowed), true)
        return wide(weights).masked_fill(true == self.num_true, 0)
