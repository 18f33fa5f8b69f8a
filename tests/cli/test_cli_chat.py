from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from coterie.cli.chat import HELP, chat
from coterie.jobs.running.load import load
from coterie.models.prompts import Prompts
from coterie.serve import Engine, Sampling

GREEDY = Sampling(max_new_tokens=6, temperature=0)


@pytest.fixture
def engine(tiny):
    host = load(tiny, context=256)
    yield Engine(host, Prompts.of(tiny, 256))
    host.coterie.close()


def talk(engine, monkeypatch, capsys, *lines, **options):
    typed = iter(lines)

    def read(prompt=""):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    chat(engine, GREEDY, **{"raw": False, "system": None, "quiet": True, **options})
    return capsys.readouterr()


def test_each_line_is_answered_until_the_end_of_input(engine, monkeypatch, capsys):
    assert len(talk(engine, monkeypatch, capsys, "hello", "and then?").out.strip()) > 0


def test_reset_forgets_the_conversation(engine, monkeypatch, capsys):
    once = talk(engine, monkeypatch, capsys, "hello").out
    twice = talk(engine, monkeypatch, capsys, "hello", "/reset", "hello").out
    assert twice == once * 2
    remembered = talk(engine, monkeypatch, capsys, "hello", "hello").out
    assert remembered != twice


def test_commands(engine, monkeypatch, capsys):
    shown = talk(engine, monkeypatch, capsys, "/help", "/stats", "", "/exit", "never read", quiet=False)
    assert shown.err.count(HELP) == 2
    assert "experts used" in shown.err
    assert shown.out == ""


def test_a_conversation_that_is_too_long_can_be_reset(engine, monkeypatch, capsys):
    shown = talk(engine, monkeypatch, capsys, "word " * 400, "/reset", "hello")
    assert "/reset" in shown.err
    assert shown.out.strip()


def test_a_terminal_without_a_prompt_opens_a_chat(tiny):
    master, slave = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "coterie.cli", "run", str(tiny), "-n", "4", "--temperature", "0"],
        stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(slave)
    os.write(master, b"hello\n/exit\n")
    out, errors = running.communicate(timeout=120)
    os.close(master)
    assert running.returncode == 0, errors
    assert out.startswith("> ")
    assert "tokens/s" in errors
