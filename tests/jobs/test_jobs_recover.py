"""Checkpoints that were made smaller learn from what they were made of, in every container, and stay loadable."""

from __future__ import annotations

import pytest
import torch

import coterie.models  # noqa: F401
from coterie.errors import OptionError
from coterie.jobs.finishing.recover import recover
from coterie.jobs.shrinking.compress import compress
from coterie.jobs.shrinking.merge import merge
from coterie.jobs.shrinking.prune import prune
from coterie.models.checkpoint import open_checkpoint
from coterie.surgery import read_layer
from coterie.testing.checkpoints import save_tiny

SIZES = {"layers": 2, "experts": 4, "k": 2, "width": 16, "inner": 8}
WORDS = "the experts meet in the morning and the router says who speaks while the otter swims to the weir\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("recover")
    save_tiny(root / "full", "olmoe", dtype=torch.bfloat16, **SIZES)
    (root / "text.txt").write_text("".join(f"{n} {WORDS}" for n in range(300)))
    return root


def made(place, way):
    out = place / way
    text = {"texts": [place / "text.txt"]}
    if way == "prune":
        prune(place / "full", out, 3, **text)
    elif way == "merge":
        merge(place / "full", out, 3, **text)
    else:
        compress(place / "full", out, rank=4, keep=0.25)
    return out


def gates(path):
    checkpoint = open_checkpoint(path)
    return [read_layer(checkpoint, site).router["weight"] for site in checkpoint.sites if site.kind is None]


@pytest.mark.parametrize("way", ["prune", "merge", "compress"])
def test_a_student_learns_and_stays_what_it_is(place, way):
    from transformers import AutoModelForCausalLM

    out = made(place, way)
    files = {file.name for file in out.iterdir()}
    before, routers = AutoModelForCausalLM.from_pretrained(out).state_dict(), gates(out)
    memory = "64MiB" if way == "prune" else None
    told = []
    found = recover(
        out, place / "full", [place / "text.txt"], 6, rate=3e-3, batch=2, length=32, memory=memory, say=told.append
    )
    assert found.after < found.before
    assert found.tokens == 6 * 2 * 32
    assert any(line.startswith("Distilling: step 6 of 6") for line in told)
    after = AutoModelForCausalLM.from_pretrained(out)
    state = after.state_dict()
    assert state.keys() == before.keys()
    assert {tensor.dtype for tensor in after.parameters()} == {torch.bfloat16}
    assert any(not torch.equal(state[name], before[name]) for name in state)
    assert all(torch.equal(one, other) for one, other in zip(gates(out), routers, strict=True))
    assert files <= {file.name for file in out.iterdir()}
    assert "## Distillation" in (out / "README.md").read_text()
    assert "Distilled over 6 steps" in found.describe()
    assert not [left.name for left in place.iterdir() if left.name.startswith(f".{way}")]


def test_interrupted_the_student_is_as_it_was_and_goes_on(place, monkeypatch):
    out = save_tiny(place / "small", "olmoe", **SIZES)
    before = (out / "model.safetensors").read_bytes()

    def stop(text):
        if text.startswith("Distilling: step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(out, place / "full", [place / "text.txt"], 4, batch=2, length=32, say=stop)
    assert (out / "model.safetensors").read_bytes() == before
    recover(out, place / "full", [place / "text.txt"], 4, batch=2, length=32, resume=True)
    assert (out / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("short\n", {}, "text"),
        (WORDS * 300, {"length": 1}, "2 tokens or more"),
        (WORDS * 300, {"kd_weight": -1.0}, "kd_weight"),
        (WORDS * 300, {"temperature": 0.0}, "above 0"),
        (WORDS * 300, {"rate": 0.0}, "rate"),
    ],
)
def test_what_cannot_be_learned_leaves_the_student_alone(place, tmp_path, text, options, said):
    out = save_tiny(tmp_path / "student", "olmoe", **SIZES)
    before = (out / "model.safetensors").read_bytes()
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(OptionError, match=said):
        recover(out, place / "full", [tmp_path / "text.txt"], 2, **{"batch": 2, "length": 32, **options})
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(OptionError, match="no text"):
        recover(out, place / "full", [], 2)


def test_integers_cannot_learn(place, tmp_path):
    from coterie.jobs.shrinking.quantize import quantize

    quantize(place / "full", tmp_path / "small", "int8")
    with pytest.raises(OptionError, match="cannot learn"):
        recover(tmp_path / "small", place / "full", [place / "text.txt"], 2)
