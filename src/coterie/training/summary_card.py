"""The card of a trained model, from its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.pictures import line_chart

Record = Mapping[str, Any]


def chart(record: Record) -> str:
    """The losses over training, as SVG."""
    named = {"loss": "loss", "cross_entropy": "next token"}
    lines = {named[name]: record["history"][name] for name in named if record["history"].get(name)}
    return line_chart(lines or {"loss": [(0, 0)]}, "step", "nats per token")


def card(record: Record) -> str:
    """Markdown."""
    parts = [_head(record), _numbers(record), *_curves(record), _training(record)]
    return "\n\n".join(parts) + "\n"


def _head(record: Record) -> str:
    router = record["router"]
    options = router["options"].items()
    given = ", ".join(f"{name} {f'{v:.4g}' if isinstance(v, float) else v}" for name, v in options)
    router_text = f"**{router['name']}**" + (f" ({given})" if given else "")
    name = record["name"]
    return f"""---
library_name: coterie
pipeline_tag: text-generation
tags: [mixture-of-experts, {record["family"]}, coterie]
---

# {name}

A mixture of experts of the family `{record["family"]}`, routed by {router_text}.
It needs Coterie: plain transformers does not know its router.

```bash
coterie run DIRECTORY "Once"
```

```python
import coterie.models
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("DIRECTORY")
```"""


def _numbers(record: Record) -> str:
    parameters = record["parameters"]
    stages = [("as it came", record["original"]), ("with this router, before training", record["before"])]
    stages = [*stages, ("**trained**", record["after"])]
    rows = [(name, f"{at['bits_per_byte']:.3f}", f"{at['mean_experts']:.2f}") for name, at in stages if at is not None]
    return (
        f"{parameters['all']:,} parameters, of which {parameters['active']:,} work on a token on average.\n\n"
        + _table(("on text that was held back", "bits per byte", "experts per token"), rows)
    )


def _curves(record: Record) -> list[str]:
    parts = []
    for option, points in record["curves"].items():
        rows = [(f"{p['value']:g}", f"{p['bits_per_byte']:.3f}", f"{p['mean_experts']:.2f}") for p in points]
        parts.append(
            f"## What {option} costs\n\nAsked for at run time, measured on the text that was held back.\n\n"
            + _table((option, "bits per byte", "experts per token"), rows)
        )
    return parts


def _training(record: Record) -> str:
    reading, options = record["reading"], record["options"]
    text = (
        f"{options['steps']:,} steps, {record['tokens_seen']:,} tokens out of {reading['train_tokens']:,}, "
        f"{record['seconds']:.0f} seconds on {record['threads']} CPU thread(s), finished {record['finished']} with "
        + ", ".join(f"{name} {number}" for name, number in {"coterie": record["coterie"], **record["versions"]}.items())
    )
    return f"""## Training

{text}. `recipe.yaml` is the recipe, `report.html` shows the run, `report.json` has its numbers.

![Loss by step](loss.svg)"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
