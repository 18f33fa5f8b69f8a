"""Writing a safetensors file tensor by tensor, so that a model larger than memory can be made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}


def write_tensors(path: Path, entries: Mapping[str, tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]]) -> None:
    """Write name -> (dtype, shape, pieces) in sorted order, as safetensors does; pieces are made one at a time.

    The pieces of a tensor are its consecutive parts along the first axis. The file is on the device
    when this returns (fsync), so that its pages are clean and can be dropped.
    """
    names = sorted(entries)
    with path.open("wb") as file:
        file.write(_header({name: entries[name][:2] for name in names}))
        for name in names:
            _write_pieces(file, name, entries[name])
        file.flush()
        os.fsync(file.fileno())


def _header(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape) in shapes.items():
        end = start + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_pieces(file: BinaryIO, name: str, entry: tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]) -> None:
    dtype, shape, pieces = entry
    written = 0
    for piece in pieces:
        assert piece.dtype == dtype, (name, piece.dtype, dtype)
        # numpy knows no bfloat16: the bytes are what is wanted anyway
        written += file.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
    assert written == math.prod(shape) * dtype.itemsize, (name, written, shape)
