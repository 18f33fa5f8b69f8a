"""The first layers: small images keep their size, large ones come down to a quarter."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from coterie.models.vision.steps import Steps
from coterie.models.vision.trip import Trip

__all__ = ["Stem"]


class Stem(nn.Module):
    """[B, channels, H, W] -> [B, width, H', W'], shared by all experts.

    CIFAR form: a 3x3 convolution, H' = H. ImageNet form: 7x7 with stride 2 and a 3x3 max pool with stride 2, H' = H/4.

    Args:
        normed: batch norm and ReLU follow the convolution; the ImageNet form always has them.
    """

    def __init__(self, steps: Steps, width: int, *, normed: bool) -> None:
        super().__init__()
        self.large = steps.spec.large_stem
        kernel, stride = (7, 2) if self.large else (3, 1)
        self.conv = steps.conv(steps.spec.channels, width, kernel, stride, "before")
        self.norm = steps.norm(width, "before") if normed or self.large else None

    def forward(self, x: Tensor, trip: Trip) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = F.relu(self.norm(x))
        return F.max_pool2d(x, 3, 2, 1) if self.large else x
