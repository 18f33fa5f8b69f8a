"""Phases: in the order of the papers, and each leaves the other side's bits alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from coterie.errors import MissingExtraError, OptionError, TrainingError
from coterie.models.vision import VisionSpec, build_vision
from coterie.training.adversarial import (
    Descent,
    Learner,
    Phases,
    RobustLosses,
    RobustOptions,
    image_divergence,
    learning,
    training_attack,
    view,
)
from coterie.training.adversarial.options import check_options

IMAGE = VisionSpec("small", classes=4, channels=1, image_size=8, experts=2, ratio=0.5, router="small")
RESIDUAL = replace(IMAGE, router="resnet8", router_width=4)  # has batch norms of its own
LAYER = replace(IMAGE, placement="layer")
DENSE = VisionSpec("small", classes=4, channels=1, image_size=8)
LOSSES = RobustLosses(beta=3, drift=3, balance=0.1, z=0.01)


def options(regime="alternating", losses=LOSSES, **words):
    attack = training_attack(regime, losses.form, epsilon=0.1, steps=2, step_size=0.05)
    router = Descent("adam", 2e-3, weight_decay=0)
    return RobustOptions(regime, batch=8, losses=losses, attack=attack, router=router, **words)


def make(spec=IMAGE, given=None):
    given = given or options()
    model = build_vision(spec, 0)
    return model, Phases(model, given, Learner(model, given, 10))


def batch(seed=0, count=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.randint(4, (count,), generator=generator)


def sides(model):
    """(router's, everything else's) parameters and buffers."""
    own = {id(t) for module in model.router_modules() for t in (*module.parameters(), *module.buffers())}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    copies = {name: (id(tensor) in own, tensor.detach().clone()) for name, tensor in named.items()}
    return (
        {name: tensor for name, (of_router, tensor) in copies.items() if of_router},
        {name: tensor for name, (of_router, tensor) in copies.items() if not of_router},
    )


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def flat(state):
    """The tensors of an optimiser's state, in order."""
    return [value.clone() for entry in state["state"].values() for value in entry.values() if torch.is_tensor(value)]


@pytest.mark.parametrize("spec", [IMAGE, RESIDUAL, LAYER], ids=["small", "residual", "layer"])
def test_the_experts_phase_leaves_the_router_alone(spec):
    model, phases = make(spec)
    phases.step(0, {"experts": batch(0), "router": batch(1)})  # so that optimisers have a state
    router, others = sides(model)
    moments = flat(phases.learner.state()["router"])
    phases.experts(1, batch(2))
    router_then, others_then = sides(model)
    assert same(router, router_then)
    assert all(map(torch.equal, moments, flat(phases.learner.state()["router"])))
    assert not any(
        torch.equal(others[name], others_then[name]) for name in ("network.convs.0.conv.weight", "network.head.weight")
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["running", "batch"])
@pytest.mark.parametrize("spec", [IMAGE, RESIDUAL, LAYER], ids=["small", "residual", "layer"])
def test_the_router_phase_leaves_everything_else_alone(spec, norm):
    model, phases = make(spec, options(router_norm=norm))
    phases.step(0, {"experts": batch(0), "router": batch(1)})
    router, others = sides(model)
    moments = flat(phases.learner.state()["experts"])
    phases.router(1, batch(2))
    router_then, others_then = sides(model)
    assert same(others, others_then)
    assert all(map(torch.equal, moments, flat(phases.learner.state()["experts"])))
    assert not same(router, router_then)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_moving_norms_move_statistics_and_no_weight():
    model, phases = make(IMAGE, options(router_norm="moving"))
    _, others = sides(model)
    phases.router(0, batch())
    _, then = sides(model)
    changed = {name for name in others if not torch.equal(others[name], then[name])}
    assert changed
    assert all("running" in name or "tracked" in name for name in changed)


