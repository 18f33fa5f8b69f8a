"""Dense models of one base, and a mixture: random weights in bfloat16, made once per folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from coterie.testing.checkpoints import VOCABULARY, tiny_tokenizer

_MARK = "made.json"  # written last: a folder without it is incomplete


@dataclass(frozen=True)
class Scale:
    """Sizes. ``full`` has more than 2 GB in each dense model and in the mixture."""

    name: str
    width: int
    dense_inner: int
    dense_layers: int
    inner: int
    experts: int
    layers: int
    vocabulary: int
    shard: str


SCALES = {
    "small": Scale("small", 64, 128, 2, 32, 8, 2, VOCABULARY, "1GB"),
    "full": Scale("full", 2048, 5632, 22, 512, 64, 12, 32000, "600MB"),
}
_HEAD = 16


def dense_model(folder: Path, scale: Scale, number: int) -> Path:
    """A Mistral checkpoint; another one for each ``number``."""
    from transformers import MistralConfig

    config = MistralConfig(
        vocab_size=scale.vocabulary, hidden_size=scale.width, intermediate_size=scale.dense_inner,
        num_hidden_layers=scale.dense_layers, num_attention_heads=scale.width // _HEAD,
        num_key_value_heads=max(1, scale.width // _HEAD // 4), head_dim=_HEAD, sliding_window=None,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    return _made(folder / f"dense-{scale.name}-{number}", scale, config, number)


def mixture(folder: Path, scale: Scale) -> Path:
    """An OLMoE checkpoint of half the dense width."""
    from transformers import OlmoeConfig

    width = max(64, scale.width // 2)
    config = OlmoeConfig(
        vocab_size=scale.vocabulary, hidden_size=width, intermediate_size=scale.inner, num_hidden_layers=scale.layers,
        num_attention_heads=width // _HEAD, num_key_value_heads=width // _HEAD, num_experts=scale.experts,
        num_experts_per_tok=min(8, scale.experts // 4), max_position_embeddings=512, bos_token_id=None, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    return _made(folder / f"mixture-{scale.name}", scale, config, 7)


def weight_bytes(checkpoint: Path) -> int:
    """Of its safetensors files."""
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def _made(target: Path, scale: Scale, config: Any, seed: int) -> Path:
    from transformers import AutoModelForCausalLM

    mark, wanted = target / _MARK, asdict(scale)
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return target
    shutil.rmtree(target, ignore_errors=True)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(target, max_shard_size=scale.shard)
    tiny_tokenizer().save_pretrained(target)
    mark.write_text(json.dumps(wanted))
    return target
