"""Plans of merging and pruning over layers, and the edits that carry them out, on layers made up."""

from __future__ import annotations

import pytest
import torch
from made_layers import clones_of, made_layer, statistics_of

from coterie.errors import OptionError, UnsupportedError
from coterie.models.hypotheses import Groups
from coterie.surgery.deciding import Decider
from coterie.surgery.edits import merge_layer, prune_layer
from coterie.surgery.grouping import Grouping
from coterie.surgery.merge_plan import GROUPS, MERGES, MergeOptions, plan_merge
from coterie.surgery.prune import SALIENCY, curve_counts, keep_rows
from coterie.surgery.prune_plan import PRUNES, PruneOptions, plan_prune
from coterie.surgery.redundancy import layer_redundancy, verdict
from coterie.surgery.router_knowledge import RouterLimits
from coterie.surgery.sample import sample_of

DECIDE = Decider(2)
FAMILIES = (0, 1, 2, 0, 1, 2, 0, 1)


@pytest.fixture(scope="module")
def redundant():
    """Two layers of eight experts that are copies of three."""
    layers = [clones_of(made_layer(3, layer=number), FAMILIES, seed=number) for number in range(2)]
    return layers, [statistics_of(layer, DECIDE) for layer in layers]


def reader(layers):
    return lambda site: next(layer for layer in layers if layer.site.layer == site.layer)


def families_of(grouping):
    return sorted(tuple(sorted({FAMILIES[e] for e in some})) for some in grouping.members)


@pytest.mark.parametrize("group", [*(name for name in GROUPS if name not in ("weights", "random"))])
@pytest.mark.parametrize("dominant", ["coverage", "frequency", "saliency"])
def test_copies_find_each_other(redundant, group, dominant):
    layers, sites = redundant
    options = MergeOptions(3, dominant=dominant, group=group, uniform=True)
    plans = plan_merge(sites, options, reader(layers))
    assert [len(plan.dominants) for plan in plans] == [3, 3]
    assert plans == plan_merge(sites, options, reader(layers))
    if (dominant == "coverage" and group != "salient") or group == "hierarchical":
        assert all(families_of(plan) == [(0,), (1,), (2,)] for plan in plans)


def test_copies_become_the_same_function(redundant):
    layers, sites = redundant
    plans = plan_merge(sites, MergeOptions(3, uniform=True), reader(layers))
    for layer, site, plan in zip(layers, sites, plans, strict=True):
        new = merge_layer(layer, plan, site, MergeOptions(3), DECIDE).checked(layer)
        assert new.about["error"] < 1e-6
        assert new.about["error_of_pruning"] > 0.1
        assert new.experts_of == plan.labels
        assert new.about["after"] == new.num_experts == 3
        assert all(torch.equal(new.router[name], layer.router[name]) for name in layer.router)
        assert [FAMILIES[some[0]] for some in new.about["groups"]] == [FAMILIES[e] for e in plan.dominants]


def test_activations_align_as_well_as_weights(redundant):
    layers, sites = redundant
    plan = plan_merge(sites, MergeOptions(3, uniform=True), reader(layers))[0]
    errors = {
        align: merge_layer(layers[0], plan, sites[0], MergeOptions(3, align=align), DECIDE).about["error"]
        for align in ("weight", "activation", "none")
    }
    assert errors["weight"] < 1e-6
    assert errors["activation"] < 1e-5
    assert errors["none"] > 0.1


def test_dropped_rows_change_what_the_router_decides(redundant):
    layers, sites = redundant
    options = MergeOptions(3, router="drop", uniform=True)
    plan = plan_merge(sites, options, reader(layers), least=2)[0]
    new = merge_layer(layers[0], plan, sites[0], options, DECIDE).checked(layers[0])
    assert new.experts_of is None
    assert new.router["weight"].shape[0] == 3
    assert torch.equal(new.router["weight"], layers[0].router["weight"][list(plan.dominants)])
    assert new.about["error"] > 0  # duplicates carried part of the softmax's mass, and may be chosen together


def test_as_many_as_there_are_is_no_change(redundant):
    layers, sites = redundant
    plans = plan_merge(sites, MergeOptions(8), reader(layers))
    assert all(plan == Grouping(tuple(range(8)), tuple((e,) for e in range(8))) for plan in plans)
    new = merge_layer(layers[0], plans[0], sites[0], MergeOptions(8), DECIDE)
    assert all(torch.equal(new.weights[name], layers[0].weights[name]) for name in new.weights)


