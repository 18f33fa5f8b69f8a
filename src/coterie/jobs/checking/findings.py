"""What a check found, and the list of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from coterie.errors import CoterieError


class State(StrEnum):
    """How bad it is. A warning costs time or memory; a problem keeps a model from running."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        check: what was looked at.
        text: what was found.
        remedy: what to do about it; empty where all is well or the text says it.
        exit_code: of a problem.
    """

    check: str
    state: State
    text: str
    remedy: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found, in the order of its checks."""

    findings: tuple[Finding, ...]

    def count(self, state: State) -> int:
        return sum(finding.state is state for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """Of the first problem; 0 without any."""
        return next((finding.exit_code for finding in self.findings if finding.state is State.PROBLEM), 0)

    def as_record(self) -> dict[str, Any]:
        return {
            "problems": self.count(State.PROBLEM), "warnings": self.count(State.WARNING), "exit_code": self.exit_code,
            "findings": [asdict(finding) | {"state": finding.state.value} for finding in self.findings],
        }  # fmt: skip

    def describe(self) -> str:
        """A line per check, a second one with the remedy, and the sum."""
        width = max((len(finding.check) for finding in self.findings), default=0)
        lines = []
        for one in self.findings:
            lines.append(f"{one.state.value:7}  {one.check:{width}}  {one.text}")
            if one.remedy:
                lines.append(f"{'':7}  {'':{width}}  -> {one.remedy}")
        warnings, problems = self.count(State.WARNING), self.count(State.PROBLEM)
        lines.append(f"{self.count(State.OK)} ok, {plural(warnings, 'warning')}, {plural(problems, 'problem')}")
        return "\n".join(lines)


def ok(check: str, text: str) -> Finding:
    return Finding(check, State.OK, text)


def warning(check: str, text: str, remedy: str = "") -> Finding:
    return Finding(check, State.WARNING, text, remedy)


def problem(check: str, text: str, remedy: str = "", exit_code: int = 1) -> Finding:
    return Finding(check, State.PROBLEM, text, remedy, exit_code)


def carefully(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What ``look`` finds. An error is a finding too, whatever it is: a doctor does not faint."""
    try:
        return list(look())
    except CoterieError as error:
        return [problem(check, _one_line(str(error)), exit_code=error.exit_code)]
    except MemoryError:
        return [problem(check, "the machine had no memory left for this check", exit_code=5)]
    except Exception as error:
        text = f"could not be checked: {_one_line(str(error)) or 'no reason given'} ({type(error).__name__})"
        return [warning(check, text)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def plural(count: int, word: str) -> str:
    """A count with its word."""
    return f"{count} {word}{'' if count == 1 else 's'}"
