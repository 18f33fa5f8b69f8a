"""Learning with routers: what a step sees, costs and moves."""

from __future__ import annotations

import pytest
import torch
from tiny_models import dense_model, options_for, routed_model, same_bits, weights_of, windows_for
from transformers import TrainerCallback

from coterie.errors import OptionError, TrainingError
from coterie.models import session_of
from coterie.training import (
    Consistency,
    Group,
    Groups,
    Objective,
    exponential,
    fit,
    linear,
    piecewise,
    read_log,
)  # fmt: skip
from coterie.training.step_loss import StepLoss

PADDED = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 1, 1], [9, 10, 11, 12, 13, 14]]),
    "labels": torch.tensor([[5, 6, 7, 8, -100, -100], [9, 10, 11, 12, 13, 14]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
}
EVERYTHING = Objective(balance=0.1, entropy=0.01, z=0.01, consistency=Consistency(1.0))


def trained(model, tmp_path, options=None, **others):
    options = options or options_for()
    fit(model, windows_for(options), options, tmp_path / "work", **others)
    return [record for record in read_log(tmp_path / "work") if "loss" in record]


def gradients(model, lesson, inputs=PADDED):
    """(loss, gradients) of one forward and backward."""
    model.zero_grad()
    lesson.begin(0, 0, 10)
    loss = lesson(model, inputs, None)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- what is learned


@pytest.mark.parametrize("make", [dense_model, routed_model])
def test_the_loss_falls(make, tmp_path):
    log = trained(make(), tmp_path, options_for(20))
    assert log[-1]["cross_entropy"] < log[0]["cross_entropy"] - 0.05


def test_every_loss_is_told_and_they_add_up(tmp_path):
    log = trained(routed_model(), tmp_path, objective=EVERYTHING)
    for record in log:
        parts = [record[name] for name in ("cross_entropy", "balance", "entropy", "z", "consistency")]
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-4)
        assert record["balance"] == pytest.approx(0.1, rel=0.3)  # near balance it is its coefficient
        assert record["experts"] == [2.0, 2.0]
        assert [sum(layer) for layer in record["load"]] == [2 * 2 * 16 * 2] * 2  # two passes, windows, tokens, choices


def test_the_mean_over_layers_or_their_sum():
    """Two layers: the sum is twice the mean."""
    model = routed_model()
    losses = {}
    for layers in ("mean", "sum"):
        lesson = StepLoss(model, Objective(balance=1.0, layers=layers), {})
        gradients(model, lesson)
        losses[layers] = lesson.watch.take()["balance"]
    assert losses["sum"] == pytest.approx(2 * losses["mean"], rel=1e-6)


def test_a_dense_model_has_no_routing_losses(tmp_path):
    log = trained(dense_model(), tmp_path, objective=Objective(balance=1.0))
    assert log[0]["loss"] == pytest.approx(log[0]["cross_entropy"], rel=1e-6)


def test_coefficients_follow_their_schedule(tmp_path):
    log = trained(routed_model(), tmp_path, objective=Objective(balance=piecewise([1.0, 0.0], [0.5])))
    assert ["balance" in record for record in log] == [True, True, False, False]


def test_k_follows_its_schedule_and_is_given_back(tmp_path):
    model = routed_model()
    log = trained(model, tmp_path, schedules={"k": linear(1, 4)})
    assert [record["k"] for record in log] == [1, 2, 3, 3]  # 1 + round(3 t / 4), half to even: 0, 1, 2, 2
    assert [record["experts"][0] for record in log] == [1.0, 2.0, 3.0, 3.0]
    assert not session_of(model).base.overrides
    assert session_of(model).routings == {}


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(tmp_path):
    """Cross entropy only: the other losses are of each micro-batch."""
    one, two = routed_model(), routed_model()
    at_once, apart = options_for(1, batch=4), options_for(1, batch=2, accumulate=2)
    plain = Objective(balance=0)
    first = trained(one, tmp_path / "one", at_once, objective=plain)
    second = trained(two, tmp_path / "two", apart, objective=plain)
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)
    assert first[0]["grad_norm"] == pytest.approx(second[0]["grad_norm"], rel=1e-4)