def test_methods_by_name():
    assert MergeOptions.of("m-smoe", 4) == MergeOptions(4)
    assert MergeOptions.of("ream", 4, router="map").router == "map"
    assert MergeOptions.of("hc-smoe", 4).group == "hierarchical"
    assert MergeOptions.of("average", 4, align=None).align == "none"
    with pytest.raises(OptionError, match="method is one of: m-smoe, average, hc-smoe, ream; not 'git'"):
        MergeOptions.of("git", 4)


@pytest.mark.parametrize("method", MERGES)
def test_every_method_merges(redundant, method):
    layers, sites = redundant
    options = MergeOptions.of(method, 4)
    plans = plan_merge(sites, options, reader(layers), least=2 if options.router == "drop" else 1)
    for layer, site, plan in zip(layers, sites, plans, strict=True):
        merge_layer(layer, plan, site, options, DECIDE).checked(layer)
    assert sum(len(plan.dominants) for plan in plans) == 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dominant": "loudest"}, "dominant is one of: coverage"),
        ({"group": "router-logit"}, "Did you mean 'router-logits'"),
        ({"align": "never"}, "align is one of: weight, activation, none"),
        ({"router": "burn"}, "router is one of: map, drop"),
        ({"weigh": "mass"}, "weigh is one of"),
        ({"experts": 0}, "keeps 1 expert or more"),
        ({"group": "hierarchical", "capacity": 3}, "leave --capacity out"),
    ],
)
def test_wrong_options_are_refused(given, words):
    with pytest.raises(OptionError, match=words):
        MergeOptions(**{"experts": 4, **given})


def test_groups_that_know_nothing_of_the_routers_are_refused(redundant):
    layers, sites = redundant
    with pytest.raises(OptionError, match="--router map"):
        plan_merge(sites, MergeOptions(4, group="hierarchical", router="drop"), reader(layers), blocks=2)


# ---- pruning


@pytest.mark.parametrize("method", PRUNES)
@pytest.mark.parametrize("uniform", [True, False])
def test_every_way_to_prune_meets_its_target(redundant, method, uniform):
    layers, sites = redundant
    options = PruneOptions(4, method, uniform=uniform)
    plans = plan_prune(sites, options, reader(layers), RouterLimits(2), [DECIDE] * 2)
    assert sum(map(len, plans)) == 8
    assert all(len(plan) >= 2 and list(plan) == sorted(set(plan)) for plan in plans)
    assert plans == plan_prune(sites, options, reader(layers), RouterLimits(2), [DECIDE] * 2)
    for layer, site, plan in zip(layers, sites, plans, strict=True):
        new = prune_layer(layer, plan, site, DECIDE).checked(layer)
        assert new.num_experts == len(plan)
        assert torch.equal(new.weights["up_proj"], layer.weights["up_proj"][list(plan)])
        assert torch.equal(new.router["weight"], layer.router["weight"][list(plan)])
        assert 0 < new.about["error"] < 2


def test_trying_subsets_is_best_and_its_errors_are_the_layers(redundant):
    layers, sites = redundant
    (plan, _) = plan_prune(sites, PruneOptions(4, "naee"), reader(layers), RouterLimits(2), [DECIDE] * 2)
    error = prune_layer(layers[0], plan, sites[0], DECIDE).about["error"]
    for method in SALIENCY:
        (other, _) = plan_prune(sites, PruneOptions(4, method), reader(layers), RouterLimits(2), [DECIDE] * 2)
        assert error <= prune_layer(layers[0], other, sites[0], DECIDE).about["error"] + 1e-6


def test_errors_one_by_one_are_close(redundant):
    layers, sites = redundant
    options = PruneOptions(4, "naee", limit=0)
    (plan, _) = plan_prune(sites, options, reader(layers), RouterLimits(2), [DECIDE] * 2)
    best = plan_prune(sites, PruneOptions(4, "naee"), reader(layers), RouterLimits(2), [DECIDE] * 2)[0]
    errors = [prune_layer(layers[0], keep, sites[0], DECIDE).about["error"] for keep in (best, plan)]
    assert errors[0] <= errors[1] + 1e-6 < 2 * errors[0] + 0.1


