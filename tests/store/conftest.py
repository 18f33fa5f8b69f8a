"""A store over experts whose every value tells which expert it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from coterie.ranges import TensorRange
from coterie.store import Blob, EmulatedTier, Key, MemoryTier, Store, Tier
from coterie.testing.stores import Watch

VALUES = 300  # int32 values of an expert's matrix


def number(key: Key) -> int:
    """The value an expert is filled with."""
    return int(key.site[1:]) * 1000 + key.expert


class Fixture:
    """A store of ``layers`` x ``experts``, watched."""

    def __init__(self, slots: int, layers: int, experts: int, make_tier: Callable[[Tier], Tier], **options) -> None:
        self.keys = [[Key(f"s{layer}", expert) for expert in range(experts)] for layer in range(layers)]
        self.all = [key for layer in self.keys for key in layer]
        path, nbytes = Path("experts"), VALUES * 4
        data = b"".join(torch.full((VALUES,), number(key), dtype=torch.int32).numpy().tobytes() for key in self.all)
        self.reads: list[Blob] = []
        self.watch = Watch()
        tier = EmulatedTier(make_tier(MemoryTier({path: b"\0" * 24 + data})), before=self.reads.append)
        self.store = Store(slots, 8192, tier, on_event=self.watch, **options)
        for place, key in enumerate(self.all):
            start, half = 24 + place * nbytes, nbytes // 2
            parts = {
                "a": TensorRange(path, "I32", (VALUES // 2,), start, half),
                "b": TensorRange(path, "I32", (VALUES // 2,), start + half, half),
            }
            self.store.register(key, Blob(parts), layer=int(key.site[1:]))

    def place(self, blob: Blob) -> tuple[int, int]:
        """(layer, expert) of one of the blobs."""
        return divmod((blob.parts["a"].start - 24) // (VALUES * 4), len(self.keys[0]))

    @staticmethod
    def is_whole(key: Key, weights: dict[str, torch.Tensor]) -> bool:
        """Nothing of another expert is in these weights."""
        return all(bool((part == number(key)).all()) for part in weights.values())

    def drain(self, keys: Sequence[Key]) -> list[Key]:
        """Use ``keys``; in the order they came."""
        seen = []
        with self.store.acquire(keys, 30.0) as lease:
            for key, weights in lease:
                assert self.is_whole(key, weights)
                seen.append(key)
        return seen

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        """Wait for what a reader will do soon."""
        limit = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < limit, "it does not happen"
            time.sleep(0.001)


@pytest.fixture
def make_store():
    """Makes watched stores, and closes them."""
    made: list[Store] = []

    def make(slots=4, layers=1, experts=8, make_tier=lambda tier: tier, **options) -> Fixture:
        fixture = Fixture(slots, layers, experts, make_tier, **options)
        made.append(fixture.store)
        return fixture

    yield make
    for store in made:
        store.close()


class Gate:
    """Makes tiers whose reads wait until it is opened."""

    def __init__(self):
        self.opened = threading.Event()
        self.begun = threading.Event()

    def __call__(self, tier):
        return EmulatedTier(tier, before=self.wait)

    def wait(self, blob):
        self.begun.set()
        assert self.opened.wait(30)


@pytest.fixture
def reads_held():
    """The class of gates that hold reads back."""
    return Gate
