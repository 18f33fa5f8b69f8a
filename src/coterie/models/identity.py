"""Which model a directory holds: a hash that copies of it share and fine-tuned siblings do not."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from coterie.errors import CheckpointError
from coterie.models.shards import read_config_json, read_json
from coterie.models.stored import FILE
from coterie.ranges import TensorRange

# what may differ between copies of one model
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
# bytes of a tensor that are looked at, and tensors that are looked at at most: seconds at worst, on any disk
_BYTES, _TENSORS = 256, 8192


class Opened(Protocol):
    """A checkpoint opened, with experts or without."""

    @property
    def path(self) -> Path: ...

    @property
    def ranges(self) -> Mapping[str, TensorRange]: ...


def identity(checkpoint: Opened) -> str:
    """Hash of config.json, of every tensor's name, type and shape, and of a few bytes from the middle of each.

    Of coterie.json too, where there is one; what its curves measured is left out. How the tensors are spread over files
    does not matter. Reads some kilobytes; blocks.

    Raises:
        CheckpointError: a file is gone or ends too early.
    """
    config = {name: value for name, value in read_config_json(checkpoint.path).items() if name not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    if (checkpoint.path / FILE).is_file():
        ours = {name: value for name, value in read_json(checkpoint.path / FILE).items() if name != "curves"}
        digest.update(json.dumps(ours, sort_keys=True).encode())
    tensors = dict(sorted(checkpoint.ranges.items()))
    for name, part in tensors.items():
        digest.update(repr((name, part.dtype, part.shape)).encode())
    chosen = list(tensors)[:: max(1, -(-len(tensors) // _TENSORS))]
    seen = _middles({name: tensors[name] for name in chosen})
    for name in chosen:
        digest.update(seen[name])
    return digest.hexdigest()


def _middles(tensors: Mapping[str, TensorRange]) -> dict[str, bytes]:
    """A few bytes of each tensor, file after file in the order they lie there."""
    files: dict[Path, list[tuple[int, str]]] = defaultdict(list)
    for name, part in tensors.items():
        files[part.path].append((part.start, name))
    found = {}
    for path, listed in files.items():
        try:
            with path.open("rb") as file:
                for start, name in sorted(listed):
                    size = tensors[name].nbytes
                    count = min(_BYTES, size)
                    file.seek(start + (size - count) // 2)
                    found[name] = file.read(count)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    return found
