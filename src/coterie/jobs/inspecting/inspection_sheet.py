"""An inspection for people: what is said, in which words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coterie.jobs.sheet import Facts, Sheet, Table, count, ranges
from coterie.models.facts import RouterFacts
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.inspecting.inspection import Inspection


def sheet_of(found: Inspection) -> Sheet:
    """The blocks of `Inspection.sheet`."""
    title = f"{found.model}: {found.family} ({found.architecture}), {count(found.parameters)} parameters"
    return Sheet(
        title,
        [
            Facts("Model", _model(found)), _part_table(found), _layer_table(found),
            Facts("Experts", [*_experts(found), *_routers(found)]),
            *(() if found.use is None else (found.use.table(), found.use.facts())), Facts("Memory", _memory(found)),
        ],
    )  # fmt: skip


def _model(found: Inspection) -> list[tuple[str, str]]:
    share = found.active_parameters / found.parameters
    embeddings = next((part for part in found.parts if part.name == "embeddings"), None)
    once = "" if embeddings is None else f"; the embedding table ({count(embeddings.parameters)}) counts whole"
    context = "not said" if found.context is None else f"{found.context:,} tokens"
    dtype = found.dtype if found.dtype == found.compute_dtype else f"{found.dtype}, computed in {found.compute_dtype}"
    return [
        ("layers", f"{found.layers} of width {found.width:,}"),
        ("context", f"{context}, vocabulary {found.vocabulary:,}" + ", head and embedding tied" * found.tied),
        ("dtype", dtype + f", quantised ({found.quantised})" * bool(found.quantised)),
        ("active", f"{count(found.active_parameters)} parameters per token ({share:.0%}){once}"),
        ("attention", str(found.attention["description"])),
    ]


def _part_table(found: Inspection) -> Table:
    rows = [
        (part.name, count(part.parameters), count(part.active), format_bytes(part.nbytes))
        for part in found.parts
        if part.parameters or part.nbytes
    ]
    rows.append(
        ("all", count(found.parameters), count(found.active_parameters),
         format_bytes(sum(part.nbytes for part in found.parts))),
    )  # fmt: skip
    return Table("Parts", ("part", "parameters", "per token", "on disk"), rows, frozenset({1, 2, 3}))


def _layer_table(found: Inspection) -> Table:
    rows = [
        (ranges(kind.layers), kind.mixer, kind.feed_forward, count(kind.parameters), count(kind.active),
         format_bytes(kind.nbytes))
        for kind in found.layer_kinds
    ]  # fmt: skip
    head = ("layers", "mixer", "feed-forward", "each", "per token", "on disk")
    return Table("Layers", head, rows, frozenset({3, 4, 5}))


def _experts(found: Inspection) -> list[tuple[str, str]]:
    rows = []
    for kind in found.expert_kinds:
        rows += [
            ("experts", f"{kind.num_experts} in {_layers(len(kind.layers))}, top {kind.top_k}, "
                        f"{count(kind.parameters)} parameters and {format_bytes(kind.nbytes)} each"),
            ("shape", f"{kind.width:,} to {kind.inner:,} to {kind.width:,}, {kind.description}"),
            ("sites", _pattern(kind.sites, kind.layers)),
        ]  # fmt: skip
    return [*rows, ("on disk", _storage(found))]


def _storage(found: Inspection) -> str:
    at = found.storage
    files = "one file" if at.files == 1 else f"{at.files} files"
    kept = "stacked, one tensor per site and projection" if at.stacked else "one tensor per expert and projection"
    reads = f"an expert comes in {_reads(at.most_reads)}"
    if 0 < at.one_read < at.experts:
        reads = f"{at.one_read:,} of {at.experts:,} experts come in one read, the others in up to {at.most_reads}"
    straddling = f"; {at.straddling} experts lie in two files" if at.straddling else ""
    unused = f"; {format_bytes(at.unused)} are not used by the model" if at.unused else ""
    return f"{format_bytes(at.nbytes)} in {files}: {kept}; {reads}{straddling}{unused}"


def _routers(found: Inspection) -> list[tuple[str, str]]:
    rows = []
    for layers, facts in found.routers:
        where = "" if len(found.routers) == 1 else f" (layers {ranges(layers)})"
        rows.append(("router", facts.describe() + where))
        if facts.shared:
            rows.append(("shared", _shared(facts)))
        rows += [("in training", text) for text in _training(facts)]
        if facts.note:
            rows.append(("not known", facts.note))
    return rows


def _memory(found: Inspection) -> list[tuple[str, str]]:
    needs = found.needs
    least = (
        f"{format_bytes(needs.floor)}: {format_bytes(needs.dense)} dense weights, {format_bytes(needs.cache)} KV "
        f"cache of {needs.context:,} tokens, {format_bytes(needs.workspace)} workspace, one expert"
    )
    free = f"this machine has {format_bytes(needs.available)} free"
    run = needs.command(found.model) if needs.fits else "takes a machine with more memory"
    return [
        ("KV cache", f"{format_bytes(needs.cache_per_token)} per token"),
        ("at least", least),
        ("everything", f"{format_bytes(needs.everything)} keep every expert in memory; {free}"),
        ("run it", run),
    ]


def _layers(number: int) -> str:
    return "one layer" if number == 1 else f"each of {number} layers"


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
