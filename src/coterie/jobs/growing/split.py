"""A dense model split into experts: statistics, channels, first rows of the routers, the new checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.errors import OptionError
from coterie.jobs.finishing.surgery_report import SurgeryReport, surgery_report
from coterie.jobs.finishing.surgery_result import SurgeryResult
from coterie.jobs.growing.split_options import (
    PAPERS,
    exactness,
    facts_of,
    method_of,
    options_as_listed,
    shares,
    split_options,
)
from coterie.jobs.growing.split_page import channels_parts
from coterie.jobs.growing.split_sheet import decisions_sheet, kept_sheet
from coterie.jobs.locate import locate
from coterie.jobs.sheet import Sheet
from coterie.jobs.tracing.statistics import collect_statistics
from coterie.models.statistics import Statistics
from coterie.surgery.channels import Channels
from coterie.surgery.dense import DenseCheckpoint, DenseLayer, open_dense, read_ffn
from coterie.surgery.dense_split import Decision, Scale, decide
from coterie.surgery.feed_forward import feed_forward
from coterie.surgery.from_dense import from_dense
from coterie.surgery.method import Method
from coterie.surgery.mixture import mixture_family
from coterie.surgery.new_mixture import NewMixture
from coterie.surgery.slice_dense import write_slice
from coterie.surgery.split import split_layer
from coterie.surgery.writer import refuse_existing

__all__ = ["CHANNELS", "Split", "export_expert", "split"]

CHANNELS = "coterie/channels.safetensors"
"""Where a split model keeps its lists of channels, in its directory."""
# grouped matrix products want rows of a multiple of 16 bytes
_MULTIPLE = 8
# hidden states of each layer that are kept where statistics are collected on the spot
_SAMPLE = 512

Say = Callable[[str], None]
Show = Callable[[Sheet], None]
Texts = Sequence[str | Path] | Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Split(SurgeryResult):
    """What `split` made.

    Attributes:
        report: the new checkpoint, sizes before and after, perplexity where there were texts.
        channels: of every layer; also in the directory, as `CHANNELS`.
        decisions: number of the layer -> what became of it.
        exactness: in words: what of the dense model's function is kept.
    """

    report: SurgeryReport = field(repr=False)
    channels: Channels = field(repr=False)
    decisions: Mapping[int, Decision] = field(repr=False)
    exactness: str

    def _facts(self) -> Mapping[str, Any]:
        return {"exactness": self.exactness}

    def _pictures(self) -> Sequence[str]:
        return channels_parts(self.channels, self.exactness)


def split(
    model: str | Path, out: str | Path, experts: int | None = None, *, k: int | None = None, way: str = "auto",
    shared: float = 0.0, density: float | None = None, permanent: bool = False, router: str = "auto",
    sharpness: float = 1e-3, scale: Scale = "fit", seed: int = 0, channels: str | Path | None = None,
    statistics: str | Path | Statistics | None = None, texts: Texts = (),
    domains: Mapping[str, Sequence[str | Path]] | None = None, memory: str | int | None = None, family: str = "auto",
    revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
    show: Show = lambda sheet: None,
) -> Split:  # fmt: skip
    """Write the dense ``model`` as a mixture of experts to ``out``: every feed-forward cut by its channels. Blocks.

    Exact where every channel is dealt out, all experts are on and weigh alike (``k`` is ``experts``, router ``zero``);
    else lossy, and a start for training. One layer is in memory at a time; statistics that are collected on the spot
    need the dense model whole. ``out`` is there when it is whole, and not before.

    Args:
        model, revision: a directory with a dense checkpoint, or a hub name.
        out: the directory to make.
        experts: E; default: one for every domain.
        k: experts per token; default 2, with ``density`` 1.
        way: who gets which channels, a name of `coterie.surgery.WAYS`. "auto": ``activation`` where there are as many
            domains as experts, ``kmeans-activations`` where there is text, else ``kmeans``.
        shared, density, permanent, seed: of `coterie.surgery.Cut`.
        router, sharpness, scale: of `coterie.surgery.SplitOptions`.
        channels: lists of an earlier split to take in place of choosing any: its directory, or the file.
        statistics: of the dense model: a file of `coterie.jobs.collect_statistics`, or what it returned.
        texts, domains: in place of it: files, or name -> text; name of a domain -> files.
        memory: for collecting them, and for the perplexity of the result on them.
        family: to write in, one of `coterie.surgery.FAMILY_NAMES`; "auto" by what ``model`` is.
        resume: go on with unfinished work.
        say, show: told what is being done; given sheets for people.

    Raises:
        OptionError: ``out`` exists, channels that do not fall into so many parts, statistics and texts at once, or
            options that do not go together.
        CheckpointError: the checkpoint or the statistics are damaged or of another model, or the disk is full.
        UnsupportedError: a model with experts, or whose feed-forwards are of no known form.
        PromptError: a text is missing, empty, binary or too short.
    """
    refuse_existing(Path(out).expanduser(), resume)
    dense = open_dense(locate(model, revision))
    lists = None if channels is None else _load_channels(channels, dense)
    known = _given(statistics, texts, domains, dense)
    if lists is not None:
        options = options_as_listed(lists, experts, k, router, sharpness, scale)
    else:
        named = list(domains or {}) or (known.domains if known is not None else [])
        options = split_options(
            dense, experts, k, way=way, named=named, seen=known is not None or bool(texts or domains), shared=shared,
            density=density, permanent=permanent, router=router, sharpness=sharpness, scale=scale, seed=seed,
        )  # fmt: skip
    mixture_family(dense, family, shared=shares(options, lists))
    if known is None and (texts or domains):
        say("Collecting statistics")
        known = collect_statistics(
            dense.path, texts, None, memory, domains=domains, sample=_SAMPLE, gradients=options.cut.way == "gradient",
            say=say,
        ).statistics  # fmt: skip
    found: dict[str, Decision] = {}
    for number, ffn in enumerate(dense.ffns):
        say(f"Choosing channels of layer {ffn.layer}: {number} of {len(dense.ffns)}")
        seen = None if known is None else known.ffns[ffn.name]
        layer = feed_forward(read_ffn(dense, ffn), seen)
        found[ffn.name] = decide(layer, options, None if lists is None else lists.layers[ffn.name])
    show(decisions_sheet(dense.path.name, options, {ffn.layer: found[ffn.name] for ffn in dense.ffns}))
    about = method_of(options, known, lists)
    made = from_dense(
        dense, out, _edit(found), top_k=options.k, about=about, family=family, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    taken = Channels({name: each.channels for name, each in found.items()}, facts_of(options, known, dense))
    (made.path / CHANNELS).parent.mkdir(exist_ok=True)
    taken.save(made.path / CHANNELS)
    kept = exactness(options, found)
    report = surgery_report(dense, made, about, texts=_all_texts(texts, domains), memory=memory, say=say)
    show(report.sheet())
    show(kept_sheet(kept))
    return Split(report, taken, {ffn.layer: found[ffn.name] for ffn in dense.ffns}, kept)


def export_expert(
    model: str | Path, out: str | Path, expert: int | str, channels: str | Path | Channels, *,
    revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
) -> SurgeryReport:  # fmt: skip
    """Write one expert of a split as a plain dense checkpoint of the family of ``model``. Lossy. Blocks.

    Args:
        model: the dense model that was split.
        out: the directory to make.
        expert: its number, or the name of its domain.
        channels: of the split: its directory, the file, or the lists.

    Raises:
        OptionError: no such expert, or the channels are of another model.
        CoterieError: as of `split`.
    """
    refuse_existing(Path(out).expanduser(), resume)
    dense = open_dense(locate(model, revision))
    lists = channels if isinstance(channels, Channels) else _load_channels(channels, dense)
    number, name = _expert_number(expert, lists)
    about = Method(
        "split", "lossy", f"Every feed-forward has the channels of expert {name} alone.",
        PAPERS["read-me"], {}, {"expert": name, **dict(lists.about)},
    )  # fmt: skip
    made = write_slice(
        dense, out, lists, number, about=about, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    return surgery_report(dense, made, about)


def _expert_number(expert: int | str, lists: Channels) -> tuple[int, str]:
    names = list(lists.about.get("domains", []))
    if str(expert) in names:
        return names.index(str(expert)), str(expert)
    if not str(expert).isdecimal():
        known = f"the domains are {', '.join(names)}" if names else "it was not split by domains: give a number"
        raise OptionError(f"There is no expert {expert!r}: {known}.")
    return int(expert), str(expert)


def _given(
    statistics: str | Path | Statistics | None, texts: Texts, domains: Mapping[str, Sequence[str | Path]] | None,
    dense: DenseCheckpoint,
) -> Statistics | None:  # fmt: skip
    """Statistics that are there already, checked; None where they are to be collected, or done without."""
    if statistics is None:
        return None
    if texts or domains:
        raise OptionError(
            "Statistics and texts are two ways to say the same: give --statistics, or --text and --domain."
        )
    known = Statistics.load(statistics) if isinstance(statistics, str | Path) else statistics
    known.check(dense)
    return known


def _all_texts(texts: Texts, domains: Mapping[str, Sequence[str | Path]] | None) -> Texts:
    """What perplexity is measured on: the texts, and those of the domains."""
    if isinstance(texts, Mapping):
        return texts
    return [*texts, *(file for files in (domains or {}).values() for file in files)]


def _load_channels(path: str | Path, dense: DenseCheckpoint) -> Channels:
    file = Path(path).expanduser()
    lists = Channels.load(file / CHANNELS if file.is_dir() else file)
    for ffn in dense.ffns:
        layer = lists.layers.get(ffn.name)
        if layer is None or layer.inner != ffn.shape.inner:
            raise OptionError(
                f"The channels in {file} are of another model than {dense.path}: they do not fit {ffn.name}. Take the "
                "model that was split."
            )
    return lists


def _edit(found: Mapping[str, Decision]) -> Callable[[DenseLayer], NewMixture]:
    """The layers cut as decided, filled up with channels of zeros to one size."""
    own = _filled(max(each.channels.own.shape[1] for each in found.values()))
    beside = _filled(max(len(each.channels.shared) for each in found.values()))

    def edit(layer: DenseLayer) -> NewMixture:
        decision = found[layer.ffn.name]
        parts = split_layer(
            feed_forward(layer), decision.channels, scale=decision.scale, own_size=own, shared_size=beside
        )
        return NewMixture(parts.experts, decision.rows, parts.shared, decision.about)

    return edit


def _filled(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE
