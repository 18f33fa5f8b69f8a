"""A sheet of facts for people: titled blocks of "label: text" and small tables, as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from textwrap import wrap

_WIDTH = 120


@dataclass(frozen=True)
class Facts:
    """Label and text, one a line; a text that is long goes on below itself."""

    title: str
    rows: Sequence[tuple[str, str]]

    def plain(self, label_width: int) -> list[str]:
        lines = []
        for label, text in self.rows:
            first, *rest = wrap(text, _WIDTH - label_width - 2, break_long_words=False) or [""]
            lines.append(f"{label:<{label_width}}  {first}")
            lines += [f"{'':<{label_width}}  {line}" for line in rest]
        return lines


@dataclass(frozen=True)
class Table:
    """Columns of text; those whose number is in ``right`` are set flush right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = field(default_factory=frozenset)

    def plain(self) -> list[str]:
        widths = [max(len(row[column]) for row in [self.head, *self.rows]) for column in range(len(self.head))]
        return ["  ".join(self._cells(row, widths)).rstrip() for row in [self.head, *self.rows]]

    def _cells(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            f"{cell:>{width}}" if column in self.right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]


@dataclass(frozen=True)
class Sheet:
    """Blocks in the order they are shown."""

    title: str
    blocks: Sequence[Facts | Table]

    def plain(self) -> str:
        """All of it, at most 120 columns wide where the facts allow."""
        label_width = max([len(label) for block in self.blocks if isinstance(block, Facts) for label, _ in block.rows])
        lines = [self.title]
        for block in self.blocks:
            lines.append("")
            lines += block.plain() if isinstance(block, Table) else block.plain(label_width)
        return "\n".join(lines)


def count(number: float) -> str:
    """A number of parameters or tokens for people: three digits and K, M, B or T."""
    size, unit = float(number), ""
    for larger in ("K", "M", "B", "T"):
        if size < 1000:
            break
        size, unit = size / 1000, f" {larger}"
    digits = 0 if not unit and size == int(size) else 2 if size < 10 else 1 if size < 100 else 0
    return f"{size:.{digits}f}{unit}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: "0-2, 5" or, where they keep a step, "1, 3 ... 35"."""
    step = numbers[1] - numbers[0] if len(numbers) > 2 else 1
    if step > 1 and all(b - a == step for a, b in pairwise(numbers)):
        return f"{numbers[0]}, {numbers[1]} ... {numbers[-1]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
