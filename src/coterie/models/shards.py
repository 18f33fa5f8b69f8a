"""The files of a checkpoint directory: config.json and the headers of the safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.errors import CheckpointError
from coterie.ranges import TensorRange, read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config_json(path: Path) -> dict[str, Any]:
    """config.json of the checkpoint directory ``path``, parsed and nothing more.

    Raises:
        CheckpointError: there is none, or it is no JSON table.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is no checkpoint: it has no config.json. Give a directory that a model was saved in with "
            "save_pretrained, or that was downloaded whole."
        )
    return read_json(path / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table.

    Raises:
        CheckpointError: it cannot be read or is no table.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not valid: it holds no table. Copy or download it again.")
    return value


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """``quantization_config`` of a parsed config.json, wherever it stands; None where nothing is quantised."""
    if found := config.get("quantization_config"):
        return dict(found) if isinstance(found, Mapping) else {"quant_method": str(found)}
    parts = [part for name, part in config.items() if name.endswith("_config") and isinstance(part, Mapping)]
    return next((found for part in parts if (found := quantization_of(part)) is not None), None)


def read_ranges(path: Path) -> dict[str, TensorRange]:
    """Name on disk -> byte range of every tensor of the checkpoint, from the headers alone.

    Raises:
        CheckpointError: there are no safetensors, a shard is missing or damaged, or the index is not true.
    """
    if (path / SINGLE).is_file():
        return read_header(path / SINGLE)
    if (path / INDEX).is_file():
        return _read_indexed(path)
    raise CheckpointError(_no_weights(path))


def _read_indexed(path: Path) -> dict[str, TensorRange]:
    table = read_json(path / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table or any(_leaves(path, file) for file in table.values()):
        raise CheckpointError(
            f"{path / INDEX} is not valid: weight_map must name files beside it. Copy or download it again."
        )
    ranges: dict[str, TensorRange] = {}
    for file in sorted(set(table.values())):
        if not (path / file).is_file():
            raise CheckpointError(f"{path} lacks the shard {file} that its index names. Copy or download it.")
        header = read_header(path / file)
        absent = [name for name, at in table.items() if at == file and name not in header]
        if absent:
            raise CheckpointError(
                f"{path / INDEX} says that {file} holds {absent[0]!r}, which it does not ({len(absent)} such tensors). "
                "Index and shards are of different models: copy or download them again."
            )
        ranges |= {name: part for name, part in header.items() if table.get(name, file) == file}
    return ranges


def _leaves(path: Path, file: Any) -> bool:
    return not isinstance(file, str) or Path(file).name != file


def _no_weights(path: Path) -> str:
    if list(path.glob("*.safetensors")):
        return (
            f"{path} has safetensors files but neither {SINGLE} nor {INDEX}: it was not copied whole. "
            "Copy or download the rest."
        )
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        return (
            f"{path} has weights in the old pickle format only. Convert them once, with memory for the whole model: "
            f"python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{path}')"
            f".save_pretrained('{path}-safetensors')\""
        )
    if any(path.glob("*.gguf")):
        return f"{path} has GGUF weights, which Coterie does not read. Choose the model's safetensors checkpoint."
    return f"{path} has a config.json but no weights. Copy or download {SINGLE}, or its shards and their index."
