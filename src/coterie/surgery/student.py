"""A live model's experts as factors to be trained, and what pruning left of them: factors, train, pack, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts import FFN, Experts, Factored, Factors, KindExperts
from coterie.models.attach import Attachment, attach
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import routed_config_class, routed_model_class
from coterie.models.convert import experts_from
from coterie.models.find import MoESite, find_sites
from coterie.models.own_experts import aliased, completed
from coterie.models.routed_class import Routed
from coterie.models.stored import FILE, SiteExperts, Stored
from coterie.surgery.factorize import DTYPE_NAMES, LayerFactors, factorize_expert
from coterie.surgery.orientation import canonical, canonical_shape

__all__ = ["factorize_model", "pack_experts", "pack_model", "survivors"]


def factorize_model(model: Any, ranks: int | Mapping[str, LayerFactors], unit: str = "row") -> Attachment:
    """Give every expert of ``model`` the form U V + S + b, in place; S is all there, so the function does not change.

    U, V and S are parameters. `coterie.training.Sparsify` prunes S while they learn; `pack_model` then drops what is
    zero; ``save_pretrained`` writes a directory that `coterie.load` reads. Equal to before to rounding.

    Args:
        model: a live transformers model.
        ranks: of every matrix, cut to what it can have; or site name -> ranks of its matrices: other sites stay.
        unit: what will be pruned, see `LayerFactors`.

    Returns what undoes it: the experts that were there before are kept, and take memory, until it is forgotten.

    Raises:
        OptionError: a rank below 1, another unit.
        UnsupportedError: the model has no experts, or keeps them in a way of its own.
    """
    if isinstance(ranks, int) and ranks < 1:
        raise OptionError(f"A rank is 1 or more, not {ranks}.")

    def factory(site: MoESite, original: nn.Module) -> Experts:
        inner = original.true_experts if isinstance(original, ExpertsBridge) else experts_from(original)
        if not isinstance(inner, FFN):
            raise OptionError(f"{site.name} has {type(inner).__name__}. Start from plain feed-forward experts.")
        left = not isinstance(ranks, int) and site.name not in ranks
        made = inner if left else _factored(inner, ranks if isinstance(ranks, int) else ranks[site.name], unit)
        return completed(aliased(made, site.experts_of), site.gate)

    config = model.config
    model_class: Any = type(model)
    config_class: Any = type(config)
    before = config.__dict__.get("coterie")
    attached = attach(model, experts=factory)
    if not issubclass(model_class, Routed):
        config.__class__ = routed_config_class(config_class)
        model.__class__ = routed_model_class(model_class, Routed)
    _record(model)

    def undo() -> None:
        attached.undo()
        model.__class__, config.__class__ = model_class, config_class
        config.__dict__.pop("coterie", None)
        if before is not None:
            config.coterie = before

    return Attachment(model, attached.sites, attached.session, undo)


def pack_model(model: Any) -> None:
    """Keep only those rows or columns of S that are not all zero, in every factored layer. In place; exact.

    Raises:
        OptionError: there is no factored layer.
    """
    found = [
        (f"{site.name}.{path}", part)
        for site in find_sites(model) for path, part in site.experts.named_modules() if isinstance(part, KindExperts)
    ]  # fmt: skip
    if not found:
        raise OptionError("The model has no factored experts. Make some with coterie.surgery.factorize_model.")
    for path, part in found:
        model.set_submodule(path, pack_experts(part))
    _record(model)


def pack_experts(experts: KindExperts) -> KindExperts:
    """Factored experts without the zero rows and columns of S. Exact: zeros were added before.

    Raises:
        OptionError: experts of another kind.
    """
    if not isinstance(experts.kind, Factored):
        raise OptionError(f"Only factored experts can be packed, not {experts.kind.name!r}.")
    kind = experts.kind
    tensors = [dict(experts.weights_of(expert)) for expert in range(kind.num_experts)]
    factors: dict[str, list[Factors]] = {name: [] for name in kind.factors}
    for name, each in kind.factors.items():
        for expert, one in enumerate(each):
            factors[name].append(_pack(tensors[expert], name, one))
    made = Factored(kind.shape, kind.num_experts, {n: tuple(each) for n, each in factors.items()}, kind.dtype)
    ordered = [{name: tensors[e][name].detach() for name in made.parts(e)} for e in range(made.num_experts)]
    return KindExperts(made, ordered).train(experts.training)


def survivors(model: Any) -> dict[str, dict[str, list[Tensor]]]:
    """Site -> matrix -> mask [u] for each expert: which rows or columns of S are not all zero."""
    found: dict[str, dict[str, list[Tensor]]] = {}
    for site in find_sites(model):
        experts = _kind_experts(site)
        if experts is None or not isinstance(experts.kind, Factored):
            continue
        found[site.name] = {
            name: [_alive(experts.weights_of(e)[f"{name}_s"], one.unit) for e, one in enumerate(each)]
            for name, each in experts.kind.factors.items()
        }
    return found


def _factored(experts: FFN, ranks: int | LayerFactors, unit: str) -> KindExperts:
    stacks = {name: getattr(experts, name).detach() for name in experts.shape.weight_shapes()}
    weights = canonical(stacks, experts.shape)
    shape, count = canonical_shape(experts.shape), experts.num_experts
    names = [name for name, size in shape.weight_shapes().items() if len(size) == 2]
    each = dict.fromkeys(names, [ranks] * count) if isinstance(ranks, int) else dict(ranks.ranks)
    how = LayerFactors(each, keep=1, unit=unit, whole=False)
    dtype = weights["down_proj"].dtype
    tensors, factors = [], []
    for expert in range(count):
        own = {name: weight[expert] for name, weight in weights.items()}
        parts, made, _ = factorize_expert(own, {name: each[name][expert] for name in names}, how, {}, {})
        tensors.append({name: part.to(dtype) for name, part in parts.items()})
        factors.append(made)
    kind = Factored(shape, count, {n: tuple(one[n] for one in factors) for n in names}, DTYPE_NAMES[dtype])
    ordered = [{name: tensors[e][name] for name in kind.parts(e)} for e in range(count)]
    return KindExperts(kind, ordered).train(experts.training)


def _pack(tensors: dict[str, Tensor], name: str, factors: Factors) -> Factors:
    """Drop what is zero from one matrix's tensors; what its factors are then."""
    if not factors.kept or not factors.rank:
        return factors
    rest, at = tensors[f"{name}_s"], tensors.get(f"{name}_at")
    alive = _alive(rest, factors.unit)
    if bool(alive.all()):
        return factors
    at = torch.arange(len(alive), dtype=torch.int32) if at is None else at
    if bool(alive.any()):
        tensors[f"{name}_s"] = (rest[alive] if factors.unit == "row" else rest[:, alive]).contiguous()
        tensors[f"{name}_at"] = at[alive]
    else:
        del tensors[f"{name}_s"]
        tensors.pop(f"{name}_at", None)
    return factors._replace(kept=int(alive.sum()))


def _alive(rest: Tensor, unit: str) -> Tensor:
    return rest.detach().ne(0).any(1 if unit == "row" else 0)


def _record(model: Any) -> None:
    """Say in the config what the experts are, for ``save_pretrained``."""
    experts = {}
    for site in find_sites(model):
        part = _kind_experts(site)
        if part is not None:
            kind = {"name": part.kind.name, **part.kind.as_record()}
            experts[site.name] = SiteExperts(part.num_experts, site.num_true, site.experts_of, None, kind)
    record = getattr(model.config, "coterie", None)
    kept = Stored(None) if record is None else Stored.from_record(record, FILE)
    model.config.coterie = replace(kept, experts=experts).as_record()


def _kind_experts(site: MoESite) -> KindExperts | None:
    found = (part for part in site.experts.modules() if isinstance(part, KindExperts))
    return next(found, None)
