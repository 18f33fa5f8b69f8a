"""Mean inputs of layers over prompts: what a plain forward says, prompt by prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from coterie.errors import CheckpointError, PromptError
from coterie.models.feed_forwards import find_ffns
from coterie.models.prompt_states import mean_embeddings, mean_inputs
from coterie.models.prompts import Prompts
from coterie.testing.checkpoints import tiny_tokenizer

GROUPS = {"code": ["def main():", "import os"], "prose": ["the experts meet"]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=16, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def prompts():
    return Prompts(tiny_tokenizer(), 512)


def blocks(model):
    return {site.name: site.block for site in find_ffns(model)}


def inputs_of(model, prompts, text):
    """What the feed-forward of layer 1 reads."""
    heard = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: heard.append(args[0][0]))
    with torch.no_grad():
        model(input_ids=prompts.encode(text, raw=True))
    handle.remove()
    return heard[0]


def test_means_are_over_tokens_then_over_prompts(model, prompts):
    found = mean_inputs(model, blocks(model), prompts, GROUPS)
    assert list(found) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    for group, texts in GROUPS.items():
        wanted = torch.stack([inputs_of(model, prompts, text)[1:].mean(0) for text in texts]).mean(0)
        assert torch.allclose(found["model.layers.1.mlp"][group], wanted, atol=1e-6)


def test_or_over_last_tokens(model, prompts):
    found = mean_inputs(model, blocks(model), prompts, GROUPS, pooling="last")
    wanted = torch.stack([inputs_of(model, prompts, text)[-1] for text in GROUPS["code"]]).mean(0)
    assert torch.allclose(found["model.layers.1.mlp"]["code"], wanted, atol=1e-6)


def test_a_single_token_counts_although_it_is_the_first(model, prompts):
    found = mean_inputs(model, blocks(model), prompts, {"one": ["x"]})
    assert torch.allclose(found["model.layers.1.mlp"]["one"], inputs_of(model, prompts, "x")[0], atol=1e-6)


def test_embeddings_need_no_model(model, prompts):
    table = model.get_input_embeddings().weight.detach()
    ids = [prompts.encode(text, raw=True)[0] for text in GROUPS["code"]]
    wanted = torch.stack([table[each].mean(0) for each in ids]).mean(0)
    assert torch.allclose(mean_embeddings(table, prompts, GROUPS)["code"], wanted, atol=1e-6)


def test_nothing_stays_behind(model, prompts):
    mean_inputs(model, blocks(model), prompts, GROUPS)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("groups", "what"), [({"code": []}, "no prompts"), ({"code": ["x", " \n"]}, "is empty")])
def test_prompts_that_are_none(model, prompts, groups, what):
    with pytest.raises(PromptError, match=what):
        mean_inputs(model, blocks(model), prompts, groups)


def test_a_prompt_longer_than_the_context(model):
    with pytest.raises(PromptError, match="context is 4"):
        mean_inputs(model, blocks(model), Prompts(tiny_tokenizer(), 4), GROUPS)


def test_numbers_that_are_not_finite(model, prompts):
    table = model.get_input_embeddings().weight.data
    kept = table.clone()
    table[:] = torch.nan
    try:
        with pytest.raises(CheckpointError, match="not finite"):
            mean_inputs(model, blocks(model), prompts, GROUPS)
    finally:
        table[:] = kept
