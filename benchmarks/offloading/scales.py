"""The shape of the benchmark's model: OLMoE's real layer, few enough layers for a laptop's disk."""

from __future__ import annotations

from dataclasses import dataclass

BF16 = 2  # bytes per element


@dataclass(frozen=True)
class Scale:
    """One model shape with the memory it is squeezed into.

    Attributes:
        limit: bytes of the memory group each limited arm runs in, page cache included.
        slots_share: share of the experts that fits, used only where no memory group is used.
        dense_count: elements outside the experts (embeddings, attention, norms, gates).
    """

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    inner: int
    vocab: int
    heads: int
    shards: int
    limit: int
    slots_share: float = 0.42

    @property
    def expert_bytes(self) -> int:
        return 3 * self.hidden * self.inner * BF16

    @property
    def experts_bytes(self) -> int:
        return self.layers * self.experts * self.expert_bytes

    @property
    def dense_bytes(self) -> int:
        attention = 4 * self.hidden**2 + 2 * self.hidden
        layer = attention + 2 * self.hidden + self.experts * self.hidden
        return (self.layers * layer + 2 * self.vocab * self.hidden + self.hidden) * BF16

    @property
    def uses_per_token(self) -> int:
        return self.layers * self.top_k


# `full` keeps OLMoE's own vocabulary: its embeddings are most of the 0.57 GiB that is always resident.
SCALES = {
    s.name: s
    for s in (
        Scale("full", 6, 64, 8, 2048, 1024, 50304, 16, 3, 3 * 1024**3),
        Scale("small", 4, 32, 4, 256, 192, 512, 4, 3, 1024**3),
    )
}
