"""README.md of a model that was made of another: what was done, what it cost, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie import __version__
from coterie.models.checkpoint import Checkpoint
from coterie.surgery.method import Method
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.surgery.rewrite import Rewritten

__all__ = ["card_text", "write_card"]

_HOW = {
    "dense": """Plain transformers loads it:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```""",
    "native": """Plain transformers loads it, without Coterie:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```

or, in less memory than it has weights:

```bash
coterie run {name} --memory 4GiB
```""",
    "alias": """Several rows of its gates lead to one expert, which plain transformers cannot say: it refuses the
directory rather than load it wrongly. With Coterie:

```python
import coterie.models
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```

or `coterie run {name} --memory 4GiB`. For plain transformers, at the size of the original:
`coterie export {name} --format native --out DIR`.""",
    "coterie": """It has what plain transformers cannot say: that refuses the directory rather than load it
wrongly. With Coterie:

```python
import coterie.models
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```

or `coterie run {name} --memory 4GiB`.""",
}


def write_card(
    part: Path, checkpoint: Checkpoint, about: Method, made: Rewritten, others: Sequence[Checkpoint] = ()
) -> None:  # fmt: skip
    """Put the card into the directory ``part``; ``others`` are models it was made of besides."""
    sources = [source_name(each) for each in (checkpoint, *others)]
    text = card_text(made.path.name, sources, about, made)
    (part / "README.md").write_text(text, encoding="utf-8")


def source_name(checkpoint: Checkpoint) -> str:
    """What a model is called without the directories of this machine: its hub name or its own directory's."""
    path = checkpoint.path
    for folder in (path, *path.parents):
        if folder.name.startswith("models--"):
            return folder.name.removeprefix("models--").replace("--", "/")
    return path.name


def card_text(name: str, sources: Sequence[str], about: Method, made: Rewritten) -> str:
    """The card, as Markdown with the hub's table in front."""
    exactness = {
        "exact": "It computes the same function, to rounding.",
        "lossy": "It computes another function: expect it to be worse where the original was good.",
        "training": "Its weights were changed by learning.",
    }[about.mark]
    check = "" if made.difference is None else (
        f"\nBefore it was put in place, its logits on a few tokens were held against the edit in memory: they differ "
        f"by {made.difference:.1e} of their spread, in float32.\n"
    )  # fmt: skip
    paper = f"\nMethod: {about.paper}.\n" if about.paper else ""
    base = sources[0] if len(sources) == 1 else f"[{', '.join(sources)}]"
    named = ", ".join(f"`{source}`" for source in sources)
    library = "transformers" if made.container == "native" else "coterie"
    tags = [*(["mixture-of-experts"] if made.after.experts else []), about.name]
    how = _HOW[made.container if made.after.experts else "dense"]
    return (
        f"---\nbase_model: {base}\nlibrary_name: {library}\n"
        f"tags: [{', '.join(tags)}]\n---\n\n# {name}\n\n{about.summary} Made of {named} by Coterie "
        f"{__version__} (`coterie {about.name}`). **{about.mark}**: {exactness}\n{paper}\n## Size\n\n{_sizes(made)}\n"
        f"{check}{_table('Options', about.options)}{_table('Calibration', about.calibration)}"
        f"\n## Loading\n\n{how.format(name=name)}\n"
    )


def _sizes(made: Rewritten) -> str:
    rows = [("parameters", made.before.parameters, made.after.parameters, _count),
            ("active per token", made.before.active, made.after.active, _count),
            ("bytes of weights", made.before.nbytes, made.after.nbytes, format_bytes),
            ("FLOPs per token", made.before.flops, made.after.flops, _count)]  # fmt: skip
    lines = ["| | before | after | |", "|---|---:|---:|---:|"]
    for label, before, after, text in rows:
        lines.append(f"| {label} | {text(before)} | {text(after)} | {after / before - 1 if before else 0:+.0%} |")
    lines.append(f"| experts per layer | {_experts(made.before.experts)} | {_experts(made.after.experts)} | |")
    return "\n".join(lines) + "\n"


def _experts(counts: tuple[int, ...]) -> str:
    if not counts:
        return "none"
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _count(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return f"{number:.4g}"


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    lines = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join([f"\n## {title}\n", "| | |", "|---|---|", *lines]) + "\n"
