"""Write what was measured into docs/papers/*.md and docs/reproduce.md, from docs/papers/results/*.json.

The reports are what `coterie reproduce` wrote.
`make docs` calls it; a test holds the pages up to date.
"""

from __future__ import annotations

from pathlib import Path

from coterie.studies.page import markdown_of, overview_of, with_measured
from coterie.studies.record import read_record

PAGES = Path(__file__).parent / "papers"
RESULTS = PAGES / "results"


def pages() -> dict[Path, str]:
    """Page -> its text with what was measured, for every study that has a result, and the overview of all."""
    records = {result.stem: read_record(result) for result in sorted(RESULTS.glob("*.json"))}
    texts = {PAGES / f"{name}.md": markdown_of(record) for name, record in records.items()}
    texts[PAGES.parent / "reproduce.md"] = overview_of(list(records.values()))
    return {page: with_measured(page.read_text(encoding="utf-8"), text) for page, text in texts.items()}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
