"""What lies on disk is held against what was made, whatever went wrong between the two."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coterie.errors import CoterieError
from coterie.models import open_checkpoint
from coterie.surgery import Method, NewLayer, NewMixture, from_dense, open_dense, rewrite
from coterie.surgery import verify as checking
from coterie.surgery.writer import CheckpointWriter
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer
from coterie.testing.families import save_tiny_family, tiny_family

ABOUT = Method("merge", "lossy", "Experts were put together.")
EXPERT = "model.layers.1.block_sparse_moe.experts.{}.{}.weight"


def tampered(monkeypatch, change):
    """From now on ``change(directory)`` happens between writing and checking."""
    complete = CheckpointWriter.complete

    def then(self, config, files):
        complete(self, config, files)
        change(self.part)

    monkeypatch.setattr(CheckpointWriter, "complete", then)


def in_file(edit):
    """A change of the tensors of the only shard."""

    def change(part):
        file = part / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return change


def exchange(first, second):
    def edit(tensors):
        tensors[first], tensors[second] = tensors[second].clone(), tensors[first].clone()

    return in_file(edit)


def flip(name, place=-1):
    """One bit of one number."""

    def edit(tensors):
        tensors[name].view(-1).view(torch.uint8)[place] ^= 1

    return in_file(edit)


def rename(old, new):
    return in_file(lambda tensors: tensors.update({new: tensors.pop(old)}))


def turn(name):
    """A square matrix with rows for columns: no shape tells."""
    return in_file(lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))


def configured(**fields):
    def change(part):
        file = part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return change


def cut(part):
    file = part / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def halved(part):
    """Every other tensor is missing."""
    with safe_open(part / "model.safetensors", "pt") as opened:
        half = list(opened.keys())[::2]
        tensors = {name: opened.get_tensor(name) for name in half}
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})


FAULTS = {
    "swapped": (exchange(EXPERT.format(0, "w1"), EXPERT.format(5, "w1")), "expert 0 in layer 1"),
    "gate for up": (exchange(EXPERT.format(2, "w1"), EXPERT.format(2, "w3")), "gate_proj of expert 2"),
    "one bit of an expert": (flip(EXPERT.format(7, "w2"), 0), "down_proj of expert 7"),
    "one bit of a copy": (flip("model.layers.0.self_attn.o_proj.weight"), "not what was copied"),
    "one bit of an embedding": (flip("model.embed_tokens.weight"), "embed_tokens"),
    "gate": (exchange("model.layers.0.block_sparse_moe.gate.weight", "model.layers.1.block_sparse_moe.gate.weight"),
             "does not answer as"),
    "name": (rename(EXPERT.format(3, "w2"), EXPERT.format(9, "w2")), r"experts.3|experts.9|w2|down_proj"),
    "turned": (turn("model.layers.1.self_attn.q_proj.weight"), "q_proj"),
    "config": (configured(num_experts_per_tok=1), "does not answer as"),
    "truncated": (cut, "truncated"),
    "half": (halved, r"model\."),
}  # fmt: skip


@pytest.mark.parametrize("large", [False, True], ids=["loaded whole", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_between_writing_and_checking_is_found(tmp_path, monkeypatch, fault, large):
    change, words = FAULTS[fault]
    source = open_checkpoint(save_tiny(tmp_path / "a", "mixtral"))
    if large:
        monkeypatch.setattr(checking, "_WHOLE", 0)
    assert rewrite(source, tmp_path / "sound", lambda layer: layer.unchanged(), about=ABOUT).difference < 1e-4
    tampered(monkeypatch, change)
    with pytest.raises(CoterieError, match=words):
        rewrite(source, tmp_path / "b", lambda layer: layer.unchanged(), about=ABOUT)
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe", "deepseek_v3"])
def test_one_bit_of_a_stack_or_of_an_unmet_expert(tmp_path, monkeypatch, family):
    saved = (
        save_tiny_family(tmp_path / "a", tiny_family(family)) if family == "gpt_oss"
        else save_tiny(tmp_path / "a", family)
    )  # fmt: skip
    source = open_checkpoint(saved)
    at = source.sites[-1].names["down_proj"]
    tampered(monkeypatch, flip(at if isinstance(at, str) else at[-1]))
    with pytest.raises(CoterieError, match="down_proj of expert 7"):
        rewrite(source, tmp_path / "b", lambda layer: layer.unchanged(), about=ABOUT)
    assert not list(tmp_path.glob("b*"))


def test_routes_that_lead_elsewhere(tmp_path, monkeypatch):
    source = open_checkpoint(save_tiny(tmp_path / "a", "mixtral"))

    def folded(layer):
        weights = {name: weight[:4] for name, weight in layer.weights.items()}
        return NewLayer(weights, layer.router, tuple(route % 4 for route in range(8)))

    def reroute(part):
        stored = json.loads((part / "coterie.json").read_text())

        def walk(node):
            if isinstance(node, dict):
                return {key: walk(value) for key, value in node.items()}
            if isinstance(node, list) and sorted(set(map(str, node))) == ["0", "1", "2", "3"]:
                return node[1:] + node[:1]
            return [walk(value) for value in node] if isinstance(node, list) else node

        assert walk(stored) != stored
        (part / "coterie.json").write_text(json.dumps(walk(stored)))

    tampered(monkeypatch, reroute)
    with pytest.raises(CoterieError, match="does not answer as"):
        rewrite(source, tmp_path / "b", folded, about=ABOUT)


@pytest.mark.parametrize(
    ("change", "words"),
    [(exchange(EXPERT.format(0, "w1"), EXPERT.format(1, "w1")), "expert 0 in layer 1"),
     (flip("lm_head.weight"), "lm_head"), (configured(rms_norm_eps=0.5), "does not answer as")],
    ids=["swapped", "copy", "config"],
)  # fmt: skip
def test_mixtures_of_dense_models_too(tmp_path, monkeypatch, change, words):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "a")
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    calls = []

    def edit(layer):
        calls.append(layer.ffn.layer)
        scales = torch.tensor([1.0, 0.5])[:, None, None]
        return NewMixture({name: scales * weight for name, weight in layer.weights.items()}, torch.randn(2, 32))

    dense = open_dense(tmp_path / "a")
    assert from_dense(dense, tmp_path / "sound", edit, top_k=1, about=ABOUT).difference < 1e-4
    assert calls == [0, 1]
    tampered(monkeypatch, change)
    with pytest.raises(CoterieError, match=words):
        from_dense(dense, tmp_path / "b", edit, top_k=1, about=ABOUT)
    assert not list(tmp_path.glob("b*"))
