"""Lists of channels: what they may be, what is said of them, and the file they are kept in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from coterie.errors import CheckpointError, OptionError
from coterie.surgery.channels import Channels, LayerChannels


def lists(shared, own, inner=8):
    return LayerChannels(torch.tensor(shared, dtype=torch.int64), torch.tensor(own), inner)


def test_an_expert_has_the_shared_channels_and_its_own():
    layer = lists([1, 6], [[0, 7], [2, 3]])
    assert layer.of(0).tolist() == [0, 1, 6, 7]
    assert layer.of(1).tolist() == [1, 2, 3, 6]
    assert layer.disjoint
    assert not layer.whole
    assert layer.union == 6
    assert layer.overlaps().tolist() == [[1.0, 0.5], [0.5, 1.0]]


def test_whole_is_every_channel_once():
    assert lists([0, 4], [[1, 2, 3], [5, 6, 7]]).whole
    assert not lists([], [[0, 1, 2, 3], [3, 4, 5, 6]]).whole


def test_fused_experts_compute_with_the_same():
    layer = lists([1, 6], [[0, 7], [2, 3]])
    fused = layer.fused()
    assert not len(fused.shared)
    assert [fused.of(expert).tolist() for expert in (0, 1)] == [layer.of(expert).tolist() for expert in (0, 1)]


@pytest.mark.parametrize(
    ("shared", "own", "what"),
    [([1], [[1, 2]], "twice"), ([], [[2, 2]], "twice"), ([], [[7, 8]], "not in 0 to 7"), ([], [[-1, 0]], "not in 0")],
)
def test_lists_that_cannot_be_are_refused(shared, own, what):
    with pytest.raises(OptionError, match=what):
        lists(shared, own)


def test_shapes_that_cannot_be_are_refused():
    with pytest.raises(OptionError, match="own"):
        LayerChannels(torch.tensor([0]), torch.tensor([1, 2]), 8)


def test_a_file_gives_back_what_was_saved(tmp_path):
    saved = Channels({"model.layers.0.mlp": lists([1, 6], [[0, 7], [2, 3]])}, {"way": "activation", "seed": 3})
    saved.save(tmp_path / "channels.safetensors")
    found = Channels.load(tmp_path / "channels.safetensors")
    assert found.about == saved.about
    layer = found.layers["model.layers.0.mlp"]
    assert layer.shared.tolist() == [1, 6]
    assert layer.own.tolist() == [[0, 7], [2, 3]]
    assert layer.own.dtype == torch.int64
    assert layer.inner == 8


def test_other_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read as channels"):
        Channels.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no file of channels"):
        Channels.load(tmp_path / "weights.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Channels.load(tmp_path / "cut.safetensors")
