"""What a transformers model takes and what its config says, where families differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def takes(model: Any, argument: str) -> bool:
    """Whether the model's ``forward`` has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def called_body(model: Any) -> Any:
    """The module that a model calls with its tokens: its base model, or the decoder in that (OPT)."""
    body = model.base_model
    inner = getattr(body, "decoder", None)
    if inner is None or body is model:
        return body
    try:
        text = inspect.getsource(type(model).forward)
    except (OSError, TypeError):  # compiled, or typed in
        return body
    return inner if f"self.{model.base_model_prefix}.decoder(" in text else body


def most(config: Any, name: str) -> int:
    """A size in a config; the largest where it varies by layer, 0 where there is none.

    Configs whose layers differ keep such sizes with the layers, and refuse to name one for all.
    """
    layers = getattr(config, "per_layer_config", None)
    own = config.__dict__.get(name)
    varying = [getattr(layers[layer], name, None) for layer in range(config.num_hidden_layers)] if layers else []
    if own is None and not varying:
        own = getattr(config, name, None)
    return max((_number(value) for value in (own, *varying)), default=0)


def _number(value: Any) -> int:
    if isinstance(value, list | tuple):
        return max(map(_number, value), default=0)
    return int(value) if isinstance(value, int | float) else 0


def text_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What a model needs beside ``ids`` [B, N]: an encoder-decoder, where the answer begins."""
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


def first_inputs(model: Any, ids: Tensor) -> dict[str, Any]:
    """What a model takes to read ``ids`` [B, N] and keep a cache; a decoder beside an encoder does so unasked."""
    asked = {} if model.config.is_encoder_decoder else {"use_cache": True}
    return {"input_ids": ids, **text_inputs(model, ids), **asked}


def next_inputs(model: Any, before: Any, ids: Tensor) -> dict[str, Any]:
    """What a model takes to go on with ``ids`` [B, 1] after the output ``before``. An encoder does not run again."""
    from transformers.modeling_outputs import MoEModelOutput

    given = {"past_key_values": getattr(before, "past_key_values", None)}
    if not model.config.is_encoder_decoder:
        return {"input_ids": ids, "use_cache": True, **given}
    read = MoEModelOutput(last_hidden_state=before.encoder_last_hidden_state)
    return {"decoder_input_ids": ids, "encoder_outputs": read, **given}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor a cache holds, in whatever its layers keep them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for one in value.values() for tensor in tensors_in(one))
    elif isinstance(value, list | tuple):
        yield from (tensor for one in value for tensor in tensors_in(one))
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))
