"""The loop: the same bits however often it was stopped, and a divergence loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from coterie.errors import OptionError, TrainingError
from coterie.models.vision import VisionSpec, build_vision
from coterie.training import last_checkpoint, read_log
from coterie.training.adversarial import (
    Attack,
    Descent,
    RobustLosses,
    RobustOptions,
    best_of,
    fit_robust,
    judge,
    load_best,
    route_load,
    training_attack,
)
from coterie.training.adversarial.fit import Course
from coterie.training.images import ImageData

SPEC = VisionSpec("small", classes=3, channels=1, image_size=8, experts=2, ratio=0.25, router="small")
DENSE = VisionSpec("small", classes=3, channels=1, image_size=8, width=0.25)


def images(count=48, seed=0):
    """Three classes of bars, at a place of each class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pictures = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for number, label in enumerate(labels.tolist()):
        pictures[number, 0, 2 * label + 1] += 0.7
    return ImageData(pictures, labels, ("a", "b", "c"))


def options(regime="alternating", **words):
    losses = RobustLosses(beta=1, drift=0.0 if regime == "joint" else 1)
    attack = training_attack(regime, epsilon=0.1, steps=1, step_size=0.1)
    given = {"epochs": 2, "batch": 16, "losses": losses, "attack": attack, "log_every": 1, "seed": 3}
    return RobustOptions(regime, **{**given, "router": Descent("adam", 2e-3), **words})


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Stop(Exception):
    """In place of Ctrl-C."""


def stop_at(step):
    def progress(done, steps, loss):
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("regime", ["joint", "alternating", "released"])
def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path, regime):
    given = options(regime, epochs=3)
    whole = build_vision(SPEC, 0)
    run = fit_robust(whole, images(), given, tmp_path / "whole", validation=images(12, 1))
    assert run.steps == 9
    torch.manual_seed(99)  # as another process would begin
    for step in (4, 8):  # in the second and in the third epoch: back to the end of the one before
        with pytest.raises(Stop):
            fit_robust(
                build_vision(SPEC, 0), images(), given, tmp_path / "parts", validation=images(12, 1),
                progress=stop_at(step), resume=True,
            )  # fmt: skip
        torch.rand(5)
    parts = build_vision(SPEC, 7)  # whatever it had, the checkpoint has all
    again = fit_robust(parts, images(), given, tmp_path / "parts", validation=images(12, 1), resume=True)
    assert equal(bits(whole), bits(parts))
    assert again == run
    for model, place in ((whole, "whole"), (parts, "parts")):
        load_best(model, tmp_path / place)
    assert equal(bits(whole), bits(parts))
    lines = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in read_log(tmp_path / place)]
        for place in ("whole", "parts")
    ]
    assert lines[0] == lines[1]


def test_resuming_what_is_done_changes_nothing(tmp_path):
    model = build_vision(SPEC, 0)
    run = fit_robust(model, images(), options(), tmp_path, validation=images(12, 1))
    other = build_vision(SPEC, 5)
    assert fit_robust(other, images(), options(), tmp_path, validation=images(12, 1), resume=True) == run
    assert equal(bits(model), bits(other))


