"""Which resident expert goes when a slot is needed.

A policy only orders candidates. What may go at all (nothing pinned, loading or needed; nothing
predicted but for a demand or something nearer) is the table's business, so no policy can get it wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from coterie.registry import Registry
from coterie.store.blob import Key

NEVER = -2  # below every step that counts as "current or previous"


class Moment(NamedTuple):
    """Where the model is: its step (one forward pass), its layer, and how many layers there are."""

    step: int
    layer: int
    layers: int

    def ahead(self, layer: int) -> int:
        """Layers to come before ``layer`` is reached; the present one is the farthest of all."""
        return (layer - self.layer - 1) % self.layers

    def at(self, layer: int) -> Moment:
        """The moment when ``layer`` is reached next."""
        return Moment(self.step + (layer <= self.layer), layer, self.layers)


class Resident(Protocol):
    """What a policy may know of a candidate."""

    key: Key
    layer: int
    used_step: int
    uses: int


R = TypeVar("R", bound=Resident)


class Policy(ABC):
    """Chooses victims. Thread-safe when it keeps no state; the store calls it under its lock."""

    @abstractmethod
    def victim(self, candidates: Iterable[R], now: Moment) -> R | None:
        """The candidate to evict, None when there is none.

        Args:
            candidates: evictable residents, least recently used first, prefetched ones that were
                never used before all others.
            now: the present step and layer.
        """


POLICIES: Registry[type[Policy]] = Registry("cache policy")


@POLICIES.register("lru")
class LRU(Policy):
    """Least recently used. Never hits when a step's experts exceed the slots: layers are cyclic."""

    def victim(self, candidates: Iterable[R], now: Moment) -> R | None:
        return next(iter(candidates), None)


@POLICIES.register("lfu")
class LFU(Policy):
    """Least often used since it was loaded; the least recent of equals.

    Args:
        prior: expert -> uses it is credited with beforehand, such as statistics of a text foretell. They are not lost
            when it leaves, as those that are counted are.
    """

    def __init__(self, prior: Mapping[Key, float] | None = None) -> None:
        self._prior = dict(prior or {})

    def victim(self, candidates: Iterable[R], now: Moment) -> R | None:
        return min(candidates, key=lambda entry: entry.uses + self._prior.get(entry.key, 0.0), default=None)


@POLICIES.register("stale-first")
class StaleFirst(Policy):
    """What the last full step did not use, oldest first; then the farthest layer ahead.

    The rule without prediction of ExpertFlow's expert cache as Coterie builds it: equal to LRU while
    slots exceed the demand of two steps, and well above it when they fall below one.
    """

    def victim(self, candidates: Iterable[R], now: Moment) -> R | None:
        best, farthest = None, -1
        for entry in candidates:
            if entry.used_step < now.step - 1:
                return entry
            if (ahead := now.ahead(entry.layer)) > farthest:
                best, farthest = entry, ahead
        return best


class Belady(Policy):
    """Farthest next use on an access sequence that is known: what simulations compare with.

    Args:
        accesses: per step, per layer the keys used.
    """

    def __init__(self, accesses: Sequence[Sequence[Iterable[Key]]]) -> None:
        self._uses: dict[Key, list[tuple[int, int]]] = {}
        for step, layers in enumerate(accesses):
            for layer, keys in enumerate(layers):
                for key in keys:
                    self._uses.setdefault(key, []).append((step, layer))

    def victim(self, candidates: Iterable[R], now: Moment) -> R | None:
        return max(candidates, key=lambda entry: self.next_use(entry.key, now), default=None)

    def next_use(self, key: Key, now: Moment) -> tuple[float, float]:
        """(step, layer) of the first use after ``now``, infinities when there is none."""
        uses = self._uses.get(key, [])
        place = bisect_right(uses, (now.step, now.layer))
        return uses[place] if place < len(uses) else (float("inf"), float("inf"))


def as_policy(policy: str | Policy) -> Policy:
    """A policy by name, or itself.

    Raises:
        OptionError: no policy has that name.
    """
    return POLICIES.get(policy)() if isinstance(policy, str) else policy
