"""A family's own modules with other numbers of experts and of gate rows than its config can say, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.experts import kind_from_record
from coterie.models.compat import ffn_shape
from coterie.models.find import MoESite, find_sites
from coterie.models.stored_experts import SiteExperts

__all__ = ["COUNTS", "reshape", "resize_gate"]

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
"""What families call their number of experts, in configs and in modules."""
_GROUPS = ("num_group", "n_group", "num_expert_group")


def reshape(model: Any, records: Mapping[str, SiteExperts], where: str) -> None:
    """Give each site the experts and the gate rows its record says. In place, on any device; new numbers are not set.

    Raises:
        CheckpointError: the records are of another model.
        UnsupportedError: a family that keeps its experts in a way of its own.
    """
    sites = find_sites(model)
    if {site.name for site in sites} != records.keys():
        raise CheckpointError(
            f"{where} describes the layers {', '.join(sorted(records))}; config.json makes "
            f"{', '.join(site.name for site in sites)}. They are of different models: copy both again."
        )
    for site in sites:
        record = records[site.name]
        if site.own is not None:
            raise UnsupportedError(
                f"The family {model.config.model_type!r} keeps its experts in a way of its own, in which layers cannot "
                "differ. Choose the native container."
            )
        if record.routes != site.num_experts:
            resize_gate(model, site, record.routes)
        _resize_experts(model.get_submodule(site.name), record, where)


def resize_gate(model: Any, site: MoESite, routes: int) -> None:
    """A gate over ``routes`` experts: tensors with a row per expert are cut or filled up with zeros, in place.

    Raises:
        OptionError: the gate chooses among groups of experts, which ``routes`` does not divide into.
    """
    gate, block = model.get_submodule(site.gate_name), model.get_submodule(site.block_name)
    for module in (gate, block):
        groups = next((getattr(module, name) for name in _GROUPS if isinstance(getattr(module, name, None), int)), 1)
        if routes % max(1, groups):
            raise OptionError(f"{groups} groups of experts cannot be made of {routes}. Keep a multiple of {groups}.")
        for name, value in list(vars(module).items()):
            if name in COUNTS and value == site.num_experts:
                setattr(module, name, routes)
    for module, name, tensor in _per_expert(gate, block, site.num_experts):
        grown = _grown(tensor, site.num_experts, routes)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, nn.Parameter(grown, tensor.requires_grad))
        else:
            module._buffers[name] = grown


def _per_expert(gate: nn.Module, block: nn.Module, count: int) -> list[tuple[nn.Module, str, Tensor]]:
    """Parameters and buffers of gate and block that have a row, or a number, for every expert."""
    inside = [*gate.modules()] if gate is not block else []
    found = []
    for module in [*inside, block]:
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if _axis(tensor, count) is not None:
                found.append((module, name, tensor))
    return found


def _axis(tensor: Tensor, count: int) -> int | None:
    """The first dimension that is more than one, if it is ``count``."""
    axis = next((axis for axis, size in enumerate(tensor.shape) if size != 1), None)
    return axis if axis is not None and tensor.shape[axis] == count else None


def _grown(tensor: Tensor, before: int, count: int) -> Tensor:
    axis = _axis(tensor, before) or 0
    size = [*tensor.shape[:axis], count, *tensor.shape[axis + 1 :]]
    grown = torch.zeros(size, dtype=tensor.dtype, device=tensor.device)
    keep = min(before, count)
    grown.narrow(axis, 0, keep).copy_(tensor.detach().narrow(axis, 0, keep))
    return grown


def _resize_experts(experts: Any, record: SiteExperts, where: str) -> None:
    """The family's module with as many experts as there are, and which routes lead to which."""
    if record.kind is not None:
        shape = ffn_shape(experts, fused=False, transposed=False, interleaved=False)
        try:
            experts.kind = kind_from_record(record.kind, shape, record.experts)
        except OptionError as error:
            raise CheckpointError(f"{where} describes experts that cannot be made: {error}") from error
        for name in [*experts._parameters]:
            experts.register_parameter(name, None)
        experts._is_hf_initialized = True  # there is nothing to draw
    else:
        shape = ffn_shape(experts)
        sizes = replace(shape, inner=record.inner or shape.inner).weight_shapes()
        for name, tensor in [*experts.named_parameters(recurse=False)]:
            size = (record.experts, *sizes.get(name, tuple(tensor.shape[1:])))
            empty = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
            experts.register_parameter(name, nn.Parameter(empty, tensor.requires_grad))
    experts.num_routes, experts.experts_of = record.routes, record.experts_of
    experts.num_experts = record.experts
