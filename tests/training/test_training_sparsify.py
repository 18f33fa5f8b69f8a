"""Pruning of what factors miss: the course of the shares, who survives, packing, saving, and resuming bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import coterie.models  # noqa: F401
from coterie.errors import OptionError
from coterie.experts import KindExperts
from coterie.surgery.student import factorize_model, pack_model, survivors
from coterie.testing.checkpoints import tiny_model
from coterie.training import Options, fit
from coterie.training.sparsify import SAMPLES, Sparsify, zero_shot

SIZES = {"layers": 1, "experts": 4, "width": 16, "inner": 12}


def tokens(count, length=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(320, (length,), generator=generator) for _ in range(count)]


class Data(torch.utils.data.Dataset):
    def __init__(self, count):
        self.rows = tokens(count)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


@torch.no_grad()
def logits(model):
    return model(torch.stack(tokens(1, seed=9))).logits


def alive(model):
    masks = [mask for site in survivors(model).values() for each in site.values() for mask in each]
    return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)


def full_rest(model):
    return [part for experts in model.modules() if isinstance(experts, KindExperts)
            for _, name, part in experts.named_parts() if name.endswith("_s")]  # fmt: skip


@pytest.mark.parametrize("unit", ["row", "col", "neuron"])
def test_without_training(unit, tmp_path):
    model = tiny_model("olmoe", **SIZES)
    before, kind = logits(model), type(model)
    attachment = factorize_model(model, 3, unit)
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=0)
    zero_shot(model, tokens(10), Sparsify(0.25, 0.1, 0.2, unit))
    kept, units = alive(model)
    assert abs(kept - 0.25 * units) <= (3 if unit == "neuron" else 1)  # a neuron is a unit of three matrices
    assert all(part.grad is None for part in model.parameters())
    pruned = logits(model)
    pack_model(model)
    torch.testing.assert_close(logits(model), pruned, atol=1e-5, rtol=0)
    assert sum(part.numel() for part in full_rest(model)) < 0.4 * 3 * 4 * 16 * 12
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    attachment.undo()
    assert torch.equal(logits(model), before)
    assert type(model) is kind


def test_the_share_at_every_step():
    model = tiny_model("mixtral", **SIZES)
    factorize_model(model, 2)
    sparsify = Sparsify(0.1, 0.25, 0.25)
    sparsify.join(model)
    shares = []
    for step in range(1, 9):
        for part in model.parameters():
            part.grad = torch.randn_like(part)
        shares.append(sparsify.prune(step, 8))
        kept, units = alive(model)
        assert abs(kept - round(shares[-1] * units)) <= 0
        with torch.no_grad():
            for part in full_rest(model):  # what was pruned may grow back before the next step
                part.add_(torch.randn_like(part))
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-3:] == [0.1] * 3


def test_an_expert_without_tokens_goes_first():
    model = tiny_model("mixtral", **SIZES)
    factorize_model(model, 2)
    sparsify = Sparsify(0.5, 0, 0)
    sparsify.join(model)
    experts = next(part for part in model.modules() if isinstance(part, KindExperts))
    for expert, name, part in experts.named_parts():
        part.grad = None if expert == 1 else torch.ones_like(part)
        assert name
    sparsify.prune(1, 1)
    assert not any(bool(part.any()) for e, name, part in experts.named_parts() if e == 1 and name.endswith("_s"))


def train(work, steps, *, save_every=2, resume=False, stop=None):
    model = tiny_model("olmoe", **SIZES)
    factorize_model(model, 2, "neuron")
    sparsify = Sparsify(0.2, 0.1, 0.2, "neuron")
    callbacks = [sparsify] if stop is None else [sparsify, stop]
    options = Options(steps=steps, batch=1, rate=1e-3, warmup=0, save_every=save_every, log_every=1)
    fit(model, Data(steps), options, work, callbacks=callbacks, resume=resume)
    return model, sparsify


def test_during_training(tmp_path):
    model, sparsify = train(tmp_path / "a", 6, save_every=0)
    assert sparsify.share == 0.2
    kept, units = alive(model)
    assert abs(kept - 0.2 * units) <= 3


def test_scores_come_back(tmp_path):
    """Pruning that is stopped and resumed ends with the same scores and the same weights."""
    whole, first = train(tmp_path / "a", 4)
    (work := tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-2").rename(work / "checkpoint-2")
    again, second = train(work, 4, resume=True)
    for a, b in zip(first._remainders, second._remainders, strict=True):
        assert torch.equal(a.score, b.score)
    assert torch.equal(logits(whole), logits(again))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Sparsify(1.5), "between 0 and 1"),
        (lambda: Sparsify(0.1, 0.6, 0.6), "together at most 1"),
        (lambda: Sparsify(0.1, unit="head"), "row, col, neuron"),
        (lambda: Sparsify().join(tiny_model("olmoe", **SIZES)), "nothing to prune"),
        (lambda: zero_shot(None, [], Sparsify()), "1 to 512 windows"),
        (lambda: zero_shot(None, tokens(SAMPLES + 1, 2), Sparsify()), "not 513"),
        (lambda: pack_model(tiny_model("olmoe", **SIZES)), "no factored experts"),
        (lambda: factorize_model(tiny_model("olmoe", **SIZES), 0), "1 or more"),
    ],
)
def test_wrong_input(call, said):
    with pytest.raises(OptionError, match=said):
        call()
