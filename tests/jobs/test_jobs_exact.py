"""The promise: under any budget, the bits of everything resident."""

from __future__ import annotations

import pytest
import torch

from coterie.jobs.running.load import load
from coterie.models.checkpoint import open_checkpoint
from coterie.models.language import load_host
from coterie.models.linears import use_kernel
from coterie.models.resident import resident_experts
from coterie.testing.checkpoints import FAMILIES, save_tiny
from coterie.testing.families import save_tiny_family, tiny_family

EXPERTS = 16
STEPS = 3
# a layout of each kind: stacked and fused, transposed, interleaved with biases, without a gate
LAYOUTS = ("granitemoe", "aria", "gpt_oss", "nemotron_h")


def batch_of(size, length=7):
    return torch.randint(2, 300, (size, length), generator=torch.Generator().manual_seed(size))


@torch.no_grad()
def logits_of(model, ids, steps=STEPS):
    """Prefill and forced decode steps, as one [B, N, V] tensor."""
    out = model(input_ids=ids[:, :-steps], use_cache=True)
    every = [out.logits]
    for step in range(steps, 0, -1):
        out = model(input_ids=ids[:, -step, None], past_key_values=out.past_key_values, use_cache=True)
        every.append(out.logits)
    return torch.cat(every, 1)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", [*FAMILIES, *LAYOUTS])
def test_any_budget_gives_the_bits_of_everything_resident(family, dtype, k, tmp_path):
    if family in FAMILIES:
        path = save_tiny(tmp_path / "model", family, dtype=dtype, experts=EXPERTS, k=k, shards=3, tokenizer=False)
    else:
        path = save_tiny_family(tmp_path / "model", tiny_family(family, dtype=dtype, experts=EXPERTS, k=k), shards=3)
    checkpoint = open_checkpoint(path)
    resident = load_host(checkpoint, resident_experts)
    expected = {size: logits_of(resident, batch_of(size)) for size in (1, 3, 8)}
    everything = sum(site.num_experts for site in checkpoint.sites)
    for slots in (1, 2, k + 1, everything // 2, everything):
        host = load(checkpoint, context=16, batch=8, all_logits=True, slots=slots)
        for size, logits in expected.items():
            assert torch.equal(logits_of(host, batch_of(size)), logits), (slots, size)
        host.coterie.store.check()
        assert host.coterie.store.resident <= slots
        host.coterie.close()


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "nemotron_h"])
def test_compiled_or_not_the_budget_changes_no_bit(family, tmp_path):
    """The kernel for few rows has bits of its own, and they are the same wherever an expert's weights are."""
    model = tiny_family(family, dtype=torch.bfloat16, experts=EXPERTS, k=4)
    checkpoint = open_checkpoint(save_tiny_family(tmp_path / "model", model, shards=3))
    for compiled in (False, True):
        resident = load_host(checkpoint, resident_experts)
        use_kernel(resident, compiled)
        expected = logits_of(resident, batch_of(2), steps=5)
        for slots in (1, 9):
            host = load(checkpoint, context=16, batch=2, all_logits=True, slots=slots, compile=compiled)
            assert torch.equal(logits_of(host, batch_of(2), steps=5), expected), (compiled, slots)
            host.coterie.close()


@pytest.mark.parametrize("policy", ["lru", "lfu", "stale-first"])
@pytest.mark.parametrize("prefetch", ["none", "previous-step", "next-gate"])
def test_policy_and_prefetch_move_bytes_only(policy, prefetch, tmp_path):
    checkpoint = open_checkpoint(save_tiny(tmp_path / "model", "olmoe", experts=EXPERTS, k=4, layers=4))
    expected = logits_of(load_host(checkpoint, resident_experts), batch_of(2), steps=5)
    host = load(checkpoint, context=16, batch=2, slots=9, policy=policy, prefetch=prefetch, readers=2)
    assert torch.equal(logits_of(host, batch_of(2), steps=5), expected)
    stats = host.coterie.stats()
    assert stats.misses > 0
    host.coterie.store.check()
    host.coterie.close()


def test_generation_gives_the_tokens_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    path = save_tiny(tmp_path / "model", "qwen3_moe", experts=EXPERTS, k=4)
    ids = batch_of(2)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = AutoModelForCausalLM.from_pretrained(path).generate(ids, **options)
    host = load(path, context=32, batch=2, slots=5)
    assert torch.equal(host.generate(ids, **options), expected)
    host.coterie.close()
