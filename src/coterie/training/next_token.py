"""The cross entropy of next tokens, and over how many it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean nats per predicted token, 0 without any.

    Args:
        logits: [P x B, N, V], P passes of the same labels.
        labels: [B, N], -100 where nothing is predicted.
    """
    wanted = labels[:, 1:].repeat(len(logits) // len(labels), 1).reshape(-1)
    rows = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    total = nn.functional.cross_entropy(rows, wanted, ignore_index=-100, reduction="sum")
    return total / (wanted != -100).sum().clamp_min(1)


def targets(inputs: Mapping[str, Any]) -> int:
    """How many tokens a batch predicts."""
    return int((inputs["labels"][:, 1:] != -100).sum())
