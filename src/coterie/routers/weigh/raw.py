"""Activation before selection: the probabilities themselves, as they are or renormalised."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from coterie.errors import OptionError
from coterie.routers.base import Scores, Weigh
from coterie.routers.weigh.activations import read_at, sigmoid, softmax

_ACTIVATIONS = {"softmax": softmax, "sigmoid": sigmoid}


class Raw(Weigh):
    """The probabilities of the chosen routes.

    Args:
        activation: ``softmax`` over all routes, or ``sigmoid`` of each.
        renormalise: divide by the sum over the chosen plus ``eps``.
        eps: DeepSeek-V3 has 1e-20. A sum of exactly 0 leaves the weights 0.
        scale: multiplies the weights, after renormalising (``routed_scaling_factor``).
        rounded: round the weights to the dtype of the logits (OLMoE, Qwen3-MoE).

    Raises:
        OptionError: the activation is unknown.
    """

    def __init__(
        self,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        *,
        renormalise: bool = False,
        eps: float = 0.0,
        scale: float = 1.0,
        rounded: bool = False,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise OptionError(f"activation {activation!r} is not known; there are: {', '.join(_ACTIVATIONS)}.")
        self.activation, self.renormalise, self.eps, self.scale = activation, renormalise, eps, scale
        self.rounded = rounded

    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """The activation of the logits."""
        return _ACTIVATIONS[self.activation](logits, allowed)

    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        probs, taken = read_at(scores.probs, chosen)
        weights = probs.masked_fill(~taken, 0)
        if self.renormalise:
            total = weights.sum(dim=1, keepdim=True) + self.eps
            weights = weights / total.masked_fill(total == 0, 1)
        weights = weights * self.scale
        return weights.to(scores.logits.dtype).to(weights.dtype) if self.rounded else weights
