"""What is known of routers, and layers computed apart from their model, held against the models themselves."""

from __future__ import annotations

import pytest
import torch

from coterie.models.checkpoint import open_checkpoint
from coterie.models.find import find_sites
from coterie.surgery.layer import read_layer
from coterie.surgery.router_knowledge import is_linear, router_knowledge
from coterie.surgery.sample import sample_of
from coterie.testing.families import save_tiny_family, tiny_family

KNOWN = (
    "mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss", "glm4_moe", "ernie4_5_moe", "jamba", "hy_v3",
    "qwen2_moe", "granitemoe", "dbrx",
)  # fmt: skip
UNKNOWN = {
    "gemma4": "which has no row for each expert",
    "phimoe": "", "llama4": "", "zaya": "some of its routes lead to no expert",
    "deepseek_v4": "chooses by token id",
}  # fmt: skip


@pytest.fixture
def opened(tmp_path):
    """A family's name -> the tiny model and its checkpoint."""

    def make(family):
        model = tiny_family(family)
        return model, open_checkpoint(save_tiny_family(tmp_path / family, model))

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", KNOWN)
def test_layers_are_computed_as_the_model_does(family, opened):
    model, checkpoint = opened(family)
    knowledge, seen = router_knowledge(checkpoint), {}
    for site in find_sites(model):
        site.experts.register_forward_hook(lambda module, args, output, name=site.name: seen.update({name: output}))
        model.get_submodule(site.block_name).register_forward_pre_hook(
            lambda module, args, name=site.name: seen.update({f"{name} in": args[0]})
        )
    with torch.no_grad():
        model(input_ids=torch.arange(2, 26)[None])
    for site in checkpoint.sites:
        layer = read_layer(checkpoint, site)
        inputs = seen[f"{site.name} in"].reshape(-1, layer.shape.width)
        sample = sample_of(layer, inputs, knowledge[site.name].decide)
        expected = seen[site.name].reshape(inputs.shape)
        torch.testing.assert_close(sample.output, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
        assert knowledge[site.name].limits.refusal == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", UNKNOWN)
def test_what_is_not_known_is_not_computed(family, opened):
    _, checkpoint = opened(family)
    known = router_knowledge(checkpoint)[checkpoint.sites[0].name]
    layer = read_layer(checkpoint, checkpoint.sites[0])
    assert sample_of(layer, torch.zeros(2, layer.shape.width), known.decide) is None
    assert UNKNOWN[family] in known.limits.refusal
    assert bool(UNKNOWN[family]) == bool(known.limits.refusal)


def test_limits_follow_from_groups(opened):
    _, checkpoint = opened("deepseek_v3")
    (limits,) = {known.limits for known in router_knowledge(checkpoint).values()}
    assert (limits.least, limits.blocks) == (4, 2)
    assert limits.refusal == ""


def test_a_gate_is_left_as_it_is():
    site = find_sites(tiny_family("mixtral"))[0]
    before = site.gate.weight.clone()
    assert is_linear(site)
    assert torch.equal(site.gate.weight, before)
