"""GGUF, read with gguf's own reader and held against its own tables and the live model's weights."""

from __future__ import annotations

import re

import numpy
import pytest
import torch

from coterie.errors import UnsupportedError
from coterie.models import open_checkpoint
from coterie.surgery.gguf import write_gguf
from coterie.surgery.gguf_family import GGUF_FAMILIES
from coterie.testing.families import save_tiny_family, tiny_family

gguf = pytest.importorskip("gguf")

OPTIONS = {
    "mixtral": {}, "olmoe": {"norm_topk_prob": False},
    "qwen2_moe": {"norm_topk_prob": False, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {"norm_topk_prob": True},
}  # fmt: skip
# llama.cpp loads the model without these; the rest of an architecture's table must be there
OPTIONAL = {"rope_freqs", "blk.{bid}.attn_rot_embd"}
DENSE = {"blk.{bid}.ffn_gate", "blk.{bid}.ffn_up", "blk.{bid}.ffn_down"}  # of layers without experts
WORDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


@pytest.fixture(params=OPTIONS)
def written(request, tmp_path):
    """(family, live model, gguf's reader of what was written)."""
    model = tiny_family(request.param, **OPTIONS[request.param])
    made = write_gguf(open_checkpoint(save_tiny_family(tmp_path / "model", model)), tmp_path / "model.gguf")
    return request.param, model, gguf.GGUFReader(made.path)


def bare(name):
    """blk.3.attn_q.weight -> blk.{bid}.attn_q"""
    return re.sub(r"^blk\.\d+\.", "blk.{bid}.", name).rsplit(".", 1)[0]


def test_tensors_are_those_of_the_architectures_table(written):
    family, _, reader = written
    arch = getattr(gguf.MODEL_ARCH, GGUF_FAMILIES[family].arch)
    table = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    there = {bare(tensor.name) for tensor in reader.tensors}
    assert there <= table
    assert table - there <= OPTIONAL | DENSE
    assert reader.fields["general.architecture"].contents() == gguf.MODEL_ARCH_NAMES[arch]
    for name in there:
        layers = {tensor.name.split(".")[1] for tensor in reader.tensors if bare(tensor.name) == name}
        assert not name.startswith("blk.") or layers == {"0", "1"}


def test_numbers_are_the_live_models(written):
    family, model, reader = written
    state = model.state_dict()
    for tensor in reader.tensors:
        found = torch.from_numpy(numpy.array(tensor.data))
        assert tuple(found.shape) == tuple(int(size) for size in reversed(tensor.shape))
        layer, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(.+)", tensor.name).groups()
        expected = weight_of(state, layer, name)
        if GGUF_FAMILIES[family].permutes and name in ("attn_q.weight", "attn_k.weight"):
            heads = model.config.num_attention_heads if name == "attn_q.weight" else model.config.num_key_value_heads
            expected = torch.stack(expected.view(heads, 2, -1, expected.shape[1]).unbind(1), 2).reshape(expected.shape)
        assert torch.equal(found, expected.reshape(found.shape)), tensor.name


def weight_of(state, layer, name):
    word, kind = name.rsplit(".", 1)
    place = "" if layer is None else f"model.layers.{layer}."
    if word.endswith("_exps"):
        both = state[f"{place}mlp.experts.gate_up_proj"]
        halves = dict(zip(("ffn_gate_exps", "ffn_up_exps"), both.chunk(2, 1), strict=True))
        return halves.get(word, state[f"{place}mlp.experts.down_proj"])
    return state[f"{place}{WORDS[word]}.{kind}"]


def test_numbers_of_the_header(written):
    family, model, reader = written
    config, arch = model.config, reader.fields["general.architecture"].contents()
    inner = 16
    dense = config.intermediate_size if "intermediate_size" in config.to_dict() and "qwen" in family else inner
    expected = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": dense, "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": inner, "rope.dimension_count": 8,
        "attention.key_length": 8, "attention.value_length": 8, "rope.freq_base": config.rope_parameters["rope_theta"],
        "attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps, rel=1e-6),
    }  # fmt: skip
    if family == "qwen2_moe":
        expected["expert_shared_feed_forward_length"] = 24
    assert {name: reader.fields[f"{arch}.{name}"].contents() for name in expected} == expected
    groups = [vars(group) for name, group in vars(gguf.Keys).items() if not name.startswith("_")]
    known = {value for group in groups for value in group.values() if isinstance(value, str)}
    for name in reader.fields:
        assert name.startswith("GGUF.") or name.replace(f"{arch}.", "{arch}.", 1) in known, name
    assert reader.fields["general.type"].contents() == "model"
    assert reader.fields["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION


def test_gates_and_norms_are_float32_whatever_the_weights(tmp_path):
    model = tiny_family("qwen2_moe", dtype=torch.bfloat16, **OPTIONS["qwen2_moe"])
    made = write_gguf(open_checkpoint(save_tiny_family(tmp_path / "model", model)), tmp_path / "model.gguf")
    types = {bare(tensor.name): tensor.tensor_type.name for tensor in gguf.GGUFReader(made.path).tensors}
    for name, kind in types.items():
        wide = "norm" in name or "gate_inp" in name
        assert kind == ("F32" if wide else "BF16") or name in (
            "blk.{bid}.attn_q",
            "blk.{bid}.attn_k",
            "blk.{bid}.attn_v",
        )
    assert types["blk.{bid}.ffn_gate_inp_shexp"] == "F32"
    assert types["blk.{bid}.ffn_gate_shexp"] == types["blk.{bid}.ffn_down_exps"] == "BF16"


def test_a_qwen2_without_biases_is_given_zeros(tmp_path):
    model = tiny_family("qwen2_moe", **OPTIONS["qwen2_moe"], qkv_bias=False)
    made = write_gguf(open_checkpoint(save_tiny_family(tmp_path / "model", model)), tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(made.path).tensors}
    assert [tensors[f"blk.1.attn_{letter}.bias"].shape[0] for letter in "qkv"] == [32, 16, 16]
    assert not any(tensors[f"blk.1.attn_{letter}.bias"].any() for letter in "qkv")


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("qwen3_moe", {"attention_bias": True}, "attention has biases"),
        ("olmoe", {"clip_qkv": 8.0}, r"clipped at 8\.0"),
        ("mixtral", {"hidden_act": "relu"}, "gated by relu"),
        (
            "mixtral",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16.0}},
            r"beta_fast 16\.0",
        ),
        ("mixtral", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_before_a_byte_is_written(family, options, said, tmp_path):
    model = tiny_family(family, **OPTIONS[family], **options)
    source = open_checkpoint(save_tiny_family(tmp_path / "model", model))
    with pytest.raises(UnsupportedError, match=said):
        write_gguf(source, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_stretched_rotation_is_written(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
    model = tiny_family("qwen3_moe", **OPTIONS["qwen3_moe"], rope_parameters=rope)
    made = write_gguf(open_checkpoint(save_tiny_family(tmp_path / "model", model)), tmp_path / "model.gguf")
    fields = gguf.GGUFReader(made.path).fields
    assert fields["qwen3moe.rope.scaling.type"].contents() == "yarn"
    assert fields["qwen3moe.rope.scaling.factor"].contents() == 2.0
    assert fields["qwen3moe.rope.scaling.original_context_length"].contents() == 256
