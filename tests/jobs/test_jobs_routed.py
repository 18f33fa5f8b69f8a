"""Routed models from the tiered store: the bits of the resident model, inside the memory that was said."""

from __future__ import annotations

import pytest
import torch

import coterie
from coterie.errors import OptionError, UnsupportedError
from coterie.jobs.inspecting.inspect import inspect
from coterie.jobs.running.plan import plan
from coterie.jobs.running.verify import verify
from coterie.models import RouteOptions, RouterSpec, open_checkpoint, route, routed_as, trace
from coterie.models.compat import quiet
from coterie.models.footprint import footprint
from coterie.models.prompts import Prompts
from coterie.serve import Engine, Sampling
from coterie.testing.checkpoints import save_tiny, tiny_model, tiny_tokenizer

SPECS = [
    RouterSpec("top_k"), RouterSpec("top_p", {"p": 0.8}), RouterSpec("adamoe"), RouterSpec("rmoe"),
    RouterSpec("adamoe", {"null": "identity"}), RouterSpec("smoe_dropout"), RouterSpec("thor"),
]  # fmt: skip


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """``routed(spec)`` -> directory of a tiny routed Mixtral with tokenizer, made once."""
    made = {}

    def make(spec):
        if str(spec) not in made:
            path = made[str(spec)] = tmp_path_factory.mktemp(spec.name)
            torch.manual_seed(0)
            model = tiny_model("mixtral", layers=3, k=3)
            route(model, spec)
            with quiet():
                model.save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
        return made[str(spec)]

    return make


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_store_gives_the_bits_of_the_resident_model(spec, routed):
    report = verify(routed(spec), "64MiB", slots=2, batch=2)
    assert report.holds
    assert report.routed
    assert report.transformers is not None
    assert report.misses > 0


@pytest.mark.parametrize("prefetch", ["previous-step", "next-gate"])
def test_reading_ahead_changes_no_route(prefetch, routed):
    """A guess asks the next layer's router, which must neither take it for its turn nor pass its carry on."""
    report = verify(routed(RouterSpec("rmoe")), slots=4, prefetch=prefetch, against_transformers=False)
    assert report.holds


def test_nulls_are_never_read(routed):
    model = coterie.load(routed(RouterSpec("adamoe", {"null": "identity"})), slots=2)
    with trace(model) as recording, torch.no_grad():
        model(torch.randint(2, 300, (1, 16)))
    used = sum(len(routing.expert.unique()) for routing in recording.plan().sites.values())
    assert model.coterie.stats().misses == used
    assert {routing.num_experts for routing in recording.plan().sites.values()} == {8}
    model.coterie.close()


def test_workspace_is_made_for_the_most_experts(routed):
    few, many = (
        footprint(open_checkpoint(routed(RouterSpec("top_p", options))), 1, 128).workspace
        for options in ({"k_max": 1}, {})
    )
    assert many > few
    with pytest.raises(OptionError, match="k=99 is not allowed"):
        _generate(routed(RouterSpec("top_k")), RouteOptions(k=99))


def test_what_is_asked_is_asked_before_loading_makes_room(routed):
    path = routed(RouterSpec("top_k"))
    assert _generate(path, RouteOptions(k=2)).mean_experts == 2
    assert _generate(path, RouteOptions(k=6)).mean_experts == 6
    assert _generate(path, None).mean_experts == 3
    model = coterie.load(path)
    with pytest.raises(OptionError, match=r"made room for, which is 3 experts per token.*RouteOptions\(k=6\)"):
        Engine(model, Prompts.of(path, 512)).generate(torch.tensor([[5, 6]]), Sampling(2), route=RouteOptions(k=6))
    model.coterie.close()


def _generate(path, route_options):
    model = coterie.load(path, route=route_options)
    try:
        return Engine(model, Prompts.of(path, 512), route_options).generate(torch.tensor([[5, 6, 7]]), Sampling(4))
    finally:
        model.coterie.close()


def test_a_cache_of_other_routes_is_not_continued(routed):
    path = routed(RouterSpec("thor"))
    model, ids = coterie.load(path), torch.tensor([[5, 6, 7, 8]])
    engine = Engine(model, Prompts.of(path, 512))
    greedy = Sampling(6, temperature=0.0)
    first, other = (engine.generate(ids, greedy, route=RouteOptions(seed=seed)).text for seed in (1, 2))
    again = engine.generate(ids, greedy, route=RouteOptions(seed=1)).text
    fresh = Engine(model, Prompts.of(path, 512)).generate(ids, greedy, route=RouteOptions(seed=2)).text
    assert again == first
    assert fresh == other
    model.coterie.close()


def test_a_loaded_model_takes_requests_by_itself(routed):
    model, ids = coterie.load(routed(RouterSpec("top_p"))), torch.randint(2, 300, (1, 12))
    with torch.no_grad(), routed_as(model, RouteOptions(p=0.01)) as session:
        model(ids)
        assert session.usage.mean_experts == 1
    model.coterie.close()


def test_other_jobs_know_routed_models(routed):
    path = routed(RouterSpec("top_p", {"p": 0.8}))
    assert plan(path, "64MiB").as_record()
    assert "top_p (" in inspect(path).describe()
    with pytest.raises(UnsupportedError, match="cannot generate token by token"):
        verify(routed(RouterSpec("expert_choice")))


def test_a_stock_model_has_no_mean(tmp_path):
    path = save_tiny(tmp_path, "mixtral")
    assert _generate(path, None).mean_experts is None
