"""Checkpoints quantised on disk: served from their own bytes, with the numbers transformers makes of them."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from coterie.errors import CheckpointError, UnsupportedError
from coterie.jobs.running.load import load
from coterie.jobs.running.verify import verify
from coterie.models import load_host, open_checkpoint, resident_experts
from coterie.testing.quantised import QUANTISED, save_tiny_quantised

IDS = [f"{family}-{method}" for family, method in QUANTISED]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(family, method, dtype, block)`` -> directory."""

    @functools.cache
    def make(family, method, dtype=torch.bfloat16, block=(8, 8)):
        path = tmp_path_factory.mktemp(f"{family}-{method}")
        block = {} if method == "mxfp4" else {"block": block}
        sizes = {"width": 64, "inner": 32, "experts": 8, "k": 3, "layers": 2}
        return save_tiny_quantised(path, family, method, dtype=dtype, shards=3, **block, **sizes)

    return make


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=ids).logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("family", "method"), QUANTISED, ids=IDS)
def test_any_budget_gives_the_bits_of_everything_resident(family, method, dtype, saved, prompt):
    # blocks that do not divide the matrices, as the makers of large checkpoints have them
    checkpoint = open_checkpoint(saved(family, method, dtype, (24, 20)))
    expected = logits_of(load_host(checkpoint, resident_experts), prompt)
    for slots in (1, 4, checkpoint.num_experts):
        host = load(checkpoint, context=32, batch=2, all_logits=True, slots=slots)
        assert torch.equal(logits_of(host, prompt), expected)
        host.coterie.store.check()
        host.coterie.close()


@pytest.mark.parametrize(("family", "method"), QUANTISED, ids=IDS)
@pytest.mark.filterwarnings("ignore")  # transformers warns that it dequantises
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, None), (torch.float32, 1e-4)], ids=["bf16", "fp32"])
def test_the_answers_are_those_of_transformers_own_loading(family, method, dtype, allowed, saved, prompt):
    from transformers import AutoModelForCausalLM

    path = saved(family, method, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    host = load(path, context=32, batch=2, all_logits=True, slots=4)
    for name, tensor in host.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    if allowed is not None:  # in bfloat16 a router may fall the other way where two experts are close
        found, expected = logits_of(host, prompt), logits_of(theirs, prompt)
        assert float((found - expected).abs().max() / expected.abs().max()) < allowed
    host.coterie.close()


@pytest.mark.parametrize(("family", "method"), QUANTISED, ids=IDS)
def test_slots_hold_the_quantised_bytes(family, method, saved):
    checkpoint = open_checkpoint(saved(family, method))
    assert checkpoint.bytes_per_expert < 0.7 * 2 * checkpoint.sites[0].shape.num_parameters()
    host = load(checkpoint, context=16, slots=3)
    budget = host.coterie.budget
    assert budget.expert_bytes == checkpoint.num_experts * checkpoint.bytes_per_expert
    assert budget.workspace >= checkpoint.sites[0].storage.scratch_bytes(torch.bfloat16)
    host.coterie.close()


@pytest.mark.parametrize(("family", "method"), QUANTISED, ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_verify_holds(family, method, saved):
    report = verify(saved(family, method), slots=3, new_tokens=3)
    assert report.holds
    assert report.transformers is not None


def test_methods_that_are_not_served_are_named_with_the_reason(saved, tmp_path):
    from shutil import copytree

    path = copytree(saved("qwen3_moe", "fp8"), tmp_path / "copy")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"quantised with gptq, which is not served: .*experts random"):
        open_checkpoint(path)


def test_a_config_that_forgot_the_method_is_refused(saved, tmp_path):
    from shutil import copytree

    path = copytree(saved("qwen3_moe", "fp8"), tmp_path / "copy")
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"stored as F8_E4M3, and config\.json does not say how to read that"):
        open_checkpoint(path)


def test_scales_of_one_expert_that_are_missing_are_named(saved, tmp_path):
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    path = copytree(saved("qwen3_moe", "fp8"), tmp_path / "copy")
    lost = "model.layers.1.mlp.experts.5.up_proj.weight_scale_inv"
    index = json.loads((path / "model.safetensors.index.json").read_text())
    shard = path / index["weight_map"].pop(lost)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = {name: tensor for name, tensor in load_file(shard).items() if name != lost}
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match="layer 1 lacks up_proj_scale_inv of expert 5"):
        open_checkpoint(path)
