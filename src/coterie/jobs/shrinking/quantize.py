"""Experts as integers of 8 or 4 bits, or of both where each is worth most: a checkpoint of a third of the bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from coterie.errors import OptionError
from coterie.experts import IntegerWidth
from coterie.jobs.finishing.surgery_report import SurgeryReport, surgery_report
from coterie.jobs.finishing.surgery_result import SurgeryResult
from coterie.jobs.sheet import Sheet
from coterie.jobs.shrinking.small_sheet import bits_sheet, expert_fact, layers_pictures
from coterie.jobs.shrinking.source import Shrinking, Texts, shrinking
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.statistics import Statistics
from coterie.surgery.bits import Choices, choose
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.quantize import quantize_layer, width_bytes, width_errors
from coterie.surgery.rewrite import rewrite

__all__ = ["BITS", "Quantised", "quantize"]

Bits = Literal["int8", "int4", "mixed"]
BITS: tuple[str, ...] = get_args(Bits)
GROUP = 32
# widths that a mixture chooses from
_MIXED = (IntegerWidth(4, 128), IntegerWidth(4, 32), IntegerWidth(8))

Say = Callable[[str], None]
Show = Callable[[Sheet], None]
Widths = dict[str, dict[str, list[IntegerWidth]]]


@dataclass(frozen=True, eq=False)
class Quantised(SurgeryResult):
    """What `quantize` made.

    Attributes:
        report: the new checkpoint, sizes before and after, of each layer bits and errors, and what a text says.
        bits: per number of the experts' matrices on average, scales counted.
        choices: of a mixture, what the integer program found; None of one width.
    """

    report: SurgeryReport
    bits: float
    choices: Choices | None

    def _facts(self) -> Mapping[str, Any]:
        program = None
        if self.choices is not None:
            program = {"loss": self.choices.loss, "bound": self.choices.bound, "optimal": self.choices.optimal}
        return {"bits": self.bits, "program": program}

    def _pictures(self) -> Sequence[str]:
        return layers_pictures(self.report.layers, "bits", "bits per number")


def quantize(
    model: str | Path | Checkpoint, out: str | Path, bits: str = "int4", *, average_bits: float | None = None,
    group: int | None = None, statistics: str | Path | Statistics | None = None, texts: Texts = (),
    memory: str | int | None = None, skip_layers: Sequence[int] = (), revision: str | None = None,
    resume: bool = False, say: Say = lambda text: None, show: Show = lambda sheet: None,
) -> Quantised:  # fmt: skip
    """Write ``model`` with its experts' matrices as integers to ``out``. Lossy. Blocks.

    Weights only: what an expert reads and says stays floats, and so do attention, embeddings and gates. One layer is
    in memory at a time. The result is served by `coterie.load`, whose store then moves and keeps the small bytes.

    Args:
        model, out, statistics, texts, memory, skip_layers, revision, resume, say, show: as of
            `coterie.jobs.merge`; without statistics and texts all experts and inputs count alike.
        bits: "int8" (a scale for each row), "int4" (a scale for each group), or "mixed": per matrix of every expert
            what is worth most, by how much the expert is used times what it would miss.
        average_bits: of "mixed": bits per number on average, scales counted; default 4.5.
        group: of "int4": neighbours in a row that share a scale, a power of two from 8; default 32.

    Raises:
        OptionError: bits that are not known, an average that is out of reach, or as of `coterie.jobs.merge`.
        UnsupportedError: a family whose experts end in a norm.
        CheckpointError: the source is damaged or holds NaN, or the disk is full.
    """
    _check(bits, average_bits, group)
    found = shrinking(
        model, out, statistics=statistics, texts=texts, memory=memory, skip_layers=skip_layers, revision=revision,
        resume=resume, say=say,
    )  # fmt: skip
    widths, choices = _widths(found, bits, average_bits, group, say)
    options = {"bits": bits, "average_bits": average_bits, "group": group, "skip_layers": list(skip_layers)}
    about = Method(
        "quantize", "lossy", _summary(bits, average_bits), "", found.facts(),
        {name: value for name, value in options.items() if value not in (None, [])},
    )  # fmt: skip

    def edit(layer: LayerExperts) -> NewLayer:
        if not found.changes(layer):
            return layer.unchanged()
        return quantize_layer(layer, widths[layer.site.name], found.moments(layer))

    made = rewrite(
        found.checkpoint, out, edit, about=about, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    after = open_checkpoint(made.path)
    show(bits_sheet(made.layers, widths, found.chosen, choices, expert_fact(found.checkpoint, after)))
    report = surgery_report(found.checkpoint, made, about, texts=texts, memory=memory, say=say)
    show(report.sheet())
    return Quantised(report, _mean_bits(found, widths), choices)


def _widths(
    found: Shrinking, bits: str, average: float | None, group: int | None, say: Say
) -> tuple[Widths, Choices | None]:
    """Site -> matrix -> width of each expert."""
    if bits == "mixed":
        return _mixed(found, 4.5 if average is None else average, say)
    width = IntegerWidth(8) if bits == "int8" else IntegerWidth(4, GROUP if group is None else group)
    return {
        site.name: {name: [width] * site.num_experts for name in _sizes(site.shape)} for site in found.chosen
    }, None  # fmt: skip


def _mixed(found: Shrinking, average: float, say: Say) -> tuple[Widths, Choices]:
    """The integer program over all matrices of all experts: bytes within the average, least loss."""
    costs, losses, numbers = [], [], 0
    for done, site in enumerate(found.chosen):
        say(f"Trying widths: {done} of {len(found.chosen)} layers")
        layer = found.read(site)
        shares = found.shares(layer)
        for name, table in width_errors(layer, _MIXED, found.moments(layer)).items():
            m, n = _sizes(layer.shape)[name]
            there = float((shares * table[:, 0]).sum()) or 1.0
            losses += (shares[:, None] * table[:, 1:] / there).tolist()
            costs += [[width_bytes(m, n, width) for width in _MIXED]] * layer.num_experts
            numbers += m * n * layer.num_experts
    budget = int(average * numbers / 8)
    least, most = (sum(each) for each in zip(*((min(c), max(c)) for c in costs), strict=True))
    if not least <= budget <= most:
        raise OptionError(
            f"{average} bits on average are out of reach: this model's experts take from {8 * least / numbers:.2f} to "
            f"{8 * most / numbers:.2f} bits per number, scales counted."
        )
    choices = choose(costs, losses, budget)
    picked = iter(choices.picked)
    return {
        site.name: {name: [_MIXED[next(picked)] for _ in range(site.num_experts)] for name in _sizes(site.shape)}
        for site in found.chosen
    }, choices


def _sizes(shape: Any) -> dict[str, tuple[int, int]]:
    """Matrix name -> rows and columns, gate and up apart."""
    inner = (shape.inner, shape.width)
    ups = {"gate_proj": inner, "up_proj": inner} if shape.gated else {"up_proj": inner}
    return ups | {"down_proj": (shape.width, shape.inner)}


def _mean_bits(found: Shrinking, widths: Widths) -> float:
    nbytes, numbers = 0, 0
    for site in found.chosen:
        for name, (m, n) in _sizes(site.shape).items():
            nbytes += sum(width_bytes(m, n, width) for width in widths[site.name][name])
            numbers += m * n * site.num_experts
    return 8 * nbytes / numbers


def _check(bits: str, average: float | None, group: int | None) -> None:
    if bits not in BITS:
        raise OptionError(f"Experts are quantised to one of: {', '.join(BITS)}; not {bits!r}.")
    if average is not None and (bits != "mixed" or not 0 < average < 64):
        raise OptionError("An average is a number of bits such as 4.5, and goes with --bits mixed.")
    if group is not None and (bits != "int4" or group < 8 or group & (group - 1) or group > 1 << 14):
        raise OptionError("A group is a power of two from 8 to 16384, and goes with --bits int4.")


def _summary(bits: str, average: float | None) -> str:
    kind = {"int8": "8-bit integers", "int4": "4-bit integers"}.get(bits)
    if kind is not None:
        return f"The matrices of its experts were rounded to {kind} with scales; everything else is as it was."
    return (
        f"The matrices of its experts were rounded to 4-bit or 8-bit integers with scales, {average or 4.5} bits on "
        "average, more where experts are used more and would miss more; everything else is as it was."
    )
