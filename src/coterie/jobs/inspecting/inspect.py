"""Looking at a checkpoint without reading a weight: parts, layers, experts, routers, memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.errors import OptionError
from coterie.jobs.inspecting.architecture import attention_of, quantisation_of, shape_text
from coterie.jobs.inspecting.inspection import ExpertKind, Inspection, LayerKind, Needs, Part, Storage
from coterie.jobs.inspecting.use import use_of
from coterie.jobs.inspecting.view import View, bytes_of
from coterie.jobs.inspecting.vision import VisionInspection, inspect_vision, is_network
from coterie.jobs.locate import locate
from coterie.jobs.running.budget import planned_budget
from coterie.jobs.running.load import PREFILL, blobs_of, context_of
from coterie.jobs.running.warm import checked_statistics
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.compat import tied_names
from coterie.models.counts import PARTS, count_parameters
from coterie.models.facts import RouterFacts, router_facts
from coterie.models.footprint import footprint
from coterie.models.statistics import Statistics
from coterie.store import Blob
from coterie.store.machine import available_memory


def inspect(
    model: str | Path | Checkpoint,
    *,
    context: int | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    statistics: str | Path | Statistics | None = None,
) -> Inspection | VisionInspection:
    """What ``model`` is, from its config and the headers of its files; no weight is read. Blocks for seconds.

    Args:
        model: a checkpoint directory, a hub name, "pocket", or an opened `Checkpoint`; or a directory with a
            convolutional network of ours, or the name of its architecture, such as "resnet18".
        context: tokens that the memory is stated for; default 2048 or the model's limit.
        revision: branch, tag or commit on the hub.
        options: of a convolutional architecture, as `coterie.models.vision.VisionSpec` has them.
        statistics: of this model, or their file: tell how its experts were used and which are alike.

    Raises:
        CheckpointError, UnsupportedError: the checkpoint cannot be served, and why; or the statistics are of another.
        OptionError: ``context`` is more than the model's; options for a language model, or a context for another.
    """
    if not isinstance(model, Checkpoint) and is_network(model):
        if context is not None or revision is not None or statistics is not None:
            raise OptionError(f"{model} is a network for images: it has no context nor statistics, and no hub.")
        return inspect_vision(model, options)
    if options:
        raise OptionError(f"options are for convolutional networks, and {model} is none: {', '.join(options)}.")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    told = None if statistics is None else use_of(checked_statistics(statistics, checkpoint))
    view = View.of(checkpoint)
    config = view.config
    blobs = list(blobs_of(checkpoint).values())
    return Inspection(
        model=str(checkpoint.path if isinstance(model, Checkpoint) else model),
        path=str(checkpoint.path),
        family=str(checkpoint.config.model_type),
        architecture=type(view.host).__name__,
        dtype=_name(checkpoint.dtype),
        compute_dtype=_name(checkpoint.compute_dtype),
        quantised=quantisation_of(
            checkpoint.quantization, {part.dtype for site in checkpoint.sites for part in site.ranges()}
        ),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        context=checkpoint.context_length,
        tied=bool(tied_names(view.host)),
        parts=_parts(view),
        layer_kinds=_layer_kinds(view),
        expert_kinds=_expert_kinds(view),
        routers=_routers(view),
        attention=attention_of(config),
        storage=_storage(view, blobs),
        needs=_needs(checkpoint, context, max(blob.slot_bytes for blob in blobs)),
        use=told,
    )


def _parts(view: View) -> list[Part]:
    counted = count_parameters(view.host)
    nbytes = dict.fromkeys(PARTS, 0)
    nbytes["experts"] = sum(map(bytes_of, view.checkpoint.sites))
    for name, size in view.disk.items():
        if name in view.parts:
            nbytes[view.parts[name]] += size
    return [Part(name, counted.total[name], counted.active[name], nbytes[name]) for name in PARTS]


def _layer_kinds(view: View) -> list[LayerKind]:
    """The layers that hold the sites, alike ones together, in the order they first appear."""
    path = _stack_path(view)
    if path is None:
        return []
    alike: dict[LayerKind, list[int]] = {}
    for number, _ in enumerate(view.host.get_submodule(path).children()):
        alike.setdefault(_layer_kind(view, number, f"{path}.{number}."), []).append(number)
    return [replace(kind, layers=tuple(numbers)) for kind, numbers in alike.items()]


def _stack_path(view: View) -> str | None:
    """Module path of the list of decoder layers."""
    steps = view.live[0].name.split(".")
    number = next((at for at, step in enumerate(steps) if step.isdigit()), None)
    return None if number is None else ".".join(steps[:number])


def _layer_kind(view: View, number: int, prefix: str) -> LayerKind:
    sites = view.sites_in(prefix)
    share = {f"{site.name}.": site.top_k / site.num_experts for site in sites}
    inside = [(name, p.numel()) for name, p in view.host.named_parameters() if name.startswith(prefix)]
    active = sum(size * next((k for at, k in share.items() if name.startswith(at)), 1.0) for name, size in inside)
    nbytes = sum(size for name, size in view.disk.items() if name.startswith(prefix))
    nbytes += sum(map(bytes_of, sites))
    parts = {view.parts[name] for name, _ in inside}
    return LayerKind(
        (), _mixer(view.config, number, parts), _feed_forward(view, sites, parts, prefix),
        sum(size for _, size in inside), active, nbytes,
    )  # fmt: skip


def _mixer(config: Any, number: int, parts: set[str]) -> str:
    """What mixes tokens in a layer, as the config calls it where it does."""
    kinds = getattr(config, "layer_types", None)
    if kinds and number < len(kinds) and parts & {"attention", "recurrent layers"}:
        return str(kinds[number]).replace("_", " ")
    return " + ".join(part for part in ("attention", "recurrent layers") if part in parts) or "none"


def _feed_forward(view: View, sites: list[ExpertSite], parts: set[str], prefix: str) -> str:
    texts = [f"{site.num_experts} experts, top {site.top_k}" for site in sites]
    texts += ["shared"] * ("shared experts" in parts)
    if "dense feed-forward" in parts:
        texts.append("dense" + _dense_width(view, prefix))
    return " + ".join(texts) or "none"


def _dense_width(view: View, prefix: str) -> str:
    """Inner width of a layer's dense feed-forward network: the longer side of its last matrix."""
    shapes = [
        tuple(p.shape)
        for name, p in view.host.named_parameters()
        if name.startswith(prefix) and view.parts[name] == "dense feed-forward" and p.dim() == 2
    ]
    return f", inner {max(shapes[-1]):,}" if shapes else ""