def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_generator(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (build_vision(SPEC, 0) for _ in range(3))
    fit_robust(first, images(), options(), tmp_path / "1")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    fit_robust(second, images(), options(), tmp_path / "2")
    fit_robust(other, images(), options(seed=4), tmp_path / "3")
    assert equal(bits(first), bits(second))
    assert not equal(bits(first), bits(other))


def test_it_learns_and_the_best_is_the_most_robust_on_validation(tmp_path):
    model, valid = build_vision(DENSE, 0), images(24, 1)
    given = options("joint", epochs=6, experts=Descent(rate=0.05), router=None, augment=False)
    before = judge(build_vision(DENSE, 0), valid, given.judge)
    run = fit_robust(model, images(96), given, tmp_path, validation=valid)
    assert run.last.robust_accuracy > before.robust_accuracy + 0.2
    logged = [record for record in read_log(tmp_path) if "validation_robust_accuracy" in record]
    assert len(logged) == 6
    robust = [record["validation_robust_accuracy"] for record in logged]
    assert run.best.judged.robust_accuracy == max(robust)
    assert run.best.step == logged[robust.index(max(robust))]["step"]
    load_best(model, tmp_path)
    assert judge(model, valid, given.judge, batch=256) == run.best.judged


def test_the_log_begins_before_the_first_step(tmp_path):
    fit_robust(build_vision(SPEC, 0), images(), options(), tmp_path)
    log = read_log(tmp_path)
    assert [record["step"] for record in log] == list(range(7))
    assert sum(log[0]["load"]) == 48
    assert {"loss", "router_loss", "experts_rate", "router_rate", "flips", "load", "epoch"} <= log[1].keys()
    assert log[-1]["epoch"] == 2
    assert log[-1]["experts_rate"] < log[1]["experts_rate"] == 0.1


def test_a_router_that_sends_all_one_way_is_told_of(tmp_path):
    model, said = build_vision(SPEC, 0), []
    head = dict(model.named_parameters())["planner.router.score.head.bias"]
    head.data[0] = 100
    assert route_load(model, images()) == (48, 0)
    run = fit_robust(model, images(), options(epochs=1), tmp_path, say=said.append)
    assert run.first_load == (48, 0)
    assert said == ["Before learning the router sends every image to one expert."]


def test_a_divergence_stops_with_a_sentence_and_keeps_the_last_checkpoint(tmp_path):
    model, given = build_vision(SPEC, 0), options(epochs=3)

    def spoil(done, steps, loss):
        if done == 5:
            model.network.head.weight.data[0, 0] = torch.nan

    with pytest.raises(TrainingError, match=r"At step 6 of 9: .*not a finite number.*are intact.*lower rates"):
        fit_robust(model, images(), given, tmp_path, progress=spoil)
    assert last_checkpoint(tmp_path).name == "checkpoint-3"
    # lower rates may be resumed with, other things not
    lower = replace(given, experts=Descent(rate=0.01))
    resumed = build_vision(SPEC, 0)
    fit_robust(resumed, images(), lower, tmp_path, resume=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in resumed.state_dict().values())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    model = build_vision(SPEC, 0)

    def spoil(done, steps, loss):
        if done == 6:
            model.network.head.weight.data[0, 0] = torch.inf

    with pytest.raises(TrainingError, match=r"network\.head\.weight holds numbers that are not finite"):
        fit_robust(model, images(), options(), tmp_path, progress=spoil)
    assert last_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_rate_that_explodes_ends_in_a_sentence(tmp_path):
    given = options("joint", experts=Descent(rate=1e30, weight_decay=0), epochs=4)
    with pytest.raises(TrainingError, match="At step"):
        fit_robust(build_vision(SPEC, 0), images(), given, tmp_path)


def test_only_rates_may_differ_on_resuming(tmp_path):
    fit_robust(build_vision(SPEC, 0), images(), options(), tmp_path)
    other = options(epochs=3, losses=RobustLosses(beta=2, drift=1))
    with pytest.raises(OptionError, match=r"other options \(epochs, losses\.beta\)"):
        fit_robust(build_vision(SPEC, 0), images(), other, tmp_path, resume=True)
    with pytest.raises(OptionError, match="Resume it, or delete"):
        fit_robust(build_vision(SPEC, 0), images(), options(), tmp_path)


def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(tmp_path):
    given = options(epochs=3)
    fit_robust(build_vision(SPEC, 0), images(), given, tmp_path)
    (tmp_path / "checkpoint-9" / "state.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"checkpoint-9 cannot be read.*Delete it"):
        fit_robust(build_vision(SPEC, 0), images(), given, tmp_path, resume=True)
    (tmp_path / "checkpoint-9" / "complete").unlink()
    assert last_checkpoint(tmp_path) is None


def test_a_best_checkpoint_between_two_moves_is_found(tmp_path):
    model = build_vision(SPEC, 0)
    run = fit_robust(model, images(), options(), tmp_path, validation=images(12, 1))
    (tmp_path / "checkpoint-best").rename(tmp_path / "checkpoint-best.old")
    assert best_of(tmp_path) == run.best
    load_best(model, tmp_path)


def test_without_images_to_judge_by_there_is_no_best(tmp_path):
    model = build_vision(SPEC, 0)
    run = fit_robust(model, images(), options(epochs=1), tmp_path)
    assert run.best is None
    assert run.last is None
    with pytest.raises(TrainingError, match="no best checkpoint"):
        load_best(model, tmp_path)


def test_images_of_another_kind_are_refused_before_anything_is_written(tmp_path):
    wrong = ImageData(torch.rand(6, 3, 8, 8), torch.arange(6) % 3, ("a", "b", "c"), "mine")
    with pytest.raises(OptionError, match="mine has 3 x 8 x 8"):
        fit_robust(build_vision(SPEC, 0), wrong, options(), tmp_path / "w")
    many = ImageData(torch.rand(6, 1, 8, 8), torch.arange(6), tuple("abcdef"), "mine")
    with pytest.raises(OptionError, match="3 classes"):
        fit_robust(build_vision(SPEC, 0), many, options(), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_course_of_images():
    """Each side sees every image at most once an epoch, in an order of its own."""
    given = options(epochs=2, batch=5)
    course = Course(23, given)
    assert (course.batch, course.per_epoch, course.steps) == (5, 4, 8)
    epochs = {
        (side, epoch): torch.cat([course.numbers(side, 4 * epoch + place) for place in range(4)])
        for side in ("experts", "router")
        for epoch in (0, 1)
    }
    assert all(len(order.unique()) == 20 for order in epochs.values())
    orders = [tuple(order.tolist()) for order in epochs.values()]
    assert len(set(orders)) == 4
    assert torch.equal(Course(23, given).numbers("router", 6), course.numbers("router", 6))
    assert Course(3, given).batch == 3


def test_judging_leaves_no_trace_and_does_not_depend_on_the_batch():
    model, data = build_vision(SPEC, 0), images(10)
    before, flags = bits(model), [module.training for module in model.modules()]
    attack = Attack(0.1, 2, 0.05)
    one, other = judge(model, data, attack, batch=10), judge(model, data, attack, batch=3)
    assert one == other
    assert sum(one.load) == 10
    assert 0.5 <= one.largest_share <= 1
    assert equal(before, bits(model))
    assert flags == [module.training for module in model.modules()]


def test_the_options_are_kept_beside_the_checkpoint(tmp_path):
    fit_robust(build_vision(SPEC, 0), images(), options(), tmp_path)
    kept = json.loads((tmp_path / "checkpoint-6" / "options.json").read_text())
    assert kept["attack"]["aim"] == "kl+router"
    assert kept["losses"]["beta"] == 1
