"""The benchmark's model: an OLMoE checkpoint with random weights, made on the spot, once per folder."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offloading.scales import BF16, Scale
from offloading.tensorfile import write_tensors

Shapes = dict[str, tuple[int, ...]]
_MARK = "made.json"  # written last: a folder without it is incomplete


def make_checkpoint(folder: Path, scale: Scale) -> Path:
    """The directory of a checkpoint that `AutoModelForCausalLM` loads; made if it is not there. Holds one tensor."""
    target = folder / f"olmoe-{scale.name}"
    wanted = asdict(scale) | {"limit": 0, "slots_share": 0}
    mark = target / _MARK
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    _config(scale).save_pretrained(target)
    _write_shards(target, scale)
    mark.write_text(json.dumps(wanted))
    return target


def needed_bytes(scale: Scale) -> int:
    """Disk space: the checkpoint, and the second copy of the experts that accelerate's arm needs."""
    return scale.dense_bytes + 2 * scale.experts_bytes


def shard_files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("*.safetensors"))


def _config(scale: Scale) -> Any:
    from transformers import OlmoeConfig

    return OlmoeConfig(
        architectures=["OlmoeForCausalLM"],
        dtype="bfloat16",
        vocab_size=scale.vocab,
        hidden_size=scale.hidden,
        intermediate_size=scale.inner,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        num_key_value_heads=scale.heads,
        num_experts=scale.experts,
        num_experts_per_tok=scale.top_k,
        max_position_embeddings=512,
        pad_token_id=1,
        eos_token_id=0,
    )


def tensor_shapes(scale: Scale) -> Shapes:
    """Every tensor of the checkpoint in the order of the model, under its name on disk."""
    h = scale.hidden
    shapes: Shapes = {"model.embed_tokens.weight": (scale.vocab, h)}
    for layer in range(scale.layers):
        shapes |= _layer_shapes(f"model.layers.{layer}.", scale)
    return shapes | {"model.norm.weight": (h,), "lm_head.weight": (scale.vocab, h)}


def _layer_shapes(prefix: str, scale: Scale) -> Shapes:
    h, f = scale.hidden, scale.inner
    shapes: Shapes = {f"self_attn.{p}_proj.weight": (h, h) for p in "qkvo"}
    shapes |= {f"self_attn.{p}_norm.weight": (h,) for p in "qk"}
    shapes |= {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,)}
    shapes["mlp.gate.weight"] = (scale.experts, h)
    for expert in range(scale.experts):
        for part, shape in (("down_proj", (h, f)), ("gate_proj", (f, h)), ("up_proj", (f, h))):
            shapes[f"mlp.experts.{expert}.{part}.weight"] = shape
    return {prefix + name: shape for name, shape in shapes.items()}


def _write_shards(target: Path, scale: Scale) -> None:
    shapes = tensor_shapes(scale)
    homes = _homes(shapes, scale.shards)
    for shard in sorted(set(homes.values())):
        names = [name for name, home in homes.items() if home == shard]
        write_tensors(target / shard, {n: (torch.bfloat16, shapes[n], _random(n, shapes[n])) for n in names})
    total = sum(_size(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _homes(shapes: Shapes, shards: int) -> dict[str, str]:
    """Name -> shard file, cut where the bytes say, so that a layer (or an expert) may lie in two, as in real models."""
    share = sum(_size(shape) for shape in shapes.values()) / shards
    homes, seen = {}, 0
    for name, shape in shapes.items():
        seen += _size(shape)
        number = min(int((seen - 1) / share), shards - 1) + 1
        homes[name] = f"model-{number:05d}-of-{shards:05d}.safetensors"
    return homes


def _size(shape: tuple[int, ...]) -> int:
    return BF16 * int(torch.Size(shape).numel())


def _random(name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """One piece: ones for norms, else normal(0, 0.02) seeded by the name, so that files are equal everywhere."""
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    if name.endswith("norm.weight"):
        yield tensor.fill_(1)
    else:
        yield tensor.normal_(0, 0.02, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