def test_micro_batches_draw_anew(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_substep_end(self, args, state, control, model=None, **kwargs):
            seen.append(session_of(model).base.micro_step)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append((session_of(model).base.step, session_of(model).base.micro_step))

    options = options_for(2, accumulate=2)
    trained(routed_model("thor"), tmp_path, options, objective=Objective(balance=0), callbacks=[Look()])
    assert seen == [0, (0, 1), 0, (1, 1)]


# ---- two passes


def test_without_anything_random_two_passes_are_one():
    model = routed_model("thor", experts=1, k=1)
    lesson = StepLoss(model, Objective(balance=0, consistency=Consistency(4.0)), {})
    twice, of_two = gradients(model, lesson)
    assert lesson.watch.take()["consistency"] == 0
    once, of_one = gradients(model, StepLoss(model, Objective(balance=0), {}))
    assert twice == pytest.approx(once, rel=1e-6)
    for name, gradient in of_one.items():
        torch.testing.assert_close(of_two[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_batch_draw_moves_one_expert_per_layer_and_pass():
    model = routed_model("thor", draw="batch", experts=8, k=1)
    for passes in (1, 2):
        consistency = Consistency(1.0) if passes == 2 else None
        _, found = gradients(model, StepLoss(model, Objective(balance=0, consistency=consistency), {}))
        moved = [
            int((found[name].flatten(1).abs().sum(1) > 0).sum()) for name in found if name.endswith("down_proj")
        ]  # fmt: skip
        assert all(1 <= each <= passes for each in moved)


def test_two_passes_differ_where_something_is_drawn(tmp_path):
    log = trained(
        routed_model("thor"), tmp_path, objective=Objective(balance=0, consistency=Consistency(2.0, warmup=0.5))
    )
    assert log[0]["consistency"] == 0  # alpha has not begun to rise
    assert log[2]["consistency"] > 0


# ---- padding


@pytest.mark.parametrize("router", ["top_k", "rmoe"])
def test_padding_changes_nothing(router):
    model = routed_model(router)
    wider = {
        "input_ids": torch.nn.functional.pad(PADDED["input_ids"], (0, 4), value=1),
        "labels": torch.nn.functional.pad(PADDED["labels"], (0, 4), value=-100),
        "attention_mask": torch.nn.functional.pad(PADDED["attention_mask"], (0, 4)),
    }
    first, of_first = gradients(model, StepLoss(model, EVERYTHING, {}))
    second, of_second = gradients(model, StepLoss(model, EVERYTHING, {}), wider)
    assert first == pytest.approx(second, rel=1e-5)
    for name, gradient in of_first.items():
        torch.testing.assert_close(of_second[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_batch_of_padding_alone_moves_nothing():
    model = routed_model()
    nothing = {
        "input_ids": torch.ones(2, 6, dtype=torch.long), "labels": torch.full((2, 6), -100),
        "attention_mask": torch.zeros(2, 6, dtype=torch.long),
    }  # fmt: skip
    loss, found = gradients(model, StepLoss(model, EVERYTHING, {}), nothing)
    assert loss == 0
    assert all(bool((gradient == 0).all()) for gradient in found.values())


# ---- activation checkpointing


@pytest.mark.parametrize("router", ["top_k", "rmoe", "thor", "adamoe", "top_p"])
def test_activation_checkpointing_gives_the_same_gradients(router):
    found = []
    for checkpointed in (False, True):
        model = routed_model(router)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        found.append(gradients(model, StepLoss(model, EVERYTHING, {})))
    assert found[0][0] == found[1][0]
    assert same_bits(found[0][1], found[1][1])


def test_it_can_be_asked_for(tmp_path):
    plain = trained(routed_model("rmoe"), tmp_path / "plain")
    saving = trained(routed_model("rmoe"), tmp_path / "saving", options_for(activation_checkpointing=True))
    assert [record["loss"] for record in plain] == [record["loss"] for record in saving]


# ---- groups


def test_what_is_frozen_stays_bit_for_bit(tmp_path):
    model = routed_model("smoe_dropout")
    before = weights_of(model)
    trained(model, tmp_path, options_for(6, weight_decay=0.5), groups=Groups(frozen=("experts", "*.self_attn.*")))
    after = weights_of(model)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert all(name in still for name in before if ".experts." in name or ".self_attn." in name or ".score." in name)
    assert "lm_head.weight" not in still


def test_own_rates_and_decays(tmp_path):
    """A router with rate 0 stands still while the rest learns."""
    model = routed_model()
    before = weights_of(model)
    trained(model, tmp_path, groups=Groups(router=Group(rate=0.0), experts=Group(rate=1e-3, weight_decay=0.0)))
    after = weights_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(".gate." in name for name in moved)
    assert any(".experts." in name for name in moved)


def test_null_rows_learn_from_the_balance_loss_alone(tmp_path):
    """Without it they have no gradient, and weight decay leaves them alone."""
    for coefficient, moves in ((0.0, False), (1.0, True)):
        model = routed_model("adamoe", k=3, num_nulls=4)
        before = weights_of(model)
        options = options_for(4, weight_decay=0.5)
        trained(model, tmp_path / str(moves), options, objective=Objective(balance=coefficient))
        after = weights_of(model)
        nulls = [name for name in before if name.endswith("null_rows")]
        assert len(nulls) == 2
        assert all(torch.equal(before[name], after[name]) is not moves for name in nulls)


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "wrong", "said"),
    [
        (dense_model, {"schedules": {"k": linear(1, 2)}}, "no router of ours"),
        (routed_model, {"schedules": {"k": linear(1, 16)}}, "there are 4 routes"),
        (routed_model, {"schedules": {"k": linear(1, 2.5)}}, "must be whole"),
        (routed_model, {"schedules": {"p": exponential(0.5, 1.5)}}, "above 0, up to 1"),
        (routed_model, {"schedules": {"q": linear(1, 2)}}, "What can: k, p"),
        (routed_model, {"objective": Objective(nulls="averaged")}, "no router of the model has nulls"),
        (routed_model, {"groups": Groups(frozen=("gates",))}, "nothing called 'gates'"),
        (routed_model, {"groups": Groups(frozen=("*",))}, "Everything is frozen"),
    ],
)
def test_what_the_model_does_not_have_is_named(make, wrong, said, tmp_path):
    with pytest.raises(OptionError, match=said):
        trained(make(), tmp_path, **wrong)


@pytest.mark.parametrize("wrong", [{"balance_norm": "slot"}, {"layers": "all"}, {"nulls": "each"}])
def test_words_of_the_objective(wrong):
    with pytest.raises(OptionError, match="Write"):
        Objective(**wrong)


@pytest.mark.parametrize("where", ["lm_head.weight", "model.layers.0.input_layernorm.weight"])
def test_numbers_that_are_none_stop_the_run_with_a_sentence(where, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.get_parameter(where).data[0] = float("nan")

    with pytest.raises(TrainingError, match=r"step 3.*[Rr]esume"):
        trained(routed_model(), tmp_path, callbacks=[Poison()])
