"""A hosted model against the stock one: same logits, same tokens, none of the experts among its parameters."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import FFN, Experts
from coterie.models import load_host, open_checkpoint
from coterie.testing.checkpoints import FAMILIES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TORCH = {"F32": torch.float32, "BF16": torch.bfloat16}
# largest error over largest logit; bf16 rounds every row to 2**-9
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def plain(part):
    """One tensor by an independent path: the whole file into bytes, cut."""
    data = bytearray(part.path.read_bytes()[part.start : part.end])
    return torch.frombuffer(data, dtype=TORCH[part.dtype]).reshape(part.shape)


def in_memory(site):
    """A factory of ordinary experts."""
    experts = FFN(site.num_experts, site.shape)
    with torch.no_grad():
        for name, stack in experts.named_parameters():
            each = [plain(site.parts(expert)[name]) for expert in range(site.num_experts)]
            setattr(experts, name, torch.nn.Parameter(torch.stack(each).to(stack.device)))
    return experts


class Absent(Experts):
    """Experts that must not be asked."""

    def __init__(self, site):
        super().__init__()
        self.num_experts = site.num_experts

    def rows(self, x, routing):
        raise AssertionError("nobody computes here")


def stock(path):
    return AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("layout", ["per-expert", "stacked", "straddling"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers(family, dtype, layout, saved, prompt):
    path = saved(family, layout, DTYPES[dtype])
    host, reference = load_host(open_checkpoint(path), in_memory), stock(path)
    found, expected = host(prompt).logits, reference(prompt).logits
    assert found.dtype == expected.dtype == DTYPES[dtype]
    assert (found - expected).abs().max() <= TOLERANCE[DTYPES[dtype]] * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, saved, prompt, left_padded):
    path = saved(family)
    options = {"attention_mask": left_padded, "max_new_tokens": 8, "do_sample": False}
    found = load_host(open_checkpoint(path), in_memory).generate(prompt, **options)
    assert torch.equal(found, stock(path).generate(prompt, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_weights_are_bitwise_those_on_disk(family, saved):
    path = saved(family, dtype=torch.bfloat16)
    host, reference = load_host(open_checkpoint(path), Absent), stock(path)
    theirs = {**reference.state_dict(), **dict(reference.named_buffers())}
    ours = {**host.state_dict(), **dict(host.named_buffers())}
    assert ours.keys() == {name for name in theirs if ".experts." not in name}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_resident_bytes_are_the_dense_bytes_announced(family, dtype, tied, saved):
    checkpoint = open_checkpoint(saved(family, dtype=DTYPES[dtype], tie_word_embeddings=tied))
    host = load_host(checkpoint, Absent)
    tensors = {t.data_ptr(): t.nbytes for t in [*host.parameters(), *host.buffers()]}
    assert sum(tensors.values()) == checkpoint.dense_bytes
    every = [s.shape.weight_shapes().values() for s in checkpoint.sites for _ in range(s.num_experts)]
    itemsize = DTYPES[dtype].itemsize
    assert checkpoint.expert_bytes == sum(math.prod(shape) for shapes in every for shape in shapes) * itemsize


def test_dense_weights_are_not_mapped_from_the_file(saved):
    path = saved("olmoe")
    host = load_host(open_checkpoint(path), Absent)
    addresses = [p.data_ptr() for p in host.parameters()]
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[0].split("-") for line in maps if str(path) in line]
    spans = [(int(low, 16), int(high, 16)) for low, high in mapped]
    assert not any(low <= address < high for address in addresses for low, high in spans)


def test_the_factory_is_called_once_per_site_in_layer_order(saved):
    seen = []
    checkpoint = open_checkpoint(saved("deepseek_v3"))
    load_host(checkpoint, lambda site: seen.append(site.layer) or Absent(site))
    assert seen == [1, 2]


def test_another_dtype_for_the_dense_weights(saved, prompt):
    path = saved("qwen3_moe")
    host = load_host(open_checkpoint(path), in_memory, dtype=torch.bfloat16)
    assert {p.dtype for n, p in host.named_parameters() if ".experts." not in n} == {torch.bfloat16}
    assert host(prompt).logits.dtype == torch.bfloat16


def test_saving_refuses_and_says_what_to_do(saved, tmp_path):
    path = saved("olmoe")
    host = load_host(open_checkpoint(path), Absent)
    with pytest.raises(UnsupportedError, match=f"copy the directory it was loaded from, {path}"):
        host.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@torch.no_grad()
def test_router_logits_and_deepcopy(saved, prompt):
    path = saved("mixtral")
    host = load_host(open_checkpoint(path), in_memory)
    found = copy.deepcopy(host)(prompt, output_router_logits=True)
    expected = stock(path)(prompt, output_router_logits=True)
    torch.testing.assert_close(found.router_logits, expected.router_logits)
    torch.testing.assert_close(found.aux_loss, expected.aux_loss)
    assert torch.equal(host(prompt).logits, found.logits)


def test_a_host_leaves_stock_models_alone(saved, prompt):
    path = saved("mixtral")
    before = stock(path)(prompt, output_router_logits=True)
    load_host(open_checkpoint(path), in_memory)(prompt, output_router_logits=True)
    after = stock(path)(prompt, output_router_logits=True)
    assert len(after.router_logits) == len(before.router_logits) == 3
    assert torch.equal(after.logits, before.logits)


def test_modes_and_gradients(saved):
    host = load_host(open_checkpoint(saved("olmoe")), Absent)
    assert not host.training
    assert not any(p.requires_grad for p in host.parameters())
    assert host.train().training


def test_generation_defaults_are_those_beside_the_weights(saved, tmp_path):
    import json
    import shutil

    path = shutil.copytree(saved("olmoe"), tmp_path / "model")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "pad_token_id": 1}))
    checkpoint = open_checkpoint(path)
    assert load_host(checkpoint, Absent).generation_config.eos_token_id == [3, 4]
    assert checkpoint.eos_ids == {3, 4}
    (path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="delete it: it only holds defaults"):
        load_host(checkpoint, Absent)


def test_a_file_cut_after_opening(saved, tmp_path):
    import shutil

    path = shutil.copytree(saved("olmoe"), tmp_path / "model")
    checkpoint = open_checkpoint(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50_000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_host(checkpoint, Absent)
