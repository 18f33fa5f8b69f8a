"""What a verb tells while it works and when it is done, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.running.residence import Residence
    from coterie.serve import Generation


class Progress:
    """A spinner on a terminal, plain lines elsewhere, nothing when ``quiet``. Use it as a context manager."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._status: Any = None
        self._began: tuple[int, float] | None = None  # first step that was told, and when

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("Opening")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """Show what is being done now."""
        if self._status is not None:
            self._status.update(text)

    def training(self, step: int, steps: int, loss: float) -> None:
        """Show how far training is and how long it will take; a line at every twentieth where there is no terminal."""
        self._began = self._began or (step, time.monotonic())
        text = f"Training: step {step} of {steps}, loss {loss:.2f}{self._left(step, steps)}"
        if step == steps:
            text += ". Measuring"
        if self._status is not None:
            self._status.update(text)
        elif not self._quiet and (step % max(1, steps // 20) == 0 or step == steps):
            print(text, file=sys.stderr, flush=True)

    def _left(self, step: int, steps: int) -> str:
        first, since = self._began or (step, 0.0)
        if step in (first, steps):
            return ""
        seconds = (time.monotonic() - since) / (step - first) * (steps - step)
        return f", about {seconds / 60:.0f} minutes left" if seconds > 90 else f", about {seconds:.0f} seconds left"


def status_line(generation: Generation, residence: Residence) -> str:
    """One line: speed, hit rate, what is resident of what there is, what was read."""
    stats, budget = residence.stats(), residence.budget
    return " · ".join(
        [
            f"{generation.new_tokens} tokens",
            f"{generation.tokens_per_second:.1f} tokens/s",
            f"first after {generation.first_token_seconds:.2f} s",
            *([] if generation.mean_experts is None else [f"{generation.mean_experts:.2f} experts per token"]),
            f"hits {stats.hit_rate:.0%}",
            f"experts {format_bytes(residence.resident_bytes)} of {format_bytes(budget.expert_bytes)} resident",
            f"read {format_bytes(stats.bytes_read)}{_begun_with(residence)}",
            f"memory {format_bytes(budget.used)} of {format_bytes(budget.total)}"
            f" (+ {format_bytes(residence.libraries)} interpreter and libraries)",
        ]
    )


def _begun_with(residence: Residence) -> str:
    return f" after {format_bytes(residence.warm_bytes)} to begin with" if residence.warm_bytes else ""


def as_record(generation: Generation, residence: Residence) -> dict[str, Any]:
    """The same and more, for machines."""
    from dataclasses import asdict

    numbers = asdict(generation) | {"tokens_per_second": generation.tokens_per_second}
    return numbers | {"memory": residence.budget.as_record(), "store": store_record(residence)}


def store_record(residence: Residence) -> dict[str, Any]:
    """The store's counters and what follows from them."""
    from dataclasses import asdict

    stats = residence.stats()
    derived = {"hit_rate": stats.hit_rate, "bytes_read": stats.bytes_read, "bandwidth": stats.bandwidth}
    return asdict(stats) | derived | {"resident_bytes": residence.resident_bytes, "warm_bytes": residence.warm_bytes}