def test_the_task_teaches_the_router_through_the_gate():
    """Without any term of its own it moves: the released router never hears of the task."""
    model, phases = make(IMAGE, options(losses=RobustLosses(beta=3)))
    router, _ = sides(model)
    phases.router(0, batch())
    assert not same(router, sides(model)[0])


def test_the_order_is_attack_experts_attack_router(monkeypatch):
    """The router's batch is attacked only after the experts moved, and against what they became."""
    model, phases = make()
    head = model.network.head.weight
    told = []

    def watched(name):
        inner = getattr(Phases, name)

        def call(self, *args, **kwargs):
            if name == "attacked":
                told.append((f"attack {args[1]}", head.detach().clone(), args[2][1]))
            result = inner(self, *args, **kwargs)
            if name == "_descended":
                told.append((f"step {'+'.join(args[2])}", head.detach().clone(), None))
            return result

        monkeypatch.setattr(Phases, name, call)

    watched("attacked")
    watched("_descended")
    both = {"experts": batch(0), "router": batch(1)}
    phases.step(0, both)
    assert [name for name, _, _ in told] == ["attack experts", "step experts", "attack router", "step router"]
    heads = [head for _, head, _ in told]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])
    assert torch.equal(heads[2], heads[3])
    assert told[0][2] is both["experts"][1]
    assert told[2][2] is both["router"][1]


def test_a_joint_step_is_trades_on_both_sides():
    """One update by hand, with torch's own optimisers."""
    given = options("joint", RobustLosses(beta=3))
    model, phases = make(IMAGE, given)
    twin = build_vision(IMAGE, 0)
    images, labels = batch()
    perturbed = phases.attacked(0, "joint", (images, labels))
    told = phases.joint(0, (images, labels))
    clean, seen = view(twin.train(), images), view(twin, perturbed)
    loss = F.cross_entropy(clean.classes, labels) + 3 * image_divergence(clean.classes, seen.classes).mean()
    loss.backward()
    torch.optim.SGD(twin.expert_parameters(), 0.1, momentum=0.9, weight_decay=5e-4).step()
    torch.optim.Adam(twin.router_parameters(), 2e-3).step()
    assert torch.equal(told.loss, loss.detach())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert told.load.sum() == 8
    assert 0 <= float(told.flips) <= 1


def test_pgd_learns_from_the_perturbed_alone():
    given = options("joint", RobustLosses("pgd"))
    _, phases = make(IMAGE, given)
    images, labels = batch()
    perturbed = phases.attacked(0, "joint", (images, labels))
    twin = build_vision(IMAGE, 0)
    told = phases.joint(0, (images, labels))
    assert torch.equal(told.loss, F.cross_entropy(twin.train()(perturbed), labels).detach())
    assert told.flips is None
    assert set(told.parts) == {"cross_entropy"}


def test_a_dense_network_learns_jointly_and_no_other_way():
    given = options("joint", RobustLosses(beta=3))
    model, phases = make(DENSE, given)
    before = model.network.head.weight.detach().clone()
    record = phases.step(0, {"experts": batch()})
    assert not torch.equal(before, model.network.head.weight)
    assert "load" not in record
    assert phases.learner.sides == ("experts",)
    check_options(model, given)
    with pytest.raises(OptionError, match="this model has none"):
        check_options(model, options("alternating"))
    with pytest.raises(OptionError, match="drift, balance, z need a router"):
        check_options(model, options("joint"))


def test_the_released_router_learns_the_label_and_not_the_task():
    given = options("released", RobustLosses(beta=6, drift=6))
    _, phases = make(IMAGE, given)
    images, labels = batch()
    record = phases.step(0, {"experts": (images, labels)})
    assert {"router_label_route", "router_drift", "router_load", "loss", "divergence"} <= record.keys()
    # taught with labels that are all even, its routes go to expert 0 whatever the task's loss says
    _, phases = make(IMAGE, replace(given, router=Descent("adam", 2e-2, weight_decay=0)))
    even = labels - labels % 2
    for step in range(9):
        record = phases.step(step, {"experts": (images, even)})
    assert record["router_load"] == [8, 0]


