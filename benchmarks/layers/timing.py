"""Medians of interleaved repeats: arms take turns, so that a busy machine meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

ROUNDS = 15  # at most
SECONDS = 4.0  # of one case, after which no new round begins; three rounds are always made

_FLUSH_BYTES = 96 * 1024**2  # more than any cache of the machines we know


def interleaved(
    runs: dict[str, Callable[[int], Callable[[], None]]], prepare: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each run in each round. Each round begins with another run: what one leaves in memory slows the next.

    Args:
        runs: name -> what makes the run of a round, untimed.
        prepare: comes before every run, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for number in range(ROUNDS):
        if number >= 3 and time.perf_counter() - began > SECONDS:
            break
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = runs[name](number)
            prepare()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


class Flush:
    """Fills the caches with something else: in a model, a layer's weights are cold when their turn comes."""

    def __init__(self) -> None:
        self._buffer = torch.zeros(_FLUSH_BYTES // 4)

    def __call__(self) -> None:
        self._buffer.add_(1)


class Rest:
    """Leaves a shared machine to the others for ``pause`` seconds after each minute."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if self._pause and time.perf_counter() - self._since > 60:
            time.sleep(self._pause)
            self._since = time.perf_counter()
