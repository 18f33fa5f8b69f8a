"""The page of `coterie attack --report`: one HTML file, pictures inside, nothing fetched, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from coterie import __version__
from coterie.jobs.attacking.attack_sheet import attack_table, class_table, expert_table, percent, verdict
from coterie.jobs.attacking.checks import Check, Verdict
from coterie.jobs.attacking.threat import as_text
from coterie.jobs.sheet import Table
from coterie.pictures.image import figure
from coterie.pictures.line_chart import line_chart
from coterie.pictures.page import cards, section, table
from coterie.pictures.page import page as framed

if TYPE_CHECKING:
    from coterie.jobs.attacking.report import AttackReport, Example

_MARKS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.WARNING: "!", Verdict.SKIPPED: "–"}
_MIDDLE = ' style="text-align:center"'
_TERMS = (
    ("right", "Share of the images answered right, as the attack defines it: with the route frozen if it was frozen."),
    ("breaks", "Share of the images that the model as it is answers wrong, this attack alone. An image found with the "
     "route frozen counts only if it fools the free model too."),
    ("robust accuracy", "Share of the images answered right under every one of the attacks: an attacker needs one."),
    ("route kept", "Share of the images that still go to the expert they went to before the attack."),
    ("every route in turn", "The image is attacked with each expert forced, and must be answered right by each. No "
     "attacker on the model as it is does better, were these attacks perfect: a bound, not a number to report."),
    ("frozen route", "What would be left if the router could not be moved: a diagnostic, since the attacker moves it."),
)  # fmt: skip


def page(report: AttackReport) -> str:
    """The whole document."""
    parts = [_cards(report), _attacks(report), _checks(report.checks), _pictures(report)]
    if report.expert_rows:
        text = "Images by the expert that they go to when they are clean."
        parts.append(section("Experts", text, _html(expert_table(report))))
    parts += [section("Classes", _classes_text(report), _html(class_table(report))), *_curves(report), _terms()]
    lead = f"{report.about}, on {report.images:,} images of {report.data}. {verdict(report)[0].upper()}"
    footer = f"{report.threat.describe()}, seed {report.threat.seed}. {report.seconds:.0f} s. coterie {__version__}"
    return framed(f"{report.model} under attack", f"{lead}{verdict(report)[1:]}.", [p for p in parts if p], footer)


def _cards(report: AttackReport) -> str:
    cells = [
        (percent(report.clean_accuracy), "right without attack"),
        (percent(report.robust_accuracy), f"right under every attack, ± {100 * report.standard_error:.1f}"),
    ]
    end = report.outcome("end-to-end")
    if end is not None and end.flips is not None:
        cells.append((percent(end.flips), "of images sent to another expert by the end-to-end attack"))
    failed = report.count(Verdict.FAILED)
    cells.append((f"{report.count(Verdict.PASSED)} of {len(report.checks)}", f"checks passed, {failed} failed"))
    return cards(cells)


def _attacks(report: AttackReport) -> str:
    text = "What each attack leaves, and how many images it breaks by itself. The terms are explained below."
    notes = [f"<p>{escape(note)}</p>" for note in report.notes]
    return section("Attacks", text, _html(attack_table(report)), *notes)


def _checks(checks: Sequence[Check]) -> str:
    text = "A model that hides its gradient, or whose weights are not numbers, looks robust. These look for that."
    rows = [(f"{_MARKS[check.verdict]} {check.verdict.value}", check.name, check.text) for check in checks]
    return section("Checks", text, _left(table(("", "check", "what was found"), rows), "words layers"))


def _pictures(report: AttackReport) -> str:
    if not report.examples:
        return ""
    text = (
        "The image, the change (grey is none, black and white are the whole of epsilon), and the sum; below each what "
        "the model answers, and the expert it goes to."
    )
    rows = "".join(f"<tr>{_example(one, report.threat.epsilon)}</tr>" for one in report.examples)
    head = "".join(f'<th scope="col"{_MIDDLE}>{name}</th>' for name in ("label", "clean", "change", "attacked", "by"))
    return section("Images", text, f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _example(one: Example, epsilon: float) -> str:
    change = one.attacked - one.clean
    cells = [
        figure(one.clean, f"{one.before}{_route(one.route_before)}"),
        figure(0.5 + change / (2 * epsilon), f"at most {as_text(epsilon)}"),
        figure(one.attacked, f"{one.after}{_route(one.route_after)}"),
    ]
    texts = [escape(one.label), *cells, escape(one.attack)]
    return "".join(f"<td{_MIDDLE}>{text}</td>" for text in texts)


def _route(route: Sequence[int]) -> str:
    if not route:
        return ""
    return f", expert {route[0]}" if len(route) == 1 else f", experts {' '.join(map(str, route))}"


def _classes_text(report: AttackReport) -> str:
    routed = bool(report.classes and report.classes[0].experts)
    return "By label." + (" The last column is where the clean images of the class go, per expert." if routed else "")


def _curves(report: AttackReport) -> list[str]:
    made = []
    if len(report.steps_curve) > 1:
        lines = {"loss": [(float(steps), loss) for steps, loss in report.steps_curve]}
        chart = line_chart(lines, "steps", "mean loss")
        made.append(
            section("Loss over steps of the attack", "End to end, on the images that are right when clean.", chart)
        )
    if len(report.epsilon_curve) > 1:
        lines = {"accuracy": [(epsilon, 100 * accuracy) for epsilon, accuracy in report.epsilon_curve]}
        where = f"Under the attack on the margin, on {report.checked:,} of the images."
        made.append(section("Accuracy over epsilon", where, line_chart(lines, "epsilon", "% right")))
    return made


def _terms() -> str:
    made = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _TERMS)
    return f'<section><h2>Terms</h2><dl class="terms">{made}</dl></section>'


def _html(one: Table) -> str:
    made = table(one.head, one.rows)
    return _left(made) if len(one.head) - 1 not in one.right else made


def _left(made: str, kind: str = "words") -> str:
    """The last column holds sentences: they begin at the left and may break. In "layers" the second does too."""
    return f'<div class="{kind}">{made}</div>'
