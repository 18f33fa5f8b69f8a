from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM, TrainerCallback

from coterie.errors import MissingExtraError, OptionError, TrainingError
from coterie.training.trainer import (
    COMPLETE,
    LOG,
    Options,
    language_trainer,
    last_checkpoint,
    read_log,
    seconds_spent,
    train_from,
)  # fmt: skip
from coterie.training.windows import Windows


def made():
    torch.manual_seed(0)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_experts=4, num_experts_per_tok=2, eos_token_id=0, pad_token_id=1, bos_token_id=None,
            output_router_logits=True,
        )
    ).train()  # fmt: skip


def options(steps=6, **others):
    return Options(steps, **({"batch": 2, "save_every": 2, "log_every": 1} | others))


def trainer_of(work, given=None, model=None, **others):
    given = given or options()
    data = Windows({"only": torch.arange(2000) * 7 % 40}, 16, given.steps * given.batch)
    return language_trainer(model or made(), data, given, work, **others)


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption, and the loss of each step."""
    told = []
    trainer = trainer_of(tmp_path_factory.mktemp("whole"), progress=lambda *step: told.append(step))
    train_from(trainer, resume=False)
    return trainer, told


def test_it_learns_and_tells(whole):
    _, told = whole
    assert [step[:2] for step in told] == [(number, 6) for number in range(1, 7)]
    assert told[-1][2] < told[0][2]


@pytest.mark.parametrize("stopped", [2, 3, 5])
def test_stopped_and_resumed_is_the_same_bits(whole, tmp_path, stopped):
    with pytest.raises(KeyboardInterrupt):
        train_from(trainer_of(tmp_path, callbacks=[StopAfter(stopped)]), resume=False)
    torch.manual_seed(99)
    resumed = trainer_of(tmp_path)
    train_from(resumed, resume=True)
    expected = weights(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_resuming_what_is_finished_changes_nothing(whole, tmp_path):
    train_from(trainer_of(tmp_path), resume=False)
    again = trainer_of(tmp_path)
    train_from(again, resume=True)
    expected = weights(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


def test_a_run_may_be_prolonged_before_the_rate_falls(tmp_path):
    """The plan can be changed while the rate is still at its peak: it is as if it had been so from the start."""
    with pytest.raises(KeyboardInterrupt):
        train_from(trainer_of(tmp_path / "a", options(8), callbacks=[StopAfter(2)]), resume=False)
    prolonged, straight = (
        trainer_of(tmp_path / "a", options(10, warmup=2)),
        trainer_of(tmp_path / "b", options(10, warmup=2)),
    )
    train_from(prolonged, resume=True)
    train_from(straight, resume=False)
    expected = weights(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights(prolonged).items())


def test_the_rate_rises_stays_and_falls_to_zero(tmp_path):
    train_from(trainer_of(tmp_path, options(12, warmup=3, decay=0.5, rate=0.01)), resume=False)
    rates = [record["learning_rate"] for record in read_log(tmp_path) if "learning_rate" in record]
    assert rates[3:6] == [0.01] * 3
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01 / 4


def test_a_save_that_was_interrupted_does_not_count(whole, tmp_path, monkeypatch):
    """The newest checkpoint lacks its end; the one before it is whole, and the run goes on from there."""
    from transformers import Trainer

    save = Trainer._save_optimizer_and_scheduler

    def interrupted(self, path):
        if "checkpoint-4" in path:
            raise KeyboardInterrupt
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_from(trainer_of(tmp_path), resume=False)
    assert (tmp_path / "checkpoint-4").exists()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    resumed = trainer_of(tmp_path)
    train_from(resumed, resume=True)
    expected = weights(whole[0])
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_two_checkpoints_are_kept(whole):
    work = whole[0].args.output_dir
    from pathlib import Path

    assert sorted(path.parent.name for path in Path(work).glob(f"*/{COMPLETE}")) == ["checkpoint-4", "checkpoint-6"]


def test_a_loss_that_is_no_number_stops_with_a_sentence(tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.lm_head.weight.data[5] = float("nan")

    with pytest.raises(TrainingError, match=r"nan at step 4.*[Rr]esume"):
        train_from(trainer_of(tmp_path, callbacks=[Poison()]), resume=False)
    kept = OlmoeForCausalLM.from_pretrained(last_checkpoint(tmp_path))
    assert all(value.isfinite().all() for value in kept.parameters())


def test_the_log_has_a_line_for_each_step_and_survives_damage(tmp_path):
    train_from(trainer_of(tmp_path), resume=False)
    with (tmp_path / LOG).open("a") as file:
        file.write(json.dumps({"step": 6, "extra": 1, "seconds": 0.5}) + '\n{"step": 7, "lo')
    records = read_log(tmp_path)
    assert [record["step"] for record in records] == list(range(7))  # 0 tells the plan
    assert {"loss", "learning_rate", "grad_norm", "extra"} <= records[-1].keys()
    assert seconds_spent(tmp_path) >= 0.5
    assert read_log(tmp_path / "nowhere") == []


def test_seconds_add_up_over_starts(tmp_path):
    lines = [{"step": step, "seconds": seconds} for step, seconds in [(1, 10), (2, 30), (2, 5), (3, 25)]]
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds_spent(tmp_path) == 55


def test_without_accelerate_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"coterie\[train\]"):
        trainer_of(tmp_path)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1, "batch": 0}, {"steps": 1, "seed": -1}])
def test_options_that_make_no_sense(wrong):
    with pytest.raises(OptionError):
        Options(**wrong)
