"""The model that an edit makes, in memory: a forward through it comes to one layer's new experts after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coterie.experts import Aliased, Experts
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.compat import DiskNames, skeleton
from coterie.models.find import find_sites
from coterie.models.language import load_host
from coterie.models.reshape import resize_gate
from coterie.models.tensors import read_tensor
from coterie.routing import Routing
from coterie.surgery.forward import by_channels, rows_of
from coterie.surgery.layer import NewLayer
from coterie.surgery.narrow import dense_dtype, widened
from coterie.surgery.orientation import canonical_shape
from coterie.surgery.routing_tensors import router_tensors

__all__ = ["edited_host"]

Make = Callable[[ExpertSite], NewLayer]


def edited_host(checkpoint: Checkpoint, make: Make) -> Any:
    """The model of ``checkpoint`` in float32 with ``make(site)`` in place of each layer when a forward comes to it.

    ``make`` is called once for each site in each forward, and what it gives is forgotten when it has been computed.
    """
    plain = replace(checkpoint, sites=tuple(replace(site, experts_of=None) for site in checkpoint.sites))
    made: dict[str, _Edited] = {}

    def factory(site: ExpertSite) -> Experts:
        made[site.name] = _Edited(site)
        return made[site.name]

    host = widened(load_host(plain, factory, dense_dtype(checkpoint), keep=True))
    _round_encoded(host, checkpoint)
    sites = {site.name: site for site in checkpoint.sites}
    for found in find_sites(host):
        begin = _beginning(host, checkpoint, sites[found.name], found, made[found.name], make)
        host.get_submodule(found.block_name).register_forward_pre_hook(begin)
    return host


@torch.no_grad()
def _round_encoded(host: Any, checkpoint: Checkpoint) -> None:
    """Dense weights that were quantised, as they are written: in the dtype that the model is computed in."""
    if not checkpoint.encoded:
        return
    names = DiskNames(skeleton(checkpoint.config, checkpoint.compute_dtype))
    parameters = dict(host.named_parameters())
    for name in checkpoint.encoded:
        for each in names.place(name).fills:
            if each in parameters:
                parameters[each].copy_(parameters[each].to(checkpoint.compute_dtype))


def _beginning(
    host: Any, checkpoint: Checkpoint, site: ExpertSite, found: Any, experts: _Edited, make: Make
) -> Callable[..., None]:
    """Before a block runs: make its layer, and give its gate the new rows."""
    tensors = [each for each in router_tensors(checkpoint)[site.name] if each.rows]
    rows_now = [site.num_routes]

    def begin(block: nn.Module, args: Any) -> None:
        new = make(site)
        if new.num_routes != rows_now[0]:
            resize_gate(host, replace(found, num_experts=rows_now[0]), new.num_routes)
            bridge: Any = host.get_submodule(site.name)
            if isinstance(bridge.reader, partial) and "num_experts" in bridge.reader.keywords:
                bridge.reader = partial(bridge.reader.func, num_experts=new.num_routes)
            rows_now[0] = new.num_routes
        state = {**dict(host.named_parameters()), **dict(host.named_buffers())}
        for each in tensors:
            with torch.no_grad():
                state[each.memory].copy_(new.router[each.role].reshape(state[each.memory].shape))
        experts.take(new)

    return begin


class _Edited(Experts):
    """Stands for a layer's new experts; the layer is there from its block's beginning until it has been computed."""

    def __init__(self, site: ExpertSite) -> None:
        super().__init__()
        self.site = site
        self.num_experts = site.num_routes
        self._new: NewLayer | None = None

    def take(self, new: NewLayer) -> None:
        self._new, self.num_experts = new, new.num_routes

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        assert self._new is not None
        new, self._new = self._new, None
        experts = _OneByOne(new, self.site)
        return Aliased(experts, new.experts_of or ()).rows(x, routing) if new.aliased else experts.rows(x, routing)


class _OneByOne(Experts):
    """The experts of a new layer."""

    def __init__(self, new: NewLayer, site: ExpertSite) -> None:
        super().__init__()
        self.new, self.site, self.num_experts = new, site, new.num_experts

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        return rows_of(x, routing, ((expert, self._forward(expert)) for expert in range(self.num_experts)))

    def _forward(self, expert: int) -> Callable[[Tensor], Tensor]:
        new, site = self.new, self.site
        if new.kind is not None:
            return partial(new.kind.forward, parts=new.parts[expert])
        shape = replace(canonical_shape(site.shape), inner=new.inner, post_norm=site.shape.post_norm)
        norm: Mapping[str, Tensor] = {}
        if shape.post_norm:
            norm = {"post_norm": read_tensor(site.parts(0)["post_norm"])}

        def forward(x: Tensor) -> Tensor:
            # only experts that are met are cast
            own = {name: stack[expert].to(site.dtype) for name, stack in new.weights.items()}
            return by_channels(x, {**own, **norm}, shape)

        return forward
