"""The model a recipe names: read from a checkpoint, or made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from coterie.errors import OptionError, UnsupportedError
from coterie.models.checkpoint import open_checkpoint
from coterie.models.compat import quiet
from coterie.training.recipe import ModelWords

Fields = dict[str, Any]


def model_for(words: ModelWords, tokenizer: Any, length: int) -> Any:
    """A transformers model in float32 and train mode. One that is made draws its weights from torch's generator.

    Args:
        words: what to read or make.
        tokenizer: whose vocabulary a model that is made gets.
        length: tokens of a window; the longest that a model that is made is to read is eight times as much.

    Raises:
        CheckpointError: the checkpoint is not there or damaged.
        UnsupportedError: a family that transformers does not know, or without experts.
        OptionError: sizes that do not fit each other.
    """
    model = _read(words.source) if words.source else _made(words, tokenizer, length)
    return model.train()


def _read(source: str) -> Any:
    from transformers import AutoModelForCausalLM

    path = open_checkpoint(source).path
    with quiet():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _made(words: ModelWords, tokenizer: Any, length: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = _FIELDS.get(words.family, _unknown)(words)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 8 * length, "bos_token_id": None, **ids}
    try:
        config = AutoConfig.for_model(words.family, **{**common, **fields, **words.config})
        with quiet():
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        why = str(error).strip().splitlines() or [repr(error)]
        raise OptionError(f"A model of the family {words.family!r} cannot be made so: {why[0]}") from error


def _sizes(words: ModelWords) -> Fields:
    if words.width % words.heads:
        raise OptionError(f"model: a width of {words.width} does not split into {words.heads} heads. Choose a divisor.")
    return {
        "hidden_size": words.width, "num_hidden_layers": words.layers, "num_attention_heads": words.heads,
        "num_key_value_heads": words.kv_heads or words.heads, "head_dim": words.width // words.heads,
        "num_experts_per_tok": words.k,
    }  # fmt: skip


def _qwen3_moe(words: ModelWords) -> Fields:
    return _sizes(words) | {
        "num_experts": words.experts, "moe_intermediate_size": words.inner, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": list(words.dense_layers),
        "intermediate_size": words.dense_inner or words.inner * words.k,
    }  # fmt: skip


def _olmoe(words: ModelWords) -> Fields:
    _without_dense(words)
    sizes = {name: value for name, value in _sizes(words).items() if name != "head_dim"}
    return sizes | {"num_experts": words.experts, "intermediate_size": words.inner, "norm_topk_prob": False}


def _mixtral(words: ModelWords) -> Fields:
    _without_dense(words)
    return _sizes(words) | {"num_local_experts": words.experts, "intermediate_size": words.inner}


def _without_dense(words: ModelWords) -> None:
    if words.dense_layers or words.dense_inner:
        raise OptionError(
            f"model: {words.family} has experts in every layer. Leave dense_layers out, or take qwen3_moe."
        )


def _unknown(words: ModelWords) -> Fields:
    if not words.config:
        raise UnsupportedError(
            f"The sizes of a {words.family!r} model cannot be given in these words. Choose a family among: "
            f"{', '.join(_FIELDS)}; or write the fields of its own configuration under model: config."
        )
    return {}


_FIELDS: Mapping[str, Callable[[ModelWords], Fields]] = {
    "qwen3_moe": _qwen3_moe, "olmoe": _olmoe, "mixtral": _mixtral,
}  # fmt: skip
