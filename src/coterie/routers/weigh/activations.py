"""Logits to probabilities, where some routes are not allowed."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """[..., R] over the last dimension, in float32 or wider; 0 where not allowed.

    A row in which nothing is allowed is all zeros, and its gradient is zero too, not NaN.
    """
    logits = wide(logits)
    if allowed is None:
        return torch.softmax(logits, dim=-1)
    # the lowest finite number instead of -inf: a row of -inf alone would be 0/0
    lowest = torch.finfo(logits.dtype).min
    return torch.softmax(logits.masked_fill(~allowed, lowest), dim=-1).masked_fill(~allowed, 0)


def sigmoid(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """[..., R], each on its own, in float32 or wider; 0 where not allowed."""
    probs = torch.sigmoid(wide(logits))
    return probs if allowed is None else probs.masked_fill(~allowed, 0)


def wide(values: Tensor) -> Tensor:
    """float32 or wider."""
    return values if values.dtype == torch.float64 else values.float()


def read_at(table: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """``table [T, R]`` read at ``chosen [T, K]``, and [T, K] bool: which places are not empty (R)."""
    num_routes = table.shape[1]
    return table.gather(1, chosen.clamp(max=num_routes - 1)), chosen < num_routes
