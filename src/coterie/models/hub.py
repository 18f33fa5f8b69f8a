"""From what a person typed to a directory with a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coterie.errors import CheckpointError
from coterie.experts import method_of
from coterie.models.families import check_family, check_has_experts
from coterie.models.shards import INDEX, SINGLE, quantization_of, read_json
from coterie.models.stored import as_base

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BESIDE = ["*.json", "tokenizer*", "*.model", "*.jinja", "vocab.txt", "merges.txt"]
_REFUSALS = ("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError")


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """The directory of ``model``: itself, or a snapshot of the hub repository of that name.

    A download brings safetensors, configs and the tokenizer only, and nothing before the config has shown
    a family that is served. Blocks while it downloads.

    Raises:
        CheckpointError: there is no such directory, and the hub does not have or cannot send it.
        UnsupportedError: the hub's model is of a family or format that is not served.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file. Give the directory that holds config.json and *.safetensors.")
    name = str(model)
    if isinstance(model, Path) or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"There is no directory {name}. Check the path, or give a hub name such as org/name.")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    commit = _commit(name, revision)
    # without an answer from the hub the cache may still have it, and asking again for every file takes minutes
    options: dict[str, Any] = {"repo_id": name, "revision": commit or revision, "local_files_only": commit is None}

    def one(file: str) -> Path:
        return Path(_ask(name, revision, lambda: hf_hub_download(filename=file, **options)))

    config = as_base(read_json(one("config.json")), name)
    check_family(config, name)
    check_has_experts(config, name)
    method_of(quantization_of(config), name)
    patterns = [*_BESIDE, *_weight_files(one)]
    return Path(_ask(name, revision, lambda: snapshot_download(allow_patterns=patterns, **options)))


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that ``revision`` means now; None if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision, timeout=10).sha
    except Exception as error:  # the network library below the hub's client raises kinds of its own
        if type(error).__name__ in _REFUSALS:
            raise CheckpointError(_failure(name, revision, error)) from error
        return None


def _weight_files(fetch: Callable[[str], Path]) -> list[str]:
    """The shards the index names: repositories may hold the same weights a second time under other names."""
    try:
        index = read_json(fetch(INDEX))
    except CheckpointError:
        return [SINGLE]
    return sorted({str(file) for file in dict(index.get("weight_map", {})).values()})


def _ask(name: str, revision: str | None, get: Callable[[], Any]) -> str:
    """One call to the hub; any way it fails becomes one sentence."""
    try:
        return str(get())
    except Exception as error:  # as in `_commit`
        raise CheckpointError(_failure(name, revision, error)) from error


def _failure(name: str, revision: str | None, error: Exception) -> str:
    kind = type(error).__name__
    at = f" at revision {revision}" if revision else ""
    if kind == "GatedRepoError":
        return f"{name} is gated: accept its licence on the hub's page of the model, then type: hf auth login"
    if kind in _REFUSALS or kind == "RemoteEntryNotFoundError":
        return (
            f"There is no directory {name}, and the hub has no such model{at} ({kind}). Check the spelling; for a "
            "private model type: hf auth login"
        )
    return (
        f"There is no directory {name}, and it could not be fetched from the hub{at} ({kind}). Check the path; if you "
        "meant the hub, check the network and HF_HUB_OFFLINE, or download it elsewhere and give the directory."
    )
