"""accelerate's disk offload: the experts of every layer on "disk", everything else in memory.

accelerate moves whole modules, and transformers hands it experts stacked by layer, so the weights are saved a
second time, in the layout transformers itself writes into an offload folder. That happens once, untimed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from offloading.host import expert_modules, plain_host
from offloading.scales import Scale
from offloading.tensorfile import write_tensors

_INDEX = "index.json"


def make_offload_folder(checkpoint: Path, scale: Scale) -> Path:
    """The folder of stacked experts beside the checkpoint, one file per tensor; made if it is not there."""
    folder = checkpoint.with_name(checkpoint.name + "-accelerate")
    made = folder / _INDEX
    if made.is_file() and made.stat().st_mtime >= (checkpoint / "config.json").stat().st_mtime:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weight_map = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]

    def read(name: str) -> Tensor:
        with safe_open(checkpoint / weight_map[name], framework="pt") as file:
            return file.get_tensor(name)

    index = {}
    for layer in range(scale.layers):
        for name, shape, pieces in _stacked(f"model.layers.{layer}.mlp.experts.", scale, read):
            path = folder / f"{name}.safetensors"
            write_tensors(path, {name: (torch.bfloat16, shape, pieces)})
            index[name] = {"safetensors_file": str(path), "weight_name": name, "dtype": "bfloat16"}
    made.write_text(json.dumps(index))
    return folder


def _stacked(
    prefix: str, scale: Scale, read: Callable[[str], Tensor]
) -> Iterator[tuple[str, tuple[int, ...], Iterator[Tensor]]]:
    """Name, shape and pieces of a layer's two fused tensors: all experts' gate over up, and all experts' down."""
    for name, rows, columns, parts in (
        ("gate_up_proj", 2 * scale.inner, scale.hidden, ("gate_proj", "up_proj")),
        ("down_proj", scale.hidden, scale.inner, ("down_proj",)),
    ):
        sources = [f"{prefix}{expert}.{part}.weight" for expert in range(scale.experts) for part in parts]
        yield prefix + name, (scale.experts, rows, columns), map(read, sources)


def offloaded_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def accelerated_model(checkpoint: Path, folder: Path) -> Any:
    """The stock model with accelerate's hooks reading the experts from the offload folder at every forward."""
    from accelerate import dispatch_model

    model = plain_host(checkpoint)
    experts = {id(module) for module in expert_modules(model)}
    device_map = {
        name: "disk" if id(module) in experts else "cpu"
        for name, module in model.named_modules()
        if id(module) in experts or (any(True for _ in module.parameters(recurse=False)) and name)
    }
    index = json.loads((folder / _INDEX).read_text())
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=str(folder), offload_index=index)
