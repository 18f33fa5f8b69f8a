from __future__ import annotations

import pytest
from typer.testing import CliRunner

from coterie.cli import app
from coterie.testing.checkpoints import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny OLMoE in two shards, with tokenizer and chat template."""
    return save_tiny(tmp_path_factory.mktemp("cli") / "tiny", "olmoe", experts=16, k=4, shards=2)


@pytest.fixture(autouse=True)
def memory_as_it_was(monkeypatch):
    """Commands run in this process, whose memory must not be kept for the tests that come later."""
    monkeypatch.setattr("coterie.training.memory.keep_memory", lambda: False)


@pytest.fixture
def coterie():
    """Run the command in this process: ``coterie("run", path, ...)`` -> result with stdout, stderr, exit_code."""

    def call(*args, stdin=None):
        return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)

    return call
