"""Stopped and resumed is the same bits, whatever the router remembers, draws or is steered by."""

from __future__ import annotations

import pytest
import torch
from tiny_models import options_for, routed_model, same_bits, weights_of, windows_for
from transformers import AutoModelForCausalLM, TrainerCallback

from coterie.models.routed import config_of
from coterie.training import (
    Consistency,
    Groups,
    Objective,
    fit,
    last_checkpoint,
    linear,
    piecewise,
    residual_dropout,
)  # fmt: skip
from coterie.training.settings import thresholds
from coterie.training.steering import BalanceBias, MeanExperts, NullOffset

STEPS, EVERY = 6, 2
PLAIN = Objective(balance=0)
RUNS = {
    "carry": ("rmoe", {}, dict),
    "draws": ("thor", {"draw": "batch"}, lambda: {"objective": Objective(balance=0, consistency=Consistency(1.0))}),
    "schedule": ("smoe_dropout", {}, lambda: {"objective": PLAIN, "schedules": {"k": linear(1, 4)}}),
    "threshold": ("top_p", {}, lambda: {"callbacks": [MeanExperts(1.5)]}),
    "correction": ("sigmoid_bias", {}, lambda: {"objective": PLAIN, "callbacks": [BalanceBias(0.01)]}),
    "nulls": (
        "adamoe", {"k": 3, "num_nulls": 4},
        lambda: {"objective": Objective(balance=piecewise([0.1, 0.0], [0.5])), "callbacks": [MeanExperts(1.0)]},
    ),
    "frozen": ("top_k", {}, lambda: {"groups": Groups(frozen=("experts",))}),
}  # fmt: skip


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(name, work, stop=None, resume=False):
    """The model after a run, which may be stopped or be a resumed one."""
    router, options, more = RUNS[name]
    model = routed_model(router, **options)
    torch.manual_seed(3)
    undo = residual_dropout(model, 0.1)
    given, how = more(), options_for(STEPS, save_every=EVERY, accumulate=2)
    callbacks = [*given.pop("callbacks", []), *([StopAfter(stop)] if stop else [])]
    try:
        fit(model, windows_for(how), how, work, callbacks=callbacks, resume=resume, **given)
    except KeyboardInterrupt:
        assert stop
    undo()
    return model


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed(name, tmp_path):
    whole = run(name, tmp_path / "whole")
    run(name, tmp_path / "parts", stop=3)
    assert last_checkpoint(tmp_path / "parts").name == "checkpoint-2"
    torch.manual_seed(99)
    resumed = run(name, tmp_path / "parts", resume=True)
    assert same_bits(weights_of(whole), weights_of(resumed))
    assert [part.value for part in thresholds(whole)] == [part.value for part in thresholds(resumed)]
    assert config_of(whole) == config_of(resumed)


def test_the_last_checkpoint_of_a_stopped_run_is_a_model(tmp_path):
    stopped = run("carry", tmp_path, stop=2 * EVERY)
    model = AutoModelForCausalLM.from_pretrained(last_checkpoint(tmp_path))
    ids = torch.arange(2, 20)[None]
    with torch.inference_mode():
        assert torch.isfinite(model.eval()(input_ids=ids).logits).all()
    assert type(model) is type(stopped)


def test_pinned_nulls_come_back_at_their_pace(tmp_path):
    model = routed_model("adamoe", k=3, num_nulls=4)
    nulls = [module for module in model.modules() if hasattr(module, "pin")]
    for part in nulls:
        part.pin(1, 100.0)
    options = options_for(4)
    fit(model, windows_for(options), options, tmp_path, callbacks=[NullOffset(0.5)], objective=PLAIN)
    assert [part.offset.tolist() for part in nulls] == [[100 / 16, *[-100 / 16] * 3]] * 2
