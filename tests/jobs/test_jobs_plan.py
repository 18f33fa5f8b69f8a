"""A plan says what a load would do; speeds are injected, so that nothing depends on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import BudgetError, OptionError, RoutingError
from coterie.jobs.running import routes as routes_module
from coterie.jobs.running.load import load
from coterie.jobs.running.plan import plan
from coterie.jobs.running.routes import recorded_routes, sampled, uniform_routes
from coterie.models.checkpoint import open_checkpoint
from coterie.routing import RoutePlan, Routing
from coterie.store.machine import machine_memory
from coterie.store.measure import Speed, Speeds
from coterie.testing.checkpoints import save_tiny

LAYERS, EXPERTS, K = 3, 16, 4


def speeds(disk=1e9, memory=1e10, call=1e-9):
    return Speeds(Speed(disk, "made up"), Speed(memory, "made up"), call)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = save_tiny(tmp_path_factory.mktemp("plan") / "tiny", "olmoe", layers=LAYERS, experts=EXPERTS, k=K, shards=2)
    return open_checkpoint(path)


def planned(checkpoint, memory="64MiB", **options):
    return plan(checkpoint, memory, **{"context": 64, "speeds": speeds(), **options})


def with_slots(checkpoint, slots, **options):
    """A plan of exactly so many slots."""
    budget = planned(checkpoint, **{name: options[name] for name in options if name in ("context", "batch")}).budget
    return planned(checkpoint, budget.fixed + slots * budget.slot_bytes, **options)


def table(tokens, seed=0):
    """[T, K] distinct experts."""
    return torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :K]


def recorded(checkpoint, tokens, sequences=1, experts=EXPERTS):
    """A route plan of random routes: ``sequences`` beside each other, as a batch is recorded token by token."""
    weights = torch.full((tokens * sequences, K), 1 / K)
    sites = {
        site.name: Routing.from_padded(weights, table(tokens * sequences, number), experts)
        for number, site in enumerate(checkpoint.sites)
    }
    sequence = torch.arange(sequences).repeat(tokens)
    return RoutePlan(sites, sequence=sequence, mask=torch.ones(tokens * sequences, dtype=torch.bool))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_budget_is_the_one_a_load_would_have(batch, checkpoint):
    found = with_slots(checkpoint, 11, batch=batch)
    host = load(checkpoint, found.budget.total, context=64, batch=batch)
    assert host.coterie.budget == found.budget
    assert found.budget.slots == 11
    host.coterie.close()


def test_no_weight_is_read(checkpoint, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("coterie.models.tensors.read_tensor", refuse)
    monkeypatch.setattr("coterie.store.disk.DiskTier.read", refuse)
    assert planned(checkpoint).forecasts


@pytest.mark.parametrize(("memory", "words"), [("1KiB", ["below", "floor"]), ("900TiB", ["more than this machine"])])
def test_a_budget_that_run_would_refuse_is_planned_all_the_same(memory, words, checkpoint):
    found = planned(checkpoint, memory)
    with pytest.raises(BudgetError) as refused:
        load(checkpoint, memory, context=64)
    assert found.problem == str(refused.value)
    assert found.exit_code == BudgetError.exit_code
    assert all(word in found.problem for word in words)
    assert found.steps
    assert "floor" in found.describe()
    assert bool(found.forecasts) == (found.budget.slots > 0)


def test_the_floor_works_and_a_byte_less_does_not(checkpoint):
    floor = planned(checkpoint).budget.floor
    assert planned(checkpoint, floor).forecasts[0].slots == 1
    assert planned(checkpoint, floor - 1).problem


def test_more_memory_never_reads_more(checkpoint):
    steps = planned(checkpoint).steps
    read = [step.forecast.bytes_per_token for step in steps]
    assert read == sorted(read, reverse=True)
    assert [step.memory for step in steps] == sorted(step.memory for step in steps)
    assert steps[-1].memory == planned(checkpoint).budget.everything


def test_one_slot_reads_every_expert_and_all_slots_none(checkpoint):
    """The alignment of direct reads is in it: whole slots are counted, not weights."""
    one, *_, everything = planned(checkpoint, prompt=64).steps
    budget = planned(checkpoint).budget
    assert one.forecast.bytes_per_token <= LAYERS * K * budget.slot_bytes
    assert one.forecast.bytes_per_token > LAYERS * K * checkpoint.bytes_per_expert
    assert one.forecast.hit_rate == 0
    assert everything.forecast.bytes_per_token == 0
    assert everything.forecast.hit_rate == 1


@pytest.mark.parametrize(
    ("of", "bound"),
    [({"disk": 1e3}, "disk"), ({"memory": 1e3}, "memory"), ({"call": 1.0}, "interpreter")],
)
def test_what_is_slow_binds(of, bound, checkpoint):
    found = with_slots(checkpoint, 8, speeds=speeds(**of))
    assert found.forecasts[0].bound == bound
    assert bound in found.describe().replace("memory bandwidth", "memory")


def test_time_is_between_the_bound_and_the_sum(checkpoint):
    one = with_slots(checkpoint, 20, speeds=speeds(disk=1e7, memory=1e7)).forecasts[0]
    parts = one.disk_seconds, one.memory_seconds + one.call_seconds
    assert max(parts) * 0.98 <= 1 / one.tokens_per_second <= sum(parts) * 1.02


def test_a_batch_shares_what_it_reads(checkpoint):
    alone, together = (with_slots(checkpoint, 2, batch=batch).forecasts[0] for batch in (1, 4))
    assert together.bytes_per_token < alone.bytes_per_token
    assert together.tokens_per_second > alone.tokens_per_second


def test_routes_that_repeat_are_read_once(checkpoint):
    plan_of_one = recorded(checkpoint, 40)
    same = {name: replace(routing, expert=routing.expert[:K].repeat(40)) for name, routing in plan_of_one.sites.items()}
    one = with_slots(checkpoint, LAYERS * K, trace=replace(plan_of_one, sites=same)).forecasts
    assert [forecast.bytes_per_token for forecast in one] == [0, 0, 0]
    assert all(forecast.hit_rate == 1 for forecast in one)


def test_a_trace_may_come_from_a_file(checkpoint, tmp_path):
    recorded(checkpoint, 40).save(tmp_path / "trace")
    found = planned(checkpoint, trace=tmp_path / "trace")
    assert "40 tokens" in found.routes.source
    assert (found.routes.prompt, len(found.routes.decode)) == (20, 20)


def test_traces_that_cannot_be_used(checkpoint, tmp_path):
    with pytest.raises(OptionError, match="another model"):
        planned(checkpoint, trace=recorded(checkpoint, 40, experts=EXPERTS + 1))
    with pytest.raises(OptionError, match="another model"):
        planned(checkpoint, trace=RoutePlan({}))
    with pytest.raises(OptionError, match="too few"):
        planned(checkpoint, trace=recorded(checkpoint, 3), batch=2)
    (tmp_path / "trace").write_bytes(b"no trace")
    with pytest.raises(RoutingError, match="route plan"):
        planned(checkpoint, trace=tmp_path / "trace")


@pytest.mark.parametrize("options", [{"batch": 0}, {"prompt": 0}, {"tokens_per_second": 0}, {"context": 10**6}])
def test_numbers_out_of_range(options, checkpoint):
    with pytest.raises(OptionError):
        planned(checkpoint, **options)


def test_the_largest_model_by_speed(checkpoint, monkeypatch):
    budget = planned(checkpoint).budget
    monkeypatch.setattr(
        import_module("coterie.jobs.running.plan"), "default_memory", lambda: budget.fixed + 24 * budget.slot_bytes
    )
    steps = planned(checkpoint, speeds=speeds(disk=1e6)).steps
    half = next(step.forecast for step in steps if step.forecast.slots == LAYERS * EXPERTS // 2)
    largest = planned(checkpoint, speeds=speeds(disk=1e6), tokens_per_second=half.tokens_per_second).largest
    assert largest.share == pytest.approx(0.5, abs=0.1)
    assert largest.experts == pytest.approx(24 / LAYERS / largest.share, abs=1)
    assert planned(checkpoint, speeds=speeds(disk=1e6), tokens_per_second=1e9).largest.share is None
    assert planned(checkpoint, tokens_per_second=1e-3).largest.share == 0
    slow = planned(checkpoint, speeds=speeds(memory=1e6), tokens_per_second=2).largest
    assert slow.active_bytes == 500_000


def test_it_can_be_written_and_read(checkpoint):
    found = planned(checkpoint)
    record = json.loads(json.dumps(found.as_record()))
    assert record["budget"]["slots"] == found.budget.slots
    assert [one["policy"] for one in record["forecasts"]] == ["stale-first", "lfu", "lru"]
    text = found.describe()
    for word in ("dense weights", "KV cache", "workspace", "floor", "uniform routes", "<- this budget", "made up"):
        assert word in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 120  # the first line has the model's path in it


def test_machine_without_a_budget(checkpoint):
    found = planned(checkpoint, None)
    assert found.budget.total <= machine_memory()
    assert not found.problem


# ---- routes


def test_uniform_routes_have_the_shape_of_a_request(checkpoint):
    found = uniform_routes(checkpoint, prompt=20, batch=2, chunk=8)
    assert [len(step) for step in found.prefill] == [LAYERS] * 3
    assert all(K <= len(experts) <= 2 * K for step in found.decode for experts in step)
    again = uniform_routes(checkpoint, prompt=20, batch=2, chunk=8)
    assert (found.prefill, found.decode) == (again.prefill, again.decode)
    assert found.decode[0][0] != found.decode[0][1] or found.decode[1][0] != found.decode[1][1]


@given(tokens=st.integers(6, 30), sequences=st.integers(1, 3), batch=st.integers(1, 3), chunk=st.integers(1, 9))
def test_recorded_routes_are_those_of_the_trace(checkpoint, tokens, sequences, batch, chunk):
    trace = recorded(checkpoint, tokens, sequences)
    found = recorded_routes(checkpoint, trace, prompt=10, batch=batch, chunk=chunk)
    assert len(found.prefill) == -(-found.prompt // chunk)
    routing = trace[checkpoint.sites[0].name]
    experts = [set(routing.expert[routing.item == item].tolist()) for item in range(trace.num_items)]
    streams = [list(range(trace.num_items))[first::sequences] for first in range(sequences)]
    if sequences < batch:
        joined = [item for stream in streams for item in stream]
        size = len(joined) // batch
        streams = [joined[n * size : (n + 1) * size] for n in range(batch)]

    def used(start, stop):
        return set().union(*(experts[item] for stream in streams[:batch] for item in stream[start:stop]))

    starts = range(0, found.prompt, chunk)
    assert [set(step[0]) for step in found.prefill] == [used(n, min(n + chunk, found.prompt)) for n in starts]
    assert set(found.decode[0][0]) == used(found.prompt, found.prompt + 1)


def test_padding_is_left_out(checkpoint):
    trace = recorded(checkpoint, 12)
    padded = replace(trace, mask=torch.tensor([False, True] * 6))
    found = recorded_routes(checkpoint, padded, prompt=2, batch=1, chunk=8)
    assert found.prompt + len(found.decode) == 6


def test_some_layers_stand_for_all_where_there_are_many(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(save_tiny(tmp_path / "deep", "olmoe", layers=8, experts=EXPERTS, k=K))
    whole = with_slots(checkpoint, 64).forecasts
    monkeypatch.setattr(routes_module, "_MOST_EXPERTS", 4 * EXPERTS)
    assert sampled(checkpoint.sites) == (0, 2, 5, 7)
    part = with_slots(checkpoint, 64)
    assert part.as_record()["routes"]["layers_simulated"] == 4
    for one, other in zip(whole, part.forecasts, strict=True):
        assert other.bytes_per_token == pytest.approx(one.bytes_per_token, rel=0.1)
        assert other.tokens_per_second == pytest.approx(one.tokens_per_second, rel=0.15)
