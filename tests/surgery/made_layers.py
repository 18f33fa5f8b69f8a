"""Layers and their statistics, made up for tests of surgery."""

from __future__ import annotations

import torch

from coterie.experts import FFNShape, expert_forward
from coterie.models.statistics import SiteStatistics
from coterie.surgery.deciding import router_logits
from coterie.surgery.layer import LayerExperts
from coterie.surgery.sample import expert_hidden


class Site:
    """Of a checkpoint, as far as an edit looks at it."""

    kind = None

    def __init__(self, layer, experts, top_k):
        self.name, self.layer, self.num_experts, self.top_k = f"layers.{layer}.experts", layer, experts, top_k
        self.num_routes = experts


def made_layer(experts=6, width=8, inner=10, *, layer=0, seed=0, top_k=2, bias=False, gated=True, correction=False):
    """A layer with random weights."""
    generator = torch.Generator().manual_seed(seed * 31 + layer)
    shape = FFNShape(width, inner, gated=gated, bias=bias, fused=False)
    sizes = shape.weight_shapes()
    weights = {name: torch.randn(experts, *size, generator=generator) for name, size in sizes.items()}
    router = {"weight": torch.randn(experts, width, generator=generator)}
    if bias:
        router["bias"] = torch.randn(experts, generator=generator)
    if correction:
        router["correction"] = 0.3 * torch.randn(experts, generator=generator)
    return LayerExperts(Site(layer, experts, top_k), weights, router, shape)


def clones_of(layer, families, *, noise=0.0, seed=0):
    """A layer whose expert e is a copy of expert ``families[e]``, neurons in another order, router rows and all."""
    generator = torch.Generator().manual_seed(seed)
    from coterie.ops.align import permute_neurons

    copies = []
    for family in families:
        copy = permute_neurons(layer.expert(family), torch.randperm(layer.shape.inner, generator=generator))
        copies.append({n: w + noise * torch.randn(w.shape, generator=generator) for n, w in copy.items()})
    weights = {name: torch.stack([copy[name] for copy in copies]) for name in layer.weights}
    router = {name: tensor[list(families)].clone() for name, tensor in layer.router.items()}
    router["weight"] += 0.05 * torch.randn(router["weight"].shape, generator=generator)
    site = Site(layer.site.layer, len(families), layer.site.top_k)
    return LayerExperts(site, weights, router, layer.shape)


def statistics_of(layer, decide, items=64, seed=0):
    """What a run over random items would have found."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(items, layer.shape.width, generator=generator)
    logits = router_logits(x, layer.router)
    chosen, weight = decide(logits, layer.router.get("correction"))
    experts = layer.num_experts
    table = torch.zeros(items, experts).scatter_(1, chosen, weight)
    rows = torch.stack([expert_forward(x, layer.expert(e), layer.shape) for e in range(experts)])
    norm, used = rows.norm(dim=-1).T, (table > 0).float()
    count = used.sum(0).clamp(min=1)
    hidden = torch.stack([expert_hidden(x, layer.expert(e), layer.shape) for e in range(experts)])
    return SiteStatistics(
        layer.site.name, layer.site.layer, layer.site.top_k, items, used.sum(0), table.sum(0),
        (used * norm).sum(0) / count, (table * norm).sum(0) / count, torch.zeros(experts, layer.shape.width),
        hidden.abs().mean(1), x, rows.mean(1), hidden.abs().mean(1),
        logits.double().T @ logits.double(), logits.mean(0), items,
    )  # fmt: skip
