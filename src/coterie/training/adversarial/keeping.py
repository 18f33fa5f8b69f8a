"""What a robust training keeps on disk: whole checkpoints, the best weights, a log."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coterie.errors import OptionError, TrainingError
from coterie.models.vision.saving import not_finite
from coterie.training.adversarial.judge import Judged
from coterie.training.adversarial.options import RobustOptions, differing
from coterie.training.trainer import COMPLETE, LOG, last_checkpoint

WEIGHTS, STATE, OPTIONS, BEST, SCORE = "model.safetensors", "state.pt", "options.json", "checkpoint-best", "score.json"


@dataclass(frozen=True)
class Best:
    """The best checkpoint of a run: after which step, and what it was judged to be."""

    step: int
    judged: Judged


class Keeper:
    """Writes under temporary names and moves what is whole into place, so that an interruption loses nothing.

    Args:
        work: the directory of checkpoints, made where it is not there.
        options: written beside every checkpoint, compared on resuming.
    """

    def __init__(self, work: Path, options: RobustOptions) -> None:
        self._work, self._options = work, options
        self._begin = time.monotonic()
        work.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, model: nn.Module, state: Mapping[str, Any]) -> None:
        """A checkpoint after ``step`` updates; the one before is dropped once this is whole.

        Raises:
            TrainingError: a weight is not finite; nothing is written.
        """
        part = self._part(f"checkpoint-{step}")
        _save_weights(model, part, step)
        torch.save(dict(state), part / STATE)
        (part / OPTIONS).write_text(json.dumps(self._options.as_record()), encoding="utf-8")
        (part / COMPLETE).touch()
        self._into_place(part, f"checkpoint-{step}")
        for other in self._work.glob("checkpoint-*"):
            if other.name not in (f"checkpoint-{step}", BEST):
                shutil.rmtree(other)

    def save_best(self, step: int, model: nn.Module, judged: Judged) -> None:
        """Weights that were judged better than all before."""
        part = self._part(BEST)
        _save_weights(model, part, step)
        (part / SCORE).write_text(json.dumps({"step": step, **asdict(judged)}), encoding="utf-8")
        self._into_place(part, BEST)

    def resume(self, model: nn.Module) -> tuple[int, Mapping[str, Any]] | None:
        """(step, state) of the last whole checkpoint, its weights loaded into ``model``; None where there is none.

        Raises:
            OptionError: the checkpoint is of other options; rates may differ.
            TrainingError: the checkpoint cannot be read.
        """
        last = last_checkpoint(self._work)
        if last is None:
            return None
        self._check_same(last)
        try:
            load_weights(model, last)
            state = torch.load(last / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its reader meets
            raise TrainingError(f"{last} cannot be read: {error}. Delete it, and start anew.") from error
        return int(last.name.split("-")[1]), state

    def best(self) -> Best | None:
        """What lies in the directory of the best weights."""
        return best_of(self._work)

    def clear(self) -> None:
        """Forget what a run left that was stopped before its first checkpoint: its log, and what it judged best."""
        (self._work / LOG).unlink(missing_ok=True)
        for place in self._work.glob("checkpoint-*"):
            shutil.rmtree(place)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to log.jsonl: the step, values, seconds since this start."""
        record = {"step": step, **values, "seconds": round(time.monotonic() - self._begin, 2)}
        with (self._work / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _part(self, name: str) -> Path:
        part = self._work / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        return part

    def _into_place(self, part: Path, name: str) -> None:
        target, old = self._work / name, self._work / f"{name}.old"
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old, ignore_errors=True)

    def _check_same(self, last: Path) -> None:
        kept = json.loads((last / OPTIONS).read_text(encoding="utf-8"))
        now = json.loads(json.dumps(self._options.as_record()))
        if names := differing(kept, now):
            raise OptionError(
                f"{last} is of a training with other options ({', '.join(names)}). Resume with those it was begun "
                "with, rates excepted, or begin anew elsewhere."
            )


def best_of(work: Path) -> Best | None:
    """What `Keeper.save_best` wrote into ``work``; None where nothing was judged."""
    place = _best_place(work)
    if place is None:
        return None
    score = json.loads((place / SCORE).read_text(encoding="utf-8"))
    step, load = score.pop("step"), tuple(score.pop("load"))
    return Best(step, Judged(load=load, **score))


def load_best(model: nn.Module, work: Path) -> Best:
    """Put the best weights of a run into ``model``. Mutates.

    Raises:
        TrainingError: the run kept none: it had no images to judge by.
    """
    best, place = best_of(work), _best_place(work)
    if best is None or place is None:
        raise TrainingError(f"{work} has no best checkpoint. Give images to judge by (validation), and train again.")
    load_weights(model, place)
    return best


def load_weights(model: nn.Module, place: Path) -> None:
    """The weights and statistics of a checkpoint into ``model``. Mutates."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(place / WEIGHTS))


def _best_place(work: Path) -> Path | None:
    """Between two moves of a replacement the old one stands in."""
    return next((place for place in (work / BEST, work / f"{BEST}.old") if (place / SCORE).is_file()), None)


def _save_weights(model: nn.Module, place: Path, step: int) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if broken := not_finite(state.items()):
        raise TrainingError(f"After step {step} {broken[0]} holds numbers that are not finite.")
    save_file(state, place / WEIGHTS)
