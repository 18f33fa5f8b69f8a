"""Everything that can be wrong with MODEL: one sentence, what to do, and nothing big allocated."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError, UnsupportedError
from coterie.models import open_checkpoint

EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture
def single(saved, tmp_path):
    """A copy of an OLMoE in one file, to be spoilt."""
    return shutil.copytree(saved("olmoe"), tmp_path / "model")


@pytest.fixture
def sharded(saved, tmp_path):
    """A copy in many shards."""
    return shutil.copytree(saved("olmoe", "straddling"), tmp_path / "model")


def rewrite(path, change):
    """Run ``change`` on the tensors of a one-file checkpoint and write them back."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(path, *words, error=CheckpointError):
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text, text
    assert all(word in text for word in words), text
    assert text.endswith((".", "login", '"')), text


def test_no_such_directory(tmp_path):
    refused(str(tmp_path / "nowhere"), "There is no directory", "Check the path")


def test_no_such_hub_model_and_no_network():
    refused("nobody/nothing", "There is no directory nobody/nothing", "HF_HUB_OFFLINE")


def test_a_file_instead_of_a_directory(single):
    refused(single / "config.json", "is a file", "Give the directory")


def test_no_config(single):
    (single / "config.json").unlink()
    refused(single, "has no config.json")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_config_that_is_no_json_table(single, text):
    (single / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(single, "config.json")


def test_config_with_impossible_values(single):
    edit_json(single / "config.json", num_hidden_layers="many")
    refused(single, "config.json is not valid")


def test_no_weights(single):
    (single / "model.safetensors").unlink()
    refused(single, "no weights", "model.safetensors")


def test_only_pickled_weights(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    refused(single, "pickle", "python -c", "save_pretrained")


def test_only_gguf(single):
    (single / "model.safetensors").rename(single / "model.gguf")
    refused(single, "GGUF")


def test_shards_without_index(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    refused(sharded, "model.safetensors.index.json", "not copied whole")


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00030.safetensors").unlink(missing_ok=True)
    gone = sorted(sharded.glob("*.safetensors"))[0]
    gone.unlink()
    refused(sharded, "lacks the shard model-0000")


def test_truncated_shard(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[3]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(sharded, shard.name, "truncated")


def test_header_that_lies(single):
    weights = single / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"F64"', 1))
    refused(single, "damaged")


def test_weights_that_are_something_else(single):
    (single / "model.safetensors").write_bytes(b"<html>Not found</html>")
    refused(single, "no safetensors file")


def test_index_that_names_tensors_its_shards_lack(sharded):
    index = sharded / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    table["model.layers.0.extra"] = next(iter(table.values()))
    edit_json(index, weight_map=table)
    refused(sharded, "'model.layers.0.extra'", "different models")


@pytest.mark.parametrize("table", [None, {}, {"x": "../model.safetensors"}, {"x": 3}])
def test_index_that_is_not_valid(sharded, table):
    edit_json(sharded / "model.safetensors.index.json", weight_map=table)
    refused(sharded, "weight_map")


def test_missing_expert(single):
    rewrite(single, lambda tensors: tensors.pop(EXPERT))
    refused(single, "layer 1 lacks up_proj of expert 3", "1 of 8")


def test_missing_projection(single):
    rewrite(single, lambda t: [t.pop(name) for name in list(t) if "layers.1" in name and "down_proj" in name])
    refused(single, "layer 1 lacks down_proj of expert 0", "8 of 8")


def test_layer_without_any_expert(single):
    rewrite(single, lambda t: [t.pop(name) for name in list(t) if "layers.2.mlp.experts" in name])
    refused(single, "layer 2 lacks")


def test_missing_dense_tensor(single):
    rewrite(single, lambda tensors: tensors.pop("model.layers.1.self_attn.q_proj.weight"))
    refused(single, "lacks 'model.layers.1.self_attn.q_proj.weight'")


def test_missing_head_of_a_model_that_is_not_tied(single):
    rewrite(single, lambda tensors: tensors.pop("lm_head.weight"))
    refused(single, "lacks 'lm_head.weight'")


def test_more_experts_than_the_config_says(single):
    edit_json(single / "config.json", num_experts=4)
    rewrite(single, lambda t: t.update({n: v[:4].clone() for n, v in t.items() if n.endswith("gate.weight")}))
    refused(single, "layer 0 has expert 7, config.json says there are 4")


@pytest.mark.parametrize("name", [EXPERT, "model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"])
def test_wrong_shape(single, name):
    rewrite(single, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    refused(single, f"{name!r} is [", "config.json makes it [")


def test_stacked_experts_of_the_wrong_shape(saved, tmp_path):
    path = shutil.copytree(saved("olmoe", "stacked"), tmp_path / "model")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    rewrite(path, lambda tensors: tensors.update({name: tensors[name][:, :-2].clone()}))
    refused(path, f"{name!r} is [8, 30, 32]", "[8, 32, 32]")


def test_a_dense_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path)
    refused(tmp_path, "dense model (llama)", "coterie upcycle", "coterie split", error=UnsupportedError)


def test_a_mixture_family_without_any_expert_layer(tmp_path):
    from coterie.testing.checkpoints import save_tiny

    save_tiny(tmp_path, "qwen3_moe", layers=2, mlp_only_layers=[0, 1], tokenizer=False)
    refused(tmp_path, "dense model (qwen3_moe)", error=UnsupportedError)


@pytest.mark.parametrize("name", ["float17", "int8", 3])
def test_a_dtype_that_weights_cannot_have(single, name):
    edit_json(single / "config.json", dtype=name)
    refused(single, "unknown dtype", repr(name), "bfloat16")


def test_a_config_without_a_family(single):
    edit_json(single / "config.json", model_type=None)
    refused(single, "no model_type")


@pytest.mark.parametrize("k", [0, 9])
def test_more_experts_per_token_than_there_are(single, k):
    edit_json(single / "config.json", num_experts_per_tok=k)
    refused(single, f"sends a token to {k} of 8 experts")


def test_a_family_that_transformers_does_not_know(single):
    edit_json(single / "config.json", model_type="hyperexperts")
    refused(single, "'hyperexperts'", "does not know", "pip install -U transformers", error=UnsupportedError)


def test_a_family_that_is_not_served(single):
    edit_json(single / "config.json", model_type="diffusion_gemma")
    refused(single, "'diffusion_gemma'", "not served", "diffusion", error=UnsupportedError)


def test_weights_of_another_family(single):
    edit_json(single / "config.json", model_type="granitemoe", num_local_experts=8)
    refused(single, "incomplete", "model.layers.0.block_sparse_moe.router.weight")


def test_a_quantisation_method_in_the_config(single):
    edit_json(single / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(single, "quantised with gptq", "bfloat16", error=UnsupportedError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", [EXPERT, "model.layers.0.self_attn.q_proj.weight"])
def test_quantised_tensors(single, name, dtype):
    rewrite(single, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with safe_open(single / "model.safetensors", "pt") as file:
        code = file.get_slice(name).get_dtype()
    refused(single, "quantised", repr(name), code, error=UnsupportedError)
