"""Which rows, columns or neurons of S stay, by what a text's loss says: MC-SMoE's pruning without training."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import BudgetError
from coterie.jobs.running.budget import default_memory
from coterie.jobs.shrinking.source import Shrinking, Texts
from coterie.jobs.tracing.reading import open_texts
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import auto_class, quiet
from coterie.models.prompts import Prompts
from coterie.surgery.factorize import LayerFactors
from coterie.surgery.method import Method
from coterie.surgery.rewrite import rewrite
from coterie.surgery.student import factorize_model, survivors
from coterie.training.sparsify import SAMPLES, Sparsify, zero_shot
from coterie.units import format_bytes, parse_bytes

__all__ = ["surviving_units"]

_WINDOW = 128  # tokens of a step
_COPIES = 3  # of the weights in float32: themselves, their factors, gradients of S

Say = Callable[[str], None]


def surviving_units(
    found: Shrinking, ranks: Mapping[str, Mapping[str, Sequence[int]]], keep: float, unit: str, texts: Texts,
    memory: str | int | None, out: Path, say: Say,
) -> dict[str, dict[str, list[Tensor]]]:  # fmt: skip
    """Site -> matrix -> mask of the units of S that stay, for each expert. Blocks.

    The model is resident, in float32, as factors with all of their S; a schedule prunes it over at most `SAMPLES`
    windows of the texts. Deterministic.

    Raises:
        BudgetError: it does not fit the memory.
        PromptError: the texts are no good.
    """
    checkpoint = found.checkpoint
    _check_memory(checkpoint, memory)
    texts_read = open_texts(texts, Prompts.of(checkpoint.path, checkpoint.context_length), SAMPLES * _WINDOW)
    windows = [part for text in texts_read for part in text.ids.split(_WINDOW) if len(part) > 1]
    if len(windows) > SAMPLES:  # evenly from all of the texts
        windows = [windows[i * len(windows) // SAMPLES] for i in range(SAMPLES)]
    say("Loading the model for gradients")
    model = _resident(found, out)
    how = {name: LayerFactors(each, 1, unit, whole=False) for name, each in ranks.items()}
    factorize_model(model, how, unit)
    say(f"Pruning by gradients of {len(windows)} windows")
    zero_shot(model, windows, Sparsify(keep, 0.04, 0.16, unit))
    return survivors(model)


def _resident(found: Shrinking, out: Path) -> Any:
    """The model in float32, merged where that comes first."""
    if found.merging is None:
        return _loaded(found.checkpoint.path, auto_class(found.checkpoint.config))
    from transformers import AutoModelForCausalLM

    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        about = Method("merge", "lossy", "On the way to a compressed model.")
        made = rewrite(found.checkpoint, scratch / "merged", found.merging, about=about, check=False)
        return _loaded(made.path, AutoModelForCausalLM)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _loaded(path: Path, kind: Any) -> Any:
    with quiet():
        return kind.from_pretrained(path, dtype=torch.float32).eval()


def _check_memory(checkpoint: Checkpoint, memory: str | int | None) -> None:
    allowed = default_memory() if memory is None else parse_bytes(memory)
    floats = sum(site.shape.nbytes(torch.float32, site.num_experts) for site in checkpoint.sites)
    needed = _COPIES * floats + 2 * checkpoint.dense_bytes
    if needed > allowed:
        raise BudgetError(
            f"Scores by gradient hold the model, its factors and their gradients: about {format_bytes(needed)}, and "
            f"{format_bytes(allowed)} are allowed. Choose --score energy, which reads a layer at a time."
        )
