"""Tiny configs of every mixture-of-experts family that transformers can build.

One generic rule shrinks whatever fields a family's config has; a row in `ROWS` says what a family
needs beside that. The table of families that are served (docs/families.md) is made from this.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coterie.models.compat import OWN_LAYOUTS, auto_class, quiet
from coterie.models.find import find_sites

VOCABULARY = 320

_COUNTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts",
)  # fmt: skip
_CHOICES = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")
_INNER = ("moe_intermediate_size", "expert_ffn_hidden_size")
_FIXED: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    # groups of experts, shared experts, layers without experts
    "n_group": 2, "topk_group": 1, "num_expert_group": 2, "n_shared_experts": 1, "num_shared_experts": 1,
    "num_nextn_predict_layers": 0, "first_k_dense_replace": 1, "num_dense_layers": 1, "moe_layer_start_index": 0,
    # attention that compresses keys and values, and attention that looks up a few of them
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16,
    "v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 64,
    # layers that are no attention
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8,
    "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
_TOWER: Mapping[str, Any] = {
    "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 4,
    "hidden_size": 32, "intermediate_size": 24, "head_dim": 8, "patch_size": 4, "image_size": 8,
    "out_hidden_size": 32, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 32,
    "output_dim": 32, "downsample_hidden_size": 8, "text_hidden_size": 32,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """What the generic rule does not know of a family.

    Attributes:
        kind: model_type of the config that is built, where it is not the family's name.
        options: config fields; a mapping for a part of the config.
        k: most experts per token, where the family allows only this many.
        layout: "shared" behind transformers' experts interface, "own" as `coterie.models.compat.OWN_LAYOUTS` says.
        note: what a reader of the table should know.
    """

    kind: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    k: int | None = None
    layout: str = "shared"
    note: str = ""


_FULL = {"num_key_value_heads": 4}  # multi-head latent attention has a key for every head
_MROPE = {"rope_type": "default", "rope_theta": 1e4}

ROWS: Mapping[str, Row] = {
    "afmoe": Row(), "aria": Row(), "axk1": Row(options=_FULL), "axk2": Row(options=_FULL),
    "bailing_hybrid": Row(options=_FULL), "beam": Row(), "cohere2_moe": Row(),
    "deepseek_ocr2": Row(options={"text_config": {"mlp_layer_types": ["dense", "sparse"]}}),
    "deepseek_v2": Row(options=_FULL), "deepseek_v3": Row(options=_FULL), "deepseek_v32": Row(options=_FULL),
    "deepseek_v4": Row(options={"mlp_layer_types": ["hash_moe", "moe"]}),
    "diffusion_gemma": Row(options={"text_config": {"enable_moe_block": True}}),
    "dots1": Row(),
    "dots3_note": Row(options={
        "text_config": {
            **_FULL, "shared_experts_intermediate_size": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 16, "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        },
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_output_size": 32, "hidden_size": 32},
    }),
    "ernie4_5_moe": Row(),
    "ernie4_5_vl_moe": Row(options={"text_config": {"rope_parameters": {**_MROPE, "mrope_section": [1, 1, 2]}}}),
    "exaone_moe": Row(), "flex_olmo": Row(), "flint": Row(options={"mlp_only_layers": [0]}),
    "gemma4": Row(options={
        "text_config": {
            "enable_moe_block": True, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        },
        "audio_config": None,
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 8, "global_head_dim": 8, "patch_size": 4,
            "position_embedding_size": 16,
        },
    }),
    "glm4_moe": Row(), "glm4_moe_lite": Row(options=_FULL),
    "glm4v_moe": Row(options={"text_config": {
        "rope_parameters": {**_MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0},
    }}),
    "glm5_next": Row(options={"text_config": {
        **_FULL, "index_kpool": 2, "qk_rope_head_dim": 0, "linear_head_dim": 8, "linear_num_heads": 4,
    }}),
    "glm_moe_dsa": Row(options=_FULL), "gpt_oss": Row(), "granitemoe": Row(), "granitemoe_swa": Row(),
    "granitemoehybrid": Row(options={"layer_types": ["linear_attention", "full_attention"]}),
    "granitemoeshared": Row(), "hunyuan_v1_moe": Row(), "hy_v3": Row(), "hy_v4": Row(),
    "inkling": Row("inkling_mm_model", {"vision_config": {"num_hidden_layers": 5, "patch_size": 8}}),
    "inkling2": Row(),
    "jamba": Row(options={"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 2}),
    "kimi_linear": Row(options=_FULL), "kolibri1": Row(), "laguna": Row(),
    "lfm2_moe": Row(options={"layer_types": ["conv", "full_attention"]}),
    "mellum": Row(), "mimo_v2_flash": Row(), "minimax": Row(), "minimax_m2": Row(), "minimax_m3_vl": Row(),
    "mistral4": Row(options=_FULL), "mistral_large4": Row(options={"text_config": _FULL}), "mixtral": Row(),
    "muse_spark": Row(options={
        "vision_config": {"num_hidden_layers": 2},
        "audio_config": {"num_hidden_layers": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    }),
    "nemotron_h": Row(options={
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], "ssm_state_size": 8,
        "moe_shared_expert_intermediate_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1,
        "chunk_size": 8,
    }),
    "olmoe": Row(), "openai_privacy_filter": Row(), "phimoe": Row(), "qwen2_moe": Row(), "qwen3_5_moe": Row(),
    "qwen3_moe": Row(), "qwen3_next": Row(),
    "qwen3_omni_moe": Row("qwen3_omni_moe_thinker", {"vision_start_token_id": 310, "audio_start_token_id": 311}),
    "qwen3_vl_moe": Row(),
    "qwen4_exp": Row(options={"text_config": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 4, "hc_lowrank": 4, "ngram_vocab_size_base": 64, "split_ngram_parts": 4,
        "make_ngram_vocab_size_divisible_by": 8, "ple_embed_dim": 8, "heads_per_ngram": 2,
    }}),
    "solar_open": Row(), "unlimited_ocr": Row(options={"text_config": {"mlp_layer_types": ["dense", "sparse"]}}),
    "zaya": Row(k=1),
    # experts in a layout of the family's own
    "dbrx": Row(layout="own", options={"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}}),
    "llama4": Row(
        "llama4_text", {"intermediate_size_mlp": 48, "attention_chunk_size": 64}, layout="own",
        note="scores scale what goes into experts",
    ),
    "longcat_flash": Row(layout="own", options={"zero_expert_num": 3, "num_key_value_heads": 4}),
    "nllb_moe": Row("nllb-moe", {
        "encoder_sparse_step": 1, "decoder_sparse_step": 1, "moe_token_dropout": 0.2, "decoder_start_token_id": 2,
        "init_std": 0.2,
    }, layout="own"),
    "step3p7": Row(layout="own", options={"text_config": {"swiglu_limits": [0.5, 0], "sliding_window": 8}}),
    "switch_transformers": Row(layout="own", options={
        "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
        "decoder_start_token_id": 2, "tie_word_embeddings": False,
    }),
}  # fmt: skip


def shared_layout_families() -> tuple[str, ...]:
    """The families of the installed transformers whose experts are behind its experts interface, from its source."""
    import transformers

    models = Path(transformers.__file__).parent / "models"
    mark = re.compile(r"^@use_experts_implementation", re.MULTILINE)
    files = models.glob("*/modeling_*.py")
    return tuple(sorted({file.parent.name for file in files if mark.search(file.read_text(encoding="utf-8"))}))


def own_layout_families() -> tuple[str, ...]:
    """The families whose experts Coterie serves in a layout of their own."""
    return tuple(sorted(own.family for own in OWN_LAYOUTS.values()))


def tiny_config(
    family: str, *, layers: int | None = None, experts: int = 8, k: int = 2, width: int = 32, inner: int = 16,
    **options: Any,
) -> Any:  # fmt: skip
    """A transformers config of ``family`` with tiny sizes, by its row in `ROWS` or, without one, by the rule alone.

    Args:
        layers: decoder layers; default 2, or what the family's row needs.
        experts, k, width, inner: E, K, D, and the inner width of one expert.
        options: further config fields, such as ``tie_word_embeddings=True``.
    """
    from transformers import CONFIG_MAPPING

    row = ROWS.get(family, Row())
    kind = CONFIG_MAPPING[row.kind or family]
    fields = {**row.options, **options}
    return _shrunk(kind, fields, layers=layers, experts=experts, k=row.k or k, width=width, inner=inner)


def tiny_family(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: Any) -> Any:
    """A model of `tiny_config` on the CPU in eval mode, its routers drawn wide so that choices are spread.

    Leaves the global random state alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(family, **sizes)
        model = auto_class(config).from_config(config).eval()
        for site in find_sites(model):
            _spread(site.gate)
    return model.to(dtype)


