"""Runs in processes of their own, one thread each, so that several fill the machine and none disturbs another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from coterie.errors import CoterieError, TrainingError
from coterie.studies.claims import Metrics
from coterie.studies.study import Bench

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TELL = 0.25  # seconds between two words of a run
_GRACE = 5.0  # seconds that a process has to end


@dataclass(frozen=True)
class Word:
    """What a run says: a step done, what it measured, a sentence why it failed, or a traceback of a fault of ours."""

    kind: Literal["step", "done", "failed", "broken"]
    value: Any


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    key: str | None = None  # the run it is at


@dataclass
class Workers:
    """A few processes that take runs. A context manager: leaving it ends them, whatever they are at.

    Args:
        run: the study's function, importable.
        count: how many.
    """

    run: Callable[[Bench], Metrics]
    count: int
    _all: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.pipe.close()
            if worker.key is not None:
                worker.process.terminate()
        for worker in self._all:
            worker.process.join(_GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    @property
    def has_room(self) -> bool:
        """Whether another run can begin."""
        return self._idle() is not None or len(self._all) < self.count

    def begin(self, key: str, bench: Bench) -> None:
        """Start a run, in a process that is idle or a new one."""
        worker = self._idle() or self._start()
        worker.key = key
        worker.pipe.send(replace(bench, tell=_silent))

    def words(self, seconds: float = 0.5) -> Iterator[tuple[str, Word]]:
        """What the runs said within the next ``seconds``: (key, word).

        Raises:
            TrainingError: a process died.
        """
        busy = {worker.pipe: worker for worker in self._all if worker.key is not None}
        for pipe in wait(list(busy), timeout=seconds):
            worker = busy[pipe]  # type: ignore[index]
            key = worker.key or ""
            try:
                word: Word = worker.pipe.recv()
            except (EOFError, ConnectionError) as error:
                raise TrainingError(
                    f"The process of the run {key} ended by itself, perhaps for want of memory. Type the same command "
                    "again, with --jobs 1 if it comes again; what is finished is kept."
                ) from error
            if word.kind != "step":
                worker.key = None
            yield key, word

    def _idle(self) -> _Worker | None:
        return next((worker for worker in self._all if worker.key is None), None)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.run, theirs), daemon=True)
        with _as_a_run():
            process.start()
        theirs.close()
        self._all.append(_Worker(process, ours))
        return self._all[-1]


@contextmanager
def _as_a_run() -> Iterator[None]:
    """What is started within has one thread, and leaves Ctrl-C to us. Both are inherited before the first import."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.update({name: value for name, value in before.items() if value is not None})
        for name in [name for name, value in before.items() if value is None]:
            del os.environ[name]


def _silent(step: int) -> None:
    """Stands in for a run's ``tell`` while it travels."""


def _work(run: Callable[[Bench], Metrics], pipe: Connection) -> None:
    """A process's life: take a run, say how it went, until nobody listens. The parent alone answers Ctrl-C."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        while True:
            bench: Bench = pipe.recv()
            pipe.send(_attempt(run, replace(bench, tell=_Teller(pipe))))


def _attempt(run: Callable[[Bench], Metrics], bench: Bench) -> Word:
    try:
        return Word("done", run(bench))
    except CoterieError as error:
        return Word("failed", str(error))
    except ConnectionError:
        raise
    except Exception:
        return Word("broken", traceback.format_exc())


class _Teller:
    """Says steps, but not all of them."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, 0.0

    def __call__(self, step: int) -> None:
        if time.monotonic() - self._last >= _TELL:
            self._last = time.monotonic()
            self._pipe.send(Word("step", step))
