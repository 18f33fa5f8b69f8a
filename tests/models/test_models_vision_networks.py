"""The networks at reduced width: dense or of experts, one image or many, one way of computing or another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from coterie.errors import OptionError, RoutingError
from coterie.experts import BatchNormExperts, ConvExperts
from coterie.models.vision import NETWORKS, VisionSpec, build_vision, load_vision, save_vision
from coterie.routers import fixed_plan
from coterie.routing import RouteContext
from coterie.training.adversarial import Attack, perturb

WIDTHS = {"resnet18": 1 / 8, "wrn28_10": 1 / 20, "vgg16": 1 / 8, "densenet40": 1 / 2, "small": 1 / 2}
ALL = sorted(NETWORKS)
PLACEMENTS = ["image", "layer"]


def spec_of(architecture, **fields):
    given = {"experts": 2, "ratio": 0.5, "router": "small", "classes": 5, "image_size": 16, "mean": 0.4, "std": 0.3}
    return VisionSpec(architecture, width=WIDTHS[architecture], **{**given, **fields})


def images(count=7, size=16, channels=3):
    return torch.rand(count, channels, size, size)


def routed_by(model, routes):
    return RouteContext(plan=fixed_plan(torch.tensor(routes), model.sites, model.num_experts))


def mixed(model):
    """Routes for seven images in no order, all experts used."""
    return routed_by(model, [1, 0, 0, 1, 1, 0, 1])


def step(model, x, ctx=None):
    """One step of SGD in training mode; the loss."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss = F.cross_entropy(model(x, ctx), torch.arange(len(x)) % model.spec.classes)
    loss.backward()
    optimizer.step()
    return loss.item()


def assert_same_state(one, other):
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a.reshape(b.shape), b), name


# ---- one definition


@pytest.mark.parametrize("architecture", ALL)
def test_one_expert_of_full_ratio_is_the_plain_network_bit_for_bit(architecture):
    spec = spec_of(architecture, experts=1, ratio=1.0)
    routed, plain = build_vision(spec, seed=3), build_vision(replace(spec, experts=0), seed=3)
    x = images()
    assert torch.equal(routed(x), plain(x))  # by batch statistics
    ctx = routed_by(routed, [0] * len(x))
    assert step(routed, x, ctx) == step(plain, x)
    assert_same_state(routed.network, plain.network)
    assert torch.equal(routed.eval()(x), plain.eval()(x))  # by running statistics


@pytest.mark.parametrize("architecture", ALL)
def test_where_experts_are_equal_the_route_does_not_matter(architecture):
    model = build_vision(spec_of(architecture, experts=3), seed=0).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, ConvExperts):
                part.weight.copy_(part.weight[: part.out_channels].repeat(3, 1, 1, 1))
    x = images()
    torch.testing.assert_close(
        model(x, routed_by(model, [0] * 7)), model(x, routed_by(model, [2, 1, 0, 1, 2, 2, 0])), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("architecture", ALL)
def test_with_experts_that_differ_it_does(architecture):
    model = build_vision(spec_of(architecture), seed=0).eval()
    x = images()
    assert not torch.allclose(model(x, routed_by(model, [0] * 7)), model(x, routed_by(model, [1] * 7)), atol=1e-3)


@pytest.mark.parametrize("architecture", ALL)
def test_a_seed_draws_the_same_and_leaves_the_generator_alone(architecture):
    before = torch.get_rng_state()
    one, other = build_vision(spec_of(architecture), seed=5), build_vision(spec_of(architecture), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(one, other)
    drawn = build_vision(one.spec)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), drawn.parameters(), strict=True))


