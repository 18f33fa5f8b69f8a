"""What Trainer is told to do besides: stop at a loss that is no number, log, mark finished checkpoints, measure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from coterie.models.compat import quiet
from coterie.training.trainer import COMPLETE, Progress, check_finite


class CheckedTrainer(Trainer):
    """Looks at every loss before the weights follow it, then calls ``progress``; resumes mixtures. Final."""

    progress: Progress | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step + 1
        value = check_finite(loss, step)
        if self.progress is not None:
            self.progress(step, self.state.max_steps, value)
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights through ``from_pretrained``.

        Checkpoints hold each expert by itself, the model holds them stacked; Trainer's own loading does not know
        the conversion and would leave the experts as they were, with a warning.
        """
        model = model or self.model
        with quiet():
            saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


class Log(TrainerCallback):
    """Appends every logged record to a file as one JSON line. Final."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        names = ("loss", "grad_norm", "learning_rate")
        self.write(state.global_step, {name: logs[name] for name in names if logs and name in logs})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = (args.lr_scheduler_kwargs or {}).get("num_decay_steps")
        self.write(state.global_step, {"planned_steps": state.max_steps, "planned_decay_steps": decay})

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a line now; without values nothing."""
        if not values:
            return
        record = {"step": step, **values, "seconds": round(time.monotonic() - self._begin, 1)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Complete(TrainerCallback):
    """Marks a checkpoint once everything of it is on disk. Final."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class Measure(TrainerCallback):
    """Calls ``measure(model)`` every so many steps and at the end, and logs the numbers it returns. Final."""

    def __init__(self, measure: Callable[[Any], Mapping[str, float]], every: int, log: Log) -> None:
        self._measure, self._every, self._log = measure, every, log

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._log.write(state.global_step, self._measure(model))
