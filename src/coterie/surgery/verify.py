"""Does the model that was written answer as the edit does? Both run from disk, one layer's experts at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import FFN, Experts, KindExperts
from coterie.models.checkpoint import Checkpoint, ExpertSite, open_checkpoint
from coterie.models.compat import DiskNames, auto_class, quiet, skeleton, text_inputs
from coterie.models.find import find_sites
from coterie.models.language import load_host
from coterie.models.reshape import resize_gate
from coterie.models.resident import resident_experts
from coterie.models.tensors import read_tensor
from coterie.routing import Routing
from coterie.surgery.layer import LayerExperts, NewLayer, read_layer
from coterie.surgery.orientation import canonical_shape
from coterie.surgery.routing_tensors import router_tensors

__all__ = ["NEAR", "check_written", "edited_host", "logits_of", "probe_ids", "served", "written_logits"]

Edit = Callable[[LayerExperts], NewLayer]

NEAR = 2e-3
"""Largest difference of logits, as a share of their spread, that is rounding: both sides compute in float32."""
_WHOLE = 64 << 20  # bytes of a checkpoint up to which transformers loads it whole, as a user would


def check_written(checkpoint: Checkpoint, edit: Edit, path: Any, tokens: int = 16) -> float:
    """Compare the model at ``path`` with ``edit`` applied to ``checkpoint`` in memory.

    Everything computes in float32 whatever the weights are stored in. Peak memory is the dense weights in float32 and
    one layer; a checkpoint up to 64 MiB is loaded by transformers itself.

    Returns the largest difference of logits as a share of their standard deviation.

    Raises:
        CheckpointError: it is more than rounding.
    """
    ids = probe_ids(checkpoint, tokens)
    expected = logits_of(edited_host(checkpoint, edit), ids)
    found = written_logits(path, ids)
    difference = float((found - expected).abs().max() / expected.std().clamp(min=1e-6))
    if not difference <= NEAR:
        raise CheckpointError(
            f"The written model does not answer as the edit does: logits differ by {difference:.2g} of their spread, "
            f"where rounding makes {NEAR:g} at most. Nothing was put in place. Is the edit the same each time it is "
            "called?"
        )
    return difference


def probe_ids(checkpoint: Checkpoint, tokens: int) -> Tensor:
    """[1, N] token ids, always the same for one vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(checkpoint.vocab_size, (1, tokens), generator=generator)


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """[N, V] float32 logits of a live model for ``ids`` [1, N]."""
    logits: Tensor = model(input_ids=ids, **text_inputs(model, ids)).logits
    return logits[0].float()


def written_logits(path: Any, ids: Tensor) -> Tensor:
    """Logits of a directory, loaded afresh."""
    written = open_checkpoint(path)
    if sum(part.nbytes for part in written.ranges.values()) <= _WHOLE:
        try:
            with quiet():
                return logits_of(auto_class(written.config).from_pretrained(path, dtype=torch.float32).eval(), ids)
        except UnsupportedError:  # a family whose experts only the host can call
            pass
    return logits_of(served(written), ids)


def served(checkpoint: Checkpoint) -> Any:
    """The model in float32 with each layer's experts read when they are computed, and forgotten after."""
    return load_host(checkpoint, lambda site: _OnDemand(site), torch.float32)


class _OnDemand(Experts):
    def __init__(self, site: ExpertSite) -> None:
        super().__init__()
        self.site, self.num_experts = site, site.num_experts

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        return resident_experts(self.site).rows(x, routing)


def edited_host(checkpoint: Checkpoint, edit: Edit) -> Any:
    """The model of ``checkpoint`` in float32 with ``edit`` applied to each layer when a forward comes to it."""
    plain = replace(checkpoint, sites=tuple(replace(site, experts_of=None) for site in checkpoint.sites))
    made: dict[str, _Edited] = {}

    def factory(site: ExpertSite) -> Experts:
        made[site.name] = _Edited(site)
        return made[site.name]

    host = load_host(plain, factory, torch.float32)
    _round_encoded(host, checkpoint)
    sites = {site.name: site for site in checkpoint.sites}
    for found in find_sites(host):
        begin = _beginning(host, checkpoint, sites[found.name], found, made[found.name], edit)
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
    host: Any, checkpoint: Checkpoint, site: ExpertSite, found: Any, experts: _Edited, edit: Edit
) -> Callable[..., None]:
    """Before a block runs: read and edit its layer, and give its gate the new rows."""
    tensors = [each for each in router_tensors(checkpoint)[site.name] if each.rows]
    rows_now = [site.num_routes]

    def begin(block: nn.Module, args: Any) -> None:
        layer = read_layer(checkpoint, site)
        new = edit(layer).checked(layer)
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
        experts.take(new, layer)

    return begin


class _Edited(Experts):
    """Stands for a layer's new experts; the layer is there from its block's beginning until it has been computed."""

    def __init__(self, site: ExpertSite) -> None:
        super().__init__()
        self.site = site
        self.num_experts = site.num_routes
        self._new: NewLayer | None = None

    def take(self, new: NewLayer, layer: LayerExperts) -> None:
        self._new, self.num_experts = new, new.num_routes

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        assert self._new is not None
        new, self._new = self._new, None
        experts = _module(new, self.site)
        if not new.aliased:
            return experts.rows(x, routing)
        from coterie.experts import Aliased

        return Aliased(experts, new.experts_of or ()).rows(x, routing)


def _module(new: NewLayer, site: ExpertSite) -> Experts:
    if new.kind is not None:
        return KindExperts(new.kind, new.parts)
    shape = replace(canonical_shape(site.shape), inner=new.inner, post_norm=site.shape.post_norm)
    with torch.device("meta"):
        experts = FFN(new.num_experts, shape, method="loop")
    weights = dict(new.weights)
    if shape.post_norm:
        weights["post_norm"] = read_tensor(site.parts(0)["post_norm"]).expand(new.num_experts, -1)
    for name in shape.weight_shapes():
        setattr(experts, name, nn.Parameter(weights[name].to(site.dtype), requires_grad=False))
    return experts
