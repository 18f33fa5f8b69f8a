"""The attacks against classifiers whose robust accuracy is known exactly, and what an attack must leave alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from attack_models import CLASSES, SPEC, Linear, RoutedLinear, patterns, trained

from coterie.errors import OptionError
from coterie.jobs.attacking import Kind, Threat, Verdict, attack
from coterie.jobs.attacking.victim import Victim
from coterie.jobs.attacking.ways import Scene, run_way, ways_for
from coterie.models.vision import load_vision, save_vision
from coterie.routers import fixed_plan
from coterie.routing import RouteContext
from coterie.training.adversarial import Attack, reroute
from coterie.training.images import ImageData

EPSILON = 0.1
QUICK = Threat(EPSILON, steps=10, step_size=0.05, images=120, batch=50)


def far_from_bounds(count):
    """Images whose ball lies within [0, 1], so that nothing is clipped."""
    return torch.rand(count, 1, 4, 4) * 0.6 + 0.2


def linear():
    return Linear(torch.randn(2, 16), torch.randn(2) * 0.1)


def lead_under_attack(model, images, labels):
    """[N]: lead of the right class after the best attack there is: what every pixel can take from it."""
    own, other = model.weight[labels], model.weight[1 - labels]
    lead = model(images).gather(1, labels[:, None]) - model(images).gather(1, 1 - labels[:, None])
    return lead.squeeze(1) - EPSILON * (own - other).abs().sum(1)


@torch.no_grad()
def test_a_linear_model_is_broken_exactly_as_far_as_it_can_be():
    model, images = linear(), far_from_bounds(120)
    labels = model(images + 0.3 * torch.randn_like(images)).argmax(1)
    report = attack(model, ImageData(images, labels, ("no", "yes"), "drawn"), QUICK)
    left = lead_under_attack(model, images, labels) > 0
    clean = model(images).argmax(1) == labels
    assert 0 < left.sum() < clean.sum() < 120
    assert torch.equal(report.outcome("end-to-end").correct, left)
    assert torch.equal(report.outcome("margin").correct, left)
    assert report.robust_accuracy == pytest.approx(float(left.double().mean()))
    assert report.clean_accuracy == pytest.approx(float(clean.double().mean()))
    assert report.experts == 0
    assert not report.expert_rows
    assert report.outcome("router") is None
    assert report.trusted


@torch.no_grad()
def test_routes_are_frozen_forced_and_pushed_off_exactly():
    router, experts = linear(), [linear(), linear()]
    router.bias -= router(far_from_bounds(500)).mean(0)  # both experts are used
    model, images = RoutedLinear(router, experts), far_from_bounds(120)
    labels = model(images).argmax(1)
    report = attack(model, ImageData(images, labels, ("no", "yes"), "drawn"), QUICK)
    left = torch.stack([lead_under_attack(expert, images, labels) > 0 for expert in experts])
    route = router(images).argmax(1)
    frozen = left.gather(0, route[None])[0]
    stays = lead_under_attack(router, images, route) > 0
    assert 0 < left.all(0).sum() < frozen.sum() < 120
    assert 0 < stays.sum() < 120
    assert torch.equal(report.outcome("experts").correct, frozen)
    for expert in (0, 1):
        assert torch.equal(report.outcome(f"expert-{expert}").correct, left[expert])
        assert report.expert_rows[expert].attacked == pytest.approx(float(left[expert].double().mean()))
        forced = float((experts[expert](images).argmax(1) == labels).double().mean())
        assert report.expert_rows[expert].forced == pytest.approx(forced)
        assert report.expert_rows[expert].images == int((route == expert).sum())
    assert torch.equal(report.outcome("worst-route").correct, left.all(0))
    assert torch.equal(report.outcome("router").kept, stays)
    assert report.robust_accuracy <= report.outcome("end-to-end").accuracy


@torch.no_grad()
def test_an_image_is_led_to_an_expert_that_errs_where_no_other_attack_sees_it():
    """One expert is right and cannot be moved, the other never is; the choice has no gradient at all."""
    router, images = linear(), far_from_bounds(120)
    good, bad = (Linear(torch.zeros(2, 16), torch.tensor(bias)) for bias in ([9.0, 0.0], [0.0, 9.0]))
    router.bias[0] += 0.3 - float((router(images)[:, 0] - router(images)[:, 1]).min())  # all take the good one
    model, labels = RoutedLinear(router, [good, bad]), torch.zeros(120, dtype=torch.int64)
    assert model(images).argmax(1).eq(0).all()
    found = reroute(model, images, labels, Attack(EPSILON, 10, 0.05))
    stays = lead_under_attack(router, images, labels) > 0
    assert 0 < stays.sum() < 120
    assert (found - images).abs().max() <= EPSILON + 1e-6
    assert torch.equal(model(found).argmax(1) == 0, stays)
    report = attack(model, ImageData(images, labels, ("good", "bad"), "drawn"), QUICK)
    assert torch.equal(report.outcome("rerouting").correct, stays)
    assert report.outcome("end-to-end").accuracy == 1
    assert "loss rises with steps" in [check.name for check in report.checks if check.verdict is Verdict.FAILED]


def test_rerouting_refuses_what_it_is_not_for(model):
    data = patterns(5)
    with pytest.raises(OptionError, match="none decides"):
        reroute(trained(1, replace(SPEC, experts=0)), data.images, data.labels, Attack(0.1, 1))
    with pytest.raises(OptionError, match="3 routers decide"):
        reroute(trained(1, replace(SPEC, placement="layer")), data.images, data.labels, Attack(0.1, 1))
    with pytest.raises(OptionError, match="0, 1"):
        reroute(model, data.images * 3, data.labels, Attack(0.1, 1))


def test_rerouting_finds_the_same_in_any_batch(model):
    images, labels = patterns(20, seed=5).batch(torch.arange(20))
    whole = reroute(model, images, labels, Attack(0.2, 4, 0.05, restarts=2), seed=3)
    index = torch.tensor([7, 3, 11])
    some = reroute(model, images[index], labels[index], Attack(0.2, 4, 0.05, restarts=2), seed=3, index=index)
    torch.testing.assert_close(some, whole[index], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def report(model):
    return attack(model, patterns(150, seed=1), Threat(0.05, 8, images=70), released=True)


def test_the_headline_is_the_worst_of_each_image_over_all_attacks(report):
    broken = torch.stack([one.broken for one in report.outcomes]).any(0)
    assert report.robust_accuracy == pytest.approx(1 - float(broken.double().mean()))
    for one in report.outcomes:
        if one.kind in (Kind.CLEAN, Kind.ATTACK, Kind.WEAK):
            assert torch.equal(one.correct, ~one.broken)
            assert report.robust_accuracy <= one.accuracy
    assert report.clean_accuracy > 0.9
    each = [one.correct for one in report.outcomes if one.key.startswith("expert-")]
    assert torch.equal(report.outcome("worst-route").correct, torch.stack(each).all(0))


def test_every_attack_keeps_to_the_ball(report):
    for one in report.outcomes:
        assert one.distance <= 0.05 + 1e-6
        assert one.low >= 0
        assert one.high <= 1


def test_the_tables_add_up(report):
    right = report.clean_accuracy * report.images
    for rows in (report.classes, report.expert_rows):
        assert sum(row.images for row in rows) == report.images == 70
        assert sum(row.clean * row.images for row in rows) == pytest.approx(right)
        assert sum(row.robust * row.images for row in rows) == pytest.approx(report.robust_accuracy * report.images)
    for row in report.classes:
        assert sum(row.experts) == pytest.approx(1)
    lost = sum(row.lost * row.images for row in report.expert_rows)
    assert lost == pytest.approx(report.outcome("end-to-end").flips * report.images)


def test_attacked_images_are_judged_with_the_routes_that_were_given(model):
    data = patterns(60, seed=2)
    images, labels = data.batch(torch.arange(60))
    victim = Victim(model, 25)
    scene = Scene(victim, images, labels, victim.answers(images, labels))
    ways = {way.key: way for way in ways_for(victim, Threat(0.15, 5), routers=1)}
    done, standing = [], torch.rand(60) < 0.4
    outcome, found, answers, _ = run_way(ways["expert-1"], scene, standing, done.append)
    plan = fixed_plan(torch.ones(60, dtype=torch.int64), model.sites, 2)
    assert torch.equal(outcome.correct, model(found, RouteContext(plan=plan)).argmax(1) == labels)
    assert torch.equal(outcome.broken, model(found).argmax(1) != labels)
    assert torch.equal(answers.predicted, model(found).argmax(1))
    assert done == [25, 50, 60]
    outcome, found, _, _ = run_way(ways["experts"], scene, standing, done.append)
    assert torch.equal(outcome.correct, model(found, RouteContext(plan=model.decide(images))).argmax(1) == labels)
    outcome, found, _, _ = run_way(ways["more-starts"], scene, standing, done.append)
    assert torch.equal(found[~standing], images[~standing])
    assert (found[standing] != images[standing]).flatten(1).any(1).all()
    assert torch.equal(outcome.correct, standing & (model(found).argmax(1) == labels))
    assert torch.equal(outcome.broken, ~outcome.correct)


def test_more_starts_go_on_where_the_first_ended(report):
    before = report.outcome("end-to-end").correct & report.outcome("margin").correct
    after = report.outcome("more-starts").correct
    assert not (after & ~before).any()
    (check,) = [check for check in report.checks if check.name == "restarts help little"]
    assert check.numbers.get("before", 0) == int(before.sum())
    assert check.numbers.get("after", 0) == int(after.sum())


def test_nothing_of_the_model_is_changed():
    model = trained(steps=5)
    model.train()
    model.network.requires_grad_(False)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked = [parameter.requires_grad for parameter in model.parameters()]
    grads = [parameter.grad for parameter in model.parameters()]
    attack(model, patterns(30), Threat(0.1, 2, images=20))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(now is before for now, before in zip([p.grad for p in model.parameters()], grads, strict=True))


def test_the_same_seed_gives_the_same_numbers_in_any_batches(model):
    data = patterns(80, seed=3)
    records = []
    for batch in (30, 30, 11):
        record = attack(model, data, Threat(0.12, 3, images=30, seed=5, batch=batch)).as_record()
        del record["seconds"], record["checks"], record["threat"]
        records.append(json.dumps(record))
    assert records[0] == records[1]
    assert json.loads(records[0])["robust_accuracy"] == json.loads(records[2])["robust_accuracy"]
    other = attack(model, data, Threat(0.12, 1, images=30, seed=6)).as_record()
    assert other["per_class"] != json.loads(records[0])["per_class"]  # other images were drawn


def test_a_tiny_ball_breaks_nothing(model):
    found = attack(model, patterns(60, seed=4), Threat(1e-6, 3, images=40))
    assert found.robust_accuracy == found.clean_accuracy
    assert all(one.flips == 0 for one in found.outcomes)


def test_routers_in_every_layer_are_told_apart_and_their_bound_is_none():
    found = attack(trained(40, replace(SPEC, placement="layer")), patterns(60), Threat(0.1, 3, images=40))
    assert len(found.sites) == 3
    assert [(row.site, row.expert) for row in found.expert_rows] == [(s, e) for s in found.sites for e in (0, 1)]
    assert "2^3 pathways" in found.notes[0]
    assert not any(check.name == "routes in turn bound it" for check in found.checks)
    assert "site" in found.describe()
    assert "experts " in found.html()


def test_one_expert_has_no_routes_to_attack():
    found = attack(trained(20, replace(SPEC, experts=1)), patterns(40), Threat(0.1, 2, images=20))
    assert [one.key for one in found.outcomes] == ["clean", "end-to-end", "margin", "more-starts", "gradient-free"]


def test_a_directory_and_a_model_in_memory_give_the_same(model, tmp_path):
    save_vision(model, tmp_path / "model")
    assert torch.equal(load_vision(tmp_path / "model").mean, model.mean)
    records = []
    for one in (model, tmp_path / "model"):
        record = attack(one, patterns(40), Threat(0.1, 2, images=20), name="m", device="cpu").as_record()
        del record["seconds"]
        records.append(record)
    assert records[0] == records[1]


def test_images_that_do_not_fit_the_model_are_refused(model):
    data = patterns(10)
    for images, labels, words in [
        (data.images.expand(-1, 3, -1, -1), data.labels, "1 x 8 x 8"),
        (data.images[..., :6], data.labels, "1 x 8 x 8"),
        (data.images, data.labels + CLASSES, "4 classes"),
    ]:
        with pytest.raises(OptionError, match=words):
            attack(model, ImageData(images, labels, tuple("abcdefgh"), "these"), Threat(0.1, 1))
    with pytest.raises(OptionError, match="device"):
        attack("nowhere", data, device="abacus")


def test_progress_is_told_with_an_estimate(model):
    said = []
    attack(model, patterns(30), Threat(0.1, 2, images=20, batch=10), say=said.append)
    assert said[0] == "Opening"
    assert any("Attacking, end to end: 10 images, about" in one for one in said)
    assert said[-1].startswith("Checking")
