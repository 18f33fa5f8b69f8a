"""What Trainer is told to do besides: stop at a loss that is no number, log, mark finished checkpoints, measure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from coterie.errors import RoutingError, TrainingError
from coterie.models.compat import quiet
from coterie.training.next_token import targets
from coterie.training.trainer import COMPLETE, KEPT, Progress, check_finite

if TYPE_CHECKING:
    from coterie.training.step_loss import StepLoss


class CheckedTrainer(Trainer):
    """Looks at every loss before the weights follow it, then calls ``progress``; resumes mixtures. Final.

    Attributes:
        progress: called once a step.
        lesson: what a step costs, in place of the loss the model computes itself.
    """

    progress: Progress | None = None
    lesson: StepLoss | None = None
    _told = 0.0
    _micro_step = 0

    def teach(self, lesson: StepLoss) -> None:
        """Learn by ``lesson`` from now on."""
        self.lesson, self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = lesson, True, True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The forwards of one step, and how many tokens they predict together."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, count if self.lesson is None else sum(targets(batch) for batch in samples)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        if self.lesson is None:
            return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)
        self.lesson.begin(self.state.global_step, self._micro_step, self.state.max_steps)
        return self.lesson(model, inputs, num_items_in_batch)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        step = self.state.global_step + 1
        try:
            loss = super().training_step(*args, **kwargs)
        except RoutingError as error:
            raise TrainingError(f"At step {step} {error} {KEPT}") from error
        self._told += check_finite(loss, step)
        self._micro_step += 1
        if self.accelerator.sync_gradients:
            if self.progress is not None:
                self.progress(step, self.state.max_steps, self._told)
            self._told, self._micro_step = 0.0, 0
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
    """Appends every logged record to a file as one JSON line, with what ``lesson`` has seen since the last. Final."""

    def __init__(self, path: Path, lesson: StepLoss | None = None) -> None:
        self._path, self._lesson = path, lesson
        self._begin = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        names = ("loss", "grad_norm", "learning_rate")
        record = {name: logs[name] for name in names if logs and name in logs}
        if self._lesson is not None and record:
            # the values of the step that was just made
            record |= self._lesson.watch.take() | self._lesson.scheduled(state.global_step - 1, state.max_steps)
        self.write(state.global_step, record)

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
