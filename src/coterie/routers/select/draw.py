"""Routes by lot: keyed draws, so that the lot depends on who draws and on nothing else."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.ops.draw import fold, gumbel, word_of
from coterie.ops.select import check_k, top_k
from coterie.routers.base import Scope, Scores, Select
from coterie.routers.limits import asked_k
from coterie.routing import RouteContext

Level = Literal["token", "sequence", "batch", "legacy_position", "average", "fixed"]
Pairing = Literal["independent", "distinct"]
_LEVELS: tuple[str, ...] = get_args(Level)
_WIDE: dict[str, Scope] = {"sequence": "sequence", "batch": "batch", "legacy_position": "batch"}
# what an item's key is made of
_PLACES = {
    "token": ("sequence", "position"), "sequence": ("sequence",), "batch": (), "legacy_position": ("position",)
}  # fmt: skip


class Draw(Select):
    """``k`` routes drawn without replacement from softmax(logits): the highest logits after Gumbel noise.

    With a `ConstantScore` every route is equally likely: THOR (arXiv 2110.04260). The noise is a function of the
    seed, the site and the pass of the context, and of

    - ``token``: the item's sequence and position;
    - ``sequence``: its sequence, so that all items of one draw alike;
    - ``batch``: nothing more, one draw for all;
    - ``legacy_position``: its position, which is what the sentence level of the authors' code does;

    in training also of step and micro-step. So a draw is the same in any batch, order or padding, when layers are
    recomputed, and when decoding one token at a time. ``average`` takes all routes, ``fixed`` the route of that number.
    The request-time option ``draw`` sets the level of one call ("fixed:3" with the number), ``k`` the number of routes.

    Args:
        k: choices per item.
        num_routes: R.
        level: as above.
        pairing: ``independent`` passes may draw the same; ``distinct`` ones share a permutation of which the first
            pass has the first k routes, the second the next k, starting over where there are no more.
        fixed: the route of level ``fixed``; the following ones too where k is more than 1.

    Raises:
        OptionError: ``k`` or ``fixed`` does not fit R routes, or a word is not known.
    """

    def __init__(
        self, k: int, num_routes: int, *, level: Level = "token", pairing: Pairing = "independent", fixed: int = 0
    ) -> None:
        super().__init__()
        check_k(k, num_routes)
        if pairing not in get_args(Pairing):
            raise OptionError(f"pairing={pairing!r} is not allowed: write 'independent' or 'distinct'.")
        self.k, self.num_routes, self.pairing = k, num_routes, pairing
        self.level, self.fixed = _level(level, fixed, num_routes)
        self.stochastic = self.level not in ("average", "fixed")
        self.scope = _WIDE.get(self.level, "token")

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        """Raises RoutingError where the context lacks what the level is keyed by, or a logit is NaN."""
        level, fixed = self.level, self.fixed
        if "draw" in ctx.overrides:
            level, fixed = _level(ctx.overrides["draw"], self.fixed, self.num_routes)
        k = asked_k(self.k, self.num_routes, ctx)
        if level == "average":
            return top_k(scores.logits, self.num_routes, scores.allowed)
        if level == "fixed":
            return top_k(_from(fixed, scores.logits), k, scores.allowed)
        noise = gumbel(self._keys(level, ctx, scores.logits), self.num_routes, device=scores.logits.device)
        noisy = scores.logits.detach().float() + noise
        if self.pairing == "distinct":
            return _turn(top_k(noisy, self.num_routes, scores.allowed), k, ctx.pass_id)
        return top_k(noisy, k, scores.allowed)

    def _keys(self, level: str, ctx: RouteContext, logits: Tensor) -> int | Tensor:
        """[] or [T] int64."""
        key = fold(fold(ctx.seed, word_of(ctx.site)), _LEVELS.index(level))
        if ctx.training:
            key = fold(fold(key, ctx.step), ctx.micro_step)
        keys: int | Tensor = key if self.pairing == "distinct" else fold(key, ctx.pass_id)
        for name in _PLACES[level]:
            place = getattr(ctx, name)
            if place is None or place.shape != logits.shape[:1]:
                found = "none" if place is None else str(tuple(place.shape))
                raise RoutingError(
                    f"a draw per {level} needs RouteContext.{name} [T={len(logits)}], found {found}: give it, or draw "
                    f"per batch."
                )
            keys = fold(keys, place.long())
        return keys


def _level(asked: object, fixed: int, num_routes: int) -> tuple[str, int]:
    word, _, number = str(asked).partition(":")
    if number.isdecimal() and word == "fixed":
        fixed = int(number)
    elif number or word not in _LEVELS:
        raise OptionError(f"draw={asked!r} is not known; there are: {', '.join(_LEVELS)}, and fixed:0, fixed:1...")
    if not 0 <= fixed < num_routes:
        raise OptionError(f"there is no route {fixed} to be fixed on: name one from 0 to {num_routes - 1}.")
    return word, fixed


def _from(route: int, logits: Tensor) -> Tensor:
    """[T, R] that prefers ``route``, then the following ones, then those from 0 on; -inf and NaN stay what they are."""
    order = -((torch.arange(logits.shape[1], device=logits.device) - route) % logits.shape[1]).to(logits.dtype)
    return torch.where(logits > float("-inf"), order, logits)


def _turn(order: Tensor, k: int, pass_id: int | Tensor) -> Tensor:
    """[T, k] out of ``order [T, R]``: the pass's turn, each item going round among its open routes."""
    num_routes = order.shape[1]
    open_routes = (order < num_routes).sum(1, keepdim=True)
    turn = torch.arange(k, device=order.device)
    first = pass_id[:, None] * k if isinstance(pass_id, Tensor) and pass_id.dim() else pass_id * k
    places = (first + turn) % open_routes.clamp(min=1)
    return order.gather(1, places).masked_fill(turn >= open_routes, num_routes)
