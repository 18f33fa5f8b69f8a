"""Where an attack begins and how far it may go: a point near each image, drawn of the image's number alone."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from coterie.ops.draw import fold, uniform, word_of

Start = Literal["uniform", "gaussian", "none"]
_DEVIATION = 1e-3  # of TRADES' start


def image_keys(purpose: str, seed: int, images: Tensor, index: Tensor | None) -> Tensor:
    """[B] int64: of what the draws of each image are made; ``index [B]`` are their numbers, default the places."""
    index = torch.arange(len(images)) if index is None else index
    return fold(fold(seed, word_of(purpose)), index.to(images.device, torch.int64))  # type: ignore[return-value]


def ball(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(low, high) [B, C, H, W]: what each value may become, within ``epsilon`` and [0, 1]."""
    return (images - epsilon).clamp_(0, 1), (images + epsilon).clamp_(0, 1)


def started(images: Tensor, start: Start, epsilon: float, keys: Tensor, restart: int = 0) -> Tensor:
    """[B, C, H, W] within [0, 1] and the ball. Restarts are uniform: from one place one would only get there again."""
    if start == "none" and restart == 0:
        return images
    key: Tensor = fold(keys, restart)  # type: ignore[assignment]
    noise = uniform(key, images[0].numel()).view(images.shape).to(images.dtype)
    if start != "gaussian" or restart > 0:
        return (images + epsilon * (2 * noise - 1)).clamp_(0, 1)
    normal = math.sqrt(2) * torch.erfinv(2 * noise - 1)
    return (images + (_DEVIATION * normal).clamp_(-epsilon, epsilon)).clamp_(0, 1)
