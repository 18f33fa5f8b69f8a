"""The layers that are measured: three well-known proportions of experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """A mixture-of-experts layer with SwiGLU experts.

    Attributes:
        width, inner: D and F of one expert.
        experts, top_k: E and K.
        copies: so many layers with weights of their own take turns, so that no cache holds what a token needs.
    """

    name: str
    title: str
    width: int
    inner: int
    experts: int
    top_k: int
    copies: int = 1

    @property
    def expert_parameters(self) -> int:
        """Of one expert."""
        return 3 * self.width * self.inner

    def hit(self, tokens: int) -> float:
        """Expected number of experts that ``tokens`` reach, each choosing uniformly."""
        return self.experts * (1 - (1 - self.top_k / self.experts) ** tokens)


SHAPES = {
    shape.name: shape
    for shape in (
        LayerShape("A", "8 experts of 1024 x 3584, 2 per token (as Mixtral)", 1024, 3584, 8, 2),
        LayerShape("B", "64 experts of 2048 x 1024, 8 per token (OLMoE)", 2048, 1024, 64, 8),
        LayerShape("S", "64 experts of 512 x 256, 8 per token (small and fine)", 512, 256, 64, 8, copies=4),
        LayerShape("tiny", "8 experts of 64 x 32, 2 per token (for tests)", 64, 32, 8, 2),
    )
}
"""By name. ``tiny`` is not measured unless it is asked for."""
