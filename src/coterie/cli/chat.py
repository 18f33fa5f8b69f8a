"""The interactive loop of `coterie run MODEL` without a prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from coterie.errors import PromptError

if TYPE_CHECKING:
    from coterie.serve import Engine, Generation, Sampling

HELP = "/help this · /reset forget the conversation · /stats the store's numbers · /exit leave (or Ctrl-D)"


def chat(engine: Engine, sampling: Sampling, *, raw: bool, system: str | None, quiet: bool) -> None:
    """Read a line, stream an answer, again. Ctrl-C ends an answer, Ctrl-D or /exit the conversation."""
    conversation = _Conversation(engine, raw=raw, system=system)
    if not quiet:
        typer.echo(HELP, err=True)
    while (line := _read()) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            conversation = _Conversation(engine, raw=raw, system=system)
        elif line == "/help":
            typer.echo(HELP, err=True)
        elif line == "/stats":
            typer.echo(engine.model.coterie.describe(), err=True)
        elif line:
            _turn(conversation, line, sampling, quiet)


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo(err=True)
        return None


def _turn(conversation: _Conversation, line: str, sampling: Sampling, quiet: bool) -> None:
    from coterie.cli.progress import status_line
    from coterie.cli.run import _show

    try:
        generation = conversation.say(line, sampling, _show)
    except PromptError as error:
        typer.echo(f"{error} Or type /reset to forget the conversation.", err=True)
        return
    except KeyboardInterrupt:
        typer.echo("\n(stopped)", err=True)
        return
    typer.echo()
    if not quiet:
        typer.echo(status_line(generation, conversation.engine.model.coterie), err=True)


class _Conversation:
    """Messages so far, for chat models; each line on its own for others."""

    def __init__(self, engine: Engine, *, raw: bool, system: str | None) -> None:
        self.engine, self.raw = engine, raw
        self._chat = engine.prompts.is_chat and not raw
        self._messages = [{"role": "system", "content": system}] if system else []

    def say(self, line: str, sampling: Sampling, on_text: Callable[[str], None]) -> Generation:
        asked = [*self._messages, {"role": "user", "content": line}]
        prompts = self.engine.prompts
        ids = prompts.encode_chat(asked) if self._chat else prompts.encode(line, raw=True)
        generation = self.engine.generate(ids, sampling, on_text)
        if self._chat:
            self._messages = [*asked, {"role": "assistant", "content": generation.text}]
        return generation
