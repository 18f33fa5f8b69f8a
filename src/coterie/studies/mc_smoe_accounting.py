"""The arithmetic behind MC-SMoE's headline numbers: switch-base-32's parameters and operations, from its shapes."""

from __future__ import annotations

from coterie.ops.lowrank import factored_parameters

WIDTH, INNER, EXPERTS, VOCABULARY = 768, 3072, 32, 32128
LAYERS, MOE_LAYERS = 12, 12  # each of encoder and decoder; with experts, of the 24 together
MERGED_TO, RANK, KEEP = 8, 32, 0.1
EXPERT = 2 * WIDTH * INNER

PAPER = {"merged": 733e6, "merged, compressed": 381e6, "compressed": 570e6}
"""Sizes as the paper's tables 2 and 7 have them; of the full model it says 2.0 billion."""


def expert_factored(rank: int = RANK, keep: float = KEEP) -> int:
    """Numbers in one expert as U V and ``keep`` of the rows of S."""
    return sum(
        factored_parameters(m, n, rank, round(keep * m)) for m, n in ((INNER, WIDTH), (WIDTH, INNER))
    )  # fmt: skip


def base_parameters() -> int:
    """Everything but experts: embeddings, attention (a decoder layer has two), dense feed-forwards, gates."""
    attention = 4 * WIDTH * WIDTH * (LAYERS + 2 * LAYERS)
    dense = (2 * LAYERS - MOE_LAYERS) * EXPERT
    return VOCABULARY * WIDTH + attention + dense + MOE_LAYERS * EXPERTS * WIDTH


def sizes() -> dict[str, float]:
    """Parameters of the full model and of what became of it; the first layer with experts stays as it is."""
    base, first, others = base_parameters(), EXPERTS * EXPERT, MOE_LAYERS - 1
    small = expert_factored()
    return {
        "full": base + MOE_LAYERS * EXPERTS * EXPERT,
        "merged": base + first + others * MERGED_TO * EXPERT,
        "merged, compressed": base + first + others * MERGED_TO * small,
        "compressed": base + first + others * EXPERTS * small,
    }


def token_operations(compressed: bool) -> float:
    """Multiplications with weights for a token of the encoder and one of the decoder, the prediction included."""
    attention = 4 * WIDTH * WIDTH * (LAYERS + 2 * LAYERS)
    dense = (2 * LAYERS - MOE_LAYERS) * EXPERT
    expert = expert_factored() if compressed else EXPERT
    return attention + dense + EXPERT + (MOE_LAYERS - 1) * expert + VOCABULARY * WIDTH


def accounting() -> dict[str, float]:
    """Shares saved, and how far computed sizes are from the paper's at most."""
    found = sizes()
    return {
        "memory saved": 1 - found["merged, compressed"] / found["full"],
        "operations saved": 1 - token_operations(True) / token_operations(False),
        "largest difference": max(abs(found[name] / size - 1) for name, size in PAPER.items()),
        **{f"{name}, millions": size / 1e6 for name, size in found.items()},
    }
