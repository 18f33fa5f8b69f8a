"""A checkpoint as one GGUF file for llama.cpp, written with the gguf package, one tensor in memory at a time.

llama.cpp computes each family in one way, so a model is refused that would be computed in another: weights of the
chosen experts that are scaled otherwise, layers that differ, rotations and windows that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, MissingExtraError, OptionError, UnsupportedError
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import text_config
from coterie.models.tensors import read_tensor
from coterie.surgery.gguf_family import GgufFamily, gguf_family
from coterie.surgery.gguf_words import add_words
from coterie.surgery.layer import read_layer
from coterie.surgery.routing_tensors import router_tensors

__all__ = ["GgufFile", "write_gguf"]


@dataclass(frozen=True)
class GgufFile:
    """What was written.

    Attributes:
        path: the file.
        tensors: how many.
        nbytes: of the file.
        vocabulary: what kind of tokenizer went in; "no_vocab" where the package knows none such.
    """

    path: Path
    tensors: int
    nbytes: int
    vocabulary: str


def write_gguf(checkpoint: Checkpoint, out: str | Path) -> GgufFile:
    """Write ``checkpoint`` as the GGUF file ``out``. Blocks; written beside and moved into place.

    Weights keep their type (bfloat16, float16 or float32); norms and gates are float32, as llama.cpp wants them.
    Routes that lead to one expert are written out: all slots filled, exact.

    Raises:
        MissingExtraError: the gguf package is not installed.
        UnsupportedError: llama.cpp does not know the family, or would compute it otherwise; says how.
        OptionError: ``out`` exists, or its directory does not.
        CheckpointError: the source is damaged, the disk is full, or what was written does not read back.
    """
    gguf, out = _package(), Path(out).expanduser()
    _refuse_existing(out)
    family = gguf_family(checkpoint)
    part = out.with_name(f"{out.name}.part")
    writer = gguf.GGUFWriter(part, _arch_name(gguf, family), use_temp_file=False)
    try:
        vocabulary = _describe(gguf, writer, checkpoint, family)
        plan = list(_plan(gguf, checkpoint, family))
        for name, shape, kind, _ in plan:
            dtype, numpy_dtype = _types(gguf, kind)
            count = kind.itemsize
            for size in shape:
                count *= size
            writer.add_tensor_info(name, list(shape), numpy_dtype, count, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, _, kind, read in plan:
            writer.write_tensor_data(_as_numpy(read(), kind))
        writer.close()
        with part.open("rb") as file:
            os.fsync(file.fileno())
        _read_back(gguf, part, plan)
        os.rename(part, out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error}. The source is untouched.") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return GgufFile(out, len(plan), out.stat().st_size, vocabulary)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("The gguf package", extra="export") from error
    return gguf


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise OptionError(f"{out} exists already. Name another file, or remove it first: rm {out}")
    if not out.parent.is_dir():
        raise OptionError(f"There is no directory {out.parent}. Make it first: mkdir -p {out.parent}")


def _arch_name(gguf: Any, family: GgufFamily) -> str:
    name: str = gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, family.arch)]
    return name


def _describe(gguf: Any, writer: Any, checkpoint: Checkpoint, family: GgufFamily) -> str:
    """Numbers of the model, and its words; what kind of words."""
    config = text_config(checkpoint.config)
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    site = checkpoint.sites[0]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_name(checkpoint.path.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size if family.dense_width else site.shape.inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_expert_count(site.num_routes)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(site.shape.inner)
    if (shared := getattr(config, "shared_expert_intermediate_size", None)) is not None:
        writer.add_expert_shared_feed_forward_length(shared)
    _describe_rope(gguf, writer, getattr(config, "rope_parameters", None) or {}, head)
    kinds = {torch.bfloat16: "MOSTLY_BF16", torch.float16: "MOSTLY_F16"}
    writer.add_file_type(int(getattr(gguf.LlamaFileType, kinds.get(checkpoint.dtype, "ALL_F32"))))
    return add_words(gguf, writer, checkpoint.path, config.vocab_size)


def _describe_rope(gguf: Any, writer: Any, rope: Mapping[str, Any], head: int) -> None:
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", "default")
    if kind != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if (length := rope.get("original_max_position_embeddings")) is not None:
            writer.add_rope_scaling_orig_ctx_len(int(length))


_Entry = tuple[str, tuple[int, ...], torch.dtype, Any]


def _plan(gguf: Any, checkpoint: Checkpoint, family: GgufFamily) -> Iterator[_Entry]:
    """(name in GGUF, shape, type, what reads it) of every tensor, layer after layer."""
    config = text_config(checkpoint.config)
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, family.arch), config.num_hidden_layers)
    wide = {tensor.disk for each in router_tensors(checkpoint).values() for tensor in each}
    heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    biased: set[str] = set()
    for name, part in checkpoint.dense.items():
        known = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise UnsupportedError(f"llama.cpp has no place for the tensor {name!r} of this model.")
        biased |= {known} if known.endswith(".bias") else set()
        shape = tuple(size for size in part.shape if size != 1) or part.shape
        kind = torch.float32 if len(shape) < 2 or name in wide else checkpoint.dtype
        if "shared_expert_gate" in name:
            kind = torch.float32
        yield known, shape, kind, _reader(name, part, shape, heads if family.permutes else None)
    if family.biased:
        yield from _no_biases(config, biased)
    for site in checkpoint.sites:
        for role in ("gate_proj", "up_proj", "down_proj"):
            name = table.get_name(family.experts.format(layer=site.layer, role=role), try_suffixes=(".weight",))
            inner, width = site.shape.inner, site.shape.width
            size = (width, inner) if role == "down_proj" else (inner, width)
            yield name, (site.num_routes, *size), site.dtype, _stack_reader(checkpoint, site, role)


def _no_biases(config: Any, there: set[str]) -> Iterator[_Entry]:
    """Biases of zero for queries, keys and values that have none: llama.cpp reads them in this family."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    for layer in range(config.num_hidden_layers):
        for letter, count in (("q", heads), ("k", groups), ("v", groups)):
            if (name := f"blk.{layer}.attn_{letter}.bias") not in there:
                yield name, (count * head,), torch.float32, partial(torch.zeros, count * head)


