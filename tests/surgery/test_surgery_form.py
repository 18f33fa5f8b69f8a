"""Feed-forwards of the dense families: which are found, what they compute, and why the others are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from coterie.errors import UnsupportedError
from coterie.models import find_ffns
from coterie.models.compat import quiet
from coterie.models.feed_forwards import FFNSite
from coterie.surgery.form import form_of

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 1, "head_dim": 8, "n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 256,
    "ffn_dim": 64, "word_embed_proj_dim": 32, "d_model": 32, "attention_heads": 4, "num_layers": 2, "rotary_dim": 4,
    "n_layers": 2, "n_heads": 4,
}  # fmt: skip
GATED, PLAIN = ("gate_proj", "up_proj", "down_proj"), ("up_proj", "down_proj")
# family -> weights, activation, biases, whether it lies in the layer itself
FOUND = {
    "llama": (GATED, "silu", False, False),
    "mistral": (GATED, "silu", False, False),
    "qwen2": (GATED, "silu", False, False),
    "qwen3": (GATED, "silu", False, False),
    "gemma": (GATED, "gelu_new", False, False),
    "gemma2": (GATED, "gelu_new", False, False),
    "gemma3_text": (GATED, "gelu_new", False, False),
    "phi3": (("gate_up_proj", "down_proj"), "silu", False, False),
    "glm": (("gate_up_proj", "down_proj"), "silu", False, False),
    "olmo": (GATED, "silu", False, False),
    "olmo2": (GATED, "silu", False, False),
    "stablelm": (GATED, "silu", False, False),
    "granite": (GATED, "silu", False, False),
    "cohere": (GATED, "silu", False, False),
    "smollm3": (GATED, "silu", False, False),
    "helium": (GATED, "silu", False, False),
    "phi": (PLAIN, "gelu_new", True, False),
    "gpt2": (PLAIN, "gelu_new", True, False),
    "gpt_bigcode": (PLAIN, "gelu_new", True, False),
    "gpt_neox": (PLAIN, "gelu", True, False),
    "gptj": (PLAIN, "gelu_new", True, False),
    "codegen": (PLAIN, "gelu_new", True, False),
    "falcon": (PLAIN, "gelu", False, False),
    "starcoder2": (PLAIN, "gelu_new", True, False),
    "nemotron": (PLAIN, "relu2", False, False),
    "persimmon": (PLAIN, "relu2", True, False),
    "opt": (PLAIN, "relu", True, True),
    "xglm": (PLAIN, "gelu", True, True),
    "biogpt": (PLAIN, "gelu", True, True),
}
REFUSED = {
    "bloom": r"BloomMLP\) is given more than its input \(residual\)",
    "mpt": r"MptMLP\) is given more than its input \(residual\)",
    "bitnet": r"BitNetMLP\) has more weights than its matrices \(ffn_sub_norm\.weight\)",
    "apertus": r"ApertusMLP\) has more weights than its matrices \(act_fn\.alpha_p",
}


def dense(kind):
    """A skeleton of a family, tiny."""
    known = CONFIG_MAPPING[kind]().to_dict()
    fields = {name: value for name, value in SIZES.items() if name in known}
    if "head_dim" in known and known["head_dim"] is None:
        fields.pop("head_dim")
    if kind == "gemma3_text":
        fields["layer_types"] = ["sliding_attention", "full_attention"]
    with quiet(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).eval()


@pytest.mark.parametrize("kind", FOUND)
def test_families_whose_feed_forwards_are_found(kind):
    weights, activation, bias, loose = FOUND[kind]
    sites = find_ffns(dense(kind))
    assert [site.layer for site in sites] == [0, 1]
    form = form_of(sites[1], kind)
    found = (set(form.roles), form.activation, form.bias, bool(form.between))
    assert found == (set(weights), activation, bias, loose)
    assert form.shape(32, sites[1].inner).num_parameters() > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_families_that_compute_more_are_refused(kind):
    site = find_ffns(dense(kind))[0]
    with pytest.raises(UnsupportedError, match=REFUSED[kind]):
        form_of(site, "there")


def test_what_lies_loose_in_a_layer_beside_a_feed_forward_is_none():
    names = [site.name for site in find_ffns(dense("gemma4_text"))]
    assert names
    assert all(name.endswith("mlp") for name in names)


class Block(nn.Module):
    """Something like a feed-forward."""

    def __init__(self, forward, bias=(False, False, False)):
        super().__init__()
        self.one, self.two = nn.Linear(8, 16, bias=bias[0]), nn.Linear(8, 16, bias=bias[1])
        self.three = nn.Linear(16, 8, bias=bias[2])
        self.formula = forward

    def forward(self, x):
        return self.formula(self, x)


def site_of(block):
    return FFNSite("layers.0.mlp", 0, 16, ("one", "two"), "three", block)


def test_the_gate_is_found_by_what_it_does_not_by_its_name():
    block = Block(lambda self, x: self.three(self.one(x) * torch.sigmoid(self.two(x))))
    form = form_of(site_of(block), "there")
    assert dict(form.roles) == {"gate_proj": "two", "up_proj": "one", "down_proj": "three"}
    assert (form.activation, form.gated, form.fused) == ("sigmoid", True, False)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: 2 * self.three(self.one(x).relu() * self.two(x)), "computes something else"),
        (lambda self, x: x + self.three(self.one(x).relu() * self.two(x)), "computes something else"),
        (lambda self, x: self.three(self.one(x).sin() * self.two(x)), "computes something else"),
        (lambda self, x: self.missing, "computes with more than its matrices"),
    ],
)
def test_a_factor_a_residual_or_another_function_is_refused(forward, reason):
    with pytest.raises(UnsupportedError, match=reason):
        form_of(site_of(Block(forward)), "there")


def test_biases_in_some_matrices_alone_are_refused():
    block = Block(lambda self, x: self.three(self.one(x).relu() * self.two(x)), bias=(True, False, False))
    with pytest.raises(UnsupportedError, match=r"some matrices of the feed-forward layers\.0\.mlp have biases"):
        form_of(site_of(block), "there")
