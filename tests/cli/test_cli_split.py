"""coterie split and coterie upcycle as they are typed."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, OPTConfig

from coterie.models.compat import quiet
from coterie.testing.checkpoints import tiny_tokenizer


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("dense") / "llama"
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    (place / "code.txt").write_text("def add(a, b):\n    return a + b\n" * 20)
    (place / "prose.txt").write_text("the experts meet in the morning and the router says who speaks. " * 12)
    return place


def test_split_shows_what_it_did_and_what_is_next(coterie, dense, texts, tmp_path):
    done = coterie("split", dense, "-e", 4, "--k", 2, "--text", texts / "code.txt", "--out", tmp_path / "out",
                   "--report", tmp_path / "report.html")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "perplexity" in (tmp_path / "report.html").read_text()
    for words in (
        "perplexity",
        "kmeans-activations",
        "router agrees",
        "FLOPs per token",
        "lossy: 2 of 4 experts",
        "coterie train",
    ):
        assert words in done.stdout
    assert coterie("inspect", tmp_path / "out").exit_code == 0
    run = coterie("run", tmp_path / "out", "the", "--raw", "-n", 2)
    assert run.exit_code == 0, run.stderr


def test_split_by_domains_and_one_of_them_alone(coterie, dense, texts, tmp_path):
    domains = [f"--domain={name}={texts / name}.txt" for name in ("code", "prose")]
    done = coterie("split", dense, *domains, "--density", 0.5, "--out", tmp_path / "moe", "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["method"]["options"]["way"] == "activation"
    done = coterie(
        "split", dense, "--channels", tmp_path / "moe", "--export-domain", "code", "--out", tmp_path / "code"
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "a plain dense model" in done.stdout
    assert json.loads((tmp_path / "code" / "config.json").read_text())["intermediate_size"] == 32


def test_all_on_says_exact(coterie, dense, tmp_path):
    done = coterie("split", dense, "-e", 4, "--k", 4, "--out", tmp_path / "out")
    assert "exact: all experts are on" in done.stdout
    assert "coterie run" in done.stdout


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["-e", "7"], "Try 8"), ([], "--experts 8"), (["-e", "4", "--by", "kmean"], "Did you mean 'kmeans'"),
        (["-e", "4", "--router", "fit"], "--text FILE"), (["-e", "4", "--scale", "big"], "no scale 'big'"),
        (["--domain", "code"], "is no domain"), (["--export-domain", "code"], "--channels DIR"),
        (["-e", "4", "--text", "none.txt"], "cannot be read"), (["-e", "4", "--shared", "1.5"], "below 1"),
    ],
)  # fmt: skip
def test_split_refuses_in_a_sentence(coterie, dense, tmp_path, options, what):
    done = coterie("split", dense, *options, "--out", tmp_path / "out")
    assert done.exit_code not in (0, 1) or done.stderr.startswith("Error: ")
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_upcycle_copies_several_and_one_more(coterie, dense, tmp_path):
    done = coterie("upcycle", dense, "-e", 4, "--out", tmp_path / "copies")
    assert done.exit_code == 0, done.stderr
    assert "exact: every expert is the dense feed-forward" in done.stdout
    (tmp_path / "prompts.txt").write_text("once upon a time\n\nthe morning\n")
    done = coterie(
        "upcycle", dense, "--expert", dense, "--prompt", "def main():", "--expert", dense, "--prompt",
        f"@{tmp_path / 'prompts.txt'}", "--noise", 0.1, "--out", tmp_path / "several",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "once upon a time (and 1 more)" in done.stdout
    done = coterie(
        "upcycle", tmp_path / "copies", "--add", dense, "--prompt", "x = 1", "--out", tmp_path / "five", "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["after"]["experts"] == [5, 5]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "Say what the experts are"), (["-e", "2", "--expert", "x"], "give one of them"),
        (["--expert", "a", "--expert", "b", "--prompt", "x"], "2 experts and 1 prompts"),
        (["-e", "2", "--k", "3"], "k is 3"), (["-e", "2", "--gates", "hiden"], "no start 'hiden'"),
        (["-e", "2", "--negative", "x"], "--negative does not go with"),
        (["--add", "x", "--k", "2"], "--k does not go with --add"),
        (["--expert", "a", "--prompt", "@none.txt"], "cannot be read as prompts"),
    ],
)  # fmt: skip
def test_upcycle_refuses_in_a_sentence(coterie, dense, tmp_path, options, what):
    done = coterie("upcycle", dense, *options, "--out", tmp_path / "out")
    assert done.exit_code != 0
    assert what in done.stderr
    assert not list(tmp_path.iterdir())


def save(config, path):
    torch.manual_seed(0)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("verb", [("split", "-e", 4, "--k", 2, "--shared", 0.25), ("upcycle", "-e", 3)])
def test_a_family_without_a_mixture_becomes_one_and_runs(coterie, texts, tmp_path, verb):
    config = OPTConfig(
        vocab_size=320, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    dense, out = save(config, tmp_path / "opt"), tmp_path / "out"
    done = coterie(verb[0], dense, *verb[1:], "--text", texts / "code.txt", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "coterie: coterie run, or transformers after import coterie.models" in done.stdout
    answer = coterie("run", out, "def add", "-n", 3, "--raw", "--quiet", "--memory", "300MiB")
    assert answer.exit_code == 0, answer.stderr
    same = coterie("verify", out)
    assert same.exit_code == 0, same.stderr
    plain = coterie("export", out, "--format", "native", "--out", tmp_path / "native")
    assert plain.exit_code == 2
    assert "transformers has no mixture of the family 'opt'" in plain.stderr


def test_a_feed_forward_that_does_more_is_refused_in_a_sentence(coterie, tmp_path):
    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=0)
    dense = save(config, tmp_path / "bloom")
    for verb in (("split", "-e", 4), ("upcycle", "-e", 2)):
        done = coterie(verb[0], dense, *verb[1:], "--out", tmp_path / "out")
        assert done.exit_code == 4, done.stdout
        assert "is given more than its input (residual), so that no experts can take its place" in done.stderr
    assert not (tmp_path / "out").exists()
