"""The page and the card of a robust training, from its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from coterie.pictures import line_chart, page
from coterie.pictures.page import cards, section
from coterie.training.words import in_255ths

Record = Mapping[str, Any]
COLLAPSED = 0.9  # the share on one route from which on a mixture is hardly one


def chart(record: Record) -> str:
    """Accuracy on the images that were held back, or the loss where there were none, as SVG."""
    history = record["history"]
    lines = {"clean": history["accuracy"], "under attack": history["robust_accuracy"]}
    if history["accuracy"]:
        return line_chart(lines, "step", "share that is right, held back")
    return line_chart({"loss": history["terms"].get("loss") or [(0, 0)]}, "step", "nats")


def report_page(record: Record) -> str:
    """One HTML file, nothing fetched, no scripts."""
    parts = [_cards(record), _accuracy(record), _terms(record, ""), _terms(record, "router_"), _routes(record)]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    footer = f"Finished {record['finished']}. coterie {record['coterie']}, {versions}"
    return page(f"{record['name']}: robust training", lead(record), [*parts, _how(record)], footer)


def lead(record: Record) -> str:
    """What network, and how it learned."""
    spec = record["spec"]
    what = f"{spec['architecture']} for {spec['image_size']} x {spec['image_size']} images of {spec['classes']} classes"
    if spec["experts"]:
        router = spec["router"] if spec["placement"] == "image" else "in every layer"
        what += f", {spec['experts']} experts of {spec['ratio']:g} of the width, router {router}"
    elif spec["ratio"] != 1:
        what += f", dense at {spec['ratio']:g} of the width"
    else:
        what += ", dense"
    return f"{what}. Trained {record['regime']}, against {attack_text(record['attack'])}."


def attack_text(attack: Mapping[str, Any]) -> str:
    """An attack in a line."""
    return (
        f"{attack['steps']} steps of {in_255ths(attack['step_size'])} within {in_255ths(attack['epsilon'])} "
        f"(aim {attack['aim']})"
    )


def card(record: Record) -> str:
    """Markdown."""
    parts = [_head(record), lead(record), _usage(record["spec"]), _numbers(record), *_warning(record)]
    return "\n\n".join([*parts, *_training(record)]) + "\n"


def _head(record: Record) -> str:
    return f"""---
library_name: coterie
pipeline_tag: image-classification
tags: [mixture-of-experts, adversarial-robustness, {record["spec"]["architecture"]}, coterie]
---

# {record["name"]}"""


def _usage(spec: Mapping[str, Any]) -> str:
    shape = f"[B, {spec['channels']}, {spec['image_size']}, {spec['image_size']}]"
    return f"""```python
from coterie.models.vision import load_vision

model = load_vision("DIRECTORY")
logits = model(images)  # {shape} in [0, 1]
```"""


def _numbers(record: Record) -> str:
    cost = record["cost"]
    text = (
        f"{cost['parameters']:,} parameters ({cost['dense_parameters']:,} of the dense network), "
        f"{cost['macs'] / 1e6:.1f} million multiply-accumulates for an image, router included "
        f"({cost['dense_macs'] / 1e6:.1f} dense): {1 - cost['macs'] / cost['dense_macs']:.0%} saved."
    )
    judged = record["best"] or record["last"]
    if judged is None:
        return f"{text}\n\nNo images were held back, so nothing is known of its accuracy."
    return (
        f"{text}\n\n| of {record['images']['held']} images held back | |\n| --- | --- |\n"
        f"| accuracy | {judged['accuracy']:.1%} |\n"
        f"| under {attack_text(record['judge'])} | {judged['robust_accuracy']:.1%} |"
        + (f"\n| images per route | {', '.join(map(str, judged['load']))} |" if judged["load"] else "")
        + (f"\n| routes the attack changed | {judged['flips']:.1%} |" if judged["load"] else "")
        + "\n\nThe checkpoint was chosen by these images, which flatters the numbers. Measure it on others: "
        "`coterie attack DIRECTORY TEST_IMAGES`."
    )


def _warning(record: Record) -> list[str]:
    judged = record["best"] or record["last"]
    if judged is None or not judged["load"] or max(judged["load"]) < COLLAPSED * sum(judged["load"]):
        return []
    share = max(judged["load"]) / sum(judged["load"])
    return [
        f"**One route has {share:.0%} of the images**: the router collapsed, and what is left is a narrow dense "
        "network. More balance, another rate for the router or another seed may help."
    ]


def _training(record: Record) -> list[str]:
    images, best = record["images"], record["best"]
    text = (
        f"{record['steps']:,} steps in {record['epochs']} epochs over {images['learned']:,} images of "
        f"{images['source']}, {record['seconds']:.0f} seconds on {record['device']}, {record['threads']} thread(s). "
    )
    if best is not None and best["step"] != record["steps"]:
        text += f"The weights are those after step {best['step']:,}, the most robust; `last/` has the last. "
    files = "`recipe.yaml` is the recipe, `report.html` shows the run, `report.json` has its numbers."
    return ["## Training", text + files, "![Accuracy by step](robust.svg)"]


def _cards(record: Record) -> str:
    cost, judged = record["cost"], record["best"] or record["last"]
    cells = []
    if judged is not None:
        cells += [
            (f"{judged['robust_accuracy']:.1%}", f"right under {attack_text(record['judge'])}, held back"),
            (f"{judged['accuracy']:.1%}", "right without an attack"),
        ]
        if judged["load"]:
            share = min(judged["load"]) / sum(judged["load"])
            cells.append((f"{share:.0%}", "of the images on the route with fewest"))
    saved = 1 - cost["macs"] / cost["dense_macs"]
    cells.append((f"{cost['macs'] / 1e6:.1f} M", f"multiply-accumulates for an image, {saved:.0%} less than dense"))
    cells.append((f"{record['seconds']:.0f} s", f"for {record['steps']:,} steps on {record['threads']} thread(s)"))
    return cards(cells)


def _accuracy(record: Record) -> str:
    if not record["history"]["accuracy"]:
        return ""
    text = f"On {record['images']['held']} images held back, with and without {attack_text(record['judge'])}."
    return section("Accuracy", text, chart(record))


def _terms(record: Record, side: str) -> str:
    terms = record["history"]["terms"]
    names = {name: name.removeprefix(side).replace("_", " ") for name in terms if _side_of(name) == side}
    lines = {text: terms[name] for name, text in names.items() if not name.endswith("grad_norm")}
    if not lines:
        return ""
    title = "The router's loss" if side else "Loss"
    text = "What the router's own step costs." if side else "Terms before their coefficients."
    return section(title, text, line_chart(lines, "step", "nats"))


def _side_of(name: str) -> str:
    return "router_" if name.startswith("router_") else ""


def _routes(record: Record) -> str:
    shares, flips = record["history"]["shares"], record["history"]["flips"]
    if not shares:
        return ""
    lines: dict[str, Sequence[Any]] = {
        f"route {route}": [(row[0], row[route + 1]) for row in shares] for route in range(len(shares[0]) - 1)
    }
    if flips:
        lines["changed"] = flips
    text = (
        "The share of images on each route, from before the first step on, and of those whose route an attack changed."
    )
    return section("Routes", text, line_chart(lines, "step", "share of images"))


def _how(record: Record) -> str:
    import yaml  # type: ignore[import-untyped]

    words = yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True)
    return section("Recipe", "As it was read; recipe.yaml has it too.", f"<pre>{escape(words)}</pre>")
