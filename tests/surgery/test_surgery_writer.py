"""Work that is cut off, disks that fill up, sources that are damaged: nothing is left that looks whole."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError, CoterieError, OptionError
from coterie.models import open_checkpoint
from coterie.surgery import Method, rewrite
from coterie.surgery import writer as writing
from coterie.surgery.shard import OpenShard
from coterie.testing.checkpoints import save_tiny

ABOUT = Method("prune", "lossy", "Nothing.")


def same(layer):
    return layer.unchanged()


@pytest.fixture
def source(tmp_path):
    return open_checkpoint(save_tiny(tmp_path / "a", "mixtral", layers=3))


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_work_that_was_cut_off_goes_on_after_the_last_whole_shard(tmp_path, source):
    whole = rewrite(source, tmp_path / "whole", same, about=ABOUT, max_shard=30_000)
    layers = []

    def interrupted(layer):
        layers.append(layer.site.layer)
        if layer.site.layer == 2:
            raise KeyboardInterrupt
        return layer.unchanged()

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        rewrite(source, tmp_path / "b", interrupted, about=ABOUT, max_shard=30_000)
    part = tmp_path / "b.part"
    assert not (tmp_path / "b").exists()
    assert list(part.glob("shard-*.safetensors"))
    assert not (part / "config.json").exists()
    with pytest.raises(OptionError, match="unfinished work"):
        rewrite(source, tmp_path / "b", same, about=ABOUT, max_shard=30_000)
    with pytest.raises(OptionError, match="another kind"):
        rewrite(source, tmp_path / "b", same, about=Method("merge", "lossy", "."), max_shard=30_000, resume=True)
    assert part.exists()
    again = []

    def counted(layer):
        again.append(layer.site.layer)
        return layer.unchanged()

    made = rewrite(source, tmp_path / "b", counted, about=ABOUT, max_shard=30_000, resume=True, check=False)
    assert 0 not in again
    assert made.after == whole.after
    tensors = {name: (part.dtype, part.shape) for name, part in open_checkpoint(made.path).ranges.items()}
    assert tensors == {name: (part.dtype, part.shape) for name, part in source.ranges.items()}
    for file in made.path.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, load_file(source.ranges[name].path)[name])


def test_an_interruption_before_the_first_shard_leaves_nothing(tmp_path, source):
    def interrupted(layer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite(source, tmp_path / "b", interrupted, about=ABOUT)
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize("room", [0, 50_000, 90_000])
def test_a_full_disk(tmp_path, source, monkeypatch, room):
    before, left = contents(source.path), [room]
    begin = OpenShard.begin

    def full(self, name, dtype, shape, nbytes):
        left[0] -= nbytes
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        begin(self, name, dtype, shape, nbytes)

    monkeypatch.setattr(OpenShard, "begin", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*source is untouched.*--resume"):
        rewrite(source, tmp_path / "b", same, about=ABOUT, max_shard=30_000)
    assert not (tmp_path / "b").exists()
    assert contents(source.path) == before
    monkeypatch.undo()
    resumable = (tmp_path / "b.part").exists()
    assert resumable == (room > 0)
    rewrite(source, tmp_path / "b", same, about=ABOUT, max_shard=30_000, resume=True)
    assert (tmp_path / "b" / "config.json").exists()


def test_what_is_there_is_not_written_over(tmp_path, source):
    (tmp_path / "b").mkdir()
    with pytest.raises(OptionError, match="exists already"):
        rewrite(source, tmp_path / "b", same, about=ABOUT)
    with pytest.raises(OptionError, match="no directory"):
        rewrite(source, tmp_path / "none" / "b", same, about=ABOUT)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.block_sparse_moe.experts.3.w2.weight", "model.layers.1.block_sparse_moe.gate.weight",
     "model.layers.2.self_attn.q_proj.weight"],
)  # fmt: skip
def test_nan_is_named(tmp_path, name):
    path = save_tiny(tmp_path / "a", "mixtral", layers=3)
    tensors = load_file(path / "model.safetensors")
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"'{name}' holds NaN"):
        rewrite(open_checkpoint(path), tmp_path / "b", same, about=ABOUT)
    assert not list(tmp_path.glob("b*"))


def test_a_source_that_shrinks_under_us(tmp_path, source):
    file = source.path / "model.safetensors"

    def cut(layer):
        if layer.site.layer == 1:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 4])
        return layer.unchanged()

    with pytest.raises(CoterieError, match="truncated"):
        rewrite(source, tmp_path / "b", cut, about=ABOUT)
    assert not list(tmp_path.glob("b*"))


def test_tied_embeddings_stay_one_tensor(tmp_path):
    source = open_checkpoint(save_tiny(tmp_path / "a", "qwen3_moe", tie_word_embeddings=True))
    made = rewrite(source, tmp_path / "b", same, about=ABOUT)
    assert "lm_head.weight" not in open_checkpoint(made.path).ranges
    assert json.loads((made.path / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize(("most", "held"), [(0, 320 * 32 * 4), (100_000, 100_000)])
def test_no_more_waits_for_the_disk_than_is_allowed(tmp_path, monkeypatch, most, held):
    """At least one tensor must wait, however large; whatever the model has of them, it is never more."""
    monkeypatch.setattr(writing, "_WAITING", most)
    for layers in (1, 6):
        source = open_checkpoint(save_tiny(tmp_path / str(layers), "qwen3_moe", layers=layers, tokenizer=False))
        assert 0 < rewrite(source, tmp_path / f"{layers}b", same, about=ABOUT, check=False).held <= held
