from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_the_text_goes_to_stdout_and_the_status_to_stderr(tiny, coterie):
    result = coterie("run", tiny, "hello", "--memory", "64MiB", "-n", 5)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()
    for word in ("tokens/s", "hits", "resident", "interpreter and libraries"):
        assert word in result.stderr


def test_quiet_leaves_the_status_out(tiny, coterie):
    assert coterie("run", tiny, "hello", "-n", 3, "-q").stderr == ""


def test_json_holds_the_text_and_the_numbers(tiny, coterie):
    result = coterie("run", tiny, "hello", "-n", 5, "--json", "--memory", "64MiB")
    record = json.loads(result.stdout)
    assert record["new_tokens"] == 5
    assert record["memory"]["total"] == 64 * 1024**2
    assert record["store"]["misses"] > 0
    assert result.stderr == ""


def test_a_smaller_budget_gives_the_same_text(tiny, coterie):
    wide = json.loads(coterie("run", tiny, "hello", "-n", 12, "--json").stdout)
    floor = wide["memory"]["floor"]
    narrow = json.loads(coterie("run", tiny, "hello", "-n", 12, "--json", f"--memory={floor}").stdout)
    assert narrow["memory"]["slots"] == 1
    assert narrow["text"] == wide["text"]
    assert narrow["store"]["misses"] > wide["store"]["misses"]


def test_the_prompt_may_come_from_stdin(tiny, coterie):
    typed = json.loads(coterie("run", tiny, "hello", "-n", 4, "--json").stdout)
    piped = json.loads(coterie("run", tiny, "-n", 4, "--json", stdin="hello").stdout)
    assert piped["text"] == typed["text"]


def test_the_chat_template_is_used_unless_raw(tiny, coterie):
    chat = json.loads(coterie("run", tiny, "hello", "-n", 2, "--json").stdout)
    system = json.loads(coterie("run", tiny, "hello", "-n", 2, "--json", "--system", "be brief").stdout)
    raw = json.loads(coterie("run", tiny, "hello", "-n", 2, "--json", "--raw").stdout)
    assert raw["prompt_tokens"] < chat["prompt_tokens"] < system["prompt_tokens"]


@pytest.mark.parametrize("options", [[], ["--top-p", "0.9"], ["--top-k", "5"], ["--min-p", "0.05"]])
def test_sampling_repeats_with_a_seed(options, tiny, coterie):
    command = ["run", tiny, "hello", "-n", 8, "--json", "--temperature", 1.5, *options]
    first, second = (json.loads(coterie(*command, "--seed", 7).stdout)["text"] for _ in range(2))
    assert first == second
    others = {json.loads(coterie(*command, "--seed", seed).stdout)["text"] for seed in range(4)}
    assert len(others) > 1


def test_verify_prints_what_it_compared(tiny, coterie):
    result = coterie("verify", tiny, "--memory", "64MiB")
    assert result.exit_code == 0, result.output
    assert "bit-identical" in result.stdout
    assert "equal to rounding" in result.stdout


def test_verify_as_json(tiny, coterie):
    record = json.loads(coterie("verify", tiny, "--json", "--no-transformers", "-n", 2).stdout)
    assert record["holds"]
    assert record["difference"] is None
    assert record["transformers"] is None


def test_version(coterie):
    from coterie import __version__

    assert coterie("--version").stdout.strip() == f"coterie {__version__}"


def test_help_does_not_import_torch():
    code = "import sys; from coterie.cli import app; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2


def test_a_warm_start_gives_the_same_text(tiny, coterie, tmp_path):
    text, told = tmp_path / "notes.txt", tmp_path / "stats.safetensors"
    text.write_text("hello there, said the otter to the weir. " * 20)
    assert coterie("trace", tiny, "--text", text, "--statistics", told, "--sample", 4).exit_code == 0
    cold = json.loads(coterie("run", tiny, "hello", "-n", 6, "--json").stdout)
    warm = json.loads(coterie("run", tiny, "hello", "-n", 6, "--json", "--statistics", told).stdout)
    assert warm["text"] == cold["text"]
    assert warm["store"]["misses"] < cold["store"]["misses"]
    assert (cold["store"]["warm_bytes"], warm["store"]["warm_bytes"] > 0) == (0, True)
    assert "to begin with" in coterie("run", tiny, "hello", "-n", 2, "--statistics", told).stderr
    planned = coterie("plan", tiny, "--statistics", told, "--context", 64)
    assert planned.exit_code == 0, planned.stderr
    assert "routes by measured usage" in planned.stdout


def test_statistics_of_another_model_are_refused(tiny, coterie, tmp_path):
    from coterie.testing.checkpoints import save_tiny

    text, told = tmp_path / "notes.txt", tmp_path / "stats.safetensors"
    text.write_text("hello there, said the otter to the weir. " * 20)
    assert coterie("trace", tiny, "--text", text, "--statistics", told, "--sample", 4).exit_code == 0
    other = save_tiny(tmp_path / "other", "mixtral")
    for verb in (["run", other, "hello"], ["plan", other], ["inspect", other]):
        result = coterie(*verb, "--statistics", told)
        assert result.exit_code == 3, result.output
        assert "another model" in result.stderr
    assert "There are no statistics" in coterie("run", tiny, "hello", "--statistics", tmp_path / "none").stderr
    text.write_bytes(b"\x00" * 300)
    assert "cannot be read as statistics" in coterie("run", tiny, "hello", "--statistics", text).stderr
