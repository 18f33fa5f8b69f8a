"""Before and after surgery: how large, what a token costs, how well a text is foretold; what every verb prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PromptError
from coterie.jobs.output import write_output
from coterie.jobs.running.load import load
from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.jobs.tracing.reading import open_texts
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import first_inputs
from coterie.models.prompts import Prompts
from coterie.surgery import DenseCheckpoint, Method, Rewritten, Size
from coterie.surgery.from_dense import mixture_host
from coterie.surgery.opened import open_any
from coterie.units import format_bytes

__all__ = ["SurgeryReport", "perplexity", "surgery_report", "write_report"]

Texts = Sequence[str | Path] | Mapping[str, str]
WINDOW = 256
TOKENS = 2048


@dataclass(frozen=True)
class SurgeryReport:
    """What an edit did to a model.

    Attributes:
        made: as the edit's writer returned it.
        method: what was done.
        perplexity: before and after, of a token given those before it in its window; None without text.
        texts: what it was measured on, in words.
        tokens: foretold.
        layers: rows of what is known of each layer, by the layer's number.
    """

    made: Rewritten
    method: Method
    perplexity: tuple[float, float] | None = None
    texts: tuple[str, ...] = ()
    tokens: int = 0
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(what, before, after, change)."""
        before, after = self.made.before, self.made.after
        rows = [(label, text(value_of(before)), text(value_of(after)), _change(value_of(before), value_of(after)))
                for label, value_of, text in _MEASURES]  # fmt: skip
        rows.append(("experts per layer", _experts(before.experts), _experts(after.experts), ""))
        if self.perplexity is not None:
            was, now = self.perplexity
            rows.append(("perplexity", f"{was:.3f}", f"{now:.3f}", _change(was, now)))
        return rows

    def sheet(self) -> Sheet:
        """For people."""
        table = Table("Size", ("", "before", "after", "change"), self.rows(), frozenset({1, 2, 3}))
        facts = [("container", _CONTAINERS[self.made.container]), ("exactness", self.method.mark)]
        if self.made.difference is not None:
            facts.append(("check", f"logits as the edit's in memory, to {self.made.difference:.1e} of their spread"))
        if self.perplexity is not None:
            facts.append(("measured on", f"{'; '.join(self.texts)} ({self.tokens:,} foretold)"))
        return Sheet(f"{self.made.path.name}: {self.method.summary}", [table, Facts("", facts)])

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        measured = None if self.perplexity is None else {
            "before": self.perplexity[0], "after": self.perplexity[1], "texts": list(self.texts), "tokens": self.tokens
        }  # fmt: skip
        return {
            "out": str(self.made.path), "container": self.made.container, "method": self.method.as_record(),
            "before": self.made.before.as_record(), "after": self.made.after.as_record(),
            "difference": self.made.difference, "perplexity": measured,
            "layers": {str(layer): dict(about) for layer, about in self.layers.items() if about},
        }  # fmt: skip


def surgery_report(
    before: Checkpoint, made: Rewritten, method: Method, *, texts: Texts = (), tokens: int = TOKENS,
    window: int = WINDOW, memory: str | int | None = None, say: Callable[[str], None] = lambda text: None,
) -> SurgeryReport:  # fmt: skip
    """Measure what ``method`` made of ``before``. Blocks; both models run through the store, within ``memory``.

    Args:
        before: the source, dense or with experts.
        made: of the writer.
        texts: files, or name -> text, that both models are to foretell; without any, sizes alone are compared.
        tokens: of each text, at most.
        window: tokens after which a new sequence begins.
        memory: as of `coterie.load`; a dense source needs its dense weights in float32 in any case.

    Raises:
        PromptError: a text is missing, binary, empty, or so short that nothing is foretold.
    """
    if not texts:
        return SurgeryReport(made, method, layers=made.layers)
    after = open_any(made.path)
    read = open_texts(texts, Prompts.of(before.path, None), tokens)
    pieces = [piece for text in read for piece in text.ids.split(window) if len(piece) > 1]
    if not pieces:
        raise PromptError("The text has one token: nothing is foretold. Give a longer one.")
    say("Reading the text by the model as it was")
    was = perplexity(before, pieces, window, memory)
    say("Reading the text by the new model")
    now = perplexity(after, pieces, window, memory)
    foretold = sum(len(piece) - 1 for piece in pieces)
    return SurgeryReport(made, method, (was, now), tuple(text.describe() for text in read), foretold, made.layers)


@torch.no_grad()
def perplexity(checkpoint: Checkpoint, pieces: Sequence[Tensor], window: int, memory: str | int | None = None) -> float:
    """exp of the mean of -ln p over all tokens of ``pieces`` [N] but the first of each. Blocks."""
    if isinstance(checkpoint, DenseCheckpoint):
        return _perplexity(mixture_host(checkpoint, None, 0), pieces)
    limit = checkpoint.context_length or window
    host = load(checkpoint, memory, context=min(window, limit), prefill=min(window, limit), all_logits=True)
    try:
        return _perplexity(host, pieces)
    finally:
        host.coterie.close()


def _perplexity(model: Any, pieces: Sequence[Tensor]) -> float:
    surprise, foretold = 0.0, 0
    for piece in pieces:
        ids = piece[None]
        logits = model(**first_inputs(model, ids)).logits[0, :-1].float()
        surprise += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        foretold += len(piece) - 1
    return math.exp(min(surprise / foretold, 700.0))


def write_report(path: str | Path, report: SurgeryReport, parts: Sequence[str] = ()) -> None:
    """Write the page of ``report`` as one HTML file, with further ``parts`` (HTML) of the verb's own.

    Raises:
        OptionError: the file cannot be written.
    """
    from coterie.jobs.finishing.surgery_page import page

    write_output(path, page(report, parts))


def _experts(counts: tuple[int, ...]) -> str:
    if not counts:
        return "none"
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}" if before else ""


def short(number: float) -> str:
    """A count for people: 1.23 G."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


_Measure = tuple[str, Callable[[Size], float], Callable[[float], str]]
_MEASURES: tuple[_Measure, ...] = (
    ("parameters", lambda size: size.parameters, short),
    ("active per token", lambda size: size.active, short),
    ("weights on disk", lambda size: size.nbytes, format_bytes),
    ("FLOPs per token", lambda size: size.flops, short),
)
_CONTAINERS = {
    "native": "native: plain transformers loads it",
    "alias": "alias: coterie run, or transformers after import coterie.models",
    "coterie": "coterie: coterie run, or transformers after import coterie.models",
    "gguf": "gguf: llama.cpp loads it",
}