def test_budgets_follow_the_errors():
    curves = [[0.1, 0.2, 0.9], [0.5, 0.6, 0.7]]
    assert curve_counts(curves, 2) == [2, 0]
    assert curve_counts(curves, 3) == [2, 1]
    assert curve_counts(curves, 6) == [3, 3]
    with pytest.raises(OptionError, match="7 experts are to go, 6 can"):
        curve_counts(curves, 7)


def test_budgets_take_whole_rounds_of_groups():
    assert curve_counts([[0.1, 0.5, 0.6, 0.7], [0.2, 0.3, 0.4, 0.9]], 4, blocks=2) == [2, 2]
    assert curve_counts([[0.1, 0.5, 0.6, 0.7], [0.2, 0.3, 0.4, 0.41]], 4, blocks=2) == [0, 4]


@pytest.mark.parametrize("method", ["reap", "naee"])
@pytest.mark.parametrize("uniform", [True, False])
def test_groups_of_the_router_are_kept_equal(method, uniform):
    decide = Decider(2, "sigmoid", groups=Groups(2, 1, "two best"))
    layers = [made_layer(8, layer=number, correction=True) for number in range(2)]
    sites = [statistics_of(layer, decide) for layer in layers]
    limits = RouterLimits(decide.least(), 2)
    plans = plan_prune(sites, PruneOptions(6, method, uniform), reader(layers), limits, [decide] * 2)
    assert sum(map(len, plans)) == 12
    for layer, site, plan in zip(layers, sites, plans, strict=True):
        assert sum(e < 4 for e in plan) * 2 == len(plan) >= 4
        new = prune_layer(layer, plan, site, decide)
        assert torch.equal(new.router["correction"], layer.router["correction"][list(plan)])
        assert 0 <= new.about["error"] < 2
    with pytest.raises(OptionError, match="multiple of 2"):
        plan_prune(sites[:1], PruneOptions(5, method), reader(layers), limits, [decide])


def test_what_cannot_be_pruned_is_refused(redundant):
    layers, sites = redundant
    with pytest.raises(UnsupportedError, match=r"chooses by token id.*--router map"):
        plan_prune(sites, PruneOptions(4), reader(layers), RouterLimits(2, 1, "it chooses by token id"), [None] * 2)
    with pytest.raises(UnsupportedError, match="Choose --method reap"):
        plan_prune(sites, PruneOptions(4, "naee"), reader(layers), RouterLimits(2), [None] * 2)
    with pytest.raises(OptionError, match="4 to 16 do, with 2 in each layer"):
        plan_prune(sites, PruneOptions(1), reader(layers), RouterLimits(2), [DECIDE] * 2)
    with pytest.raises(OptionError, match="method is one of"):
        PruneOptions(4, "guess")


def test_rows_are_kept():
    assert keep_rows({"a": torch.arange(6).view(3, 2)}, (0, 2))["a"].tolist() == [[0, 1], [4, 5]]


# ---- what is measured


def test_a_layer_is_compared_with_itself(redundant):
    layers, sites = redundant
    sample = sample_of(layers[0], sites[0].inputs, DECIDE)
    assert sample.error(layers[0].weights, layers[0].router) == 0
    silent = {name: torch.zeros_like(weight) for name, weight in layers[0].weights.items()}
    assert sample.error(silent, layers[0].router) == pytest.approx(1)
    assert sample_of(layers[0], sites[0].inputs, None) is None


def test_subsets_and_layers_measure_alike(redundant):
    layers, sites = redundant
    sample = sample_of(layers[0], sites[0].inputs, DECIDE)
    there = torch.tensor([[True, True, False, True, True, False, True, False]])
    keep = there[0].nonzero()[:, 0].tolist()
    error = sample.error(keep_rows(layers[0].weights, keep), keep_rows(layers[0].router, keep))
    assert sample.outputs(64).errors(there).item() == pytest.approx(error, rel=1e-4)


def test_redundancy_is_seen_and_said(redundant):
    _, sites = redundant
    found = [layer_redundancy(site) for site in sites]
    assert all(layer.output == pytest.approx(1, abs=1e-5) for layer in found)
    assert all(layer.effective < 3.01 for layer in found)
    assert verdict(found).startswith("Most experts have a near copy")
    layer = made_layer(6)
    strangers = layer_redundancy(statistics_of(layer, DECIDE))
    assert strangers.effective > 4
    assert verdict([strangers]).startswith("Experts differ: do not merge")
