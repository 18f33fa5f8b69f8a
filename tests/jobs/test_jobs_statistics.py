"""Collecting statistics as a task: through the store, under a budget, per domain, refused where they would be noise."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import BudgetError, CheckpointError, OptionError, PromptError, UnsupportedError
from coterie.jobs.running.load import load
from coterie.jobs.tracing.statistics import collect_statistics
from coterie.jobs.tracing.statistics_run import collected_bytes
from coterie.jobs.tracing.statistics_sheet import concentration
from coterie.models.checkpoint import open_checkpoint
from coterie.models.statistics import Statistics
from coterie.testing.checkpoints import save_tiny, tiny_tokenizer
from coterie.testing.quantised import save_tiny_quantised

FIELDS = (
    "usage", "gate_mass", "output_norm", "reap", "input_mean", "channel", "inputs", "sample_output", "sample_channel",
    "logit_gram", "logit_mean",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("statistics") / "tiny", "olmoe", experts=8, k=2, shards=2)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("statistics") / "dense"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )
    ).save_pretrained(path)  # fmt: skip
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three files of a few hundred tokens: words, numbers, code."""
    folder = tmp_path_factory.mktemp("texts")
    words = {
        "words.txt": "the experts meet in the morning and the router says who speaks " * 12,
        "numbers.txt": " ".join(str(n * n) for n in range(60)),
        "code.py": "\n".join(f"def f{n}(x):\n    return x + {n}" for n in range(12)),
    }
    for name, text in words.items():
        (folder / name).write_text(text)
    return folder


def same(a, b):
    assert list(a.sites) == list(b.sites)
    for name, site in a.sites.items():
        for field in FIELDS:
            assert torch.equal(getattr(site, field), getattr(b[name], field)), (name, field)


def test_a_model_larger_than_memory_gives_the_bits_of_everything_resident(tiny, texts):
    files = [texts / "words.txt", texts / "code.py"]
    whole = collect_statistics(tiny, files, context=32, sample=16)
    checkpoint = open_checkpoint(tiny)
    host = load(checkpoint, context=32, batch=whole.statistics.about["batch"], prefill=32)
    budget = host.coterie.budget
    host.coterie.close()
    memory = budget.fixed + collected_bytes(checkpoint, 1, 16) + 3 * budget.slot_bytes
    tight = collect_statistics(tiny, files, None, memory, context=32, sample=16)
    assert tight.statistics.about["batch"] == whole.statistics.about["batch"]
    assert "3 of 16 experts" in tight.budget
    same(tight.statistics, whole.statistics)
    assert tight.bytes_read > whole.bytes_read
    same(collect_statistics(tiny, files, context=32, sample=16, slots=1).statistics, whole.statistics)


def test_less_memory_reads_fewer_sequences_at_once_and_too_little_is_said(tiny, texts):
    files = [texts / "words.txt"]
    checkpoint = open_checkpoint(tiny)
    host = load(checkpoint, context=16, batch=1, prefill=16)
    floor = host.coterie.budget.floor
    host.coterie.close()
    extra = collected_bytes(checkpoint, 1, 16)
    made = collect_statistics(tiny, files, None, floor + extra, context=16, sample=16)
    assert made.statistics.about["batch"] == 1
    with pytest.raises(BudgetError, match=r"are for what is collected.*below this model's floor") as caught:
        collect_statistics(tiny, files, None, floor + extra - 4096, context=16, sample=16)
    assert "Add" in str(caught.value)
    with pytest.raises(BudgetError, match="size"):
        collect_statistics(tiny, files, None, "much")


@pytest.mark.parametrize(("family", "method"), [("gpt_oss", "mxfp4"), ("qwen3_moe", "fp8")])
def test_quantised_experts_are_counted_as_floats(family, method, texts, tmp_path):
    path = save_tiny_quantised(tmp_path / "model", family, method)
    made = [collect_statistics(path, [texts / "words.txt"], context=32, slots=slots).statistics for slots in (1, None)]
    same(*made)
    assert all(float(site.channel.sum()) > 0 for site in made[0].sites.values())


def test_the_file_is_of_the_model_and_says_what_was_read(tiny, texts, tmp_path):
    out = tmp_path / "stats.safetensors"
    domains = {"code": [texts / "code.py"], "numbers": [texts / "numbers.txt"]}
    made = collect_statistics(tiny, [texts / "words.txt"], out, domains=domains, context=64, sample=16, tokens=150)
    back = Statistics.load(out)
    back.check(open_checkpoint(tiny))
    assert back.domains == ["code", "numbers"]
    assert [(text["name"], text["domain"]) for text in back.about["texts"]] == [
        ("words.txt", ""), ("code.py", "code"), ("numbers.txt", "numbers"),
    ]  # fmt: skip
    tokens = [text["tokens"] for text in back.about["texts"]]
    assert max(tokens) == 150
    site = next(iter(back.sites.values()))
    assert [use.tokens for use in site.domains.values()] == tokens[1:]
    assert site.tokens == sum(tokens)
    same(back, made.statistics)
    record = made.as_record()
    assert record["hash"] == back.model
    assert record["sites"][0]["busiest"]["share"] >= record["sites"][0]["idlest"]["share"]
    lines = made.describe().splitlines()
    assert any(line.startswith("layer  experts  entropy") for line in lines)
    assert "code.py" in made.describe()
    assert "Merging pays only where it is high" in " ".join(made.describe().split())


