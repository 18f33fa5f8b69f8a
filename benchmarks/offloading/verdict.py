"""The lines the benchmark must reach, fixed before it was run, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offloading.arms import JUDGED
from offloading.summary import Line

REQUIRED_SPEEDUP, GOAL_SPEEDUP = 2.0, 2.5
ALLOWED_DEVICE_SHARE = 0.6
REQUIRED_REACHED = {"uniform": 0.7, "sticky": 0.55}


@dataclass(frozen=True)
class Check:
    """One line: what was asked, what was found (None if it was not measured), and whether that is enough."""

    what: str
    found: float | None
    asked: float
    at_least: bool = True
    goal: bool = False

    @property
    def passed(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.asked if self.at_least else self.found <= self.asked

    def describe(self) -> str:
        sign = "at least" if self.at_least else "at most"
        found = "not measured" if self.found is None else f"{self.found:.2f}"
        return f"{self.word()}: {self.what}: {found}, {'goal' if self.goal else 'required'} {sign} {self.asked:g}"

    def word(self) -> str:
        if self.passed is None:
            return "NOT JUDGED"
        if self.goal:
            return "reached" if self.passed else "missed"
        return "pass" if self.passed else "FAIL"


def judge(lines: Sequence[Line]) -> list[Check]:
    """The checks of the default arm on every kind of routes."""
    found = {line.routes: line for line in lines if line.arm == JUDGED}
    checks = []
    for routes, reached in REQUIRED_REACHED.items():
        line = found.get(routes)
        speedup, share = (line.speedup, line.device_share) if line else (None, None)
        checks += [
            Check(f"{routes}: times faster than mmap", speedup, REQUIRED_SPEEDUP),
            Check(f"{routes}: times faster than mmap", speedup, GOAL_SPEEDUP, goal=True),
            Check(f"{routes}: device bytes by mmap's", share, ALLOWED_DEVICE_SHARE, at_least=False),
            Check(
                f"{routes}: share of max(missed bytes / in-store bandwidth, resident time)",
                line.reached if line else None, reached,
            ),
        ]  # fmt: skip
    return checks