@torch.no_grad()
def _spread(gate: Any) -> None:
    for name, tensor in [*gate.named_parameters(), *gate.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 2 and min(tensor.shape) > 1:
            tensor.normal_()
        elif tensor.is_floating_point() and "bias" in name:
            tensor.uniform_(-0.1, 0.1)


def save_tiny_family(path: Path, model: Any, *, shards: int = 1, stacked: bool = False) -> Path:
    """Save ``model`` in ``path`` and return ``path``.

    Args:
        shards: about how many files; with many, experts straddle two.
        stacked: write the layout of memory, one [E, ...] tensor per projection, instead of the family's own.
    """
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    with quiet():
        model.save_pretrained(
            path, max_shard_size=-(-total // shards) + (64 if shards > 1 else 1 << 20), save_original_format=not stacked
        )
    return path


def _shrunk(kind: Any, options: Mapping[str, Any], *, layers: int | None, **sizes: int) -> Any:
    base, names = kind(), {field.name for field in dataclasses.fields(kind)}
    fields = _sized(names, layers=_layers(layers, options), **sizes)
    fields |= _per_layer(base, names, _layers(layers, options))
    parts = {name for name in base.sub_configs or {} if dataclasses.is_dataclass(getattr(base, name, None))}
    for name in parts:
        given = options.get(name, {})
        if given is not None:
            fields[name] = _part(type(getattr(base, name)), name, given, layers=layers, **sizes).to_dict()
    return kind(**(fields | {name: value for name, value in options.items() if name not in parts or value is None}))


def _part(kind: Any, name: str, options: Mapping[str, Any], *, layers: int | None, **sizes: int) -> Any:
    """The text part like any text model; towers with a layer of their own size."""
    if "vision" not in name and "audio" not in name and "encoder" not in name and "sam" not in name:
        return _shrunk(kind, options, layers=layers, **sizes)
    names = {field.name for field in dataclasses.fields(kind)}
    return _shrunk(kind, {k: v for k, v in _TOWER.items() if k in names} | dict(options), layers=None, **sizes)


def _layers(layers: int | None, options: Mapping[str, Any]) -> int:
    listed = options.get("layers_block_type") or options.get("layer_types")
    return layers or options.get("num_hidden_layers") or (len(listed) if listed else 2)


def _sized(names: set[str], *, layers: int, experts: int, k: int, width: int, inner: int) -> dict[str, Any]:
    own_inner = next((name for name in _INNER if name in names), None)
    fields = {name: value for name, value in _FIXED.items() if name in names}
    wanted = {
        "num_hidden_layers": layers, "hidden_size": width, "head_dim": width // 4, **dict.fromkeys(_COUNTS, experts),
        **dict.fromkeys(_CHOICES, k), "intermediate_size": inner if own_inner is None else 3 * inner,
        "ffn_hidden_size": 3 * inner, **({} if own_inner is None else {own_inner: inner}),
        "shared_expert_intermediate_size": inner, "shared_intermediate_size": inner,
        # by the names of older families
        **dict.fromkeys(("n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"), layers),
        **dict.fromkeys(("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), inner), "d_model": width, "d_kv": width // 4,
        **dict.fromkeys(("n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
        "max_seq_len": 512, "kv_channels": width // 4,
    }  # fmt: skip
    return fields | {name: value for name, value in wanted.items() if name in names}


def _per_layer(base: Any, names: set[str], layers: int) -> dict[str, Any]:
    """Lists with an entry per layer: every kind of layer there is, one after another, and experts in all of them."""
    fields: dict[str, Any] = {}
    kinds = getattr(base, "layer_types", None) if "layer_types" in names else None
    if isinstance(kinds, list | tuple):
        different = list(dict.fromkeys(kinds))
        fields["layer_types"] = [different[layer % len(different)] for layer in range(layers)]
    if "mlp_layer_types" in names:
        fields["mlp_layer_types"] = ["sparse"] * layers
    if isinstance(getattr(base, "moe_intermediate_size", None), list):
        fields["moe_intermediate_size"] = [16, 16]
    return fields
