"""Dense weights in their own type, computed in float32: what casting all of them gives."""

from __future__ import annotations

import pytest
import torch

from coterie.models import open_checkpoint
from coterie.models.compat import auto_class, quiet
from coterie.surgery import Method, narrow, rewrite
from coterie.surgery import verify as checking
from coterie.surgery.narrow import dense_dtype
from coterie.surgery.verify import logits_of, probe_ids, served
from coterie.testing.checkpoints import save_tiny
from coterie.testing.families import save_tiny_family, tiny_family


def halved(path, family):
    """A tiny checkpoint in bfloat16."""
    saved = save_tiny_family(path / "wide", tiny_family(family))
    checkpoint = open_checkpoint(saved)
    with quiet():
        model = auto_class(checkpoint.config).from_pretrained(saved, dtype=torch.bfloat16)
        model.save_pretrained(path / "narrow")
    return open_checkpoint(path / "narrow")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(narrow, "_LARGE", 0)
    monkeypatch.setattr(narrow, "_NUMBERS", 700)  # several pieces, the last one short
    monkeypatch.setattr(checking, "_WHOLE", 0)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_logits_are_those_of_everything_in_float32(tmp_path, family):
    checkpoint = halved(tmp_path, family)
    assert dense_dtype(checkpoint) in (torch.bfloat16, torch.float32)
    ids = probe_ids(checkpoint, 12)
    with quiet():
        model = auto_class(checkpoint.config).from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    host = served(checkpoint)
    assert all(not tensor.is_floating_point() or tensor.dtype == torch.float32 for tensor in host.buffers())
    torch.testing.assert_close(logits_of(host, ids), logits_of(model, ids), rtol=1e-4, atol=1e-4)
    about = Method("merge", "lossy", "Nothing.")
    made = rewrite(checkpoint, tmp_path / "b", lambda layer: layer.unchanged(), about=about)
    assert made.difference < 1e-4


def test_large_matrices_keep_their_type_and_the_rest_is_cast(tmp_path):
    checkpoint = halved(tmp_path, "olmoe")
    assert dense_dtype(checkpoint) == torch.bfloat16
    kinds = {name: tensor.dtype for name, tensor in served(checkpoint).named_parameters()}
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == torch.bfloat16
    assert kinds["model.embed_tokens.weight"] == torch.bfloat16
    assert kinds["model.layers.0.mlp.gate.weight"] == torch.float32
    assert kinds["model.norm.weight"] == torch.float32


def test_mixed_types_are_all_cast(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(save_tiny(tmp_path / "a", "mixtral"))
    assert dense_dtype(checkpoint) == torch.float32
    monkeypatch.setattr(narrow, "_LARGE", 1 << 40)
    assert dense_dtype(halved(tmp_path, "olmoe")) == torch.float32
