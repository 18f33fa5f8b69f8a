"""Looking at convolutional networks: on disk, or by the name of their architecture."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from coterie.errors import CheckpointError, OptionError, UnsupportedError
from coterie.jobs import VisionInspection, doctor, inspect, load
from coterie.models.vision import NETWORKS, VisionSpec, build_vision, save_vision


@pytest.fixture
def network(tmp_path):
    spec = VisionSpec("small", experts=2, ratio=0.5, router="small", classes=10, channels=1, image_size=8)
    return save_vision(build_vision(spec, seed=0), tmp_path / "model")


@pytest.mark.parametrize("architecture", sorted(NETWORKS))
def test_every_architecture_is_shown(architecture):
    found = inspect(architecture)
    assert isinstance(found, VisionInspection)
    text = found.describe()
    assert "2 experts of 0.5 of its channels" in text
    assert architecture == "small" or f"{found.cost.saving:.0%} of the dense" in text
    assert "resnet14" in text
    assert max(map(len, text.splitlines())) <= 120


def test_what_is_asked_for_is_shown():
    found = inspect("vgg16", options={"experts": 4, "ratio": 0.25, "router": "resnet8"})
    assert (found.spec.experts, found.spec.ratio, found.spec.router) == (4, 0.25, "resnet8")
    assert found.cost.saving > 0.8


def test_where_too_little_is_saved_a_router_is_named():
    assert "more than half with the router resnet8" in " ".join(inspect("densenet40").describe().split())
    assert "more than half" not in inspect("resnet18").describe()


def test_a_network_on_disk(network):
    found = inspect(network)
    assert found.nbytes == (network / "model.safetensors").stat().st_size
    record = json.loads(json.dumps(found.as_record()))
    assert record["spec"]["architecture"] == "small"
    assert record["macs"] < record["dense_macs"]
    assert len(record["layers"]) == 8
    assert "3 convolutions" in found.describe()


@pytest.mark.parametrize("options", [{"experts": 0, "ratio": 1.0}, {"experts": 0}, {"placement": "layer"}])
def test_networks_without_a_router_of_images(options):
    found = inspect("small", options=options)
    assert found.routers == ()
    assert found.describe()


def test_what_is_not_accepted(network, pocket, tmp_path):
    with pytest.raises(OptionError, match="coterie inspect small --option experts=3"):
        inspect(network, options={"experts": 3})
    with pytest.raises(OptionError, match="no context"):
        inspect("resnet18", context=5)
    with pytest.raises(OptionError, match="Did you mean 'ratio'"):
        inspect("resnet18", options={"ration": 0.5})
    with pytest.raises(OptionError, match="are for convolutional networks"):
        inspect(pocket, options={"experts": 3})
    with pytest.raises(UnsupportedError, match="coterie inspect"):
        load(network)
    weights = network / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        inspect(network)
    (network / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        inspect(network)


def test_where_nothing_is_saved_it_is_said():
    text = inspect("small", options={"image_size": 8}).describe()
    assert "nothing: with the router it costs 9.3 times" in text


def findings(network, **options):
    return {finding.check: finding for finding in doctor(network, **options).findings}


def test_the_doctor_knows_networks(network):
    found = findings(network, values=True)
    assert [found[name].state for name in ("config", "shards", "tensors", "values")] == ["ok"] * 4
    assert "2 experts" in found["config"].text


def test_the_doctor_finds_what_is_wrong(network):
    state = load_file(network / "model.safetensors")
    state["network.head.bias"][0] = float("nan")
    save_file(state, network / "model.safetensors")
    found = findings(network, values=True)
    assert (found["tensors"].state, found["values"].state) == ("ok", "problem")
    assert "NaN" in found["values"].text
    del state["network.head.bias"]
    save_file(state, network / "model.safetensors")
    assert findings(network)["tensors"].state == "problem"


def test_a_directory_of_that_name_comes_first(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network.rename(tmp_path / "resnet18")
    assert inspect("resnet18").spec.architecture == "small"
