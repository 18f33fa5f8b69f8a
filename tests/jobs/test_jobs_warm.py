"""A store that begins with what statistics saw used most: the same bits, fewer reads in the beginning."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from coterie.errors import CheckpointError, OptionError
from coterie.jobs import collect_statistics, load, plan
from coterie.jobs.running.routes import measured_routes
from coterie.jobs.running.warm import most_used, rates
from coterie.models import Statistics, open_checkpoint
from coterie.store import Key
from coterie.store.measure import Speed, Speeds
from coterie.testing.checkpoints import save_tiny

TALK = "The captain looked at the sea and said nothing; the ship went on towards the harbour. "
OTHER = "In the evening the mate told of whales that he had seen when he was young and poor. "


@pytest.fixture(scope="module")
def statistics(pocket, tmp_path_factory):
    file = tmp_path_factory.mktemp("warm") / "pocket.safetensors"
    collect_statistics(pocket, {"talk": TALK * 20}, file, sample=8)
    return file


def words(pocket, text):
    from coterie.models.prompts import Prompts

    return Prompts.of(pocket, None).encode(text, raw=True)[0]


@torch.no_grad()
def answered(pocket, ids, **options):
    """(logits of the prompt and 8 tokens, misses after the prompt and at the end) of a fresh start."""
    host = load(pocket, context=64, prefill=32, compile=False, **options)
    try:
        assert host.coterie.stats().uses == 0
        begun = host.coterie.warm_bytes
        out = host(input_ids=ids[None, :4], use_cache=True)
        logits, misses = [out.logits], [host.coterie.stats().misses]
        for token in ids[4:12]:
            out = host(input_ids=token[None, None], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
        misses.append(host.coterie.stats().misses)
        host.coterie.store.check()
        return torch.cat(logits, 1), misses, begun
    finally:
        host.coterie.close()


@pytest.mark.parametrize("policy", ["stale-first", "lru", "lfu"])
def test_the_same_bits_and_fewer_reads(policy, pocket, statistics):
    ids = words(pocket, OTHER)
    cold, cold_misses, nothing = answered(pocket, ids, policy=policy, slots=64)
    warm, warm_misses, begun = answered(pocket, ids, policy=policy, slots=64, statistics=statistics)
    assert torch.equal(cold, warm)
    assert (nothing, begun > 0) == (0, True)
    assert warm_misses[0] < 0.8 * cold_misses[0]  # of the prompt; half of the experts fit
    assert warm_misses[1] < 0.9 * cold_misses[1]


def test_with_room_for_all_that_was_used_hardly_anything_is_read(pocket, statistics):
    _, (first, last), _ = answered(pocket, words(pocket, TALK), statistics=statistics)
    assert (first, last) == (0, 0)


def test_one_slot_begins_with_one_expert(pocket, statistics):
    used = rates(open_checkpoint(pocket), Statistics.load(statistics))
    (best,) = most_used(used, 1)
    assert used[best] == max(used.values())
    assert len(most_used(used, 10**6)) == sum(rate > 0 for rate in used.values())
    host = load(pocket, context=32, slots=1, statistics=statistics)
    assert host.coterie.store.resident == 1
    host.coterie.close()


def test_statistics_of_another_model_are_refused(statistics, tmp_path):
    other = save_tiny(tmp_path / "other", "olmoe")
    with pytest.raises(CheckpointError, match="another model"):
        load(other, statistics=statistics)
    with pytest.raises(CheckpointError, match="another model"):
        plan(other, statistics=statistics, speeds=SPEEDS)
    with pytest.raises(CheckpointError, match="There are no statistics"):
        load(other, statistics=tmp_path / "nowhere")


# -- plan ----------------------------------------------------------------------------------------------------------

SPEEDS = Speeds(Speed(1e9, "made up"), Speed(1e10, "made up"), 1e-6)


def test_a_plan_goes_by_what_was_used(pocket, statistics):
    even, measured = (
        plan(pocket, speeds=SPEEDS, statistics=each, memory="12MiB", context=64) for each in (None, statistics)
    )
    assert measured.routes.source == f"measured usage, {Statistics.load(statistics).tokens} tokens"
    by_policy = {one.policy: one for one in measured.forecasts}
    assert even.forecasts
    for one in even.forecasts:  # some experts are used more, so that more of what is used is there
        assert by_policy[one.policy].hit_rate > one.hit_rate
    assert "routes by measured usage" in measured.describe()


def test_measured_routes_use_experts_as_often_as_counted(pocket, statistics):
    checkpoint, found = open_checkpoint(pocket), Statistics.load(statistics)
    used = rates(checkpoint, found)
    routes = measured_routes(checkpoint, used, found.tokens, prompt=4, batch=1, chunk=1, seed=1)
    names = [checkpoint.sites[number].name for number in routes.sites]
    never = {key for key, rate in used.items() if rate == 0}
    drawn = {Key(name, e) for step in routes.decode for name, experts in zip(names, step, strict=True) for e in experts}
    assert not drawn & never
    assert all(len(experts) == 4 for step in routes.decode for experts in step)


def test_a_trace_and_statistics_together_are_refused(pocket, statistics):
    with pytest.raises(OptionError, match="one of the two"):
        plan(pocket, trace="t.safetensors", statistics=statistics)


def test_layers_that_heard_nothing_are_no_obstacle(pocket, statistics):
    found = Statistics.load(statistics)
    less = dataclasses.replace(found, sites=dict(list(found.sites.items())[:2]))
    host = load(pocket, context=32, statistics=less)
    assert 0 < host.coterie.store.resident <= 32
    host.coterie.close()
