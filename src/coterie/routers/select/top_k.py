"""The k best routes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.ops.select import check_k, top_k
from coterie.routers.base import Scores, Select
from coterie.routers.limits import asked_k
from coterie.routing import RouteContext


class TopK(Select):
    """The ``k`` routes of highest logit, or of highest corrected probability.

    Args:
        k: choices per item; ``RouteContext.overrides["k"]`` replaces it for a call.
        num_routes: R.
        corrected: choose by ``probs + correction``, a buffer [R] that starts at zero and moves the
            selection but no weight: loss-free balancing (arXiv 2408.15664), called
            ``e_score_correction_bias`` in checkpoints. Keep it float32 when the model is cast.

    Raises:
        OptionError: ``k`` is not in 1..R.
    """

    correction: Tensor | None

    def __init__(self, k: int, num_routes: int, *, corrected: bool = False) -> None:
        super().__init__()
        check_k(k, num_routes)
        self.k, self.num_routes = k, num_routes
        self.register_buffer("correction", torch.zeros(num_routes) if corrected else None)

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        table = scores.logits if self.correction is None else scores.probs + self.correction
        return top_k(table, asked_k(self.k, self.num_routes, ctx), scores.allowed)


def correction_of(select: nn.Module) -> Tensor | None:
    """The correction that a selection chooses by, its own or that of one inside it; None where there is none."""
    return next((own for part in select.modules() if (own := getattr(part, "correction", None)) is not None), None)
