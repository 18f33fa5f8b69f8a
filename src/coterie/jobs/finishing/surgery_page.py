"""The page of a verb's ``--report``: one HTML file, nothing fetched, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coterie import __version__
from coterie.pictures.page import cards, section, table
from coterie.pictures.page import page as framed

if TYPE_CHECKING:
    from coterie.jobs.finishing.surgery_report import SurgeryReport

__all__ = ["page"]

_EXACTNESS = {
    "exact": "The new model computes the same function, to rounding.",
    "lossy": "The new model computes another function.",
    "training": "The new model's weights were changed by learning.",
}


def page(report: SurgeryReport, parts: Sequence[str] = ()) -> str:
    """The whole document; ``parts`` are HTML and stand between the sizes and the layers."""
    head = ("", "before", "after", "change")
    sizes = section("Before and after", _note(report), table(head, report.rows()))
    options = {**report.method.options, **{f"calibration: {k}": v for k, v in report.method.calibration.items()}}
    facts = [(str(name), str(value)) for name, value in options.items()]
    end = [section("Options", "As they were given.", table(("option", "value"), facts))] if facts else []
    lead = f"{report.method.summary} {_EXACTNESS[report.method.mark]}"
    footer = f"{report.method.paper} coterie {__version__}".strip()
    return framed(f"{report.made.path.name}: {report.method.name}", lead,
                  [_cards(report), sizes, *parts, *_layers(report), *end], footer)  # fmt: skip


def _cards(report: SurgeryReport) -> str:
    rows = {label: (after, change) for label, _, after, change in report.rows()}
    wanted = ("parameters", "weights on disk", "FLOPs per token", "perplexity")
    cells = [(rows[label][0], f"{label} ({rows[label][1]})") for label in wanted if label in rows]
    return cards(cells)


def _note(report: SurgeryReport) -> str:
    text = f"Container: {report.made.container}."
    if report.made.difference is not None:
        text += f" The written model's logits are those of the edit, to {report.made.difference:.1e} of their spread."
    if report.texts:
        text += f" Perplexity on {'; '.join(report.texts)}."
    return text


def _layers(report: SurgeryReport) -> list[str]:
    """What the edit said of each layer, where it said numbers or words."""
    names = sorted({name for about in report.layers.values() for name, value in about.items() if _shown(value)})
    if not names:
        return []
    rows = [
        [str(layer), *(_cell(about.get(name)) for name in names)] for layer, about in sorted(report.layers.items())
    ]  # fmt: skip
    return [section("Layers", "What the edit noted of each.", table(("layer", *names), rows))]


def _shown(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _cell(value: Any) -> str:
    if not _shown(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
