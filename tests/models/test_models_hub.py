"""Hub names, against a hub that is a folder."""

from __future__ import annotations

import fnmatch
import json
import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from coterie.errors import CheckpointError, UnsupportedError
from coterie.models import open_checkpoint
from coterie.models.hub import resolve


class Hub:
    """One repository in a folder; keeps a list of what was fetched."""

    def __init__(self, folder, cache):
        self.folder, self.cache, self.fetched, self.failure, self.calls = folder, cache, [], None, []

    def model_info(self, api, name, *, revision=None, timeout=None):
        if self.failure is not None:
            raise self.failure
        return huggingface_hub.ModelInfo(id=name, sha="c0ffee", private=False, tags=[], downloads=0, likes=0)

    def hf_hub_download(self, *, filename, **options):
        self.calls.append(options)
        if options["local_files_only"] and not (self.cache / filename).exists():
            raise LocalEntryNotFoundError(filename)
        if not (self.folder / filename).exists():
            raise type("RemoteEntryNotFoundError", (OSError,), {})(filename)
        self.fetched.append(filename)
        shutil.copy(self.folder / filename, self.cache / filename)
        return str(self.cache / filename)

    def snapshot_download(self, *, allow_patterns, **options):
        for file in sorted(self.folder.iterdir()):
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                self.hf_hub_download(filename=file.name, **options)
        return str(self.cache)


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    folder, cache = shutil.copytree(saved("olmoe", "straddling"), tmp_path / "hub"), tmp_path / "cache"
    cache.mkdir()
    (folder / "consolidated.safetensors").write_bytes(b"the same weights a second time")
    (folder / "pytorch_model.bin").write_bytes(b"and a third")
    hub = Hub(folder, cache)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: hub.model_info(*a, **k))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def named(kind, *bases):
    return type(kind, bases or (OSError,), {})("the hub's own words,\nover two lines")


def test_a_download_brings_what_is_needed_of_one_commit(hub):
    checkpoint = open_checkpoint("org/model", revision="main")
    assert len(checkpoint.sites) == 3
    assert {options["revision"] for options in hub.calls} == {"c0ffee"}
    fetched = set(hub.fetched)
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} <= fetched
    assert not {"consolidated.safetensors", "pytorch_model.bin"} & fetched


def test_a_repository_with_one_file(hub, saved):
    shutil.rmtree(hub.folder)
    shutil.copytree(saved("olmoe"), hub.folder)
    assert resolve("org/model") == hub.cache
    assert "model.safetensors" in hub.fetched


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model_type": "llama", "num_experts": None}, "org/model is a dense model"),
     ({"quantization_config": {"quant_method": "awq"}}, "org/model is quantised with awq")],
)  # fmt: skip
def test_nothing_but_the_config_is_fetched_of_what_is_not_served(hub, change, words):
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedError, match=words):
        open_checkpoint("org/model")
    assert hub.fetched == ["config.json"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("GatedRepoError", "accept its licence"),
     ("RepositoryNotFoundError", r"no such model \(RepositoryNotFoundError\)"),
     ("RevisionNotFoundError", r"no such model at revision v2 \(RevisionNotFoundError\)"),
     ("HFValidationError", "Check the spelling")],
)  # fmt: skip
def test_refusals_of_the_hub(hub, kind, words):
    hub.failure = named(kind)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint("org/model", revision="v2" if "Revision" in kind else None)
    assert "\n" not in str(caught.value)
    assert not hub.fetched


def test_without_network_the_cache_serves(hub):
    resolve("org/model")
    hub.failure = named("ConnectError", Exception)
    hub.calls.clear()
    assert resolve("org/model") == hub.cache
    assert all(options["local_files_only"] for options in hub.calls)


def test_without_network_and_cache(hub):
    hub.failure = named("ConnectError", Exception)
    with pytest.raises(CheckpointError, match="check the network and HF_HUB_OFFLINE"):
        resolve("org/model")


def test_a_repository_without_config(hub):
    (hub.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no such model"):
        resolve("org/model")


@pytest.mark.parametrize("name", ["model", "../org/model", "/org/model", "org/model/more", "a b/c", "", "~nobody/x/y"])
def test_what_cannot_be_a_hub_name_never_asks_the_hub(hub, name):
    if name == "":
        name = "no-such-directory"
    with pytest.raises(CheckpointError, match="There is no directory"):
        resolve(name)
    assert not hub.calls
