"""What a layer's router would decide, computed from its facts: for all of its experts, or if only some were there.

Surgery asks this often and of layers that are in no model: a few lines of arithmetic answer it for every family whose
router is known by `coterie.models.router_facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.models.facts import RouterFacts
from coterie.models.hypotheses import SCORES, Groups

__all__ = ["Decider", "router_logits"]


@dataclass(frozen=True)
class Decider:
    """Logits to choices and weights.

    Attributes:
        top_k: choices per item.
        score: a name of `coterie.models.hypotheses.SCORES`.
        renormalised: the weights of an item sum to ``scale``.
        scale: factor on the weights.
        groups: where the choice is confined to some groups.
    """

    top_k: int
    score: str = "softmax"
    renormalised: bool = True
    scale: float = 1.0
    groups: Groups | None = None

    @classmethod
    def of(cls, facts: RouterFacts) -> Decider | None:
        """From what is known of a router; None where that is not enough."""
        alone = facts.top_k == 1 and facts.renormalised  # every score gives a weight of one
        score = "softmax" if facts.score is None and alone else facts.score
        plain = facts.choice == "largest scores" or facts.groups is not None
        if (
            score is None
            or score not in SCORES
            or not plain
            or facts.renormalised is None
            or facts.expert_scale
            or facts.preset
        ):
            return None
        return cls(facts.top_k, score, facts.renormalised, facts.scale or 1.0, facts.groups)

    @property
    def blocks(self) -> int:
        """Equal groups of experts that must stay equal; 1 where there are none."""
        return 1 if self.groups is None else self.groups.count

    def least(self) -> int:
        """Experts that a layer must keep for the router to go on as it does."""
        if self.groups is None:
            return self.top_k
        size = max(-(-self.top_k // self.groups.kept), 2 if self.groups.rule == "two best" else 1)
        return size * self.groups.count

    def __call__(
        self, logits: Tensor, correction: Tensor | None = None, there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choices [..., T, K] int64 and their weights, in the dtype of ``logits``.

        Args:
            logits: [..., T, R].
            correction: [R] added to the scores for the choice alone.
            there: [..., R] bool, broadcast over items; the rows of the others are as if they had been deleted.
        """
        if there is not None:
            logits = logits.masked_fill(~there[..., None, :], -torch.inf)
        scores = SCORES[self.score](logits)
        ranked = scores if correction is None else scores + correction.to(scores)
        ranked = ranked.masked_fill(logits == -torch.inf, -torch.inf)
        chosen = self._confined(ranked).topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.renormalised:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return chosen, weights * self.scale

    def _confined(self, scores: Tensor) -> Tensor:
        """-inf in the groups that an item may not use."""
        if self.groups is None:
            return scores
        members = scores.unflatten(-1, (self.groups.count, -1))
        best = members.topk(2, -1).values.sum(-1) if self.groups.rule == "two best" else members.amax(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter(-1, best.topk(self.groups.kept, -1).indices, True)
        return members.masked_fill(~kept[..., None], -torch.inf).flatten(-2)


def router_logits(x: Tensor, router: Mapping[str, Tensor]) -> Tensor:
    """[n, R] float32 of rows ``x`` [n, D]: ``weight`` [R, D], and ``bias`` [R] where there is one."""
    logits = x.float() @ router["weight"].float().T
    return logits + router["bias"].float() if "bias" in router else logits
