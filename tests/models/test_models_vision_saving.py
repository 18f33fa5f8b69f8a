"""Networks on disk: what is not whole, not ours or not a number is refused with a sentence."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError
from coterie.models.vision import VisionSpec, build_vision, load_vision, read_vision, save_vision

SPEC = VisionSpec("small", experts=2, ratio=0.5, router="small", classes=3, channels=1, image_size=8)


@pytest.fixture
def saved(tmp_path):
    return save_vision(build_vision(SPEC, seed=0), tmp_path / "model")


def change_config(path, **fields):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


def change_weights(path, change):
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors")


def refused(path, said):
    with pytest.raises(CheckpointError, match=said):
        load_vision(path)


def test_two_files_and_nothing_else(saved):
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
    assert sorted(os.listdir(saved.parent)) == ["model"]
    assert json.loads((saved / "config.json").read_text())["model_type"] == "coterie_vision"
    assert read_vision(saved) == SPEC


def test_saving_again_replaces(saved):
    other = build_vision(SPEC, seed=1)
    save_vision(other, saved)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_vision(saved)(x), other.eval()(x))


def test_statistics_are_kept(saved):
    model = build_vision(SPEC, seed=0)
    model(torch.rand(8, 1, 8, 8))
    save_vision(model, saved)
    for (name, a), (_, b) in zip(model.state_dict().items(), load_vision(saved).state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_half_precision_on_disk_is_float32_in_memory(saved):
    change_weights(saved, lambda s: s.update({k: v.half() for k, v in s.items() if v.is_floating_point()}))
    assert {p.dtype for p in load_vision(saved).parameters()} == {torch.float32}


def test_places_that_are_none(tmp_path):
    refused(tmp_path / "nowhere", "no directory")
    refused(tmp_path, "no config.json")


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "no directory")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_vision(build_vision(SPEC), tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_a_language_model(pocket):
    refused(pocket, "not a convolutional network")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architecture": "vgg16", "image_size": 32}, "not of the network that config.json describes"),
        ({"experts": 3}, "has shape"),
        ({"experts": 0}, "not of the network that config.json describes"),
        ({"classes": 4}, "has shape"),
        ({"architecture": "vgg"}, "There is no architecture 'vgg'"),
        ({"experts": "two"}, "whole number"),
        ({"colour": "red"}, "no field 'colour'"),
    ],
)
def test_a_config_of_another_network(saved, fields, said):
    change_config(saved, **fields)
    refused(saved, said)


def test_files_that_are_damaged(saved):
    whole = (saved / "model.safetensors").read_bytes()
    for part in (whole[:-10], whole[:100], b""):
        (saved / "model.safetensors").write_bytes(part)
        refused(saved, "truncated|damaged|cannot be read")
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors")
    (saved / "config.json").write_bytes(b"\xff\x00")
    refused(saved, "cannot be read")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(saved, value):
    change_weights(saved, lambda s: s["network.head.weight"].fill_(value))
    refused(saved, "'network.head.weight' holds numbers that are infinite or NaN")


def test_a_router_of_nan_is_not_saved(saved):
    model = build_vision(SPEC)
    before = (saved / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.router_parameters()[0].fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        save_vision(model, saved)
    assert (saved / "model.safetensors").read_bytes() == before


def test_weights_of_whole_numbers(saved):
    change_weights(saved, lambda s: s.update({"network.head.weight": s["network.head.weight"].to(torch.int8)}))
    refused(saved, "not a floating type")


def test_a_tensor_too_many_or_too_few(saved):
    change_weights(saved, lambda s: s.update(more=torch.zeros(1)))
    refused(saved, "has 1 others .more.")
    change_weights(saved, lambda s: (s.pop("more"), s.pop("network.head.bias")))
    refused(saved, "lacks 1 tensors .network.head.bias.")
