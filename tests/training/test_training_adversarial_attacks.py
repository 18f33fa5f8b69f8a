"""Attacks: within their bounds, without a trace in the model, and never silent about a model they cannot attack."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coterie.errors import AttackError, OptionError, RoutingError
from coterie.models.vision import VisionSpec, build_vision
from coterie.routers import fixed_plan
from coterie.routing import RouteContext
from coterie.training.adversarial import Attack, RandomSearch, perturb, route_of, search, view
from coterie.training.adversarial.aims import Target, rank_of, value_of

SPEC = VisionSpec("small", classes=4, channels=1, image_size=8, experts=2, ratio=0.5, router="small")
AIMS = ("ce", "margin", "kl", "kl+router", "router", "released", "released-router")


def make(spec=SPEC, seed=0):
    return build_vision(spec, seed).eval()


def some(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(4, (count,), generator=generator)


def everything(model):
    """Bits, flags and gradients of a model."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    parameters = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return state, flags, parameters


def same(one, other):
    assert one[1] == other[1]
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    for (asked, grad), (asked_then, grad_then) in zip(one[2], other[2], strict=True):
        assert asked is asked_then
        assert (grad is None) == (grad_then is None)
        assert grad is None or torch.equal(grad, grad_then)


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(1e-3, 1), steps=st.integers(1, 3), step=st.floats(1e-3, 2), aim=st.sampled_from(AIMS),
    start=st.sampled_from(["uniform", "gaussian"]), keep=st.sampled_from(["last", "worst"]), seed=st.integers(0, 2**31),
    restarts=st.integers(1, 2),
)  # fmt: skip
def test_ball_and_box_are_kept_and_the_model_is_as_before(epsilon, steps, step, aim, start, keep, seed, restarts):
    model = make()
    model.network.head.weight.requires_grad_(False)
    model.train()
    model.network.stem.eval()
    images, labels = some()
    model(images).sum().backward()  # gradients of somebody else
    before = everything(model)
    attack = Attack(epsilon, steps, step, start, restarts, aim, keep=keep)
    first = perturb(model, images, labels, attack, seed=seed)
    same(everything(model), before)
    assert float((first - images).abs().max()) <= epsilon + 1e-7
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert torch.equal(first, perturb(model, images, labels, attack, seed=seed))
    assert not first.requires_grad


def test_the_start_of_an_image_does_not_depend_on_its_batch():
    model, (images, labels) = make(), some()
    attack = Attack(0.1, 1, 1e-6)
    whole = perturb(model, images, labels, attack, seed=3)
    part = perturb(model, images[2:4], labels[2:4], attack, seed=3, index=torch.tensor([2, 3]))
    assert torch.allclose(whole[2:4], part, atol=3e-6)  # but for the tiny step, whose sign rounding may turn
    assert not torch.allclose(whole, perturb(model, images, labels, attack, seed=4), atol=1e-3)


def test_each_step_ascends_and_more_steps_do_more_harm():
    model, (images, labels) = make(), some(32)
    told = []
    perturb(model, images, labels, Attack(0.3, 20, 0.02), watch=lambda *each: told.append(each))
    assert [step for step, _, _ in told] == list(range(20))
    means = [float(value.mean()) for _, value, _ in told]
    assert means[-1] > means[5] > means[0]
    assert all(value.shape == peak.shape == (32,) and bool((peak >= 0).all()) for _, value, peak in told)


def test_without_a_bound_nothing_is_right_any_more():
    model, (images, labels) = make(), some(32)
    found = perturb(model, images, labels, Attack(1, 30, 0.1, keep="worst"))
    assert float((view(model, found).classes.argmax(1) == labels).float().mean()) == 0


def test_the_worst_of_several_is_at_least_as_bad_as_each():
    model, (images, labels) = make(), some(24)
    one, many = Attack(0.1, 5, 0.05, keep="worst"), Attack(0.1, 5, 0.05, restarts=3, keep="worst")
    with torch.no_grad():
        target = Target(view(model, images), labels, 1.0)
        worst = rank_of("ce", view(model, perturb(model, images, labels, many)), target)
        alone = rank_of("ce", view(model, perturb(model, images, labels, one)), target)
    assert bool((worst >= alone - 1e-6).all())


def test_an_attack_on_the_router_turns_routes():
    model, (images, labels) = make(), some(32)
    with torch.no_grad():
        before = route_of(view(model, images).routings[0])
        found = perturb(model, images, labels, Attack(1, 30, 0.05, aim="router", keep="worst"))
        after = route_of(view(model, found).routings[0])
    assert float((before != after).float().mean()) > 0.9


def test_given_routes_are_followed_and_cannot_be_attacked():
    model, (images, labels) = make(), some()
    plan = fixed_plan(torch.tensor([0, 1, 1, 0, 1, 0]), model.sites, 2)
    ctx = RouteContext(plan=plan)
    found = perturb(model, images, labels, Attack(0.2, 3, 0.1), ctx=ctx)
    assert float((found - images).abs().max()) > 0.01
    for aim in ("router", "kl+router", "released"):
        with pytest.raises(OptionError, match="none decides here"):
            perturb(model, images, labels, Attack(0.2, 3, 0.1, aim=aim), ctx=ctx)


