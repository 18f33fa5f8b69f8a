"""Tiny dense checkpoints of several families, saved as transformers does, and texts of domains."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from coterie.models.compat import quiet
from coterie.testing.checkpoints import tiny_tokenizer

INNER = 64
_SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": 1, "initializer_range": 0.2, "rms_norm_eps": 3e-5,
}  # fmt: skip
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3}}
CONFIGS = {
    "llama": lambda **more: LlamaConfig(**_SIZES, **_ROPE, **more),
    "mistral": lambda **more: MistralConfig(**_SIZES, **_ROPE, sliding_window=8, **more),
    "qwen2": lambda **more: Qwen2Config(**_SIZES, **_ROPE, **more),
    "qwen3": lambda **more: Qwen3Config(**_SIZES, **_ROPE, head_dim=8, **more),
    "gpt2": lambda **more: GPT2Config(
        vocab_size=320, n_embd=32, n_inner=INNER, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2,
        bos_token_id=None, eos_token_id=0, **more,
    ),
    "opt": lambda word_embed_proj_dim=32, **more: OPTConfig(
        vocab_size=320, hidden_size=32, ffn_dim=INNER, num_hidden_layers=2, num_attention_heads=4, init_std=0.2,
        max_position_embeddings=256, word_embed_proj_dim=word_embed_proj_dim, bos_token_id=None, eos_token_id=0,
        pad_token_id=1, **more,
    ),
}  # fmt: skip


def save_dense(path, family="llama", *, dtype=torch.float32, seed=0, shards=1, **more):
    """A checkpoint with a tokenizer in ``path``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**more)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))  # norms and biases that tell whether they were carried
    with quiet():
        model.to(dtype).save_pretrained(path, max_shard_size="40KB" if shards > 1 else "1GB")
    tiny_tokenizer().save_pretrained(path)
    return path


@torch.no_grad()
def logits(path, **more):
    """[N, V] of plain transformers, for always the same tokens."""
    ids = torch.arange(2, 42).view(1, 40)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more).eval()
    return model(input_ids=ids).logits[0]


def apart(found, wanted):
    """Largest difference as a share of the spread."""
    return float((found - wanted).abs().max() / wanted.std())


TEXTS = {
    "code": "def add(a, b):\n    return a + b\n" * 20,
    "prose": "the experts meet in the morning and the router says who speaks. " * 12,
    "sums": "".join(f"{a} + {a} = {2 * a}\n" for a in range(60)),
}


def save_texts(path):
    """name -> [file]."""
    for name, text in TEXTS.items():
        (path / f"{name}.txt").write_text(text)
    return {name: [path / f"{name}.txt"] for name in TEXTS}