def _reader(name: str, part: Any, shape: tuple[int, ...], heads: tuple[int, int] | None) -> Any:
    def read() -> Tensor:
        tensor = read_tensor(part).reshape(shape)
        if heads is not None and ("q_proj" in name or "k_proj" in name):
            return _interleaved(tensor, heads[0] if "q_proj" in name else heads[1])
        return tensor

    return read


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from "first half, second half" to pairs, as llama.cpp turns this family's queries and keys."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _stack_reader(checkpoint: Checkpoint, site: Any, role: str) -> Any:
    def read() -> Tensor:
        layer = read_layer(checkpoint, site)
        stack = layer.weights[role]
        return stack if layer.experts_of is None else stack[list(layer.experts_of)]

    return read


def _types(gguf: Any, kind: torch.dtype) -> tuple[Any, Any]:
    import numpy

    types = gguf.GGMLQuantizationType
    return {
        torch.bfloat16: (types.BF16, numpy.dtype(numpy.uint16)), torch.float16: (types.F16, numpy.dtype(numpy.float16)),
        torch.float32: (types.F32, numpy.dtype(numpy.float32)),
    }[kind]  # fmt: skip


def _as_numpy(tensor: Tensor, kind: torch.dtype) -> Any:
    typed = tensor.to(kind).contiguous()
    return typed.view(torch.uint16).numpy() if kind == torch.bfloat16 else typed.numpy()


def _read_back(gguf: Any, path: Path, plan: list[_Entry]) -> None:
    """Every tensor is there with its shape, and the first layer's stack has the bytes it should have.

    Raises:
        CheckpointError: it is not so.
    """
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, shape, kind, read in plan:
        tensor = found.get(name)
        if tensor is None or tuple(int(size) for size in reversed(tensor.shape)) != shape:
            raise CheckpointError(f"{path}: {name} does not read back as it was written. Nothing was put in place.")
        if name.startswith("blk.0.ffn_gate_exps") and tensor.data.tobytes() != _as_numpy(read(), kind).tobytes():
            raise CheckpointError(f"{path}: {name} reads back with other numbers. Nothing was put in place.")
