"""An attack without gradients: squares of the largest change at random places, kept where they do harm.

Where it beats gradient ascent, the gradients are masked: they do not lead to the mistakes that are there. After the
square attack (Andriushchenko et al. 2020, arXiv 1912.00049): vertical stripes to begin with, squares that shrink.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coterie.errors import AttackError, OptionError
from coterie.ops.draw import fold, uniform
from coterie.routing import RouteContext
from coterie.training.adversarial.aims import wrong_by
from coterie.training.adversarial.attacks import check_epsilon, check_images
from coterie.training.adversarial.starts import ball, image_keys
from coterie.training.adversarial.view import following, held_still, view

_SHRINK = (0.01, 0.05, 0.2, 0.5, 1.0)  # shares of the queries after which the area halves


@dataclass(frozen=True)
class RandomSearch:
    """How far and how long to search.

    Attributes:
        epsilon: the largest change of any value, above 0, at most 1.
        queries: forwards of every image that is not yet mistaken.
        share: of the image's area that the first squares cover.

    Raises:
        OptionError: a value is not allowed.
    """

    epsilon: float = 8 / 255
    queries: int = 200
    share: float = 0.3

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.queries < 1 or not 0 < self.share <= 1:
            raise OptionError(
                f"queries must be at least 1 and share above 0, at most 1, not {self.queries} and {self.share}."
            )


@torch.no_grad()
def search(
    model: nn.Module, images: Tensor, labels: Tensor, attack: RandomSearch, *, seed: int = 0,
    index: Tensor | None = None, ctx: RouteContext | None = None,
) -> Tensor:  # fmt: skip
    """[B, C, H, W] float32: see `coterie.training.adversarial.perturb` for arguments and effects.

    Raises:
        OptionError: images outside [0, 1].
        AttackError: the model's logits are no numbers.
    """
    check_images(images, labels)
    keys = image_keys("search", seed, images, index)
    low, high = ball(images, attack.epsilon)
    with held_still(model):
        found = torch.where(_stripes(images, keys) > 0, high, low)
        rank = _margin(model, found, labels, ctx)
        for query in range(1, attack.queries):
            open_ = (rank <= 0).nonzero().flatten()  # what is mistaken already needs no more
            if len(open_) == 0:
                break
            inside, sign = _square(images[open_], fold(keys[open_], query), attack, query)
            tried = torch.where(inside, torch.where(sign > 0, high[open_], low[open_]), found[open_])
            reached = _margin(model, tried, labels[open_], ctx, open_)
            better = reached > rank[open_]
            found[open_[better]], rank[open_[better]] = tried[better], reached[better]
    return found


def _margin(
    model: nn.Module, images: Tensor, labels: Tensor, ctx: RouteContext | None, rows: Tensor | None = None
) -> Tensor:
    margin = wrong_by(view(model, images, _rows_of(ctx, rows)).classes, labels)
    if not bool(torch.isfinite(margin).all()):
        raise AttackError(
            "The model's logits are not finite numbers, so it cannot be attacked. Look for NaN in its weights."
        )
    return margin


def _rows_of(ctx: RouteContext | None, rows: Tensor | None) -> RouteContext:
    """The context, with the plan of the images that are left."""
    ctx = following(ctx)
    if ctx.plan is None or rows is None:
        return ctx
    sites = {site: routing.expand(rows) for site, routing in ctx.plan.sites.items()}
    return replace(ctx, plan=replace(ctx.plan, sites=sites))


def _stripes(images: Tensor, keys: Tensor) -> Tensor:
    """[B, C, 1, W] of signs."""
    batch, channels, _, width = images.shape
    return uniform(fold(keys, 0), channels * width).view(batch, channels, 1, width) - 0.5


def _square(images: Tensor, keys: Tensor | int, attack: RandomSearch, query: int) -> tuple[Tensor, Tensor]:
    """(inside [B, 1, H, W] bool, sign [B, C, 1, 1]): where and which way."""
    assert isinstance(keys, Tensor)
    _, channels, height, width = images.shape
    side = _side(attack, query, height, width)
    drawn = uniform(keys, 2 + channels)
    top = (drawn[:, 0] * (height - side + 1)).long()[:, None, None, None]
    left = (drawn[:, 1] * (width - side + 1)).long()[:, None, None, None]
    rows = torch.arange(height, device=images.device)[None, None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, None, :]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return inside, drawn[:, 2:, None, None] - 0.5


def _side(attack: RandomSearch, query: int, height: int, width: int) -> int:
    halvings = sum(query >= share * attack.queries for share in _SHRINK)
    area = attack.share * 0.5**halvings * height * width
    return min(max(1, round(area**0.5)), height, width)
