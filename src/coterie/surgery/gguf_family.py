"""Which families llama.cpp knows, how it computes them, and what it would compute otherwise than the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.errors import UnsupportedError
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import text_config

__all__ = ["GGUF_FAMILIES", "GgufFamily", "gguf_family"]

_ROPES = ("default", "linear", "yarn")
# what a rotation may say besides its kind, base, factor and original length: only what llama.cpp takes anyway
_YARN = {"beta_fast": 32, "beta_slow": 1, "partial_rotary_factor": 1.0, "truncate": True, "attention_factor": None}
_SAID = ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class GgufFamily:
    """How llama.cpp takes one family.

    Attributes:
        arch: a name of `gguf.MODEL_ARCH`.
        renormalises: whether it makes the weights of the chosen experts sum to one; it has no switch for it.
        permutes: queries and keys have the two halves of each head interleaved.
        dense_width: its feed_forward_length is that of dense layers; elsewhere it is that of an expert.
        biased: its queries, keys and values have biases, there in any case.
        bias_allowed: attention may have biases.
        experts: names of the stacks, of gate, up and down, as a pattern of the layer.
    """

    arch: str
    renormalises: bool
    permutes: bool = False
    dense_width: bool = False
    biased: bool = False
    bias_allowed: bool = False
    experts: str = "model.layers.{layer}.mlp.experts.{role}.weight"


GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "mixtral": GgufFamily("LLAMA", True, permutes=True, bias_allowed=True),
    "olmoe": GgufFamily("OLMOE", False),
    "qwen2_moe": GgufFamily("QWEN2MOE", False, dense_width=True, biased=True, bias_allowed=True),
    "qwen3_moe": GgufFamily("QWEN3MOE", True, dense_width=True),
}
"""model_type -> how llama.cpp takes it."""


def gguf_family(checkpoint: Checkpoint) -> GgufFamily:
    """How llama.cpp takes ``checkpoint``.

    Raises:
        UnsupportedError: it does not know the family, or would compute it otherwise; says how.
    """
    kind, config = checkpoint.config.model_type, text_config(checkpoint.config)
    family = GGUF_FAMILIES.get(kind)
    if family is None:
        raise UnsupportedError(f"GGUF is written for {', '.join(GGUF_FAMILIES)}; this is {kind!r}.")
    if checkpoint.stored is not None and checkpoint.stored.router is not None:
        raise UnsupportedError("Its router is one of Coterie's, which llama.cpp does not have.")
    problems = {**_layers(checkpoint, config, family), **_attention(config, family), **_rotation(config)}
    problem = next((text for text, holds in problems.items() if holds), None)
    if problem is not None:
        raise UnsupportedError(f"llama.cpp would compute this model otherwise: {problem}.")
    return family


def _layers(checkpoint: Checkpoint, config: Any, family: GgufFamily) -> dict[str, bool]:
    sites = checkpoint.sites
    all_on = config.num_experts_per_tok == sites[0].num_routes
    own = getattr(config, "norm_topk_prob", True)
    return {
        "its layers have different numbers of experts, and GGUF has one for all": len({s.num_routes for s in sites}) > 1
        or len({s.shape.inner for s in sites}) > 1,
        f"{len(sites)} of {config.num_hidden_layers} layers have experts": len(sites) != config.num_hidden_layers,
        f"weights of the chosen experts {'sum to one' if own else 'are left as they are'} here, and "
        f"{'never' if own else 'always'} do there": bool(own) != family.renormalises and not all_on,
        f"its experts are gated by {config.hidden_act}, and by silu there": config.hidden_act not in ("silu", "swish"),
    }  # fmt: skip


def _attention(config: Any, family: GgufFamily) -> dict[str, bool]:
    window, clip = getattr(config, "sliding_window", None), getattr(config, "clip_qkv", None)
    return {
        f"its attention sees a window of {window} tokens": bool(window)
        and window < config.max_position_embeddings
        and getattr(config, "use_sliding_window", True),
        "its attention has biases, which this family has not there": bool(getattr(config, "attention_bias", False))
        and not family.bias_allowed,
        f"its queries, keys and values are clipped at {clip}, which this family's are not there": clip is not None,
    }


def _rotation(config: Any) -> dict[str, bool]:
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    odd = {name: value for name, value in rope.items() if name not in _SAID and value not in (None, _YARN.get(name))}
    return {
        f"its rotation is {kind!r}, of which {', '.join(_ROPES)} can be written": kind not in _ROPES,
        f"its rotation has {', '.join(f'{name} {value}' for name, value in odd.items())}": bool(odd),
    }
