"""A model without memory, and the class of a model without experts."""

from __future__ import annotations

import copy
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
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        # a model that also speaks: the part that thinks is the language model
        return _without_quantiser(getattr(config, "thinker_config", config))
    except Exception as error:  # validators raise many kinds
        reason = " ".join((str(error) or type(error).__name__).split())
        raise CheckpointError(f"{path / 'config.json'} is not valid: {reason} Copy or download it again.") from error


def _without_quantiser(config: Any) -> Any:
    """transformers would quantise the model by it; the weights it gets from us are floats already."""
    for part in (config, config.get_text_config(decoder=True)):
        part.__dict__.pop("quantization_config", None)
    return config


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The model of ``config`` on the meta device: names and shapes, no memory.

    A causal language model where the family has one, else the class that reads text beside pictures and
    sounds, or that labels tokens.

    Raises:
        UnsupportedError: transformers has no such class for the family.
        CheckpointError: sizes in the config contradict each other.
    """
    auto = auto_class(config)
    try:
        with torch.device("meta"):
            return auto.from_config(copy.deepcopy(config), dtype=dtype).eval()
    except ImportError as error:
        raise UnsupportedError(f"transformers cannot make a {config.model_type!r} model: {error}") from error
    except Exception as error:  # whatever a family's constructor meets
        reason = " ".join((str(error) or type(error).__name__).split())
        raise CheckpointError(f"config.json makes no model: {reason}. Copy or download it again.") from error


def auto_class(config: Any) -> Any:
    import transformers as hf
    from transformers.models.auto import modeling_auto as auto

    choices = (
        (hf.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (hf.AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        (hf.AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        (hf.AutoModelForTokenClassification, auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    )
    for kind, names in choices:
        if config.model_type in names:
            return kind
    raise UnsupportedError(f"transformers has no class that reads text for the family {config.model_type!r}.")


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model; the config itself where it describes nothing else."""
    return config.get_text_config(decoder=True)


def beside_text(model: Any) -> tuple[str, ...]:
    """Names of the modules that a model for pictures and sounds has beside its language model and its head."""
    if model.config.is_encoder_decoder:  # both read and write text
        return ()
    text, head = model.get_decoder(), model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is text), "")
    beside: list[str] = []
    # beside the base model are only heads
    first = 1 if path.split(".")[0] == model.base_model_prefix else 0
    for depth in range(first, len(path.split(".")) if path else 0):
        parent = ".".join(path.split(".")[:depth])
        for name, child in model.get_submodule(parent).named_children():
            full = f"{parent}.{name}" if parent else name
            if not f"{path}.".startswith(f"{full}.") and child is not head and _holds_weights(child):
                beside.append(full)
    return tuple(beside)


def _holds_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


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


def class_without(base: type, modules: Iterable[str]) -> type:
    """A subclass of a transformers model class whose ``modules``, by name, are empty from birth.

    It claims the base's name and module: transformers looks there to decide whether a class is its own, and
    for others it falls back to slow experts and forgets the conversion of names.
    """
    names = tuple(modules)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)  # type: ignore[misc]
        for name in names:
            self.set_submodule(name, nn.Module())
            # a block's own initialisation may reach for its experts' weights; what is left of it is loaded
            self.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True

    members = {
        "__init__": __init__, "__module__": base.__module__, "save_pretrained": _refuse_to_save,
        "push_to_hub": _refuse_to_save, "__doc__": f"{base.__name__} whose experts are not among its parameters.",
    }  # fmt: skip
    return type(base.__name__, (base,), members)


def _refuse_to_save(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedError(
        "This model's experts are not among its parameters: saving it would write a checkpoint without them. "
        f"Its weights have not changed: copy the directory it was loaded from, {self.config.name_or_path}."
    )
