"""A checkpoint in another form: plain transformers, an index map, Coterie's own, or GGUF for llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import OptionError, UnsupportedError
from coterie.jobs.locate import locate
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.surgery.gguf import GgufFile, write_gguf
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.rewrite import Rewritten, rewrite
from coterie.surgery.vllm_rules import vllm_problems

__all__ = ["FORMATS", "Exported", "export", "materialised"]

FORMATS = ("auto", "native", "alias", "coterie", "gguf")

_METHODS = {
    "native": Method("export", "exact", "Written in its family's own layout: every route has an expert of its own."),
    "alias": Method("export", "exact", "Written with a map from routes to experts."),
    "coterie": Method("export", "exact", "Written in Coterie's own container."),
}


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        format: one of `FORMATS`, "auto" resolved.
        path: the directory, or the file.
        made: of a directory, sizes and check.
        gguf: of a GGUF file, what is in it.
        vllm: of a native directory, what is not as vLLM's loader wants it; None where the family is not in the table.
    """

    format: str
    path: Path
    made: Rewritten | None = None
    gguf: GgufFile | None = None
    vllm: tuple[str, ...] | None = None

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        record: dict[str, Any] = {"format": self.format, "out": str(self.path)}
        if self.made is not None:
            vllm = None if self.vllm is None else list(self.vllm)
            record |= {
                "before": self.made.before.as_record(), "after": self.made.after.as_record(),
                "difference": self.made.difference, "vllm": vllm,
            }  # fmt: skip
        if self.gguf is not None:
            record |= {"tensors": self.gguf.tensors, "bytes": self.gguf.nbytes, "vocabulary": self.gguf.vocabulary}
        return record

    def describe(self) -> str:
        """For people."""
        if self.gguf is not None:
            words = self.gguf.vocabulary
            vocabulary = f"with its tokenizer, {words}" if words != "no_vocab" else (
                "without a tokenizer (no_vocab): none of its kind is known here, so that llama.cpp takes token ids only"
            )  # fmt: skip
            return f"{self.gguf.tensors} tensors, {vocabulary}. Read back and compared."
        assert self.made is not None
        checked = (
            "" if self.made.difference is None else f" Logits agree to {self.made.difference:.1e} of their spread."
        )
        return f"Container {self.made.container}.{checked}{self._vllm()}"

    def _vllm(self) -> str:
        if self.format != "native":
            return ""
        if self.vllm is None:
            return " vLLM: the family is not in Coterie's table of what its loaders want."
        if self.vllm:
            return f" vLLM: {'; '.join(self.vllm)}."
        return " vLLM: config fields and tensor names are as its loader wants them."


def export(
    model: str | Path | Checkpoint, out: str | Path, format: str = "auto", *, revision: str | None = None,
    resume: bool = False, say: Callable[[str], None] = lambda text: None,
) -> Exported:  # fmt: skip
    """Write ``model`` to ``out`` in ``format``. Exact but for rounding; blocks; one layer in memory at a time.

    Args:
        model, revision: as of `coterie.load`.
        out: the directory to make; for GGUF the file, or a directory to make for it.
        format: "native" for plain transformers (several routes of one expert get a copy each; experts stored in
            another way become floats), "alias", "coterie", "gguf" for llama.cpp, or "auto": native where it can be.
        resume: go on with unfinished work.
        say: told what is being done.

    Raises:
        OptionError: an unknown format, ``out`` exists, or a model that the format has no words for.
        UnsupportedError: routers of Coterie in a form that has none, or llama.cpp would compute otherwise.
    """
    if format not in FORMATS:
        raise OptionError(f"There is no format {format!r}. There are: {', '.join(FORMATS)}.")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    if format == "gguf":
        return _to_gguf(checkpoint, Path(out).expanduser(), say)
    format = _resolved(checkpoint, format)
    if format == "native" and _problem(checkpoint):
        raise UnsupportedError(f"Plain transformers cannot hold this model: {_problem(checkpoint)}.")
    made = rewrite(
        checkpoint, out, materialised if format == "native" else _as_it_is, about=_METHODS[format],
        container=format, resume=resume,  # type: ignore[arg-type]
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    problems = vllm_problems(open_checkpoint(made.path))
    return Exported(format, made.path, made, vllm=None if problems is None else tuple(problems))


def materialised(layer: LayerExperts) -> NewLayer:
    """The same layer with an expert for every route: copies where several routes led to one. Exact."""
    if layer.experts_of is None:
        return layer.unchanged()
    at = list(layer.experts_of)
    return NewLayer({name: weight[at] for name, weight in layer.weights.items()}, layer.router)


def _as_it_is(layer: LayerExperts) -> NewLayer:
    return layer.unchanged()


def _resolved(checkpoint: Checkpoint, format: str) -> str:
    if format != "auto":
        return format
    return "native" if not _problem(checkpoint) else "coterie"


def _problem(checkpoint: Checkpoint) -> str:
    """Why the model cannot be said in its family's own words; empty where it can."""
    if checkpoint.stored is not None and checkpoint.stored.router is not None:
        return f"its router is Coterie's {checkpoint.stored.router.name}"
    counts = sorted({site.num_routes for site in checkpoint.sites})
    if len(counts) > 1:
        return f"its layers have {', '.join(map(str, counts))} experts, and config.json has one number for all"
    return ""


def _to_gguf(checkpoint: Checkpoint, out: Path, say: Callable[[str], None]) -> Exported:
    say("Writing GGUF")
    if out.suffix == ".gguf":
        return Exported("gguf", out, gguf=write_gguf(checkpoint, out))
    if out.exists():
        raise OptionError(f"{out} exists already. Name another directory or a file that ends in .gguf.")
    if not out.parent.is_dir():
        raise OptionError(f"There is no directory {out.parent}. Make it first: mkdir -p {out.parent}")
    out.mkdir()
    try:
        made = write_gguf(checkpoint, out / f"{checkpoint.path.name}.gguf")
    except BaseException:
        out.rmdir()
        raise
    return Exported("gguf", made.path, gguf=made)
