"""What vLLM's loaders want of a checkpoint directory, as a table: vLLM cannot be installed beside Coterie.

Written down from its model files; a directory that passes has the architecture, the config fields and the names of
tensors they ask for. Whether it runs is for vLLM to show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.models.checkpoint import Checkpoint
from coterie.models.shards import read_config_json

__all__ = ["VLLM_RULES", "VllmRule", "vllm_problems"]


@dataclass(frozen=True)
class VllmRule:
    """Of one family.

    Attributes:
        architecture: that config.json must name.
        fields: that config.json must have.
        experts: the names its tensors of experts must match; group 1 is the expert's number where there is one.
    """

    architecture: str
    fields: tuple[str, ...]
    experts: str


_USUAL = r"model\.layers\.\d+\.mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight"
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps")
VLLM_RULES: Mapping[str, VllmRule] = {
    "mixtral": VllmRule(
        "MixtralForCausalLM", (*_SIZES, "num_local_experts", "num_experts_per_tok"),
        r"model\.layers\.\d+\.block_sparse_moe\.experts\.(\d+)\.(w1|w2|w3)\.weight",
    ),
    "olmoe": VllmRule("OlmoeForCausalLM", (*_SIZES, "num_experts", "num_experts_per_tok", "norm_topk_prob"), _USUAL),
    "qwen2_moe": VllmRule(
        "Qwen2MoeForCausalLM",
        (*_SIZES, "num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size",
         "norm_topk_prob", "decoder_sparse_step"),
        _USUAL,
    ),
    "qwen3_moe": VllmRule(
        "Qwen3MoeForCausalLM",
        (*_SIZES, "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
         "decoder_sparse_step", "head_dim"),
        _USUAL,
    ),
    "deepseek_v3": VllmRule(
        "DeepseekV3ForCausalLM",
        (*_SIZES, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group",
         "routed_scaling_factor", "first_k_dense_replace"),
        _USUAL,
    ),
    "gpt_oss": VllmRule(
        "GptOssForCausalLM",
        ("hidden_size", "intermediate_size", "num_hidden_layers", "num_local_experts", "num_experts_per_tok"),
        r"model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)(_bias|_blocks|_scales)?",
    ),
}  # fmt: skip
"""model_type -> what is asked for."""


def vllm_problems(checkpoint: Checkpoint) -> list[str] | None:
    """What of ``checkpoint`` is not as vLLM's loader wants it; None for a family that is not in the table."""
    if checkpoint.stored is not None:
        return ["its model_type is 'coterie', which vLLM does not know"]
    rule = VLLM_RULES.get(checkpoint.config.model_type)
    if rule is None:
        return None
    config = read_config_json(Path(checkpoint.path))
    problems = [f"config.json lacks {name}" for name in rule.fields if not hasattr(checkpoint.config, name)]
    if rule.architecture not in (config.get("architectures") or []):
        problems.append(f"config.json does not name the architecture {rule.architecture}")
    names = {name for site in checkpoint.sites for found in site.names.values() for name in _names(found)}
    wrong = sorted(name for name in names if re.fullmatch(rule.experts, name) is None)
    if wrong:
        problems.append(f"the tensor {wrong[0]!r} has another name than its loader looks for ({len(wrong)} such)")
    return problems


def _names(found: str | tuple[str, ...]) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else found
