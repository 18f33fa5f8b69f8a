"""What stands in the place of a dense feed-forward: its gate, its experts, where it goes, and what the record says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig

from coterie.errors import CheckpointError
from coterie.models import experts_from, find_sites, router_facts
from coterie.models.bridge import ExpertsBridge
from coterie.models.compat import called_body, ffn_shape, is_experts
from coterie.models.dense_mixture import DenseMixture, insert_mixtures, take_place
from coterie.models.stored_mixture import StoredMixture

SHAPES = [
    {"gated": True, "bias": False, "activation": "silu"},
    {"gated": True, "bias": True, "activation": "gelu"},
    {"gated": False, "bias": True, "activation": "relu"},
    {"gated": False, "bias": False, "activation": "relu2"},
]


def stored(**options):
    return StoredMixture(**{"blocks": ("mlp",), "experts": 4, "top_k": 2, "width": 8, "inner": 6, **options})


def drawn(mixture):
    with torch.no_grad():
        for tensor in mixture.parameters():
            tensor.normal_()
    return mixture.eval()


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("shared", [0, 5])
def test_it_is_the_sum_of_its_experts(options, shared):
    mixture = drawn(DenseMixture(stored(shared=shared, **options)))
    x = torch.randn(2, 3, 8)
    logits = (x @ mixture.gate.weight.T).softmax(-1)
    shape = stored(**options).shape()
    wanted = torch.zeros_like(x) if mixture.shared_expert is None else mixture.shared_expert(x)
    for batch, item in ((b, i) for b in range(2) for i in range(3)):
        best = logits[batch, item].topk(2)
        for weight, expert in zip(best.values / best.values.sum(), best.indices, strict=True):
            own = {name: getattr(mixture.experts, name)[expert] for name in shape.weight_shapes()}
            up = "gate_up_proj" if shape.gated else "up_proj"
            inside = shape.hidden(own[up] @ x[batch, item] + own.get(f"{up}_bias", 0))
            wanted[batch, item] += weight * (own["down_proj"] @ inside + own.get("down_proj_bias", 0))
    torch.testing.assert_close(mixture(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", SHAPES)
def test_ours_take_the_place_of_its_experts(options):
    mixture = drawn(DenseMixture(stored(**options)))
    assert is_experts(mixture.experts)
    assert ffn_shape(mixture.experts) == stored(**options).shape()
    x = torch.randn(5, 8)
    before = mixture(x)
    mixture.experts = ExpertsBridge(experts_from(mixture.experts), mixture.experts)
    torch.testing.assert_close(mixture(x), before, rtol=1e-4, atol=1e-4)


def test_an_index_of_e_is_no_expert():
    experts = drawn(DenseMixture(stored())).experts
    out = experts(torch.randn(2, 8), torch.tensor([[4, 4], [0, 4]]), torch.rand(2, 2))
    assert not out[0].any()
    assert out[1].any()


def opt():
    config = OPTConfig(
        vocab_size=64, hidden_size=8, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=8,
        max_position_embeddings=32,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_it_goes_where_it_is_told_and_is_found_there():
    model = opt()
    layers = [f"model.decoder.layers.{layer}" for layer in range(2)]
    places = {"blocks": tuple(f"{layer}.fc1" for layer in layers), "gated": False, "bias": True, "activation": "relu"}
    empty = tuple(f"{layer}.{child}" for layer in layers for child in ("activation_fn", "fc2"))
    insert_mixtures(model, stored(empty=empty, **places), "there")
    sites = find_sites(model)
    assert [(site.name, site.num_experts, site.top_k) for site in sites] == [
        (f"{layer}.fc1.experts", 4, 2) for layer in layers
    ]
    facts = router_facts(model, sites[0])
    assert (facts.score, facts.renormalised, facts.scale) == ("softmax", True, 1.0)
    logits = model(torch.arange(6)[None]).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("path", ["model.nowhere", "model.decoder.layers.9.fc1", ""])
def test_a_place_that_is_none(path):
    with pytest.raises(CheckpointError, match="of different models"):
        take_place(opt(), [(path, nn.Identity())], (), "coterie.json")


def test_what_is_called_with_tokens():
    model = opt()
    assert called_body(model) is model.model.decoder


def test_the_record_comes_back():
    made = stored(shared=3, empty=("a", "b"), gated=False)
    assert StoredMixture.from_record(made.as_record(), "there") == made
    assert made.site("mlp") == "mlp.experts"


@pytest.mark.parametrize(
    "change",
    [{"top_k": 5}, {"top_k": 0}, {"experts": True}, {"width": 0}, {"inner": -1}, {"blocks": 3}, {"more": 1}],
)
def test_a_record_that_cannot_be(change):
    with pytest.raises(CheckpointError, match="describes a mixture that cannot be made"):
        StoredMixture.from_record({**stored().as_record(), **change}, "there")