def _expert_kinds(view: View) -> list[ExpertKind]:
    alike: dict[tuple[Any, ...], list[ExpertSite]] = defaultdict(list)
    for site in view.checkpoint.sites:
        alike[site.num_experts, site.top_k, site.shape, site.nbytes(0)].append(site)
    return [_expert_kind(sites) for sites in alike.values()]


def _expert_kind(sites: list[ExpertSite]) -> ExpertKind:
    first = sites[0]
    shape = first.shape
    return ExpertKind(
        tuple(site.name for site in sites), tuple(site.layer for site in sites), first.num_experts, first.top_k,
        shape.width, shape.inner, shape_text(shape), shape.num_parameters(), first.nbytes(0),
    )  # fmt: skip


def _routers(view: View) -> list[tuple[tuple[int, ...], RouterFacts]]:
    """Distinct routers with their layers. Layers whose gates look alike are asked once."""
    asked: dict[tuple[Any, ...], RouterFacts] = {}
    layers: dict[str, list[int]] = defaultdict(list)
    told: dict[str, RouterFacts] = {}
    for site in view.live:
        sizes = tuple(sorted((name, tuple(t.shape)) for name, t in site.gate.state_dict().items()))
        kind = (type(site.gate), site.num_experts, site.top_k, sizes)
        facts = asked[kind] = asked.get(kind) or router_facts(view.host, site)
        told.setdefault(repr(facts), facts)
        layers[repr(facts)].append(site.layer)
    return [(tuple(layers[key]), facts) for key, facts in told.items()]


def _storage(view: View, blobs: list[Blob]) -> Storage:
    checkpoint, reads = view.checkpoint, [len(blob.segments) for blob in blobs]
    unused = sum(size for name, size in view.disk.items() if name not in view.parts)
    total = sum(part.nbytes for part in checkpoint.ranges.values())
    return Storage(
        files=len({part.path for part in checkpoint.ranges.values()}), nbytes=total,
        stacked=not isinstance(next(iter(checkpoint.sites[0].stored.values()), ()), tuple),
        experts=len(blobs), one_read=sum(number == 1 for number in reads), most_reads=max(reads),
        straddling=sum(len({segment.path for segment in blob.segments}) > 1 for blob in blobs), unused=unused,
    )  # fmt: skip


def _needs(checkpoint: Checkpoint, context: int | None, slot_bytes: int) -> Needs:
    """Of one sequence, as `load` would split a budget."""
    length = context_of(checkpoint, context)
    needs = footprint(checkpoint, 1, length, chunk=PREFILL, all_logits=False)
    one, two = (footprint(checkpoint, 1, tokens, chunk=tokens, all_logits=False).cache for tokens in (1, 2))
    budget = planned_budget(checkpoint, needs, None, slot_bytes)
    return Needs(
        length, budget.floor, budget.everything, needs.dense, needs.cache,
        two - one, budget.workspace, slot_bytes, available_memory(),
    )  # fmt: skip


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
