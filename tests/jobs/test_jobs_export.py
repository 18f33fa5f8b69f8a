"""The same model in another form, and what is said before and after surgery."""

from __future__ import annotations

import numpy
import pytest
import torch
from typer.testing import CliRunner

from coterie.cli.app import app
from coterie.errors import OptionError, PromptError, UnsupportedError
from coterie.jobs.finishing.export import export
from coterie.jobs.finishing.surgery_report import surgery_report, write_report
from coterie.models import RouterSpec, open_checkpoint, route
from coterie.models.compat import quiet
from coterie.surgery import Method, NewLayer, read_layer, rewrite
from coterie.surgery.vllm_rules import vllm_problems
from coterie.testing.checkpoints import save_tiny, tiny_model

ABOUT = Method("merge", "lossy", "Experts were put together.", options={"experts": 4})
TEXT = {"words": "the experts meet in the morning " * 30}


def folded(layer):
    weights = {name: weight[:4] for name, weight in layer.weights.items()}
    return NewLayer(weights, layer.router, tuple(route % 4 for route in range(8)), about={"kept": 4, "error": 0.25})


@pytest.fixture
def alias(tmp_path):
    return rewrite(open_checkpoint(save_tiny(tmp_path / "a", "mixtral")), tmp_path / "alias", folded, about=ABOUT)


def logits(path):
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model(torch.arange(12)[None]).logits.detach()


def test_aliases_become_copies(tmp_path, alias):
    made = export(alias.path, tmp_path / "native")
    written = open_checkpoint(made.path)
    assert (made.format, written.stored, written.sites[0].num_experts) == ("native", None, 8)
    assert made.vllm == ()
    torch.testing.assert_close(logits(made.path), logits(alias.path), rtol=1e-5, atol=1e-5)
    layer = read_layer(written, written.sites[0])
    assert torch.equal(layer.weights["up_proj"][5], layer.weights["up_proj"][1])


@pytest.mark.parametrize("format", ["alias", "coterie"])
def test_what_is_expressible_is_written_as_asked(tmp_path, alias, format):
    made = export(alias.path, tmp_path / "b", format)
    assert made.made.container == format
    assert torch.equal(logits(made.path), logits(alias.path))


@pytest.mark.parametrize(
    ("family", "options"),
    [("mixtral", {}), ("olmoe", {"norm_topk_prob": False}), ("qwen3_moe", {"norm_topk_prob": True})],
)
def test_gguf_reads_back(tmp_path, family, options):
    gguf = pytest.importorskip("gguf")
    source = open_checkpoint(save_tiny(tmp_path / "a", family, **options))
    made = export(source, tmp_path / "model.gguf", "gguf").gguf
    reader = gguf.GGUFReader(made.path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    layer = read_layer(source, source.sites[1])
    for role, name in (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")):
        found = tensors[f"blk.1.ffn_{name}_exps.weight"]
        assert numpy.array_equal(found.data, layer.weights[role].numpy())
    assert numpy.array_equal(tensors["blk.1.ffn_gate_inp.weight"].data, layer.router["weight"].numpy())
    arch = reader.fields["general.architecture"].contents()
    assert reader.fields[f"{arch}.expert_count"].contents() == 8
    assert reader.fields[f"{arch}.expert_used_count"].contents() == 2
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    assert (len(words), words[0]) == (320, "<|end|>")
    assert made.vocabulary == "byte-level BPE (gpt-2)"


def test_gguf_of_an_alias_has_every_slot(tmp_path, alias):
    gguf = pytest.importorskip("gguf")
    made = export(alias.path, tmp_path / "dir", "gguf")
    stack = next(t for t in gguf.GGUFReader(made.path).tensors if t.name == "blk.0.ffn_up_exps.weight").data
    assert stack.shape[0] == 8
    assert numpy.array_equal(stack[6], stack[2])


def test_mixtral_queries_are_turned_in_pairs():
    from coterie.surgery.gguf import _interleaved

    rows = torch.arange(16).view(16, 1)
    assert _interleaved(rows, 2).view(-1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_a_tokenizer_of_another_kind_is_left_out_and_said_to_be(tmp_path):
    pytest.importorskip("gguf")
    source = save_tiny(tmp_path / "a", "mixtral", tokenizer=False)
    made = export(source, tmp_path / "b.gguf", "gguf")
    assert made.gguf.vocabulary == "no_vocab"
    assert "no_vocab" in made.describe()


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path):
    pytest.importorskip("gguf")
    for family, options, words in (
        ("olmoe", {"norm_topk_prob": True}, "sum to one here, and never do there"),
        ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}, "1 of 2 layers have experts"),
        ("mixtral", {"sliding_window": 16}, "window of 16 tokens"),
        ("deepseek_v3", {}, "GGUF is written for"),
    ):
        source = save_tiny(tmp_path / words[:6], family, **options)
        with pytest.raises(UnsupportedError, match=words):
            export(source, tmp_path / "b.gguf", "gguf")
    assert not list(tmp_path.glob("b*"))


def test_routers_of_ours_stay_ours(tmp_path):
    model = tiny_model("mixtral")
    route(model, RouterSpec("top_k", {"k": 2}))
    with quiet():
        model.save_pretrained(tmp_path / "a")
    with pytest.raises(UnsupportedError, match="its router is Coterie's top_k"):
        export(tmp_path / "a", tmp_path / "b", "native")
    with pytest.raises(OptionError, match="There is no format"):
        export(tmp_path / "a", tmp_path / "b", "onnx")
    made = export(tmp_path / "a", tmp_path / "b")
    assert made.format == "coterie"
    torch.testing.assert_close(logits(made.path), logits(tmp_path / "a"), rtol=1e-5, atol=1e-5)


def test_vllm_wants_names_and_fields(tmp_path, alias):
    for family in ("mixtral", "olmoe", "qwen3_moe", "deepseek_v3"):
        assert vllm_problems(open_checkpoint(save_tiny(tmp_path / family, family))) == []
    stacked = open_checkpoint(save_tiny(tmp_path / "stacked", "olmoe", stacked=True))
    assert "has another name" in vllm_problems(stacked)[0]
    assert "vLLM does not know" in vllm_problems(open_checkpoint(alias.path))[0]


def test_before_and_after(tmp_path, alias):
    source = open_checkpoint(tmp_path / "a")
    report = surgery_report(source, alias, ABOUT, texts=TEXT, tokens=64)
    rows = {row[0]: row[1:] for row in report.rows()}
    assert rows["experts per layer"][:2] == ("8", "4")
    assert report.tokens == 63
    assert all(value > 1 for value in report.perplexity)
    same = surgery_report(
        source, rewrite(source, tmp_path / "same", lambda layer: layer.unchanged(), about=ABOUT), ABOUT, texts=TEXT
    )
    assert same.perplexity[0] == pytest.approx(same.perplexity[1], rel=1e-5)
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    for words in ("Before and after", "perplexity", "experts per layer", "kept", "0.25"):
        assert words in page
    assert "lossy" in report.sheet().plain()
    with pytest.raises(PromptError):
        surgery_report(source, alias, ABOUT, texts=[tmp_path / "none.txt"])


def test_the_command(tmp_path, alias):
    done = CliRunner().invoke(app, ["export", str(alias.path), "--out", str(tmp_path / "b"), "--json"])
    assert done.exit_code == 0
    assert '"format": "native"' in done.stdout
    again = CliRunner().invoke(app, ["export", str(alias.path), "--out", str(tmp_path / "b")])
    assert again.exit_code == 2
    assert "exists already" in again.output
