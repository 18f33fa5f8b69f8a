"""How a verb ends: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import typer

from coterie.errors import CoterieError

P = ParamSpec("P")

OUT_OF_MEMORY, INTERRUPTED, PIPE_CLOSED = 5, 130, 141


def one_sentence(verb: Callable[P, None]) -> Callable[P, None]:
    """Turn what can go wrong in a verb into one sentence on stderr and an exit code."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except CoterieError as error:
            stop(str(error), error.exit_code)
        except KeyboardInterrupt as interrupted:
            stop(str(interrupted) or "Interrupted. Nothing was left behind.", INTERRUPTED)
        except BrokenPipeError:
            _forget_stdout()
            stop("The output was closed before the text ended; the rest was not generated.", PIPE_CLOSED)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            stop(
                "The machine had no memory left. Give a smaller --memory, a shorter prompt or fewer new tokens.",
                OUT_OF_MEMORY,
            )

    return wrapped


def stop(sentence: str, code: int) -> NoReturn:
    """Print ``sentence`` to stderr and end the verb with ``code``."""
    typer.echo(f"Error: {sentence}" if code != INTERRUPTED else sentence, err=True)
    raise typer.Exit(code)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _forget_stdout() -> None:
    """Point stdout at nothing, or the interpreter complains once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
