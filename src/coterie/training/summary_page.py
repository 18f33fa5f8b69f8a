"""The page of a training: losses, experts per token by layer, load per expert, what request-time options cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch

from coterie.pictures import heatmap, legend, line_chart, page
from coterie.pictures.page import cards, section, table

Record = Mapping[str, Any]
_NAMES = {
    "loss": "all of it", "cross_entropy": "next token", "balance": "balance", "entropy": "entropy", "z": "z",
    "consistency": "consistency",
}  # fmt: skip


def report_page(record: Record) -> str:
    """One HTML file, nothing fetched, no scripts."""
    router = record["router"]
    given = ", ".join(f"{name} {_told(value)}" for name, value in router["options"].items())
    lead = f"{record['family']}, routed by {router['name']}{f' ({given})' if given else ''}."
    parts = [
        _cards(record),
        _losses(record),
        _added(record),
        _experts(record),
        _load(record),
        *_curves(record),
        _how(record),
    ]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return page(
        f"{record['name']}: training",
        lead,
        parts,
        f"Finished {record['finished']}. coterie {record['coterie']}, {versions}",
    )


def _cards(record: Record) -> str:
    after, parameters = record["after"], record["parameters"]
    return cards(
        [
            (
                f"{after['bits_per_byte']:.3f}",
                f"bits per byte of unseen text, {_before(record, 'bits_per_byte', '.3f')}",
            ),
            (f"{after['mean_experts']:.2f}", f"experts per token and layer, {_before(record, 'mean_experts', '.2f')}"),
            (f"{parameters['active']:,}", f"of {parameters['all']:,} parameters work on a token, on average"),
            (
                f"{record['tokens_seen']:,}",
                f"tokens in {record['options']['steps']:,} steps, of a text of {record['reading']['train_tokens']:,}",
            ),
            (f"{record['seconds']:.0f} s", f"of training on {record['threads']} thread(s)"),
        ]
    )


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _before(record: Record, name: str, form: str) -> str:
    came = "" if record["original"] is None else f", {record['original'][name]:{form}} as it came"
    return f"{record['before'][name]:{form}} before{came}"


def _losses(record: Record) -> str:
    history = record["history"]
    lines = {_NAMES[name]: history[name] for name in ("loss", "cross_entropy") if history.get(name)}
    if not lines:
        return ""
    return section("Loss", "Nats per token, mean over the steps between two points.", line_chart(lines, "step", "nats"))


def _added(record: Record) -> str:
    history = record["history"]
    lines = {_NAMES[name]: history[name] for name in ("balance", "entropy", "z", "consistency") if history.get(name)}
    if not lines:
        return ""
    text = "What each adds to the loss, its coefficient included."
    return section("Added losses", text, line_chart(lines, "step", "nats"))


def _experts(record: Record) -> str:
    history = record["history"]
    rows = history["experts"]
    if not rows:
        return ""
    shown = _spread(len(rows[0]) - 1)
    lines: dict[str, Sequence[Any]] = {
        f"layer {number}": [(row[0], row[number + 1]) for row in rows] for number in shown
    }
    if len(shown) < len(rows[0]) - 1:
        lines["all layers"] = [(row[0], sum(row[1:]) / (len(row) - 1)) for row in rows]
    lines |= {f"scheduled {name}": history[name] for name in ("k",) if history.get(name)}
    text = "Mean over the steps between two points, by layer with experts. Nulls and padding are not counted."
    return section("Experts per token", text, line_chart(lines, "step", "experts"))


def _spread(layers: int, most: int = 6) -> list[int]:
    """Numbers of layers to draw: all, or some from the first to the last."""
    if layers <= most:
        return list(range(layers))
    return [round(place * (layers - 1) / (most - 1)) for place in range(most)]


def _load(record: Record) -> str:
    load = [torch.tensor(layer, dtype=torch.float64) for layer in record["history"]["load"]]
    if not load:
        return ""
    rows = [layer / layer.mean().clamp_min(1e-12) for layer in load]
    text = "The last tenth of the run. A row is a layer, a column an expert. Hover for the load over a fair share."
    drawn = heatmap(f"Load of each expert in {len(rows)} layers, over a fair share", range(len(rows)), rows)
    return section("Load per expert", text, legend("a quarter or less", "a fair share", "four times or more"), drawn)


def _curves(record: Record) -> list[str]:
    parts = []
    for option, points in record["curves"].items():
        drawn = line_chart(
            {"bits per byte": [(p["value"], p["bits_per_byte"]) for p in points]}, option, "bits per byte"
        )
        rows = [(f"{p['value']:g}", f"{p['bits_per_byte']:.4f}", f"{p['mean_experts']:.2f}") for p in points]
        text = f"The finished model on text that was held back, when {option} is asked for at run time."
        parts.append(section(f"What {option} costs", text, drawn, table((option, "bits per byte", "experts"), rows)))
    return parts


def _how(record: Record) -> str:
    import yaml  # type: ignore[import-untyped]

    words = yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True)
    return section("Recipe", "As it was read; recipe.yaml has it too.", f"<pre>{escape(words)}</pre>")
