"""Preset routers in a transformers model, in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from coterie.errors import UnsupportedError
from coterie.models.attach import Attachment, attach
from coterie.models.compat import routed_config_class, routed_model_class
from coterie.models.facts import RouterFacts, router_facts
from coterie.models.find import MoESite, find_sites
from coterie.models.gates import family_options, kept_options, take_gate
from coterie.models.own_experts import give_experts
from coterie.models.routed_class import Routed, site_shapes
from coterie.models.stored import FILE, Curves, RouterSpec, Stored, check_curves
from coterie.routers import build_routers

__all__ = ["RouterSpec", "config_of", "route", "set_curves"]


def route(model: Any, spec: RouterSpec, *, keep_gate: bool = True) -> Attachment:
    """Put routers of a preset into every MoE block of ``model``, in place, with our grouped experts behind them.

    The model remains a transformers model: it generates, trains, and saves itself; ``save_pretrained`` writes a
    directory that ``AutoModelForCausalLM`` loads after ``import coterie.models``. Experts are shared, not copied.
    A model that is routed already gets other routers, and keeps its gates all the same.

    Args:
        model: a live transformers model of a family whose experts are behind transformers' interface.
        spec: which preset, and what of it is not to be as in the family: renormalisation, activation, scale and
            bias of the family's own gates are the defaults of options of that name.
        keep_gate: the preset's linear score takes over the gate's weight and bias; False starts all of it anew.

    Training noise of the family's own gates (jitter) and its own balance loss are left out:
    ``config.output_router_logits`` becomes False.

    Raises:
        OptionError: an unknown preset or option, or a value that is not allowed.
        UnsupportedError: the model does not route, routes in a way of its own, or chooses by a correction that the
            preset has no place for.
    """
    sites = tuple(find_sites(model))
    _check(model, sites)
    facts = _facts(model, sites)
    given = {} if not keep_gate else kept_options(spec, sites[0]) if _is_routed(model) else (
        family_options(spec, facts, sites[0])
    )  # fmt: skip
    kept = Stored.from_record(config_of(model), FILE) if hasattr(model.config, "coterie") else Stored(None)
    stored = replace(kept, router=RouterSpec(spec.name, {**given, **spec.options}), curves={}, base=facts.as_record())
    routers = build_routers(spec.name, site_shapes(model, sites), {**given, **spec.options})
    for site, router in zip(sites, routers, strict=True):
        like = next(site.gate.parameters(), next(model.parameters()))
        router.to(like.device).train(site.gate.training)
        if keep_gate:
            take_gate(router, site, model.get_submodule(site.block_name), facts, bool(spec.options.get("copied")))
    return _install(model, sites, stored, routers)


def config_of(model: Any) -> dict[str, Any]:
    """What coterie.json of a routed model says: ``router`` (name, options), ``curves``, ``base``. Not a copy.

    Raises:
        UnsupportedError: it was not routed by `route`.
    """
    record = getattr(model.config, "coterie", None)
    if not isinstance(record, dict):
        raise UnsupportedError(f"{type(model).__name__} has no router of Coterie. Give it one with route(model, spec).")
    return record


def set_curves(model: Any, curves: Curves) -> None:
    """Keep with the model what its choices cost: ``{"k": [[1, 2.31], [2, 2.11]], "measure": "bits per byte"}``.

    Mutates; saved with the model.

    Raises:
        OptionError: a curve is not pairs of numbers.
        UnsupportedError: the model was not routed by `route`.
    """
    check_curves(curves)
    config_of(model)["curves"] = dict(curves)


def _install(model: Any, sites: tuple[MoESite, ...], stored: Stored, routers: list[Any]) -> Attachment:
    by_name = {site.name: router for site, router in zip(sites, routers, strict=True)}
    gates = attach(model, router=lambda site, old: by_name[site.name])
    try:
        experts = give_experts(model)
    except BaseException:
        gates.undo()
        raise
    config: Any = model.config
    model_class: Any = type(model)
    config_class: Any = type(config)
    before = {name: config.__dict__[name] for name in ("coterie", "output_router_logits") if name in config.__dict__}
    if not _is_routed_class(model_class):
        config.__class__ = routed_config_class(config_class)
        model.__class__ = routed_model_class(model_class, Routed)
    config.coterie = stored.as_record()
    if before.get("output_router_logits"):
        config.output_router_logits = False

    def undo() -> None:
        if experts is not None:
            experts.undo()
        gates.undo()
        model.__class__, config.__class__ = model_class, config_class
        config.__dict__.pop("coterie", None)
        config.__dict__.update(before)

    return Attachment(model, gates.sites, gates.session, _once(undo))


def _once(do: Callable[[], None]) -> Callable[[], None]:
    left = [do]
    return lambda: left.pop()() if left else None


def _check(model: Any, sites: tuple[MoESite, ...]) -> None:
    if not sites:
        raise UnsupportedError(f"{type(model).__name__} has no mixture-of-experts layer. Route an MoE model.")
    if any(site.own is not None for site in sites):
        raise UnsupportedError(
            f"The family {model.config.model_type!r} keeps or calls its experts in a way of its own, which routers of "
            "ours cannot answer. Route a family of the shared layout: see docs/families.md."
        )
    more = next((site for site in sites if not site.gate_takes_rows or len(_arguments(site.gate)) > 1), None)
    if more is not None:
        raise UnsupportedError(
            f"The gate {more.gate_name} ({type(more.gate).__name__}) is given {', '.join(_arguments(more.gate))}; a "
            "router of ours takes the items alone. Choose a model whose gates decide by their input."
        )


def _arguments(gate: nn.Module) -> list[str]:
    parameters = inspect.signature(gate.forward).parameters.values()
    return [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]


def _facts(model: Any, sites: tuple[MoESite, ...]) -> RouterFacts:
    """How the gates decide; of a model routed already, how they did before."""
    if not _is_routed(model):
        return router_facts(model, sites[0])
    kept = dict(config_of(model)["base"])
    base = RouterFacts(str(kept.get("router")), sites[0].num_experts, None, sites[0].top_k)
    return replace(base, **{name: value for name, value in kept.items() if name not in ("groups", "correction")})


def _is_routed(model: Any) -> bool:
    record = getattr(model.config, "coterie", None)
    return isinstance(record, dict) and record.get("router") is not None


def _is_routed_class(kind: type) -> bool:
    return issubclass(kind, Routed)
