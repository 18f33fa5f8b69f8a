"""What was done to a model, for its card, its coterie.json and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Method"]


@dataclass(frozen=True)
class Method:
    """One edit, in words.

    Attributes:
        name: the verb, such as "merge".
        mark: "exact" (the same function), "lossy", or "training".
        summary: one sentence for people.
        paper: title and arXiv number of what it follows; empty where it follows none.
        calibration: which text it looked at: facts of the statistics file; empty where none.
        options: as they were given, numbers, words and lists.
    """

    name: str
    mark: Literal["exact", "lossy", "training"]
    summary: str
    paper: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        return {
            "name": self.name, "mark": self.mark, "summary": self.summary, "paper": self.paper,
            "calibration": dict(self.calibration), "options": dict(self.options),
        }  # fmt: skip
