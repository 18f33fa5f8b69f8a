"""What an opened checkpoint says about itself."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from coterie.models import open_checkpoint
from coterie.models.tensors import read_tensor
from coterie.testing.checkpoints import FAMILIES, save_tiny

# which projections each family's own names mean
ON_DISK = {"mixtral": ("w1", "w3", "w2")}


def on_disk(path, name):
    """A tensor by its name, through safetensors."""
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118 (no mapping)
                return opened.get_tensor(name)
    raise KeyError(name)


def expert_name(family, layer, expert, projection):
    block = "block_sparse_moe" if family == "mixtral" else "mlp"
    return f"model.layers.{layer}.{block}.experts.{expert}.{projection}.weight"


@pytest.mark.parametrize("layout", ["per-expert", "straddling"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_tensors_of_that_expert(family, layout, saved):
    path = saved(family, layout)
    checkpoint = open_checkpoint(path)
    names = ON_DISK.get(family, ("gate_proj", "up_proj", "down_proj"))
    for site in checkpoint.sites:
        for expert in (0, 1, site.num_experts - 1):
            parts = site.parts(expert)
            assert list(parts) == ["gate_proj", "up_proj", "down_proj"] == list(site.shape.weight_shapes())
            for part, name in zip(parts.values(), names, strict=True):
                assert torch.equal(read_tensor(part), on_disk(path, expert_name(family, site.layer, expert, name)))


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_stacked_checkpoint_are_slices(family, saved):
    path = saved(family, "stacked")
    for site in open_checkpoint(path).sites:
        assert site.shape.fused
        for name in ("gate_up_proj", "down_proj"):
            stacked = on_disk(path, f"{site.name}.{name}")
            for expert in range(site.num_experts):
                assert torch.equal(read_tensor(site.parts(expert)[name]), stacked[expert])


def test_an_expert_may_straddle_shards(saved):
    sites = open_checkpoint(saved("olmoe", "straddling")).sites
    files = [{part.path for part in site.parts(e).values()} for site in sites for e in range(site.num_experts)]
    assert any(len(each) > 1 for each in files)


@pytest.mark.parametrize("family", FAMILIES)
def test_facts(family, saved):
    checkpoint = open_checkpoint(saved(family, dtype=torch.bfloat16))
    first = 1 if family == "deepseek_v3" else 0
    assert [site.layer for site in checkpoint.sites] == list(range(first, 3))
    assert [site.name for site in checkpoint.sites] == [f"model.layers.{i}.mlp.experts" for i in range(first, 3)]
    assert {(site.num_experts, site.top_k) for site in checkpoint.sites} == {(8, 3)}
    assert (checkpoint.sites[0].shape.width, checkpoint.sites[0].shape.inner) == (32, 16)
    assert checkpoint.bytes_per_expert == 3 * 32 * 16 * 2
    assert checkpoint.expert_bytes == checkpoint.num_experts * checkpoint.bytes_per_expert
    assert (checkpoint.dtype, checkpoint.compute_dtype) == (torch.bfloat16, torch.bfloat16)
    assert (checkpoint.context_length, checkpoint.vocab_size, checkpoint.eos_ids) == (512, 320, {0})


def test_layers_that_are_dense_on_purpose(tmp_path):
    save_tiny(tmp_path, "qwen3_moe", layers=4, mlp_only_layers=[1], decoder_sparse_step=2, tokenizer=False)
    assert [site.layer for site in open_checkpoint(tmp_path).sites] == [3]


def test_tied_embeddings_count_once(saved):
    apart, tied = (open_checkpoint(saved("olmoe", tie_word_embeddings=tied)) for tied in (False, True))
    assert apart.dense_bytes - tied.dense_bytes == 320 * 32 * 4
    assert "lm_head.weight" not in tied.dense


def test_tensors_the_model_does_not_have_are_ignored(saved, tmp_path):
    path = shutil.copytree(saved("deepseek_v3"), tmp_path / "model")
    before = open_checkpoint(path)
    tensors = load_file(path / "model.safetensors")
    further = {name.replace("layers.2", "layers.3"): t.clone() for name, t in tensors.items() if "layers.2" in name}
    save_file({**tensors, **further, "model.layers.3.eh_proj.weight": torch.zeros(3)}, path / "model.safetensors")
    after = open_checkpoint(path)
    assert len(after.ranges) > len(before.ranges)
    assert after.dense.keys() == before.dense.keys()
    assert (after.expert_bytes, len(after.sites)) == (before.expert_bytes, len(before.sites))


def test_the_fingerprint_knows_config_and_layout(saved, tmp_path):
    path = saved("olmoe")
    copied = shutil.copytree(path, tmp_path / "model")
    assert open_checkpoint(copied).fingerprint() == open_checkpoint(path).fingerprint()
    (copied / "config.json").write_text((copied / "config.json").read_text() + "\n")
    prints = [open_checkpoint(p).fingerprint() for p in (path, copied, saved("olmoe", "stacked"), saved("mixtral"))]
    assert len(set(prints)) == 4


def test_a_config_without_dtype(saved, tmp_path):
    import json

    path = shutil.copytree(saved("olmoe", dtype=torch.bfloat16), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config.pop("dtype")
    (path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(path).compute_dtype == torch.bfloat16


class RealMemory(TorchDispatchMode):
    """Adds up the bytes of real tensors that operators return."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.total += tensor.nbytes
        return out


def test_opening_allocates_nothing_big(saved):
    path = saved("olmoe", width=128)
    with RealMemory() as memory:
        checkpoint = open_checkpoint(path)
    assert memory.total < 0.05 * checkpoint.dense_bytes
    with RealMemory() as memory:
        read_tensor(next(checkpoint.sites[0].ranges()))
    assert memory.total > 0  # the ruler measures
