"""Images to logits by small convolutional nets: one item is one image [C, H, W]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coterie.errors import OptionError, RoutingError
from coterie.routers.base import Scope, Score
from coterie.routing import RouteContext


class PooledScore(Score):
    """Mean over the pixels, then a linear map: the gate of one layer, from that layer's own input.

    Args:
        num_routes: R.
        channels: C of the items [T, C, H, W]; H and W are free.
        bound: logits become ``logits / (1 + |logits| / bound)``, within plus and minus this; 0 is no bound. Order and
            gradient survive far outside, where a tanh is flat and ties.

    Raises:
        OptionError: a number is not allowed.
    """

    scope: Scope = "image"

    def __init__(self, num_routes: int, channels: int, *, bound: float = 0.0) -> None:
        super().__init__()
        check_sizes(bound, num_routes=num_routes, channels=channels)
        self.num_routes, self.channels, self.bound = num_routes, channels, bound
        self.head = nn.Linear(channels, num_routes)

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_images(x, self.channels)
        return bounded(self.head(x.mean((2, 3))), self.bound), None


class SmallConvScore(Score):
    """Two convolutions to 8 and 16 channels, means over the four quarters, a linear map. No normalisation.

    Args:
        num_routes: R.
        channels: C of the items [T, C, H, W]; H and W are free.
        bound: as in `PooledScore`.

    Raises:
        OptionError: a number is not allowed.
    """

    scope: Scope = "image"

    def __init__(self, num_routes: int, channels: int = 1, *, bound: float = 0.0) -> None:
        super().__init__()
        check_sizes(bound, num_routes=num_routes, channels=channels)
        self.num_routes, self.channels, self.bound = num_routes, channels, bound
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64, num_routes)

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_images(x, self.channels)
        return bounded(self.head(self.body(x)), self.bound), None


def bounded(logits: Tensor, bound: float) -> Tensor:
    """Logits squeezed to between -bound and bound, in float32 or wider; as they are where ``bound`` is 0."""
    if not bound:
        return logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide / (1 + wide.abs() / bound)


def check_images(x: Tensor, channels: int) -> None:
    """Raise RoutingError unless ``x`` is [T, channels, H, W]."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise RoutingError(f"the router takes images [T, C={channels}, H, W], found {tuple(x.shape)}.")


def check_sizes(bound: float, allowed_depths: Sequence[int] = (), **sizes: int) -> None:
    """Raise OptionError for a size below 1, a bound below 0, or a depth that does not exist."""
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(f"{name}={size} is not allowed: give 1 or more.")
    if not bound >= 0:
        raise OptionError(f"bound={bound} is not allowed: give a number above 0, or 0 for none.")
    if allowed_depths and sizes["depth"] not in allowed_depths:
        raise OptionError(f"depth={sizes['depth']} is not allowed: give one of {', '.join(map(str, allowed_depths))}.")
