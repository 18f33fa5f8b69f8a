"""Crop and flip, drawn by counters: the same key gives the same pictures, on every device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.ops.draw import fold, uniform, word_of


def crop_and_flip(images: Tensor, key: int, *, pad: int = 4) -> Tensor:
    """``images [B, C, H, W]``, each moved by up to ``pad`` pixels over black, and half of them mirrored.

    Args:
        images: in [0, 1]; not changed.
        key: of the draws; the b-th image's is ``fold(key, b)``.
        pad: 0 mirrors alone.
    """
    batch, _, height, width = images.shape
    numbers = torch.arange(batch, device=images.device)
    drawn = uniform(fold(fold(key, word_of("augment")), numbers), 3)
    top, left = ((drawn[:, which] * (2 * pad + 1)).long() for which in (0, 1))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(drawn[:, 2:] < 0.5, columns, columns.flip(1))
    padded = F.pad(images, (pad, pad, pad, pad))
    # indices on both sides of a slice put their axes in front: [B, H, W, C]
    moved = padded[numbers[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
