"""Whatever is wrong, the user gets one sentence with the remedy and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from coterie.testing.checkpoints import save_tiny


@pytest.fixture
def broken(tiny, tmp_path):
    """A copy of the tiny checkpoint to break."""
    return shutil.copytree(tiny, tmp_path / "broken")


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def shards(path):
    return sorted(path.glob("*.safetensors"))


def truncate(path):
    with shards(path)[0].open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    return path


def lie(path):
    shard = shards(path)[0]
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 2
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def drop_shard(path):
    shards(path)[1].unlink()
    return path


def empty_directory(path):
    shutil.rmtree(path)
    path.mkdir()
    return path


def dense_model(path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(path)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def without_tokenizer(path):
    for file in path.glob("token*"):
        file.unlink()
    return path


BROKEN = {
    "an empty directory": (empty_directory, ["config.json"]),
    "a missing shard": (drop_shard, ["safetensors", "download it"]),
    "a truncated shard": (truncate, ["truncated", "again"]),
    "a lying header": (lie, ["damaged", "again"]),
    "a dense model": (dense_model, ["dense", "upcycle"]),
    "a quantised format": (lambda path: edit_config(path, quantization_config={"quant_method": "gptq"}), ["gptq"]),
    "an unknown family": (lambda path: edit_config(path, model_type="brontosaurus"), ["brontosaurus", "pip install"]),
    "a family not served": (lambda path: edit_config(path, model_type="jetmoe"), ["jetmoe", "attention"]),
    "no tokenizer": (without_tokenizer, ["tokenizer"]),
    "a config that is no JSON": (lambda path: (path / "config.json").write_text("{") and path, ["config.json"]),
}


def refused(result, code, words):
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr, (word, result.stderr)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused_with_a_sentence(kind, broken, coterie, recwarn):
    breaking, words = BROKEN[kind]
    result = coterie("run", breaking(broken), "hello", "--memory", "64MiB", "-n", 2)
    assert result.exit_code in (3, 4)
    refused(result, result.exit_code, words)


def test_no_such_path(coterie, tmp_path):
    refused(coterie("run", tmp_path / "nowhere", "hello"), 3, ["nowhere"])


def test_a_hub_name_without_network(coterie):
    refused(coterie("run", "nobody/has-this-model", "hello"), 3, ["nobody/has-this-model"])


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("plenty", ["not a size", "6GiB"]),
        ("-3GiB", ["not a size"]),
        ("0", ["more than zero"]),
        ("1KiB", ["below", "floor", "dense weights", "KV cache", "MiB"]),
        ("900TiB", ["more than this machine"]),
    ],
)
def test_a_bad_budget(memory, words, tiny, coterie):
    refused(coterie("run", tiny, "hello", f"--memory={memory}"), 2, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], ["empty"]),
        (["  \n"], ["empty"]),
        (["word " * 2000], ["tokens", "context is 512", "Shorten"]),
        (["hello", "--policy", "lruu"], ["lruu", "'lru'"]),
        (["hello", "--prefetch", "psychic"], ["psychic", "next-gate"]),
        (["hello", "--temperature", "-1"], ["temperature"]),
        (["hello", "--top-p", "7"], ["top_p"]),
        (["hello", "--context", "100000"], ["512"]),
    ],
)
def test_bad_options(arguments, words, tiny, coterie):
    refused(coterie("run", tiny, *arguments), 2, words)


def test_empty_stdin(tiny, coterie):
    refused(coterie("run", tiny, "-", stdin=""), 2, ["empty"])


def test_weights_that_are_not_numbers(tmp_path, coterie):
    import torch
    from safetensors.torch import load_file, save_file

    path = save_tiny(tmp_path / "nan", "olmoe")
    file = path / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = torch.full_like(weights["lm_head.weight"], float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    refused(coterie("run", path, "hello", "--temperature", "1", "-n", 2), 1, ["not finite", "damaged"])


def command(*arguments, **options):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background, whose children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "coterie.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


LONG = ("--raw", "-n", 500, "--temperature", 1, "--seed", 1)


def test_interrupting_an_answer_ends_with_a_sentence(tiny):
    running = command("run", tiny, "hello", *LONG)
    assert running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Interrupted" in errors
    assert "Traceback" not in errors


def test_closing_the_pipe_ends_with_a_sentence(tiny):
    running = command("run", tiny, "hello", *LONG)
    assert running.stdout.read(1)
    running.stdout.close()
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    errors = running.stderr.read()
    running.stderr.close()
    assert running.returncode == 141
    assert "closed before the text ended" in errors
    assert "Traceback" not in errors
