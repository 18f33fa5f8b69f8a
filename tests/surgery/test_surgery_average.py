"""The mean of checkpoints: every tensor of it, in any type, whole or not there, and what has none."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.surgery.average import _Files, average, shares_of
from coterie.surgery.method import Method
from coterie.surgery.opened import open_any
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer

ABOUT = Method("merge", "lossy", "A mean.")


def tensors(path):
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def make(out, *paths, shares=None, **options):
    return average(
        [open_any(path) for path in paths], shares or [1 / len(paths)] * len(paths), out, about=ABOUT, **options
    )


@pytest.fixture
def pair(tmp_path):
    return [save_tiny(tmp_path / f"m{seed}", "qwen3_moe", seed=seed) for seed in (1, 2)]


def changed(path, name, edit):
    """A tensor of a checkpoint of one file, changed in place."""
    held = load_file(path / "model.safetensors")
    held[name] = edit(held[name])
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})


def test_every_tensor_is_the_weighted_mean(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[average.__module__], "_PIECE", 100)  # tensors in several pieces, the last one short
    made = make(tmp_path / "out", *pair, shares=[0.25, 0.75], max_shard=50_000)
    first, second, mean = map(tensors, (*pair, made.path))
    assert mean.keys() == first.keys()
    assert len(list(made.path.glob("*.safetensors"))) > 1
    for name, tensor in mean.items():
        assert torch.allclose(tensor, 0.25 * first[name] + 0.75 * second[name], atol=1e-7), name
        assert tensor.dtype == first[name].dtype
    assert made.held <= 400
    assert (made.before, made.container) == (made.after, "native")


def test_halves_of_one_model_are_it_bit_for_bit(pair, tmp_path):
    made = make(tmp_path / "out", pair[0], pair[0])
    before, after = tensors(pair[0]), tensors(made.path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_types_are_the_first_models_and_sums_are_wide(tmp_path):
    wide = save_tiny(tmp_path / "wide", "qwen3_moe", seed=1)
    narrow = save_tiny(tmp_path / "narrow", "qwen3_moe", seed=2, dtype=torch.bfloat16)
    first, second = tensors(narrow), tensors(wide)
    mean = tensors(make(tmp_path / "out", narrow, wide, narrow, shares=[0.5, 0.3, 0.2]).path)
    for name, tensor in mean.items():
        assert tensor.dtype == torch.bfloat16
        wanted = 0.5 * first[name].float() + 0.3 * second[name] + 0.2 * first[name].float()
        assert torch.allclose(tensor.float(), wanted, rtol=2**-8, atol=1e-7)  # rounded once


def test_work_that_was_cut_off_goes_on(pair, tmp_path, monkeypatch):
    written = []

    def interrupt(self, part, at, size):
        written.append(part)
        if len(written) == 40:
            monkeypatch.setattr(_Files, "read", read)
            raise KeyboardInterrupt
        return read(self, part, at, size)

    read = _Files.read
    monkeypatch.setattr(_Files, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", *pair, max_shard=20_000)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="unfinished work of another kind"):
        make(tmp_path / "out", *pair, shares=[0.1, 0.9], max_shard=20_000, resume=True)
    made = make(tmp_path / "out", *pair, max_shard=20_000, resume=True)
    whole = make(tmp_path / "whole", *pair)
    found, wanted = tensors(made.path), tensors(whole.path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("weights", "normalise", "wanted"),
    [([1, 3], True, (0.25, 0.75)), ([1, -0.5], False, (1, -0.5)), ([2, -1], True, (2, -1))],
)
def test_shares(weights, normalise, wanted):
    assert shares_of(weights, normalise) == wanted


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_are_none(weights):
    with pytest.raises(OptionError):
        shares_of(weights)


def test_what_has_no_mean(pair, tmp_path):
    other = save_tiny(tmp_path / "other", "mixtral")
    with pytest.raises(OptionError, match="model_type is mixtral there and qwen3_moe here"):
        make(tmp_path / "out", pair[0], other)
    config = json.loads((pair[1] / "config.json").read_text())
    (pair[1] / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    with pytest.raises(OptionError, match="num_experts_per_tok is 1 there"):
        make(tmp_path / "out", *pair)
    (pair[1] / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1, "use_cache": False}))
    make(tmp_path / "out", *pair)  # how it is trained or run is nobody's concern
    with pytest.raises(OptionError, match="exists already"):
        make(tmp_path / "out", *pair)
    with pytest.raises(OptionError, match="two models or more"):
        make(tmp_path / "out2", pair[0])


def test_other_tokens_have_no_mean(pair, tmp_path):
    for path in pair:
        tiny_tokenizer().save_pretrained(path)
    table = json.loads((pair[1] / "tokenizer.json").read_text())
    table["model"]["vocab"] = dict.fromkeys(table["model"]["vocab"], 1)
    (pair[1] / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(OptionError, match="different tokenizers"):
        make(tmp_path / "out", *pair)


def test_a_tensor_of_another_shape_or_none(pair, tmp_path):
    changed(pair[1], "lm_head.weight", lambda tensor: tensor[:-1].contiguous())
    with pytest.raises((OptionError, CheckpointError), match=r"lm_head\.weight"):
        make(tmp_path / "out", *pair)
    held = load_file(pair[1] / "model.safetensors")
    del held["lm_head.weight"]
    save_file(held, pair[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 'lm_head\.weight'"):
        make(tmp_path / "out", *pair)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_no_model_computes_with_is_copied_or_left(pair, tmp_path):
    for path, name in zip(pair, ("more.here", "more.there"), strict=True):
        held = load_file(path / "model.safetensors") | {name: torch.ones(3)}
        save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    mean = tensors(make(tmp_path / "out", *pair).path)
    assert torch.equal(mean["more.here"], torch.ones(3))
    assert "more.there" not in mean


@pytest.mark.parametrize("at", [0, 1])
def test_numbers_that_are_none(pair, tmp_path, at):
    changed(pair[at], "model.norm.weight", lambda tensor: tensor.fill_(float("nan")))
    with pytest.raises(CheckpointError, match=rf"m{at + 1}.*'model\.norm\.weight' holds NaN"):
        make(tmp_path / "out", *pair)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def test_a_sum_that_its_type_cannot_hold(tmp_path):
    pair = [save_tiny(tmp_path / f"m{seed}", "qwen3_moe", seed=seed, dtype=torch.float16) for seed in (1, 2)]
    for path in pair:
        changed(path, "model.norm.weight", lambda tensor: tensor.fill_(60_000))
    with pytest.raises(CheckpointError, match="beyond what F16 can hold"):
        make(tmp_path / "out", *pair, shares=[1, 1])
    make(tmp_path / "out", *pair)


def test_infinity_that_all_have_stays(pair, tmp_path):
    for path in pair:
        changed(path, "model.norm.weight", lambda tensor: tensor.fill_(float("inf")))
    assert tensors(make(tmp_path / "out", *pair).path)["model.norm.weight"].isinf().all()


def test_a_shard_that_ends_early(pair, tmp_path):
    models = [open_any(path) for path in pair]
    file = pair[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        average(models, [0.5, 0.5], tmp_path / "out", about=ABOUT)


def test_experts_in_a_form_of_their_own_have_no_mean(pair, tmp_path):
    from coterie.jobs import quantize

    small = tmp_path / "small"
    quantize(pair[0], small, "int8")
    with pytest.raises(UnsupportedError, match="not the mean of the experts"):
        make(tmp_path / "out", small, small)
