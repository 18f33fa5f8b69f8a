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
    # bfloat16 adds up in float32 and reaches as far; float16 does not
    total = tensor.sum(dtype=torch.float32) if tensor.dtype == torch.float16 else tensor.sum()
    return bool(torch.isfinite(total))
