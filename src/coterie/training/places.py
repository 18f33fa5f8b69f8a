"""Where a training keeps what it makes: OUT appears when all is done, OUT.work holds checkpoints until then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.errors import CoterieError, OptionError
from coterie.training.trainer import LOG, last_checkpoint

RECIPE, FINISHED = "recipe.json", "finished"


def work_of(out: Path) -> Path:
    """The directory of checkpoints of a training whose model goes to ``out``."""
    return out.with_name(out.name + ".work")


def check_places(out: Path, work: Path, resume: bool) -> None:
    """Refuse to overwrite anything, or to resume nothing; clear what was stopped before its first checkpoint.

    Raises:
        OptionError: says what is in the way and what to type.
    """
    if out.exists():
        raise OptionError(f"{out} exists already. Choose another --out, or move it away.")
    stopped = last_checkpoint(work) is not None
    if resume and not stopped:
        raise OptionError(f"{work} holds no finished checkpoint to resume from. Leave --resume out to start anew.")
    if stopped and not resume:
        raise OptionError(f"{work} holds a training that was stopped. Add --resume to go on, or delete it.")
    if work.exists() and not stopped:
        _clear(work)


@contextmanager
def learning_in(work: Path) -> Iterator[None]:
    """Where what is done fails before the first whole checkpoint, ``work`` goes too: there is nothing to go on from."""
    try:
        yield
    except CoterieError:
        if last_checkpoint(work) is None:
            shutil.rmtree(work, ignore_errors=True)
        raise


@contextmanager
def finishing(work: Path, out: Path) -> Iterator[Path]:
    """A directory to fill, which is made by whoever fills it; then it becomes ``out``, and ``work`` goes."""
    scratch = work / FINISHED
    shutil.rmtree(scratch, ignore_errors=True)
    yield scratch
    for file in scratch.rglob("*.safetensors"):
        file.chmod(0o644)  # they are written for their owner alone
    scratch.rename(out)
    shutil.rmtree(work)


def _clear(work: Path) -> None:
    """Remove what a run left that was stopped before its first checkpoint, and nothing else."""
    ours = [
        path for path in work.iterdir() if path.name in (LOG, RECIPE, FINISHED) or path.name.startswith("checkpoint-")
    ]
    if foreign := sorted(set(work.iterdir()) - set(ours)):
        raise OptionError(f"{foreign[0]} is in the way: {work} is for checkpoints. Move it, or choose another --out.")
    shutil.rmtree(work)
