"""An `AttackReport` for people: the number first, then what it is made of, then why to believe it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.jobs.attacking.checks import Verdict
from coterie.jobs.attacking.outcome import Kind, Outcome, share, standard_error
from coterie.jobs.sheet import Facts, Sheet, Table

if TYPE_CHECKING:
    from coterie.jobs.attacking.report import AttackReport
    from coterie.jobs.attacking.tables import ExpertRow

__all__ = ["attack_table", "class_table", "expert_table", "percent", "sheet_of", "verdict"]


def sheet_of(report: AttackReport) -> Sheet:
    """All of it."""
    blocks: list[Facts | Table] = [Facts("", _facts(report)), attack_table(report), _checks(report)]
    if report.expert_rows:
        blocks.append(expert_table(report))
    blocks.append(class_table(report))
    if report.notes:
        blocks.append(Facts("", [("note", note) for note in report.notes]))
    taken = f"{report.images:,} of {report.available:,} images" if report.images < report.available else (
        f"{report.images:,} images")  # fmt: skip
    return Sheet(f"{report.model} under attack: {taken} of {report.data}", blocks)


def _facts(report: AttackReport) -> list[tuple[str, str]]:
    error = 100 * report.standard_error
    return [
        ("model", report.about),
        ("attacker", f"{report.threat.describe()}, seed {report.threat.seed}"),
        ("clean", f"{percent(report.clean_accuracy)} right"),
        ("robust", f"{percent(report.robust_accuracy)} right under every attack, ± {error:.1f} (standard error)"),
        ("verdict", verdict(report)),
    ]


def verdict(report: AttackReport) -> str:
    """Whether to believe it, in a sentence."""
    passed, warned = report.count(Verdict.PASSED), report.count(Verdict.WARNING)
    if not report.trusted:
        failed = ", ".join(check.name for check in report.checks if check.verdict is Verdict.FAILED)
        return f"NOT TO BE TRUSTED: {failed}"
    also = f", {warned} warning{'s' * (warned > 1)}" if warned else ""
    return f"no reason for doubt: {passed} checks passed{also}"


def attack_table(report: AttackReport) -> Table:
    """A row per attack; those on single experts are columns of the table of experts."""
    head = ["attack", "right", "±", "breaks", "route kept", "what it is"]
    shown = [one for one in report.outcomes if one.kind is not Kind.CLEAN and not one.key.startswith("expert-")]
    rows = [_attack(one) for one in shown]
    if not report.experts:
        head.pop(4)
        rows = [[*row[:4], *row[5:]] for row in rows]
    return Table("Attacks", head, rows, frozenset(range(1, len(head) - 1)))


def _attack(one: Outcome) -> list[str]:
    error = f"{100 * standard_error(one.accuracy, len(one.correct)):.1f}"
    kept = "" if one.kept is None else percent(share(one.kept))
    return [one.label, percent(one.accuracy), error, percent(share(one.broken)), kept, one.what]


def _checks(report: AttackReport) -> Table:
    rows = [[check.verdict.value, check.name, check.text] for check in report.checks]
    return Table("Checks", ("", "check", "what was found"), rows)


def expert_table(report: AttackReport) -> Table:
    """A row per expert, per site where each decides for itself."""
    rows = [_expert(row) for row in report.expert_rows]
    head = ["site", "expert", "images", "share", "clean", "robust", "sent away", "forced", "attacked"]
    if list(report.sites) == [""]:
        head, rows = head[1:], [row[1:] for row in rows]
    return Table("Experts", head, rows, frozenset(range(1, len(head))))


def _expert(row: ExpertRow) -> list[str]:
    forced = ["" if value is None else percent(value) for value in (row.forced, row.attacked)]
    return [
        row.site, str(row.expert), f"{row.images:,}", percent(row.share),
        *_of(row.images, row.clean, row.robust, row.lost), *forced,
    ]  # fmt: skip


def _of(images: int, *shares: float) -> list[str]:
    return [percent(value) if images else "-" for value in shares]


def class_table(report: AttackReport) -> Table:
    """A row per class."""
    routed = bool(report.classes and report.classes[0].experts)
    head = ["class", "images", "clean", "robust", *(["by expert"] if routed else [])]
    rows = []
    for row in report.classes:
        used = [" ".join(f"{value:.0%}" for value in row.experts)] if routed else []
        rows.append([row.name, f"{row.images:,}", percent(row.clean), percent(row.robust), *used])
    return Table("Classes", head, rows, frozenset(range(1, 5)))


def percent(value: float) -> str:
    """A share for people."""
    return f"{value:.1%}"
