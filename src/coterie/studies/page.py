"""A study's report as Markdown, for the part of a paper's page that is measured."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.studies.tables import Record, arms_table, facts_of, kind_of, numbers_of, summary_of, verdict_of

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def markdown_of(record: Record) -> str:
    """Verdicts with what decided, arms, and how it was run."""
    return "\n\n".join([f"{summary_of(record)}.", _claims(record), _arms(record), *_failures(record), _facts(record)])


def overview_of(records: Sequence[Record]) -> str:
    """A row per study: what became of its gated claims, and how long it took."""
    rows = []
    for record in records:
        verdicts = [claim["verdict"] for claim in record["claims"] if claim["gated"]]
        counts = [str(verdicts.count(verdict)) for verdict in ("holds", "does not hold", "not shown")]
        rows.append([f"[{record['study']}](papers/{record['study']}.md)", *counts, f"{record['seconds'] / 60:.1f}"])
    return _table(["gated claims of", "hold", "do not hold", "not shown", "minutes"], rows, right=4)


def with_measured(page: str, text: str) -> str:
    """``page`` with ``text`` between its marks, in place of what is there.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _claims(record: Record) -> str:
    head = ["claim", "", "verdict", *(f"seed {seed}" for seed in record["seeds"])]
    rows = [
        [
            f"({claim['key']}) {claim['text']}", kind_of(claim).lower(), f"**{verdict_of(claim)}**",
            *(numbers_of(claim["numbers"].get(str(seed), {})) for seed in record["seeds"]),
        ]
        for claim in record["claims"]
    ]  # fmt: skip
    return _table(head, rows)


def _arms(record: Record) -> str:
    head, rows = arms_table(record)
    what = {arm["arm"]: arm["what"] for arm in record["arms"]}
    return "Means over the seeds:\n\n" + _table(
        [head[0], "what", *head[1:]], [[row[0], what[row[0]], *row[1:]] for row in rows], right=len(head) - 1
    )


def _failures(record: Record) -> list[str]:
    failed = [f"- {run['arm']} seed {run['seed']}: {run['error']}" for run in record["runs"] if "error" in run]
    return ["Runs that failed:\n\n" + "\n".join(failed)] if failed else []


def _facts(record: Record) -> str:
    return _table(["", "how"], [[label, text] for label, text in facts_of(record)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> str:
    """The last ``right`` columns are set flush right."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in [head, rule, *rows])
