"""What `inspect` finds in a checkpoint, and how it is told to people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coterie.jobs.inspecting.use import Use
from coterie.jobs.sheet import Sheet
from coterie.models.facts import RouterFacts


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
    """Bytes of memory a run takes with ``context`` tokens: at least, and with every expert resident.

    ``cache_per_token`` is what a token adds at first; layers with a window stop growing when it is full.
    """

    context: int
    floor: int
    everything: int
    dense: int
    cache: int
    cache_per_token: int
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
        quantised: method and types of a quantised checkpoint, "" where it is not.
        layers, width, vocabulary, context: numbers of the config; context is None where it does not say.
        tied: the output head is the embedding table.
        parts, layer_kinds, expert_kinds, routers, attention, storage, needs: see their classes; ``routers`` maps
            a router to the layers that have it.
        use: what statistics say of the experts; None where none were given.
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
    use: Use | None = None

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
        from coterie.jobs.inspecting.inspection_sheet import sheet_of

        return sheet_of(self)


def _mebibytes(number: int) -> str:
    mib = -(-number // 1024**2)
    return f"{mib}MiB" if mib < 10 * 1024 else f"{-(-mib // 1024)}GiB"
