"""A model without memory, and the class of a model without experts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from coterie.errors import CheckpointError, UnsupportedError


def read_config(path: Path) -> Any:
    """The transformers config of a checkpoint directory. Runs no code that lies in it.

    Raises:
        CheckpointError: transformers refuses the config.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # validators raise many kinds
        reason = " ".join((str(error) or type(error).__name__).split())
        raise CheckpointError(f"{path / 'config.json'} is not valid: {reason} Copy or download it again.") from error


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The causal language model of ``config`` on the meta device: names and shapes, no memory.

    Raises:
        CheckpointError: sizes in the config contradict each other.
    """
    import copy

    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json makes no model: {error}. Copy or download it again.") from error


def tied_names(model: Any) -> dict[str, str]:
    """Target -> source of parameters that are one tensor, such as the head and the embedding."""
    return dict(model.all_tied_weights_keys)


def resident_bytes(model: Any, without: Iterable[str] = ()) -> int:
    """Bytes of parameters and buffers as loading leaves them, each tensor once, modules of ``without`` left out.

    transformers keeps some tensors in float32 whatever the dtype asked for; they are counted so.
    """
    skip = tuple(f"{name}." for name in without)
    wide = tuple(model._keep_in_fp32_modules_strict or ())
    total = 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith(skip):
            total += tensor.numel() * (4 if any(part in name for part in wide) else tensor.dtype.itemsize)
    return total


def class_without_experts(base: type, experts: Iterable[str]) -> type:
    """A subclass of a transformers model class whose modules named ``experts`` are empty from birth.

    It claims the base's module: transformers looks there to decide whether a class is its own, and for
    others it falls back to slow experts and forgets the conversion of names.
    """
    names = tuple(experts)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)  # type: ignore[misc]
        for name in names:
            self.set_submodule(name, nn.Module())

    members = {
        "__init__": __init__, "__module__": base.__module__, "save_pretrained": _refuse_to_save,
        "push_to_hub": _refuse_to_save, "__doc__": f"{base.__name__} whose experts are not among its parameters.",
    }  # fmt: skip
    return type(f"Hosted{base.__name__}", (base,), members)


def _refuse_to_save(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedError(
        "This model's experts are not among its parameters: saving it would write a checkpoint without them. "
        f"Its weights have not changed: copy the directory it was loaded from, {self.config.name_or_path}."
    )