# ---- how it computes


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("routes", [[1, 0, 0, 1, 1, 0, 1], [1] * 7, [0] * 6 + [1]], ids=["mixed", "one", "lone"])
@pytest.mark.parametrize("architecture", ALL)
def test_grouped_is_masked(architecture, routes, training):
    model = build_vision(spec_of(architecture), seed=0).double().train(training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images().double()
    found = {}
    for backend in ("grouped", "masked"):
        model.load_state_dict(state)
        model.zero_grad()
        y = model.backend(backend)(x, routed_by(model, routes))
        y.square().sum().backward()
        grads = {name: p.grad for name, p in model.network.named_parameters() if p.grad is not None}
        found[backend] = {"y": y, **grads, **{name: b.double() for name, b in model.named_buffers()}}
    for name, value in found["masked"].items():
        torch.testing.assert_close(found["grouped"].get(name, torch.zeros_like(value)), value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("architecture", ALL)
def test_in_eval_mode_an_image_knows_nothing_of_the_others(architecture, placement):
    model = build_vision(spec_of(architecture, placement=placement), seed=1)
    for _ in range(2):
        model(images(8))  # statistics that are not those of the start
    model.eval()
    x = images(9)
    together = model(x)
    order = torch.randperm(9)
    torch.testing.assert_close(model(x[order]), together[order], rtol=1e-5, atol=1e-5)
    for at in (0, 4, 8):
        torch.testing.assert_close(model(x[at : at + 1]), together[at : at + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_in_eval_mode_routes_that_are_given_are_as_good_as_decided(architecture):
    model = build_vision(spec_of(architecture), seed=1).eval()
    x = images()
    ctx = mixed(model)
    together = model(x, ctx)
    alone = torch.cat([model(x[at : at + 1], routed_by(model, [e])) for at, e in enumerate([1, 0, 0, 1, 1, 0, 1])])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_images_of_no_number_are_no_trouble():
    model = build_vision(spec_of("small")).eval()
    assert model(images(0)).shape == (0, 5)


# ---- who decides


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("architecture", ALL)
def test_the_plan_that_comes_back_leads_to_the_same_logits(architecture, placement):
    model = build_vision(spec_of(architecture, placement=placement), seed=1).eval()
    x = images()
    seen = model.classify(x)
    assert seen.plan is not None
    assert tuple(seen.plan.sites) == model.sites
    for site in model.sites:
        assert seen.plan[site].check().logits.shape == (7, 2)
    again = model.classify(x, RouteContext(plan=seen.plan))
    torch.testing.assert_close(again.logits, seen.logits, rtol=1e-6, atol=1e-6)
    decided = model.decide(x)
    assert all(torch.equal(decided[site].expert, seen.plan[site].expert) for site in model.sites)


@pytest.mark.parametrize("architecture", ALL)
def test_a_dense_network_decides_nothing(architecture):
    model = build_vision(spec_of(architecture, experts=0))
    assert model.sites == ()
    assert model.decide(images()) is None
    assert model.classify(images()).plan is None
    assert model.router_parameters() == model.router_modules() == []


def test_one_decision_drives_the_whole_network():
    model = build_vision(spec_of("resnet18", router="resnet8"), seed=0).eval()
    plan = model.decide(images())
    assert len({id(routing) for routing in plan.sites.values()}) == 1


def test_layers_decide_for_themselves():
    model = build_vision(spec_of("vgg16", placement="layer"), seed=0).eval()
    plan = model.decide(images(32))
    assert len({tuple(routing.expert.tolist()) for routing in plan.sites.values()}) > 1
    assert len(model.router_modules()) == len(model.sites)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_routers_and_experts_share_no_parameter(placement):
    model = build_vision(spec_of("resnet18", placement=placement))
    routers, experts = ({id(p) for p in group} for group in (model.router_parameters(), model.expert_parameters()))
    assert routers
    assert not routers & experts
    assert routers | experts == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("norm", ["per_expert", "shared"])
def test_statistics_are_of_the_experts_own_images(norm):
    model = build_vision(spec_of("resnet18", norm=norm), seed=0).train()
    model(images(), routed_by(model, [1] * 7))
    norms = [part for part in model.modules() if isinstance(part, BatchNormExperts)]
    assert norms
    for part in norms:
        assert part.running_mean.abs().sum(1).ne(0).tolist() == ([False, True] if norm == "per_expert" else [True])


# ---- the gradient of the router


def router_gradient(architecture, gate, x):
    """Logits, the gradient of the loss to the router's logits by what the gate estimates, and the routing."""
    model = build_vision(spec_of(architecture, gate=gate), seed=0).eval()
    plan = model.decide(x)
    routing = plan[model.sites[0]]
    y = model(x, RouteContext(plan=plan))
    return y, torch.autograd.grad(y.logsumexp(1).sum(), routing.logits)[0], routing


@pytest.mark.parametrize("architecture", ALL)
def test_gates_agree_forward_and_differ_backward(architecture):
    x = images(4)
    y, softmax, routing = router_gradient(architecture, "softmax", x)
    same, selected, _ = router_gradient(architecture, "selected", x)
    assert torch.equal(y, same)
    chosen = F.one_hot(routing.expert, 2).bool()
    assert selected[~chosen].eq(0).all()
    assert selected[chosen].ne(0).all()
    # the probabilities' own gradient: p (1 - p) for the chosen, the opposite for the other
    slope = (routing.probs * (1 - routing.probs))[chosen]
    torch.testing.assert_close(softmax[chosen], selected[chosen] * slope, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(softmax.sum(1), torch.zeros(4), rtol=0, atol=1e-6 * float(softmax.abs().max() + 1))


def test_the_gradient_is_the_sum_over_routed_steps_of_gradient_times_output():
    model = build_vision(spec_of("small", gate="selected"), seed=0).eval().backend("masked")
    x, outputs = images(3), []
    for conv in model.network.convs:
        conv.register_forward_hook(lambda _, __, y: outputs.append(y))
    plan = model.decide(x)
    y = model(x, RouteContext(plan=plan))
    routing = plan[model.sites[0]]
    loss = y.logsumexp(1).sum()
    (grad,) = torch.autograd.grad(loss, routing.logits, retain_graph=True)
    grads = torch.autograd.grad(loss, outputs)
    by_hand = sum((g * out).flatten(1).sum(1) for g, out in zip(grads, outputs, strict=True))
    torch.testing.assert_close(grad.sum(1), by_hand, rtol=1e-4, atol=1e-6)


def test_the_prob_gate_scales_what_comes_out():
    scaled, unit = (build_vision(spec_of("small", gate=gate), seed=0).eval() for gate in ("prob", "softmax"))
    x = images()
    assert torch.equal(scaled.decide(x)[scaled.sites[0]].expert, unit.decide(x)[unit.sites[0]].expert)
    assert not torch.allclose(scaled(x), unit(x))


# ---- learning, and being kept


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("experts", [0, 2])
@pytest.mark.parametrize("architecture", ALL)
def test_one_step_then_saved_loaded_and_attacked(architecture, experts, placement, tmp_path):
    model = build_vision(spec_of(architecture, experts=experts, placement=placement), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, images(8))
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("network") for name in moved)
    assert experts == 0 or any("router" in name for name in moved)
    save_vision(model, tmp_path / "saved")
    loaded = load_vision(tmp_path / "saved")
    assert loaded.spec == model.spec
    assert not loaded.training
    x = images()
    assert torch.equal(loaded(x), model.eval()(x))
    attack = Attack(epsilon=8 / 255, steps=2, step_size=4 / 255, aim="kl+router" if experts else "kl", start="gaussian")
    attacked = perturb(loaded, x, torch.zeros(7, dtype=torch.int64), attack)
    assert 4 / 255 < (attacked - x).abs().max() <= 8 / 255 + 1e-7
    assert step(loaded, x) > 0


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("architecture", ALL)
def test_half_precision(architecture, placement):
    model = build_vision(spec_of(architecture, placement=placement), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images(8)).float(), torch.arange(8) % 5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.router_parameters())
    assert model.eval().bfloat16()(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("architecture", ["resnet18", "wrn28_10", "vgg16", "densenet40"])
def test_larger_images(architecture, size):
    model = build_vision(spec_of(architecture, image_size=size, router="resnet8", router_width=2), seed=0)
    assert step(model, images(3, size)) > 0
    assert model.eval()(images(2, size)).shape == (2, 5)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("router", ["small", "resnet8"])
def test_logits_of_routers_can_be_bound(router, placement):
    model = build_vision(spec_of("small", router=router, placement=placement, router_bound=0.01), seed=0).eval()
    for routing in model.decide(images()).sites.values():
        assert routing.logits.abs().max() <= 0.01


def test_weights_may_be_drawn_as_torch_does():
    spec = spec_of("resnet18")
    published, smaller = build_vision(spec, seed=0), build_vision(spec, seed=0, init="torch")
    assert smaller.network.stem.conv.weight.std() < published.network.stem.conv.weight.std()
    with pytest.raises(OptionError, match="fan_out, torch"):
        build_vision(spec, init="zeros")


def test_grey_images():
    model = build_vision(spec_of("small", channels=1, image_size=8))
    assert model(images(2, 8, channels=1)).shape == (2, 5)


def test_the_residual_routers_and_their_widths():
    for router in ("resnet20", "resnet14", "resnet8"):
        model = build_vision(spec_of("small", router=router, router_width=4), seed=0).eval()
        assert model.decide(images())[model.sites[0]].logits.shape == (7, 2)


# ---- what is not accepted


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.rand(2, 3, 8, 8), "takes images"),
        (torch.rand(2, 1, 16, 16), "takes images"),
        (torch.rand(3, 16, 16), "takes images"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "float"),
    ],
)
def test_images_that_do_not_fit(x, said):
    with pytest.raises(OptionError, match=said):
        build_vision(spec_of("small"))(x)


def test_plans_that_do_not_fit():
    model = build_vision(spec_of("small")).eval()
    x = images()
    with pytest.raises(RoutingError, match="for 7 images"):
        model(x, routed_by(model, [0, 1]))
    with pytest.raises(RoutingError, match="no site"):
        model(x, RouteContext(plan=fixed_plan(torch.zeros(7, dtype=torch.int64), ["elsewhere"], 2)))
    with pytest.raises(RoutingError, match="over 3 experts"):
        model(x, RouteContext(plan=fixed_plan(torch.zeros(7, dtype=torch.int64), model.sites, 3)))
    with pytest.raises(RoutingError, match="no mask"):
        model(x, RouteContext(mask=torch.arange(7) < 5))


def test_an_unknown_backend():
    with pytest.raises(OptionError, match="grouped, masked"):
        build_vision(spec_of("small")).backend("fast")