def test_a_dense_network_and_a_foreign_one_are_attacked_too():
    images, labels = some()
    dense = make(VisionSpec("small", classes=4, channels=1, image_size=8))
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    for model in (dense, foreign):
        for aim in ("ce", "margin", "kl"):
            assert perturb(model, images, labels, Attack(0.2, 2, 0.1, aim=aim)).shape == images.shape
        with pytest.raises(OptionError, match="router"):
            perturb(model, images, labels, Attack(0.2, 2, 0.1, aim="router"))
    ctx = RouteContext(plan=fixed_plan(torch.zeros(6, dtype=torch.int64), ("a",), 2))
    with pytest.raises(OptionError, match="follow a plan"):
        perturb(foreign, images, labels, Attack(0.2, 2, 0.1), ctx=ctx)


def test_layers_that_decide_for_themselves_are_attacked_each():
    spec = VisionSpec("small", classes=4, channels=1, image_size=8, experts=2, ratio=0.5, placement="layer")
    model, (images, labels) = make(spec), some()
    seen = view(model, images)
    assert len(seen.routings) == 3
    for aim in AIMS:
        assert perturb(model, images, labels, Attack(0.2, 2, 0.1, aim=aim)).shape == images.shape


def test_the_released_aim_is_the_sum_of_both_cross_entropies():
    model, (images, labels) = make(), some()
    seen = view(model, images)
    value = value_of("released", seen, Target(seen, labels, 6.0))
    ce = nn.functional.cross_entropy(seen.classes, labels, reduction="none")
    route = nn.functional.cross_entropy(seen.routings[0].logits, labels % 2, reduction="none")
    assert torch.allclose(value, ce + 6 * route)
    assert Attack(aim="released").weight == 6
    assert Attack(aim="kl+router").weight == 1


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("where", ["network.head.weight", "planner.router.score.body.0.weight"])
def test_a_weight_that_is_no_number_ends_the_attack(aim, where):
    """Otherwise sign(NaN) = 0 would leave the images where they are, and the model would look robust."""
    if aim in ("router", "released-router") and where.startswith("network"):
        return  # the router alone is asked, and it is whole
    model, (images, labels) = make(), some()
    dict(model.named_parameters())[where].data.view(-1)[0] = torch.nan
    with pytest.raises((AttackError, RoutingError), match=r"not a finite number at step 0|not numbers"):
        perturb(model, images, labels, Attack(0.1, 2, 0.05, aim=aim))


def test_a_gradient_that_is_zero_everywhere_ends_the_attack():
    model, (images, labels) = make(), some()
    model.network.head.weight.data.zero_()
    with pytest.raises(AttackError, match=r"zero for all 6 images.*margin"):
        perturb(model, images, labels, Attack(0.1, 2, 0.05))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"epsilon": 1.5}, "at most 1"),
        ({"epsilon": 0}, "above 0"),
        ({"epsilon": float("nan")}, "above 0"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"step_size": -1}, "step_size"),
        ({"step_size": float("inf")}, "step_size"),
        ({"aim": "ca"}, "aim='ca'"),
        ({"start": "here"}, "start='here'"),
        ({"keep": "best"}, "keep='best'"),
        ({"start": "none", "aim": "kl"}, "no slope"),
        ({"router_weight": -1}, "router_weight"),
    ],
)
def test_what_is_no_attack_is_refused(words, text):
    with pytest.raises(OptionError, match=text):
        Attack(**words)


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (torch.full((2, 1, 8, 8), 1.5), torch.zeros(2, dtype=torch.int64), "in \\[0, 1\\], found 1.5"),
        (torch.full((2, 1, 8, 8), -0.5), torch.zeros(2, dtype=torch.int64), "in \\[0, 1\\]"),
        (torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2, dtype=torch.int64), "in \\[0, 1\\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "floating point"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "one label each"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 4]), "0 to 3"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, -1]), "0 to 3"),
    ],
)
def test_what_cannot_be_attacked_is_refused(images, labels, text):
    with pytest.raises(OptionError, match=text):
        perturb(make(), images, labels, Attack(0.1, 1, 0.1))


# ---- without gradients


def test_the_search_keeps_its_bounds_and_leaves_no_trace():
    model, (images, labels) = make().train(), some(16)
    before = everything(model)
    found = search(model, images, labels, RandomSearch(0.2, 30), seed=5)
    same(everything(model), before)
    assert float((found - images).abs().max()) <= 0.2 + 1e-7
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found, search(model, images, labels, RandomSearch(0.2, 30), seed=5))


def test_the_search_does_harm_and_more_with_more_queries():
    model, (images, labels) = make(), some(32)
    with torch.no_grad():
        labels = view(model, images).classes.argmax(1)
        margins = []
        for queries in (1, 20, 100):
            found = search(model, images, labels, RandomSearch(0.3, queries))
            margins.append(float(rank_of("ce", view(model, found), Target(view(model, images), labels, 1)).mean()))
    assert margins[0] < margins[1] <= margins[2]


def test_the_search_follows_given_routes_and_refuses_nan():
    model, (images, labels) = make(), some()
    routes = torch.tensor([0, 1, 1, 0, 1, 0])
    labels = view(model, images, RouteContext(plan=fixed_plan(routes, model.sites, 2))).classes.argmax(1)
    ctx = RouteContext(plan=fixed_plan(routes, model.sites, 2))
    assert search(model, images, labels, RandomSearch(0.1, 10), ctx=ctx).shape == images.shape
    model.network.head.weight.data.fill_(torch.nan)
    with pytest.raises(AttackError, match="not finite"):
        search(model, images, labels, RandomSearch(0.1, 10))


@pytest.mark.parametrize("words", [{"epsilon": 2}, {"queries": 0}, {"share": 0}, {"share": 1.5}])
def test_what_is_no_search_is_refused(words):
    with pytest.raises(OptionError):
        RandomSearch(**words)
