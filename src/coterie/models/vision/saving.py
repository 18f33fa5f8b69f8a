"""A network in a directory: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie import __version__
from coterie.errors import CheckpointError, OptionError
from coterie.models.families import VISION
from coterie.models.saving import written_beside
from coterie.models.shards import SINGLE, read_config_json
from coterie.models.vision.model import VisionModel
from coterie.models.vision.spec import VisionSpec
from coterie.ranges import TensorRange, read_header

__all__ = ["check_vision", "is_vision", "load_vision", "read_vision", "save_vision"]

_OURS = ("model_type", "coterie")  # fields of config.json beside those of the spec
_FLOATS = {"F16", "BF16", "F32", "F64"}


def save_vision(model: VisionModel, directory: str | Path) -> Path:
    """Write ``model`` to ``directory``: a temporary name first, moved into place when whole. Returns the directory.

    Raises:
        CheckpointError: it cannot be written, or a weight is not a finite number.
    """
    from safetensors.torch import save_file

    target = Path(directory).expanduser()
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    check_finite(state, str(target))
    config = {"model_type": VISION, "coterie": __version__, **model.spec.as_record()}
    try:
        with written_beside(target) as part:
            save_file(state, part / SINGLE, metadata={"format": "pt"})
            (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}. Name a directory elsewhere.") from error
    return target


def load_vision(directory: str | Path) -> VisionModel:
    """The network that `save_vision` wrote, in eval mode, in float32, on the processor.

    Raises:
        CheckpointError: no directory, a checkpoint of another kind, a file that is damaged, tensors that are not those
            of the network that config.json describes, or a weight that is not a finite number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, model = Path(directory).expanduser(), check_vision(directory)
    try:
        state = load_file(path / SINGLE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / SINGLE} cannot be read: {error}. Copy it again.") from error
    check_finite(state, str(path))
    wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    model.load_state_dict(wide, assign=True)
    return model.eval()


def check_vision(directory: str | Path) -> VisionModel:
    """The network of a directory without weights, on the meta device: config.json and headers are true.

    Raises:
        CheckpointError: as of `load_vision`, but for what takes reading a weight.
    """
    spec = read_vision(directory)
    with torch.device("meta"):
        model = VisionModel(spec)
    path = Path(directory).expanduser()
    _check_tensors(model.state_dict(), read_header(path / SINGLE), path)
    return model


def read_vision(directory: str | Path) -> VisionSpec:
    """What config.json says of the network in ``directory``; reads no weight.

    Raises:
        CheckpointError: no directory, no vision checkpoint of ours, or a field that is not allowed.
    """
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"There is no directory {path}. Give one that `coterie train` or save_vision wrote.")
    config = read_config_json(path)
    if not is_vision(config):
        raise CheckpointError(
            f"{path} holds a model of type {config.get('model_type')!r}, not a convolutional network of ours "
            f"({VISION!r}). Language models are for coterie.load and `coterie run`."
        )
    try:
        return VisionSpec.from_record({name: value for name, value in config.items() if name not in _OURS})
    except OptionError as error:
        raise CheckpointError(f"{path / 'config.json'}: {error} Copy the file again.") from error


def is_vision(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of a convolutional network of ours."""
    return config.get("model_type") == VISION


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError for a weight or statistic that is infinite or no number, which would answer all the same.

    An argmax over NaN is 0 and a sign of NaN is 0: such a network looks robust.
    """
    if broken := not_finite(state.items()):
        raise CheckpointError(
            f"{where}: {broken[0]!r} holds numbers that are infinite or NaN ({len(broken)} such tensors). The training "
            "diverged: take an earlier checkpoint."
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those that hold an infinity or no number."""
    return [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, TensorRange], path: Path) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{path / SINGLE} is not of the network that config.json describes: it lacks {len(missing)} tensors "
            f"({', '.join(missing[:2]) or 'none'}) and has {len(extra)} others ({', '.join(extra[:2]) or 'none'}). "
            "Copy both files again from one place."
        )
    for name, tensor in expected.items():
        part = found[name]
        if part.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{path / SINGLE}: {name!r} has shape {list(part.shape)}, the network that config.json describes needs "
                f"{list(tensor.shape)}. Copy both files again from one place."
            )
        if tensor.is_floating_point() and part.dtype not in _FLOATS:
            raise CheckpointError(
                f"{path / SINGLE}: {name!r} is {part.dtype}, not a floating type. Save it again with save_vision."
            )
