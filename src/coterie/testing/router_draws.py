"""Keyed draws in plain Python: what the battery compares `coterie.ops.draw` and the selection by lot with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from coterie.routing import RouteContext
from coterie.testing.router_case import RuleOfAll

_LEVELS = ("token", "sequence", "batch", "legacy_position")


def draw_rule(
    k: int, num_routes: int, *, level: str = "token", distinct: bool = False, softmax: bool = False
) -> RuleOfAll:
    """The k routes of highest logit plus noise, with equal shares or by ``softmax`` over them."""

    def rule(items: Sequence[Mapping[int, float]], asked: int | None, ctx: RouteContext) -> list[dict[int, float]]:
        count = k if asked is None else asked
        asked_level, _, fixed = str(ctx.overrides.get("draw", level)).partition(":")
        taken = []
        for t, logits in enumerate(items):
            if asked_level == "average":
                order, mine = list(logits), num_routes
            elif asked_level == "fixed":
                order, mine = sorted(logits, key=lambda r: (r - int(fixed or 0)) % num_routes), count
            else:
                noise = gumbels(_key(asked_level, t, ctx, distinct=distinct), num_routes)
                order, mine = sorted(logits, key=lambda r: (-(logits[r] + noise[r]), r)), count
                if distinct and order:
                    shift = _pass(t, ctx) * count % len(order)
                    order = order[shift:] + order[:shift]
            powers = {route: math.exp(logits[route]) if softmax else 1.0 for route in order[:mine]}
            taken.append({route: power / sum(powers.values()) for route, power in powers.items()})
        return taken

    return rule


def gumbels(key: int, count: int) -> list[float]:
    """The first ``count`` Gumbel numbers of a key."""
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    return [-math.log(-math.log(((_hash32(low, high, n) >> 9) + 0.5) / 2**23)) for n in range(1, count + 1)]


def folded(key: int, word: int) -> int:
    """SplitMix64's finaliser of the ``word``-th state after ``key``."""
    mask = (1 << 64) - 1
    x = (key + (word + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _key(level: str, t: int, ctx: RouteContext, *, distinct: bool) -> int:
    site = int.from_bytes(hashlib.blake2b(ctx.site.encode(), digest_size=8).digest(), "little")
    words = [site, _LEVELS.index(level)]
    if ctx.training:
        words += [ctx.step, ctx.micro_step]
    if not distinct:
        words.append(_pass(t, ctx))
    if level in ("token", "sequence"):
        assert ctx.sequence is not None
        words.append(int(ctx.sequence[t]))
    if level in ("token", "legacy_position"):
        assert ctx.position is not None
        words.append(int(ctx.position[t]))
    key = ctx.seed
    for word in words:
        key = folded(key, word)
    return key


def _pass(t: int, ctx: RouteContext) -> int:
    return ctx.pass_id if isinstance(ctx.pass_id, int) else int(ctx.pass_id[t])


def _hash32(low: int, high: int, n: int) -> int:
    mask = (1 << 32) - 1
    x = (low + n * 0x7F4A7C15) & mask
    x = ((x ^ (x >> 16)) * 0x21F0AAAD + high) & mask
    x = ((x ^ (x >> 15)) * 0x735A2D97) & mask
    return x ^ (x >> 15)
