"""What `inspect` finds in a checkpoint, and how it is told to people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coterie.jobs.sheet import Facts, Sheet, Table, count, ranges
from coterie.models.facts import RouterFacts
from coterie.units import format_bytes


@dataclass(frozen=True)
class Part:
    """A kind of weights: parameters, how many of them a token meets (an expectation), bytes on disk."""

    name: str
    parameters: int
    active: float
    nbytes: int


@dataclass(frozen=True)
class LayerKind:
    """Decoder layers that are alike: their numbers, what is in each, parameters and bytes on disk of each."""

    layers: tuple[int, ...]
    mixer: str
    feed_forward: str
    parameters: int
    active: float
    nbytes: int


@dataclass(frozen=True)
class ExpertKind:
    """Sites whose experts are alike.

    Attributes:
        sites, layers: module paths and layer numbers.
        num_experts, top_k: E and K of each site.
        width, inner: D and F.
        description: activation, gate, bias and how the matrices lie on disk.
        parameters, nbytes: of one expert.
    """

    sites: tuple[str, ...]
    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    width: int
    inner: int
    description: str
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Storage:
    """Where the bytes lie.

    Attributes:
        files, nbytes: shards, and bytes of all tensors in them.
        stacked: the experts of a site are one tensor per projection; otherwise each has tensors of its own.
        experts, one_read, most_reads: how many there are, how many come in one read, most reads any needs.
        straddling: experts that lie in more than one file.
        unused: bytes of tensors the model does not have, such as heads that predict further tokens.
    """

    files: int
    nbytes: int
    stacked: bool
    experts: int
    one_read: int
    most_reads: int
    straddling: int
    unused: int


@dataclass(frozen=True)
class Needs:
    """Bytes of memory a run takes with ``context`` tokens: at least, and with every expert resident."""

    context: int
    floor: int
    everything: int
    dense: int
    cache: int
    cache_per_token: float
    workspace: int
    slot_bytes: int
    available: int

    def command(self, model: str) -> str:
        """What to type, with a budget that this machine has."""
        if self.everything <= self.available:
            return f'coterie run {model} "Once upon a time" --memory {_mebibytes(self.everything)}'
        budget = max(self.floor, int(0.9 * self.available))
        return f'coterie run {model} "Once upon a time" --memory {_mebibytes(budget)}'

    @property
    def fits(self) -> bool:
        """Whether this machine can run the model at all."""
        return self.floor <= self.available


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, looked at without its weights.

    Attributes:
        model, path: as asked for, and where it lies.
        family, architecture: model_type and the transformers class.
        dtype, compute_dtype: of the experts on disk, of the activations.
        quantised: method of a quantised checkpoint, "" where it is not.
        layers, width, vocabulary, context: numbers of the config; context is None where it does not say.
        tied: the output head is the embedding table.
        parts, layer_kinds, expert_kinds, routers, attention, storage, needs: see their classes; ``routers`` maps
            a router to the layers that have it.
    """

    model: str
    path: str
    family: str
    architecture: str
    dtype: str
    compute_dtype: str
    quantised: str
    layers: int
    width: int
    vocabulary: int
    context: int | None
    tied: bool
    parts: Sequence[Part]
    layer_kinds: Sequence[LayerKind]
    expert_kinds: Sequence[ExpertKind]
    routers: Sequence[tuple[tuple[int, ...], RouterFacts]] = field(repr=False)
    attention: Mapping[str, Any]
    storage: Storage
    needs: Needs

    @property
    def parameters(self) -> int:
        """Of the whole model; tied tensors count once."""
        return sum(part.parameters for part in self.parts)

    @property
    def active_parameters(self) -> float:
        """Those a token meets, as an expectation; embeddings count whole."""
        return sum(part.active for part in self.parts)

    def as_record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        totals = {"parameters": self.parameters, "active_parameters": self.active_parameters}
        routers = [{"layers": list(layers), **facts.as_record()} for layers, facts in self.routers]
        return asdict(self) | totals | {"routers": routers, "command": self.needs.command(self.model)}

    def describe(self) -> str:
        """`sheet` as plain text."""
        return self.sheet().plain()

    def sheet(self) -> Sheet:
        """The same for people."""
        title = f"{self.model}: {self.family} ({self.architecture}), {count(self.parameters)} parameters"
        return Sheet(
            title,
            [
                Facts("Model", self._model()), self._part_table(), self._layer_table(),
                Facts("Experts", [*self._experts(), *self._routers()]), Facts("Memory", self._memory()),
            ],
        )  # fmt: skip

    def _model(self) -> list[tuple[str, str]]:
        share = self.active_parameters / self.parameters
        embeddings = next((part for part in self.parts if part.name == "embeddings"), None)
        once = "" if embeddings is None else f"; the embedding table ({count(embeddings.parameters)}) counts whole"
        context = "not said" if self.context is None else f"{self.context:,} tokens"
        dtype = self.dtype if self.dtype == self.compute_dtype else f"{self.dtype}, computed in {self.compute_dtype}"
        return [
            ("layers", f"{self.layers} of width {self.width:,}"),
            ("context", f"{context}, vocabulary {self.vocabulary:,}" + ", head and embedding tied" * self.tied),
            ("dtype", dtype + f", quantised ({self.quantised})" * bool(self.quantised)),
            ("active", f"{count(self.active_parameters)} parameters per token ({share:.0%}){once}"),
            ("attention", str(self.attention["description"])),
        ]

    def _part_table(self) -> Table:
        rows = [
            (part.name, count(part.parameters), count(part.active), format_bytes(part.nbytes))
            for part in self.parts
            if part.parameters or part.nbytes
        ]
        rows.append(
            ("all", count(self.parameters), count(self.active_parameters),
             format_bytes(sum(part.nbytes for part in self.parts))),
        )  # fmt: skip
        return Table("Parts", ("part", "parameters", "per token", "on disk"), rows, frozenset({1, 2, 3}))

    def _layer_table(self) -> Table:
        rows = [
            (ranges(kind.layers), kind.mixer, kind.feed_forward, count(kind.parameters), count(kind.active),
             format_bytes(kind.nbytes))
            for kind in self.layer_kinds
        ]  # fmt: skip
        head = ("layers", "mixer", "feed-forward", "each", "per token", "on disk")
        return Table("Layers", head, rows, frozenset({3, 4, 5}))

    def _experts(self) -> list[tuple[str, str]]:
        rows = []
        for kind in self.expert_kinds:
            rows += [
                ("experts", f"{kind.num_experts} in each of {len(kind.layers)} layers, top {kind.top_k}, "
                            f"{count(kind.parameters)} parameters and {format_bytes(kind.nbytes)} each"),
                ("shape", f"{kind.width:,} to {kind.inner:,} to {kind.width:,}, {kind.description}"),
                ("sites", _pattern(kind.sites, kind.layers)),
            ]  # fmt: skip
        return [*rows, ("on disk", self._storage())]

    def _storage(self) -> str:
        at = self.storage
        files = "one file" if at.files == 1 else f"{at.files} files"
        kept = "stacked, one tensor per site and projection" if at.stacked else "one tensor per expert and projection"
        reads = f"an expert comes in {_reads(at.most_reads)}"
        if 0 < at.one_read < at.experts:
            reads = f"{at.one_read} of {at.experts} experts come in one read, the others in up to {at.most_reads}"
        straddling = f"; {at.straddling} experts lie in two files" if at.straddling else ""
        unused = f"; {format_bytes(at.unused)} are not used by the model" if at.unused else ""
        return f"{format_bytes(at.nbytes)} in {files}: {kept}; {reads}{straddling}{unused}"

    def _routers(self) -> list[tuple[str, str]]:
        rows = []
        for layers, facts in self.routers:
            where = "" if len(self.routers) == 1 else f" (layers {ranges(layers)})"
            rows.append(("router", facts.describe() + where))
            if facts.shared:
                rows.append(("shared", _shared(facts)))
            rows += [("in training", text) for text in _training(facts)]
            if facts.note:
                rows.append(("not known", facts.note))
        return rows

    def _memory(self) -> list[tuple[str, str]]:
        needs = self.needs
        least = (
            f"{format_bytes(needs.floor)}: {format_bytes(needs.dense)} dense weights, {format_bytes(needs.cache)} KV "
            f"cache of {needs.context:,} tokens, {format_bytes(needs.workspace)} workspace, one expert"
        )
        free = f"this machine has {format_bytes(needs.available)} free"
        run = needs.command(self.model) if needs.fits else "takes a machine with more memory"
        return [
            ("KV cache", f"{format_bytes(needs.cache_per_token)} per token"),
            ("at least", least),
            ("everything", f"{format_bytes(needs.everything)} keep every expert in memory; {free}"),
            ("run it", run),
        ]


def _reads(number: int) -> str:
    return "one read" if number == 1 else f"{number} reads"


def _shared(facts: RouterFacts) -> str:
    many = "one expert that every token passes" if facts.shared == 1 else f"{facts.shared} that every token passes"
    width = "" if facts.shared_width is None else f", inner width {facts.shared_width:,} in all"
    return many + width + ", behind a gate of its own" * facts.shared_gated


def _training(facts: RouterFacts) -> list[str]:
    fields = {**facts.losses, **facts.jitter}
    return [", ".join(f"{name} {value:g}" for name, value in fields.items())] if fields else []


def _pattern(sites: Sequence[str], layers: Sequence[int]) -> str:
    """Module paths that differ in their number only, as one."""
    made = {site.replace(f".{layer}.", ".N.", 1) for site, layer in zip(sites, layers, strict=True)}
    if len(made) > 1 or len(sites) == 1:
        return ", ".join(sites[:3]) + ", ..." * (len(sites) > 3)
    return f"{made.pop()}, N = {ranges(layers)}"


def _mebibytes(number: int) -> str:
    mib = -(-number // 1024**2)
    return f"{mib}MiB" if mib < 10 * 1024 else f"{-(-mib // 1024)}GiB"