def test_the_log_of_a_step_names_both_sides():
    _, phases = make()
    record = phases.step(0, {"experts": batch(0), "router": batch(1)})
    for prefix in ("", "router_"):
        for name in ("loss", "grad_norm", "cross_entropy", "divergence", "load", "flips"):
            assert prefix + name in record
    assert {"router_drift", "router_balance", "router_z"} <= record.keys()
    assert not {"drift", "balance", "z"} & record.keys()
    expected = record["router_cross_entropy"] + 3 * record["router_divergence"] + 3 * record["router_drift"]
    expected += 0.1 * record["router_balance"] + 0.01 * record["router_z"]
    assert record["router_loss"] == pytest.approx(expected, rel=1e-5)
    assert record["loss"] == pytest.approx(record["cross_entropy"] + 3 * record["divergence"], rel=1e-5)


@pytest.mark.parametrize("regime", ["joint", "alternating", "released"])
def test_bf16_computes_in_bf16_and_keeps_weights_in_float32(regime):
    model, phases = make(IMAGE, options(regime, replace(LOSSES, form="trades"), precision="bf16"))
    seen = []
    model.network.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    record = phases.step(0, {"experts": batch(0), "router": batch(1)})
    assert set(seen) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert record["loss"] == record["loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has it")
def test_fp16_is_refused_without_a_gpu():
    with pytest.raises(OptionError, match="needs a GPU"):
        make(IMAGE, options(precision="fp16"))


def test_an_update_that_is_no_number_is_not_made():
    model, phases = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight = model.network.head.weight
    with pytest.raises(TrainingError, match="loss became nan"):
        phases.learner.descend((weight * torch.nan).sum(), ("experts",), 0)
    with pytest.raises(TrainingError, match=r"gradient became (nan|inf)"):  # a finite loss with an infinite slope
        phases.learner.descend((weight - weight.detach()).abs().sqrt().sum(), ("experts",), 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_modes_within_a_phase():
    model, _ = make(RESIDUAL)
    of_router = {id(part) for module in model.router_modules() for part in module.modules()}
    others = [part for part in model.network.modules() if id(part) not in of_router]
    routers = [part for module in model.router_modules() for part in module.modules()]
    with learning(model, ("experts",)):
        assert all(part.training for part in others)
        assert not any(part.training for part in routers)
        assert not any(parameter.requires_grad for parameter in model.router_parameters())
    with learning(model, ("router",)):
        assert not any(part.training for part in others)
        assert all(part.training for part in routers)
        assert not any(parameter.requires_grad for parameter in model.expert_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rates_fall_along_half_a_cosine():
    descent = Descent(rate=0.2)
    assert [round(descent.rate_at(step, 4), 4) for step in range(5)] == [0.2, 0.1707, 0.1, 0.0293, 0.0]
    _, phases = make()
    assert phases.learner.rates(0) == {"experts_rate": 0.1, "router_rate": 2e-3}


def test_without_accelerate_the_extra_is_named(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else found(name, *a))
    with pytest.raises(MissingExtraError, match=r"coterie\[vision\]"):
        make()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RobustLosses, {"form": "madry"}),
        (RobustLosses, {"beta": -1}),
        (RobustLosses, {"z": float("nan")}),
        (Descent, {"kind": "lion"}),
        (Descent, {"rate": 0}),
        (Descent, {"momentum": 1}),
        (RobustOptions, {"regime": "free"}),
        (RobustOptions, {"epochs": 0}),
        (RobustOptions, {"precision": "fp8"}),
        (RobustOptions, {"seed": -1}),
    ],
)
def test_options_that_are_not_allowed(kind, words):
    with pytest.raises(OptionError):
        kind(**words)
