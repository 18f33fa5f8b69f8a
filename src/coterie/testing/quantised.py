"""Tiny quantised checkpoints, made on the spot: names, types and config as the makers of the large ones publish them.

The rounding here is plain and meant for tests. What matters is that the files are laid out like the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.models.compat import quiet
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer

__all__ = ["QUANTISED", "quantise_fp8", "quantise_mxfp4", "save_tiny_quantised"]

Tensors = Mapping[str, Tensor]

QUANTISED: tuple[tuple[str, str], ...] = (("gpt_oss", "mxfp4"), ("deepseek_v3", "fp8"), ("qwen3_moe", "fp8"))
"""Family and method of what `save_tiny_quantised` can make."""

_FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_FP8_MAX = 448.0
# matrices that makers of FP8 checkpoints leave as they are
_NOT_FP8 = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "norm.weight")


def save_tiny_quantised(
    path: Path, family: str, method: str, *, block: tuple[int, int] = (128, 128),
    dtype: torch.dtype = torch.bfloat16, shards: int = 1, tokenizer: bool = True, seed: int = 0, **sizes: Any,
) -> Path:  # fmt: skip
    """Save a tiny random model of ``family``, quantised by ``method``, in ``path`` and return ``path``.

    Args:
        family: with ``method`` one of `QUANTISED`.
        block: of FP8: rows and columns that share a scale.
        dtype: of what is not quantised.
        shards: about how many files.
        tokenizer: save a byte tokenizer beside it.
        sizes: layers, experts, k, width, inner and config fields, as of `coterie.testing.checkpoints.tiny_config`;
            of GPT-OSS width and inner are multiples of 32.
    """
    assert (family, method) in QUANTISED, f"choose one of {QUANTISED}"
    path.mkdir(parents=True, exist_ok=True)
    if family == "gpt_oss":
        _save_gpt_oss(path, dtype, seed, **sizes)
    else:
        save_tiny(path, family, dtype=dtype, tokenizer=False, seed=seed, **sizes)
    if tokenizer:
        tiny_tokenizer().save_pretrained(path)
    tensors = _taken(path)
    written, config = _mxfp4(tensors) if method == "mxfp4" else _fp8(tensors, block, listed=family == "qwen3_moe")
    _write(path, written, config, shards)
    return path


def quantise_fp8(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[N, K] -> float8_e4m3fn [N, K], and float32 [blocks down, blocks across] to multiply with. Lossy."""
    rows, columns = weight.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    padded = F.pad(weight.float(), (0, across * block[1] - columns, 0, down * block[0] - rows))
    tiles = padded.view(down, block[0], across, block[1])
    scale = tiles.abs().amax(dim=(1, 3)).clamp_min(1e-12) / _FP8_MAX
    numbers = (tiles / scale[:, None, :, None]).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    # slicing and copying are not there for eight-bit floats on every build: do both on bytes
    raw = numbers.view(torch.uint8).reshape(padded.shape)[:rows, :columns].clone(memory_format=torch.contiguous_format)
    return raw.view(torch.float8_e4m3fn), scale


def quantise_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> uint8 blocks [..., K / 32, 16] and uint8 scales [..., K / 32]. Lossy."""
    groups = weight.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp_min(2.0**-100)
    exponent = torch.ceil(torch.log2(largest / 6.0)).clamp(-127, 127)
    scaled = groups / torch.exp2(exponent)
    nearest = (scaled.abs().unsqueeze(-1) - _FP4_VALUES).abs().argmin(dim=-1)
    codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (exponent.squeeze(-1) + 127).to(torch.uint8)


def _mxfp4(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """GPT-OSS: matrices of experts lie [E, out, in / 32, 16] on disk and [E, in, out] in memory."""
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            written[f"{name}_blocks"], written[f"{name}_scales"] = quantise_mxfp4(tensor.transpose(1, 2))
        else:
            written[name] = tensor
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return written, {"modules_to_not_convert": left, "quant_method": "mxfp4"}


def _fp8(tensors: Tensors, block: tuple[int, int], listed: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every matrix but embedding, head and gates; Qwen lists the modules it left alone, DeepSeek does not."""
    written: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and name.endswith(".weight") and not name.endswith(_NOT_FP8):
            written[name], written[f"{name}_scale_inv"] = quantise_fp8(tensor, block)
        else:
            written[name] = tensor
    config: dict[str, Any] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(block),
    }  # fmt: skip
    if listed:
        kept = [name.removesuffix(".weight") for name in tensors if name.endswith(_NOT_FP8)]
        config["modules_to_not_convert"] = [name for name in kept if "embed" not in name and "self_attn" not in name]
    return written, config


def _save_gpt_oss(
    path: Path, dtype: torch.dtype, seed: int, *, layers: int = 2, experts: int = 8, k: int = 2, width: int = 64,
    inner: int = 32, **options: Any,
) -> None:  # fmt: skip
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=320, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_local_experts=experts, num_experts_per_tok=k, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=512, sliding_window=16, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        layer_types=["sliding_attention" if n % 2 == 0 else "full_attention" for n in range(layers)],
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0}, **options,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if "layernorm" not in name and "norm.weight" not in name:
                    tensor.normal_(std=1.0 if "router" in name else 0.2)  # biases and sinks too, which begin as zeros
    with quiet():
        model.to(dtype).save_pretrained(path)


def _taken(path: Path) -> dict[str, Tensor]:
    """All tensors of the directory, whose weight files are removed."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= {name: tensor.clone() for name, tensor in load_file(file).items()}
        file.unlink()
    (path / "model.safetensors.index.json").unlink(missing_ok=True)
    return tensors


def _write(path: Path, tensors: Mapping[str, Tensor], quantization: dict[str, Any], shards: int) -> None:
    from huggingface_hub import save_torch_state_dict

    total = sum(tensor.nbytes for tensor in tensors.values())
    limit = -(-total // shards) + (64 if shards > 1 else 1 << 20)
    save_torch_state_dict({name: t.contiguous() for name, t in tensors.items()}, path, max_shard_size=limit)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
