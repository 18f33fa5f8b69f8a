"""The dense model with channels hidden is the plain model of the slice."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from coterie.errors import OptionError
from coterie.models.feed_forwards import find_ffns
from coterie.surgery.channels import Channels, LayerChannels
from coterie.surgery.masked import masked

INNER = 32
_LIKE_LLAMA = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**_LIKE_LLAMA), "llama with biases": LlamaConfig(**_LIKE_LLAMA, mlp_bias=True),
    "mistral": MistralConfig(**_LIKE_LLAMA), "qwen2": Qwen2Config(**_LIKE_LLAMA),
    "qwen3": Qwen3Config(**_LIKE_LLAMA, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=16, n_inner=INNER, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2
    ),
    "opt": OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=INNER, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.2,
    ),
}  # fmt: skip
# how the config of the slice calls its inner width
_NAMES = {"gpt2": "n_inner", "opt": "ffn_dim"}


def tiny(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for tensor in model.parameters():
        if tensor.dim() == 1:
            torch.nn.init.normal_(tensor, 0.5, 0.3)  # biases and norms that are not all zero or one
    return model


def cut(model, name, channels, expert):
    """A plain model of the same family with the channels of one expert alone."""
    import copy

    config = copy.deepcopy(model.config)
    setattr(config, _NAMES.get(name, "intermediate_size"), len(channels.layers[find_ffns(model)[0].name].of(expert)))
    small = AutoModelForCausalLM.from_config(config).eval()
    keep = {site.name: channels.layers[site.name].of(expert) for site in find_ffns(model)}
    state = {}
    for key, tensor in model.state_dict().items():
        for site in find_ffns(model):
            for part in (*site.ups, site.down):
                if key.startswith(f"{site.name}.{part}."):
                    rows = tensor.shape[0] == INNER
                    if part != site.down or tensor.dim() == 2:
                        tensor = tensor[keep[site.name]] if rows else tensor[..., keep[site.name]]
        state[key] = tensor
    small.load_state_dict(state)
    return small


@pytest.mark.parametrize("name", CONFIGS)
def test_masked_is_sliced(name):
    model = tiny(name)
    layers = {
        site.name: LayerChannels(torch.tensor([3, 9]), torch.randperm(INNER - 10)[:12].view(2, 6) + 10, INNER)
        for site in find_ffns(model)
    }  # fmt: skip
    channels = Channels(layers)
    assert len(layers) == 2
    ids = torch.randint(2, 64, (2, 9))
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        for expert in (0, 1):
            with masked(model, channels, expert):
                hidden = model(input_ids=ids).logits
            assert torch.allclose(hidden, cut(model, name, channels, expert)(input_ids=ids).logits, atol=1e-5)
            assert not torch.allclose(hidden, whole, atol=1e-3)
        assert torch.equal(model(input_ids=ids).logits, whole)


def test_channels_of_another_model_are_refused_and_nothing_stays():
    model = tiny("llama")
    own = torch.arange(8).view(2, 4)
    with (
        pytest.raises(OptionError, match="a model with 16"),
        masked(model, Channels({"model.layers.0.mlp": LayerChannels(own[0, :0], own, 16)}), 0),
    ):
        pass
    with (
        pytest.raises(OptionError, match="has no such layer"),
        masked(model, Channels({"model.layers.7.mlp": LayerChannels(own[0, :0], own, INNER)}), 0),
    ):
        pass
    with (
        pytest.raises(OptionError, match="0 to 1"),
        masked(model, Channels({"model.layers.0.mlp": LayerChannels(own[0, :0], own, INNER)}), 2),
    ):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gradients_reach_the_channels_that_are_on():
    model = tiny("llama")
    own = torch.arange(8).view(2, 4)
    channels = Channels({site.name: LayerChannels(own[0, :0], own, INNER) for site in find_ffns(model)})
    with masked(model, channels, 1):
        model(input_ids=torch.arange(2, 9)[None]).logits.sum().backward()
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    assert gradient[:, 4:8].any()
    assert not gradient[:, :4].any()
    assert not gradient[:, 8:].any()
