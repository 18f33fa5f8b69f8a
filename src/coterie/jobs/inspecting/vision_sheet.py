"""A convolutional network for people: what is said of it, in which words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from coterie.jobs.sheet import Facts, Sheet, Table, count
from coterie.models.vision import LayerCost, VisionCost, VisionSpec
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.inspecting.vision import VisionInspection

_NORMS = {"per_expert": "one per expert", "shared": "one for all experts"}
_GATES = {
    "softmax": "straight-through, softmax over all logits",
    "selected": "straight-through, the chosen logit alone",
    "prob": "outputs times the probability of their expert",
}


def sheet_of(found: VisionInspection) -> Sheet:
    """The blocks of `VisionInspection.sheet`."""
    blocks: list[Facts | Table] = [Facts("Network", list(_facts(found))), _costs(found.cost), _layers(found.cost)]
    if found.routers:
        blocks.append(_routers(found))
    return Sheet(f"{found.model}: {_what(found.spec)}, {count(found.cost.parameters)} parameters", blocks)


def _what(spec: VisionSpec) -> str:
    if not spec.routed:
        return spec.architecture + (f", {spec.ratio:g} of its channels" if spec.ratio != 1 else ", dense")
    return f"{spec.architecture} with {spec.experts} experts of {spec.ratio:g} of its channels"


def _facts(found: VisionInspection) -> Iterator[tuple[str, str]]:
    spec, cost = found.spec, found.cost
    side = spec.image_size
    yield "images", f"{spec.channels} x {side} x {side} in [0, 1], {spec.classes} classes"
    if spec.width != 1:
        yield "width", f"{spec.width:g} times the published channels"
    if found.nbytes:
        yield "on disk", format_bytes(found.nbytes)
    if not spec.routed:
        return
    yield "routed", f"{sum(layer.part == 'routed' for layer in cost.layers)} convolutions; {_who(spec)}"
    yield "router", f"{_router(spec)}, {count(cost.router_parameters)} parameters"
    yield "gradient", _GATES[spec.gate]
    yield "norms", _NORMS[spec.norm]
    yield (
        "active",
        f"{count(cost.active_parameters)} parameters per image ({cost.active_parameters / cost.parameters:.0%})",
    )
    yield "saved", _saved(found)


def _who(spec: VisionSpec) -> str:
    if spec.placement == "layer":
        return "each step decides from the mean of its input"
    return f"one decision per image drives them all: {spec.experts} pathways"


def _router(spec: VisionSpec) -> str:
    if spec.placement == "layer":
        return "a linear map in each step"
    width = "" if spec.router == "small" else f" of width {spec.router_width}"
    seen = "" if spec.seen_size == spec.image_size else f", which sees {spec.seen_size} x {spec.seen_size} pixels"
    return f"{spec.router}{width}{seen}"


def _saved(found: VisionInspection) -> str:
    saving = found.cost.saving
    text = f"{saving:.0%} of the dense network's multiply-accumulates, router included"
    if saving < 0:
        text = f"nothing: with the router it costs {1 - saving:.1f} times what the dense network does"
    if saving > 0.5:
        return text
    better = next((other.spec for other in found.routers if other.saving > 0.5), None)
    if better is None:
        return text
    width = "" if better.router == "small" else f" of width {better.router_width}"
    return f"{text}; more than half with the router {better.router}{width}"


def _costs(cost: VisionCost) -> Table:
    rows = [_row("dense network", cost.dense.macs, cost.dense.parameters, cost)]
    if cost.small is not cost.dense:
        rows.append(_row(f"dense, {cost.spec.ratio:g} of the channels", cost.small.macs, cost.small.parameters, cost))
    if cost.spec.routed:
        network = cost.parameters - cost.router_parameters
        rows.append(_row("experts: one pathway", cost.pathway, network, cost))
        rows.append(_row("router", cost.router, cost.router_parameters, cost))
        rows.append(_row("pathway and router", cost.macs, cost.parameters, cost))
    return Table("Cost", ("an image meets", "MACs", "of dense", "parameters"), rows, frozenset({1, 2, 3}))


def _row(name: str, macs: int, parameters: int, cost: VisionCost) -> tuple[str, ...]:
    return name, count(macs), f"{macs / cost.dense.macs:.1%}", count(parameters)


def _layers(cost: VisionCost) -> Table:
    """The layers of one size of maps together, those of each part as one row, as they follow one another."""
    rows = []
    for _, stage in groupby(cost.layers, lambda layer: (layer.part == "router", layer.size)):
        parts: dict[str, list[LayerCost]] = {}
        for layer in stage:
            parts.setdefault(layer.part, []).append(layer)
        rows += [_stage(part, layers) for part, layers in parts.items()]
    head = ("pixels", "part", "layers", "kernels", "channels out", "MACs", "parameters")
    return Table("Layers", head, rows, frozenset({2, 5, 6}))


def _stage(part: str, layers: list[LayerCost]) -> tuple[str, ...]:
    size = layers[0].size
    kernels = ["linear"] if size == 1 else [f"{side} x {side}" for side in sorted({layer.kernel for layer in layers})]
    outputs = sorted({layer.outputs for layer in layers})
    return (
        f"{size} x {size}", part, f"{len(layers)}", ", ".join(kernels),
        ", ".join(f"{number:,}" for number in outputs), count(sum(layer.macs for layer in layers)),
        count(sum(layer.parameters for layer in layers)),
    )  # fmt: skip


def _routers(found: VisionInspection) -> Table:
    rows = [
        (other.spec.router, "" if other.spec.router == "small" else str(other.spec.router_width),
         count(other.router), count(other.router_parameters), f"{other.macs / found.cost.dense.macs:.1%}")
        for other in found.routers
    ]  # fmt: skip
    return Table(
        "Routers", ("router", "width", "MACs", "parameters", "with it, of dense"), rows, frozenset({1, 2, 3, 4})
    )