def test_texts_by_name_and_domains_alone(tiny):
    made = collect_statistics(tiny, {"talk": "the experts meet in the morning " * 30}, sample=4)
    assert made.statistics.about["texts"][0]["name"] == "talk"
    assert made.statistics.domains == []


def test_a_dense_model_is_counted_by_channels(dense, texts, tmp_path):
    domains = {"code": [texts / "code.py"], "numbers": [texts / "numbers.txt"]}
    made = collect_statistics(dense, [], tmp_path / "stats", domains=domains, sample=16, gradients=True)
    back = Statistics.load(tmp_path / "stats")
    assert list(back.ffns) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert back.sites == {}
    for ffn in back.ffns.values():
        assert ffn.inputs.shape == (16, 32)
        assert float(ffn.gradient.min()) > 0
        code, numbers = ffn.domains["code"], ffn.domains["numbers"]
        torch.testing.assert_close(
            ffn.channel, (code.tokens * code.channel + numbers.tokens * numbers.channel) / ffn.tokens
        )
        assert not torch.equal(code.gradient, numbers.gradient)
    assert made.hit_rate is None
    record = made.as_record()["ffns"][0]
    assert 0 <= record["permanent"] <= 24 <= record["any"] <= 48
    assert "in all domains" in made.describe()
    without = collect_statistics(dense, [texts / "words.txt"], sample=16, memory="1GiB")
    assert all(ffn.gradient is None and not ffn.domains for ffn in without.statistics.ffns.values())
    assert "in all domains" not in without.describe()


def test_concentration_of_channels():
    assert concentration(torch.ones(40)) == pytest.approx(0.1)
    assert concentration(torch.tensor([8.0, *[0.0] * 19])) == pytest.approx(1)
    assert concentration(torch.zeros(10)) == 0


def test_statistics_that_would_be_noise_are_refused(tiny, dense, texts, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the experts meet")
    with pytest.raises(
        PromptError, match=r"The calibration text has \d+ tokens; the statistics asked need at least 64"
    ):
        collect_statistics(tiny, [short])
    with pytest.raises(PromptError, match=r"text of the domain code has \d+ tokens"):
        collect_statistics(dense, [texts / "words.txt"], domains={"code": [short]})
    with pytest.raises(PromptError, match="need at least 64"):
        collect_statistics(tiny, [texts / "words.txt"], tokens=20)
    many = save_tiny(tmp_path / "many", "mixtral", experts=64, k=1)
    with pytest.raises(PromptError, match="need at least 128 to tell 64 experts apart"):
        collect_statistics(many, [texts / "words.txt"], tokens=100)


def test_bad_input_is_met_with_words(tiny, dense, texts, tmp_path):
    words = [texts / "words.txt"]
    with pytest.raises(OptionError, match="experts in a store have none"):
        collect_statistics(tiny, words, gradients=True)
    with pytest.raises(BudgetError, match="a dense model has no experts that could stay on disk"):
        collect_statistics(dense, words, memory="10KiB")
    with pytest.raises(PromptError, match="no text to read"):
        collect_statistics(tiny, [])
    with pytest.raises(OptionError, match="A domain has a name"):
        collect_statistics(tiny, words, domains={"": words})
    with pytest.raises(OptionError, match="There is no directory"):
        collect_statistics(tiny, words, tmp_path / "no" / "stats")
    for wrong in ({"tokens": 1}, {"sample": 0}, {"context": 1}, {"seed": -1}):
        with pytest.raises(OptionError, match="Statistics need"):
            collect_statistics(tiny, words, **wrong)
    for model, limit in ((tiny, 512), (dense, 128)):
        with pytest.raises(OptionError, match=f"more than the model's {limit}"):
            collect_statistics(model, words, context=1000)
    with pytest.raises(PromptError, match="cannot be read"):
        collect_statistics(tiny, [tmp_path / "gone.txt"])


def test_what_was_there_stays_when_collecting_fails(tiny, tmp_path):
    out = tmp_path / "stats.safetensors"
    out.write_text("mine")
    with pytest.raises(PromptError):
        collect_statistics(tiny, [tmp_path / "gone.txt"], out)
    assert out.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["stats.safetensors"]


def test_a_truncated_or_strange_dense_model(dense, texts, tmp_path):
    import json
    import shutil

    broken = shutil.copytree(dense, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        collect_statistics(broken, [texts / "words.txt"])
    odd = shutil.copytree(dense, tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"model_type": "no_such_family"}))
    with pytest.raises(UnsupportedError, match="does not know"):
        collect_statistics(odd, [texts / "words.txt"])
    from safetensors.torch import load_file, save_file

    lacking = shutil.copytree(dense, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="incomplete"):
        collect_statistics(lacking, [texts / "words.txt"])


def test_nan_in_a_checkpoint_is_said_and_nothing_is_written(dense, texts, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(dense, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not finite in model\.layers\.0\.mlp"):
        collect_statistics(broken, [texts / "words.txt"], tmp_path / "stats")
    assert not (tmp_path / "stats").exists()
