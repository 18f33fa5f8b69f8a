"""What a plan foretells is what a run reads: within 30 %, alignment included, whatever policy and budget."""

from __future__ import annotations

import json

import pytest
import torch

from coterie.jobs.running.load import load
from coterie.jobs.running.plan import plan
from coterie.jobs.tracing.record import record
from coterie.models.checkpoint import open_checkpoint
from coterie.models.find import find_sites
from coterie.models.prompts import Prompts
from coterie.models.trace import trace
from coterie.routing import RoutePlan
from coterie.serve import Engine, Sampling
from coterie.store.measure import Speed, Speeds
from coterie.testing.checkpoints import save_tiny

SPEEDS = Speeds(Speed(1e9, "made up"), Speed(1e10, "made up"), 2e-6)
ALLOWED = 0.3
PROMPT, DECODE = 24, 40
TEXT = (
    "The store holds the experts of a model. Each layer asks for a few of them, and what is missing is read from the "
    "disk while the others compute. When a slot is needed, the policy says who goes."
)


def planned(checkpoint, memory, **options):
    return plan(checkpoint, memory, **{"context": 256, "speeds": SPEEDS, **options})


def memory_of(checkpoint, share, context=256):
    """A budget that keeps about this share of the experts resident."""
    budget = planned(checkpoint, "1KiB", context=context).budget
    return budget.fixed + int(share * budget.experts) * budget.slot_bytes


def close(foretold, measured):
    assert foretold == pytest.approx(measured, rel=ALLOWED), (foretold, measured)


@pytest.mark.parametrize("policy", ["stale-first", "lru", "lfu"])
@pytest.mark.parametrize("share", [0.15, 0.5])
def test_generation_with_the_pocket_model(policy, share, pocket, tmp_path):
    checkpoint = open_checkpoint(pocket)
    prompts = Prompts.of(checkpoint.path, checkpoint.context_length)
    ids = prompts.encode(TEXT, raw=True)[:, :PROMPT]
    memory = memory_of(checkpoint, share)
    host = load(checkpoint, memory, context=256, policy=policy)
    engine = Engine(host, prompts)
    with trace(host) as recording:
        done = engine.generate(ids, Sampling(max_new_tokens=DECODE, temperature=1, seed=1))
    recording.plan().save(tmp_path / "trace")
    measured = host.coterie.stats().bytes_read
    host.coterie.close()

    found = planned(checkpoint, memory, trace=tmp_path / "trace", prompt=PROMPT)
    assert found.routes.prompt == PROMPT
    assert len(found.routes.decode) == done.new_tokens - 1
    one = next(one for one in found.forecasts if one.policy == policy)
    close(one.prefill_bytes + one.bytes_per_token * len(found.routes.decode), measured)


class Forced:
    """Routes from a table [P, L, K] instead of the gates' own: each forward takes the next positions."""

    def __init__(self, host, table, weights):
        self.table, self.weights, self.position, self.length = table, weights, 0, 0
        host.register_forward_pre_hook(self._begin, with_kwargs=True)
        for layer, site in enumerate(find_sites(host)):
            site.gate.register_forward_hook(lambda gate, args, out, layer=layer: self._choose(out, layer))

    def _begin(self, host, args, kwargs):
        self.position, self.length = self.position + self.length, kwargs["input_ids"].shape[1]

    def _choose(self, out, layer):
        here = slice(self.position, self.position + self.length)
        return out[0], self.weights[here, layer].to(out[1].dtype), self.table[here, layer]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Random weights, experts of 24 KiB that straddle files and begin nowhere near a block."""
    path = tmp_path_factory.mktemp("measured") / "tiny"
    return open_checkpoint(
        save_tiny(path, "olmoe", dtype=torch.bfloat16, layers=4, experts=16, k=2, width=64, inner=64, shards=3)
    )


@torch.no_grad()
def run(checkpoint, memory, policy, *, forced=False):
    """(bytes of the prompt, bytes per token of the answer) as the store counts them."""
    draw = torch.Generator().manual_seed(5)
    layers, experts, k = len(checkpoint.sites), checkpoint.sites[0].num_experts, checkpoint.sites[0].top_k
    ids = torch.randint(2, 300, (1, PROMPT + DECODE), generator=draw)
    host = load(checkpoint, memory, context=256, policy=policy)
    if forced:
        table = torch.rand(PROMPT + DECODE, layers, experts, generator=draw).argsort(-1)[..., :k]
        Forced(host, table, torch.full(table.shape, 1 / k))
    store = host.coterie.store
    cache = host(input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
    prompt = store.stats().bytes_read
    for token in ids[0, PROMPT:]:
        host(input_ids=token[None, None], past_key_values=cache, use_cache=True)
    total = store.stats().bytes_read
    host.coterie.close()
    return prompt, (total - prompt) / DECODE


@pytest.mark.parametrize("policy", ["stale-first", "lru", "lfu"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_uniform_routes_forced(policy, share, synthetic):
    memory = memory_of(synthetic, share)
    prompt, token = run(synthetic, memory, policy, forced=True)
    found = planned(synthetic, memory, prompt=PROMPT)
    one = next(one for one in found.forecasts if one.policy == policy)
    close(one.prefill_bytes, prompt)
    close(one.bytes_per_token, token)


def test_alignment_is_counted(synthetic):
    """A reader of 24 KiB that begins between blocks reads 28: weights alone would foretell too little."""
    memory = planned(synthetic, "1KiB").budget.floor
    _, token = run(synthetic, memory, "lru", forced=True)
    one = planned(synthetic, memory, prompt=PROMPT).forecasts[0]
    uses = len(synthetic.sites) * synthetic.sites[0].top_k
    assert token > uses * synthetic.bytes_per_expert
    assert one.bytes_per_token == pytest.approx(token, rel=0.05)


def test_a_recorded_text(pocket, tmp_path):
    """coterie trace, then coterie plan, then the run the plan is about."""
    checkpoint, memory = open_checkpoint(pocket), memory_of(open_checkpoint(pocket), 0.3)
    (tmp_path / "text").write_text(TEXT)
    made = record(checkpoint, [tmp_path / "text"], tmp_path / "trace", tokens=40)
    assert made.plan.num_items == 40
    kept = RoutePlan.load(tmp_path / "trace")
    assert list(kept.sites) == [site.name for site in checkpoint.sites]
    ids = Prompts.of(checkpoint.path, None).encode(TEXT, raw=True)[:, :40]
    host = load(checkpoint, memory, context=256)
    with torch.no_grad():
        cache = host(input_ids=ids[:, :20], use_cache=True).past_key_values
        for token in ids[0, 20:]:
            host(input_ids=token[None, None], past_key_values=cache, use_cache=True)
    measured = host.coterie.stats().bytes_read
    host.coterie.close()
    found = planned(checkpoint, memory, trace=kept, prompt=20)
    one = found.forecasts[0]
    close(one.prefill_bytes + one.bytes_per_token * len(found.routes.decode), measured)
    assert json.dumps(made.as_record())
    assert "40 tokens" in made.describe()
