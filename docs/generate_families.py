"""Write docs/families.md from the table that the tests go over. `make docs` calls it; a test holds it up to date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from coterie.experts import FFNShape
from coterie.models.compat import beside_text, ffn_shape, skeleton
from coterie.models.families import AT_ODDS, EXCLUDED, WHOLE_PROMPT
from coterie.models.find import find_sites
from coterie.testing.families import ROWS, shared_layout_families, tiny_config

PAGE = Path(__file__).with_name("families.md")
HEAD = """\
<!-- Written by docs/generate_families.py from coterie.testing.families. Change that, then type: make docs -->

# Families

Every mixture-of-experts family that transformers {version} can build, {served} of {all} of them served: opened from
disk, run under a budget with the bits of everything resident, held against transformers, and generating its tokens. The
tests go over this very table (`tests/models/test_models_families.py`), and fail when a new transformers brings a family
that is not in it.

Nothing here is a list of names that somebody keeps: where a family's experts lie on disk follows from transformers' own
conversion tables, how they gate is recognised by its values, and the memory they take is counted while the model's own
code runs without data. A model for pictures or sounds is served by its text side; the rest of it stays on disk.

The exceptions are families that transformers keeps outside its common interface, *own layout* below: each is one
entry in `coterie.models.compat.OWN_LAYOUTS`.

- **experts**: the activation and, where it is not the usual `down(act(gate(x)) * up(x))`, what else.
- **ask ahead**: `--prefetch next-gate` works: the router decides by a row alone.
- **pieces**: a long prompt is read in pieces of bounded workspace; else whole.

| family | class | experts | ask ahead | pieces | notes |
|---|---|---|---|---|---|
"""
TAIL = """
## Not served

| family | why |
|---|---|
"""


def page() -> str:
    """The whole page, as Markdown."""
    served = [family for family in ROWS if family not in EXCLUDED]
    everything = {*ROWS, *EXCLUDED, *shared_layout_families()}
    head = HEAD.format(version=transformers.__version__, served=len(served), all=len(everything))
    return head + "".join(map(_row, served)) + TAIL + "".join(f"| {name} | {why} |\n" for name, why in EXCLUDED.items())


def _row(family: str) -> str:
    model = skeleton(tiny_config(family), torch.float32)
    sites = find_sites(model)
    cells = [
        family, f"`{type(model).__name__}`", ", ".join(_computed(ffn_shape(sites[0].experts))),
        "yes" if all(site.gate_takes_rows for site in sites) else "no",
        "no" if family in WHOLE_PROMPT or model.config.is_encoder_decoder else "yes", "; ".join(_notes(family, model)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _computed(shape: FFNShape) -> Iterator[str]:
    yield shape.activation if shape.gate_fn is None else "a gate of its own"
    if not shape.gated:
        yield "no gate"
    if shape.alpha is not None:
        yield f"gate by sigmoid({shape.alpha} x), up + 1"
    if shape.clamp is not None:
        yield f"clamped at {shape.clamp:g}"
    for name, said in (("bias", "biases"), ("transposed", "transposed"), ("interleaved", "interleaved")):
        if getattr(shape, name):
            yield said
    if shape.post_norm:
        yield "a norm behind each"


def _notes(family: str, model: Any) -> Iterator[str]:
    if beside_text(model):
        yield "text side of a larger model"
    if ROWS[family].layout == "own":
        yield "own layout"
    if family in WHOLE_PROMPT:
        yield WHOLE_PROMPT[family]
    if model.config.is_encoder_decoder:
        yield "reads with an encoder, writes with a decoder: `run`, `verify`, `plan` and `inspect`, not `trace`"
    if (odds := AT_ODDS.get(model.config.model_type)) is not None:
        yield f"computed as published; {odds.rstrip('.')}"
    if not hasattr(model, "generate") or not model.can_generate():
        yield "labels tokens, writes nothing: `verify` and `coterie.load`, not `run`"
    if ROWS[family].note:
        yield ROWS[family].note


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
