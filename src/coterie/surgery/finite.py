"""Whether all numbers of a tensor are numbers, found by one sum where they are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["has_nan", "is_finite"]


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity; a sum that is finite has none in it, and is several times as fast as looking at each."""
    return _sum_is_finite(tensor) or bool(torch.isfinite(tensor).all())


def has_nan(tensor: Tensor) -> bool:
    """Some NaN; infinities, as in masks, are none."""
    return not _sum_is_finite(tensor) and bool(tensor.isnan().any())


def _sum_is_finite(tensor: Tensor) -> bool:
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return bool(torch.isfinite(tensor.sum(dtype=wide)))
