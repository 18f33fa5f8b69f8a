"""Sites are found by the shape of things, on any device."""

from __future__ import annotations

import pytest
import torch

from coterie.models import find_sites, load_host, open_checkpoint, resident_experts
from coterie.models.compat import skeleton
from coterie.testing.checkpoints import FAMILIES, tiny_config, tiny_model


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_a_stock_model(family, device):
    sizes = {"layers": 12, "experts": 8, "k": 3}
    model = tiny_model(family, **sizes) if device == "cpu" else skeleton(tiny_config(family, **sizes), torch.float32)
    sites = find_sites(model)
    assert [site.layer for site in sites] == list(range(1 if family == "deepseek_v3" else 0, 12))
    for site in sites:
        block = model.model.layers[site.layer].mlp
        assert site.experts is block.experts is model.get_submodule(site.name)
        assert site.gate is block.gate is model.get_submodule(site.gate_name)
        assert model.get_submodule(site.block_name) is block
        assert (site.num_experts, site.top_k) == (8, 3)


def test_sites_of_a_hosted_model_are_those_of_its_checkpoint(saved):
    checkpoint = open_checkpoint(saved("deepseek_v3"))
    sites = find_sites(load_host(checkpoint, resident_experts))
    facts = [(site.name, site.layer, site.num_experts, site.top_k) for site in sites]
    assert facts == [(site.name, site.layer, site.num_experts, site.top_k) for site in checkpoint.sites]


def test_a_block_alone_and_a_model_without_any():
    block = tiny_model("olmoe").model.layers[0].mlp
    assert [(site.name, site.gate_name, site.block_name) for site in find_sites(block)] == [("experts", "gate", "")]
    assert find_sites(torch.nn.Linear(2, 2)) == []
