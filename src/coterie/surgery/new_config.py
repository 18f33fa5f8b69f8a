"""config.json of a rewritten model, and what of its gates may not be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from coterie.errors import CoterieError, OptionError
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import BASE, MODEL_TYPE, skeleton
from coterie.models.hypotheses import Groups
from coterie.models.reshape import COUNTS
from coterie.surgery.routing_tensors import gate_facts

__all__ = ["as_coterie", "as_native", "check_gate", "count_in", "says_inner", "with_counts", "without_quantisation"]

_INNER = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")


def check_gate(checkpoint: Checkpoint, routes: int, top_k: int, layer: int) -> None:
    """Refuse a number of routes among which the gate cannot choose as it does.

    Raises:
        OptionError: fewer than a token is sent to, or groups that do not come out even; says what is allowed.
    """
    if routes < top_k:
        raise OptionError(
            f"layer {layer}: a token is sent to {top_k} experts, {routes} would be left. Keep {top_k} or more."
        )
    groups = gate_facts(checkpoint).groups
    if groups is None or routes == checkpoint.sites[0].num_routes:
        return
    if not _fits(groups, routes, top_k):
        allowed = [count for count in range(groups.count, routes + 4 * groups.count) if _fits(groups, count, top_k)]
        near = sorted(allowed, key=lambda count: abs(count - routes))[:3]
        raise OptionError(
            f"layer {layer}: the gate chooses among {groups.count} groups of experts, of which a token may use "
            f"{groups.kept}; {routes} experts do not come out even. Allowed near it: "
            f"{', '.join(map(str, sorted(near))) or 'none'}."
        )


def _fits(groups: Groups, routes: int, top_k: int) -> bool:
    size, left = divmod(routes, groups.count)
    best = 2 if groups.rule == "two best" else 1
    return not left and size >= best and groups.kept * size >= top_k


def with_counts(config: Mapping[str, Any], before: int, after: int, inner: tuple[int, int] | None) -> dict[str, Any]:
    """The config with another number of experts, and another inner width of each by ``inner`` (before, after).

    Raises:
        OptionError: no field of the config says it.
    """
    new = copy.deepcopy(dict(config))
    if before != after and not _replace(new, COUNTS, before, after, every=True):
        raise OptionError(
            f"config.json of this family has no field that says {before} experts for all layers, so that no other "
            "number can be said. Choose the coterie container."
        )
    if inner is not None and inner[0] != inner[1] and not _replace(new, _INNER, *inner, every=False):
        raise OptionError(
            f"config.json of this family has no field that says that experts are {inner[0]} wide inside. Choose the "
            "coterie container."
        )
    return new


@lru_cache(maxsize=8)
def says_inner(checkpoint: Checkpoint, inner: int) -> bool:
    """Whether config.json can say that experts are ``inner`` wide inside, and change nothing else by it."""
    try:
        config = with_counts(checkpoint.config.to_dict(), 0, 0, (checkpoint.sites[0].shape.inner, inner))
        other = skeleton(type(checkpoint.config).from_dict(config), checkpoint.compute_dtype)
    except CoterieError:
        return False
    sites = tuple(f"{site.name}." for site in checkpoint.sites)
    here, there = (
        {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(sites)}
        for model in (skeleton(checkpoint.config, checkpoint.compute_dtype), other)
    )
    return here == there


def _replace(table: dict[str, Any], names: tuple[str, ...], before: int, after: int, every: bool) -> bool:
    """Set fields of these names that have the value before; the first alone, or every one."""
    done = False
    for name in names:
        if table.get(name) == before and not isinstance(table[name], bool) and (every or not done):
            table[name], done = after, True
    for value in table.values():
        if isinstance(value, dict):
            done |= _replace(value, names, before, after, every)
    return done


def as_coterie(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model that plain transformers is to refuse rather than load wrongly."""
    if config.get("model_type") == MODEL_TYPE:
        return dict(config)
    return {**config, "model_type": MODEL_TYPE, BASE: config["model_type"]}


def as_native(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the family a model of ours is based on; others as they are."""
    if config.get("model_type") != MODEL_TYPE:
        return dict(config)
    return {name: value for name, value in config.items() if name != BASE} | {"model_type": config[BASE]}


def count_in(config: Mapping[str, Any]) -> int | None:
    """The number of experts that a parsed config.json says, wherever it stands."""
    for name in COUNTS:
        if isinstance(config.get(name), int) and not isinstance(config[name], bool) and config[name]:
            return int(config[name])
    inner = (count_in(value) for value in config.values() if isinstance(value, Mapping))
    return next((count for count in inner if count is not None), None)


def without_quantisation(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config of the same model in floats."""
    new = {name: value for name, value in config.items() if name != "quantization_config"}
    new = {
        name: without_quantisation(value, dtype) if isinstance(value, Mapping) and name.endswith("_config") else value
        for name, value in new.items()
    }
    if "dtype" in new or "torch_dtype" in new:
        new.pop("torch_dtype", None)
        new["dtype"] = dtype
    return new
