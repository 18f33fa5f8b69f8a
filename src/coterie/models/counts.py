"""How many parameters a model has, of what kind, and how many of them a token meets. From names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import nn

from coterie.models.compat import beside_text, skeleton
from coterie.models.find import MoESite, find_sites

__all__ = ["PARTS", "Parameters", "count_parameters", "part_names"]

PARTS = (
    "experts", "shared experts", "routers", "attention", "recurrent layers", "dense feed-forward", "embeddings",
    "output head", "norms", "pictures and sounds", "other",
)  # fmt: skip
"""Kinds of parameters, in the order they are shown."""

_BESIDE = "pictures and sounds"
# by the names of the classes around a tensor: a norm inside attention is attention's, one beside it is a norm
_CLASSES = (
    ("attention", re.compile(r"Attention|Attn|MLA|Indexer")),
    ("recurrent layers", re.compile(r"Mamba|DeltaNet|KDA|SSM|Conv|Recurrent|Lightning")),
    ("norms", re.compile(r"Norm")),
    ("dense feed-forward", re.compile(r"MLP|Mlp|FeedForward|FFN")),
)


@dataclass(frozen=True)
class Parameters:
    """Part (a name of `PARTS`) -> parameters; tied tensors count once, buffers not at all.

    Attributes:
        total: all of them.
        active: those a token meets, as an expectation: everything but the experts it does not choose, and but
            what is for pictures and sounds. Embeddings count whole, as is the custom, though a token reads one row.
    """

    total: Mapping[str, int]
    active: Mapping[str, float]

    @property
    def num_total(self) -> int:
        """Of all parts together."""
        return sum(self.total.values())

    @property
    def num_active(self) -> float:
        """Of all parts together, as an expectation."""
        return sum(self.active.values())


def count_parameters(model: Any) -> Parameters:
    """Count what a config or a model (which may be a skeleton) has.

    Args:
        model: a transformers config, or a transformers model on any device.

    Raises:
        CheckpointError: the config makes no model.
    """
    if not isinstance(model, nn.Module):
        model = skeleton(model, torch.float32)
    sites = find_sites(model)
    names = part_names(model, sites)
    total = dict.fromkeys(PARTS, 0)
    active = dict.fromkeys(PARTS, 0.0)
    share = {site.name: _share(site) for site in sites}
    for name, parameter in _once(model, names):
        part = names[name]
        total[part] += parameter.numel()
        active[part] += parameter.numel() * _met(name, part, share)
    return Parameters(total, active)


def _share(site: MoESite) -> float:
    """Share of a site's experts that a token meets; of routes with one expert, as if all choices were as likely."""
    if site.experts_of is None:
        return site.top_k / site.num_experts
    routes, missed = len(site.experts_of), 0.0
    for expert in range(site.num_stored):
        others = routes - site.experts_of.count(expert)
        missed += comb(others, site.top_k) / comb(routes, site.top_k)
    return 1 - missed / site.num_stored


def _once(model: nn.Module, names: Mapping[str, str]) -> list[tuple[str, nn.Parameter]]:
    """Every parameter under one name; of several, one that belongs to the language model."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in found or names[found[id(parameter)][0]] == _BESIDE:
            found[id(parameter)] = (name, parameter)
    return list(found.values())


def _met(name: str, part: str, share: Mapping[str, float]) -> float:
    """Which share of a parameter a token meets."""
    if part == _BESIDE:
        return 0.0
    return next(k for site, k in share.items() if _inside(name, site)) if part == "experts" else 1.0


def part_names(model: Any, sites: list[MoESite]) -> dict[str, str]:
    """Name of every parameter and buffer -> the part it belongs to."""
    beside = beside_text(model)
    modules = dict(model.named_modules())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: _BESIDE
        if any(_inside(name, module) for module in beside)
        else _part(name, modules, sites, embedding, head)
        for name, _ in state
    }


def _part(name: str, modules: Mapping[str, Any], sites: list[MoESite], embedding: Any, head: Any) -> str:
    owner = name.rpartition(".")[0]
    for site in sites:
        if _inside(owner, site.name):
            return "experts"
        if _inside(owner, site.gate_name) or (owner == site.block_name and not _is_layer(modules[owner])):
            return "routers"
    if modules[owner] is embedding or (type(modules[owner]) is nn.Embedding and "shared" not in owner):
        return "embeddings"
    if modules[owner] is head:
        return "output head"
    if any("shared" in step for step in owner.split(".")):
        return "shared experts"
    return _by_class(list(_ancestors(owner, modules)))


def _by_class(classes: list[str]) -> str:
    """The part that a tensor in modules of these ``classes`` belongs to."""
    return next((part for part, pattern in _CLASSES if any(pattern.search(kind) for kind in classes)), "other")


def _ancestors(path: str, modules: Mapping[str, Any]) -> Iterator[str]:
    """Class names of a module and those around it, up to the decoder layer."""
    while path and not path.rpartition(".")[2].isdigit():
        yield type(modules[path]).__name__
        path = path.rpartition(".")[0]
    # a numbered module is the layer, or one of several alike in it
    if path and not re.search("Layer|Block", type(modules[path]).__name__):
        yield type(modules[path]).__name__


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _is_layer(module: nn.Module) -> bool:
    """Whether a block is a whole decoder layer, as in families that route beside their feed-forward network."""
    return "Layer" in type(module).__name__
