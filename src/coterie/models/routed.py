"""Preset routers in a transformers model, in place, and models that keep them when they are saved and loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import UnsupportedError
from coterie.experts import Aliased, Experts
from coterie.models.attach import Attachment, attach, session_of
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import register_auto, routed_config_class, routed_model_class, text_config
from coterie.models.convert import experts_from
from coterie.models.facts import RouterFacts, router_facts
from coterie.models.find import MoESite, find_sites
from coterie.models.gates import family_options, kept_options, take_gate
from coterie.models.reshape import reshape
from coterie.models.saving import saved_names, written_beside
from coterie.models.stored import FILE, Curves, RouterSpec, Stored, check_curves, read_stored, routers_for, write_stored
from coterie.routers import SiteShape, build_routers

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
    routers = build_routers(spec.name, _shapes(model, sites), {**given, **spec.options})
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


class Routed:
    """What a routed model does beyond its family's class: load, save, and say who its sequences are. Mixed in."""

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if (record := getattr(config, "coterie", None)) is not None:
            stored = Stored.from_record(record, FILE)
            if stored.experts:
                reshape(self, stored.experts, FILE)
            sites = tuple(find_sites(self))
            if stored.router is not None:
                routers = routers_for(stored.router, _shapes(self, sites), FILE, sites[0].gate)
                by_name = {site.name: router for site, router in zip(sites, routers, strict=True)}
                attach(self, router=lambda site, old: by_name[site.name])
            for site in sites:  # a block's own initialisation would reach for the gate it no longer has
                self.get_submodule(site.block_name)._is_hf_initialized = True  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As in transformers. A directory is looked through before anything is read, and must say how it routes.

        Raises:
            CheckpointError: something is missing, or of another shape or format; says what.
        """
        checkpoint = None
        if path is not None:
            from coterie.models.checkpoint import open_checkpoint

            checkpoint = open_checkpoint(path, kwargs.get("revision"))
            path, config = checkpoint.path, checkpoint.config if config is None else config
            config.coterie = read_stored(checkpoint.path).as_record()
        loaded = super().from_pretrained(path, *args, config=config, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _place(model)
        _give_experts(model, _kinds(checkpoint))
        return loaded

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        model = super()._from_config(config, **kwargs)  # type: ignore[misc]
        _give_experts(model)
        return model

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """As in transformers, with coterie.json. Written beside, then moved into place."""
        push, target = kwargs.pop("push_to_hub", False), Path(save_directory)
        named = saved_names(self, self.state_dict() if state_dict is None else state_dict)  # type: ignore[attr-defined]
        with written_beside(target) as part:
            super().save_pretrained(part, *args, state_dict=named, **kwargs)  # type: ignore[misc]
            if kwargs.get("is_main_process", True):
                write_stored(part, Stored.from_record(self.config.coterie, FILE))
        if push:
            self.push_to_hub(kwargs.pop("repo_id", target.name))  # type: ignore[attr-defined]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. The rows of a beam search are one sequence, whichever of them goes on."""
        session = session_of(self)
        inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        settings = kwargs.get("generation_config") or self.generation_config  # type: ignore[attr-defined]
        beams = kwargs.get("num_beams") or settings.num_beams or 1
        if session is None or session.sequences is not None or beams == 1 or not isinstance(inputs, Tensor):
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        session.sequences = torch.arange(inputs.shape[0], device=inputs.device)
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            session.sequences = None


register_auto(Routed)


def _install(model: Any, sites: tuple[MoESite, ...], stored: Stored, routers: list[Any]) -> Attachment:
    by_name = {site.name: router for site, router in zip(sites, routers, strict=True)}
    gates = attach(model, router=lambda site, old: by_name[site.name])
    try:
        experts = _give_experts(model)
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


def _shapes(model: Any, sites: tuple[MoESite, ...]) -> list[SiteShape]:
    config = text_config(model.config)
    width, vocabulary = int(config.hidden_size), int(config.vocab_size)
    return [SiteShape(width, site.num_true, site.top_k, vocabulary) for site in sites]


def _is_routed(model: Any) -> bool:
    record = getattr(model.config, "coterie", None)
    return isinstance(record, dict) and record.get("router") is not None


def _is_routed_class(kind: type) -> bool:
    return issubclass(kind, Routed)


@torch.no_grad()
def _place(model: Any) -> None:
    """Move weights to addresses where their products have the bits they had when they were saved.

    transformers leaves tensors where they lie in the mapped file. At addresses off a multiple of 64 the processor's
    matrix library takes another order of addition, and off a multiple of 16 grouped products are not to be had.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def _give_experts(model: Any, kinds: Mapping[str, Experts] | None = None) -> Attachment | None:
    """Our experts in place of the family's, sharing their weights, where ours compute the same and there is memory."""
    sites = find_sites(model)
    if not sites or any(parameter.is_meta for parameter in model.parameters()):
        return None
    needed = any(getattr(site.gate, "extra_experts", 0) or site.experts_of is not None for site in sites)
    try:
        return attach(model, experts=lambda site, old: _ours(site, old, kinds or {}))
    except UnsupportedError:
        if needed or kinds:  # only ours can give an item back, and lead several routes to one expert
            raise
        return None


def _ours(site: MoESite, old: nn.Module, kinds: Mapping[str, Experts]) -> Experts:
    inner = kinds.get(site.name)
    if inner is None:
        inner = old.true_experts if isinstance(old, ExpertsBridge) else experts_from(old)
    return completed(aliased(inner, site.experts_of), site.gate)


def _kinds(checkpoint: Any) -> dict[str, Experts]:
    """The experts that transformers' loader cannot read, read."""
    if checkpoint is None or not any(site.kind is not None for site in checkpoint.sites):
        return {}
    from coterie.models.resident import resident_experts

    return {site.name: resident_experts(site) for site in checkpoint.sites if site.kind is not None}


def aliased(experts: Experts, experts_of: tuple[int, ...] | None) -> Experts:
    """``experts`` behind the routes that lead to them, where several lead to one."""
    return experts if experts_of is None else Aliased(experts, experts_of)


def completed(experts: Experts, gate: Any) -> Experts:
    """``experts`` with an identity beside them where the router gives items back as they are."""
    if not getattr(gate, "extra_experts", 0):
        return experts
    from coterie.experts import with_identity

    return with_identity(experts)
