"""Write what was measured into docs/papers/*.md, from docs/papers/results/*.json, which `coterie reproduce` wrote.

`make docs` calls it; a test holds the pages up to date.
"""

from __future__ import annotations

from pathlib import Path

from coterie.studies.page import with_measured
from coterie.studies.record import read_record

PAGES = Path(__file__).parent / "papers"
RESULTS = PAGES / "results"


def pages() -> dict[Path, str]:
    """Page -> its text with what was measured, for every study that has a result."""
    made = {}
    for result in sorted(RESULTS.glob("*.json")):
        page = PAGES / f"{result.stem}.md"
        made[page] = with_measured(page.read_text(encoding="utf-8"), read_record(result))
    return made


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
