"""What a config says of attention and quantisation, and a shape of an expert, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.experts import FFNShape
from coterie.models.compat.calls import most


def shape_text(shape: FFNShape) -> str:
    """Activation, gate, bias and layout of one expert, such as "gated by silu, gate and up apart, no bias"."""
    fused = "gate and up " + ("interleaved" if shape.interleaved else "fused" if shape.fused else "apart")
    parts = [_gate_text(shape), *[fused] * shape.gated]
    parts += [] if shape.clamp is None else [f"clamped at {shape.clamp:g}"]
    parts += ["bias" if shape.bias else "no bias", "matrices [in, out]" if shape.transposed else "matrices [out, in]"]
    return ", ".join(parts + ["a norm after each expert"] * shape.post_norm)


def _gate_text(shape: FFNShape) -> str:
    if not shape.gated:
        return f"{shape.activation}, no gate"
    if shape.gate_fn is not None:
        return "gated by a function of its own"
    if shape.alpha is not None:
        return f"gated by x * sigmoid({shape.alpha:g} x), up plus one"
    return f"gated by {shape.activation}"


def attention_of(config: Any) -> dict[str, Any]:
    """Heads, their kind and their windows, as far as the config has fields of these names."""
    names = (
        "num_attention_heads", "num_key_value_heads", "head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
        "qk_rope_head_dim", "v_head_dim", "sliding_window",
    )  # fmt: skip
    facts = {name: value for name in names if (value := _number(config, name)) is not None}
    kinds = getattr(config, "layer_types", None) or []
    facts["windowed_layers"] = sum("sliding" in str(kind) for kind in kinds)
    return facts | {"description": _attention_text(facts)}


def _number(config: Any, name: str) -> int | None:
    """A whole number of the config; of one that differs between layers the largest."""
    try:
        value = getattr(config, name, None)
    except Exception:  # configs whose layers differ refuse to name one value, with an error of their own
        value = most(config, name)
    return value if isinstance(value, int) else None


def _attention_text(facts: Mapping[str, int]) -> str:
    heads = facts.get("num_attention_heads")
    if not heads:
        return "not known"
    keys = facts.get("num_key_value_heads") or heads
    if rank := facts.get("kv_lora_rank"):
        text = f"{heads} heads, multi-head latent attention, keys and values of rank {rank}"
    else:
        kind = "multi-head" if keys == heads else "multi-query" if keys == 1 else "grouped-query"
        wide = f" {facts['head_dim']} wide" if "head_dim" in facts else ""
        text = f"{heads} heads{wide}, {keys} of keys and values ({kind})"
    windowed, window = facts.get("windowed_layers"), facts.get("sliding_window")
    return f"{text}, window of {window:,} tokens in {windowed} layers" if windowed and window else text


def quantisation_of(quantization: Mapping[str, Any] | None, stored: set[str]) -> str:
    """Method and the types it is stored in, such as "mxfp4, stored as BF16, U8"; "" where nothing is quantised."""
    if not quantization:
        return ""
    return f"{quantization.get('quant_method', 'unnamed')}, stored as {', '.join(sorted(stored))}"
