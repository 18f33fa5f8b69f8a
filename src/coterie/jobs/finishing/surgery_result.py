"""What every verb of surgery returns: the report, and what the verb alone knows."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.jobs.finishing.surgery_report import SurgeryReport, write_report
from coterie.surgery.method import Method
from coterie.surgery.rewrite import Rewritten


class SurgeryResult(ABC):
    """A report, as a record and as a page. A subclass is final, and says what it knows besides.

    Attributes:
        report: the new checkpoint, sizes before and after, perplexity where there were texts.
    """

    report: SurgeryReport

    @property
    def made(self) -> Rewritten:
        """The new checkpoint, and sizes before and after."""
        return self.report.made

    @property
    def method(self) -> Method:
        """What was done, as the card says it."""
        return self.report.method

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self.report.as_record(), **self._facts()}

    def write_page(self, path: str | Path) -> None:
        """One HTML file with pictures.

        Raises:
            OptionError: the file cannot be written.
        """
        write_report(path, self.report, self._pictures())

    def _facts(self) -> Mapping[str, Any]:
        """Of the record, beside the report."""
        return {}

    def _pictures(self) -> Sequence[str]:
        """Of the page, beside the sizes: HTML."""
        return ()
