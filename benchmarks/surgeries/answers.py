"""Whether two checkpoints hold the same tensors, whatever layout they were written in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open


def differences(first: Path, second: Path, skip: str = "", within: float = 0.0) -> list[str]:
    """Names of tensors that are not equal, or in one checkpoint only; experts one by one.

    Args:
        first, second: directories.
        skip: names with this in them do not count: gates that are drawn at random.
        within: a tensor's numbers may differ by this share of the largest of them; 0: bit for bit.
    """
    places = [_places(each) for each in (first, second)]
    names = [name for name in sorted(places[0].keys() | places[1].keys()) if not (skip and skip in name)]
    return [
        name for name in names
        if not all(name in each for each in places) or not _near(*(_read(*each[name]) for each in places), within)
    ]  # fmt: skip


def _near(a: torch.Tensor, b: torch.Tensor, within: float) -> bool:
    if not within or a.shape != b.shape:
        return torch.equal(a, b)
    return bool((a.float() - b.float()).abs().max() <= within * a.float().abs().max())


Place = tuple[Path, str, int | None, int | None]


def _places(checkpoint: Path) -> dict[str, Place]:
    """Name -> (file, name there, expert, half of gate and up)."""
    found: dict[str, Place] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is no dict)
                shape = opened.get_slice(name).get_shape()
                found |= _parts(file, name, shape[0] if shape else 0)
    return found


def _parts(file: Path, name: str, experts: int) -> dict[str, Place]:
    plain = name.replace("block_sparse_moe", "mlp")
    for old, new in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        plain = plain.replace(f".{old}.weight", f".{new}.weight")
    if plain.endswith("experts.down_proj"):
        base = plain.removesuffix("down_proj")
        return {f"{base}{e}.down_proj.weight": (file, name, e, None) for e in range(experts)}
    if plain.endswith("experts.gate_up_proj"):
        base = plain.removesuffix("gate_up_proj")
        return {
            f"{base}{e}.{half}.weight": (file, name, e, which)
            for e in range(experts) for which, half in enumerate(("gate_proj", "up_proj"))
        }  # fmt: skip
    return {plain: (file, name, None, None)}


def _read(file: Path, name: str, expert: int | None, half: int | None) -> torch.Tensor:
    with safe_open(file, "pt") as opened:
        tensor = opened.get_tensor(name) if expert is None else opened.get_slice(name)[expert]
    return tensor if half is None else tensor.chunk(2)[half]
