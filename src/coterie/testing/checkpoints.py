"""Tiny mixture-of-experts checkpoints with random weights, made on the spot.

Tests and examples never download: they make a model of a few hundred kilobytes, of a real family,
saved with transformers' own `save_pretrained`, with a byte tokenizer beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from coterie.models.compat import quiet

# first the names of the four dimensions every family calls its own way, then what it needs besides
_SIZES = {
    "mixtral": ("num_local_experts", "intermediate_size"),
    "olmoe": ("num_experts", "intermediate_size"),
    "qwen3_moe": ("num_experts", "moe_intermediate_size"),
    "deepseek_v3": ("n_routed_experts", "moe_intermediate_size"),
}
FAMILIES = tuple(_SIZES)
VOCABULARY = 320
_CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"


def tiny_config(
    family: str, *, layers: int = 2, experts: int = 8, k: int = 2, width: int = 32, inner: int = 16, **options: Any
) -> Any:
    """A transformers config of ``family`` (one of `FAMILIES`) with tiny sizes.

    ``inner`` is the inner width of one expert. ``options`` are further config fields, such as
    ``tie_word_embeddings=True`` or ``mlp_only_layers=[0]``. DeepSeek-V3 has its first layer dense.
    """
    from transformers import AutoConfig

    experts_name, inner_name = _SIZES[family]
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": k, "max_position_embeddings": 512, "initializer_range": 0.2,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1, experts_name: experts, inner_name: inner,
    }  # fmt: skip
    if family == "qwen3_moe":
        fields |= {"intermediate_size": 3 * inner, "head_dim": width // 4}
    if family == "deepseek_v3":
        fields |= {
            "intermediate_size": 3 * inner, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
            "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
            "num_key_value_heads": 4, "num_nextn_predict_layers": 0,
        }  # fmt: skip
    return AutoConfig.for_model(family, **(fields | options))


def tiny_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: Any) -> Any:
    """A causal language model of `tiny_config`, on the CPU in ``eval`` mode. Leaves the global random state alone."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **sizes)).eval()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if name.endswith("gate.weight"):
                    tensor.normal_()  # spread the choices: weights of 0 or 0.02 would make ties
                elif name.endswith("e_score_correction_bias"):
                    tensor.uniform_(-0.1, 0.1)
    return model.to(dtype)


def save_tiny(
    path: Path, family: str, *, dtype: torch.dtype = torch.float32, shards: int = 1, stacked: bool = False,
    tokenizer: bool = True, seed: int = 0, **sizes: Any,
) -> Path:  # fmt: skip
    """Save a tiny random model of ``family`` in ``path`` and return ``path``.

    Args:
        shards: about how many files; more than the model has layers makes experts straddle two files.
        stacked: write the layout of memory, one [E, ...] tensor per projection, instead of the family's own.
        tokenizer: save `tiny_tokenizer` beside it.
        sizes: of `tiny_config`.
    """
    model = tiny_model(family, dtype=dtype, seed=seed, **sizes)
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    limit = -(-total // shards) + (64 if shards > 1 else 1 << 20)
    with quiet():
        model.save_pretrained(path, max_shard_size=limit, save_original_format=not stacked)
    if tokenizer:
        tiny_tokenizer().save_pretrained(path)
    return path


def tiny_tokenizer() -> Any:
    """A byte-level BPE of at most 320 entries with a chat template; id 0 ends a text, id 1 pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>", "<|pad|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    bpe.train_from_iterator(["the experts meet in the morning and the router says who speaks"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = _CHAT
    return tokenizer
