"""Hugging Face's Trainer, set up for language models: what to train with, where it resumes, what it tells.

Everything of a step depends on the global step alone, so a run that is stopped and resumed ends with the same bits.
Other ways to learn hook in as callbacks (schedules read ``state.global_step``) or as a subclass's ``compute_loss``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import Dataset

from coterie.errors import MissingExtraError, OptionError, TrainingError
from coterie.models.compat import quiet

if TYPE_CHECKING:
    from transformers import Trainer

COMPLETE, LOG = "complete", "log.jsonl"

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Options:
    """How to train. Steps count updates; a batch is in windows; the rate warms up, stays, and decays to zero.

    Attributes:
        decay: the share of all steps, at the end, in which the rate falls to zero.
        save_every, log_every: steps; the last step is always saved.
    """

    steps: int
    batch: int = 8
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 0
    save_every: int = 250
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise OptionError(f"steps and batch must be at least 1, not {self.steps} and {self.batch}.")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"A seed is a whole number from 0 to 4294967295, not {self.seed}.")


def language_trainer(
    model: Any,
    data: Dataset[Any],
    options: Options,
    work: Path,
    *,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
) -> Trainer:
    """A ready Trainer. Call `train_from` on it, which resumes; nothing is written before.

    Args:
        model: a transformers model that returns a loss; in train mode.
        data: ``steps * batch`` items in the order in which they are to be seen.
        options: how to train.
        work: the directory of checkpoints and of ``log.jsonl``, one JSON object per logged step.
        progress: called as (step, steps, loss) after every step.
        callbacks: further ``TrainerCallback`` objects.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", extra="train")
    from transformers import PrinterCallback, default_data_collator

    from coterie.training.callbacks import CheckedTrainer, Complete, Log

    trainer = CheckedTrainer(
        model=model, args=_arguments(options, work), train_dataset=data, data_collator=default_data_collator,
        callbacks=[Log(work / LOG), Complete(), *callbacks],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.progress = progress
    return trainer


def train_from(trainer: Trainer, *, resume: bool) -> None:
    """Train to the end; with ``resume`` from the last complete checkpoint, where there is one. Blocks.

    Raises:
        TrainingError: the loss is not finite. The checkpoints before it are intact.
    """
    work = Path(str(trainer.args.output_dir))
    last = last_checkpoint(work) if resume else None
    with quiet():
        trainer.train(resume_from_checkpoint=str(last) if last else None)


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a save that was interrupted does not count."""
    found = [path.parent for path in work.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def read_log(work: Path) -> list[dict[str, Any]]:
    """The logged steps in order, each once: after a resume the later line stands."""
    records: dict[int, dict[str, Any]] = {}
    for record in _records(work):
        records[record["step"]] = records.get(record["step"], {}) | record
    return [records[step] for step in sorted(records)]


def _records(work: Path) -> list[dict[str, Any]]:
    """The lines of the log as they were written; one that was being written when the run was stopped is left out."""
    records = []
    for line in (work / LOG).read_text(encoding="utf-8").splitlines() if (work / LOG).exists() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def seconds_spent(work: Path) -> float:
    """Seconds of training that the log knows of, over all starts: each start counts from zero."""
    spent = last = 0.0
    for record in _records(work):
        now = record.get("seconds", last)
        spent, last = spent + (now - last if now >= last else now), now
    return spent


def check_finite(loss: Tensor, step: int) -> float:
    """The loss as a number.

    Raises:
        TrainingError: it is not finite.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"The loss became {value} at step {step}. Resume from the last checkpoint with a lower rate, or start anew "
            "with another seed; the weights saved before are intact."
        )
    return value


def _arguments(options: Options, work: Path) -> Any:
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(work), max_steps=options.steps, per_device_train_batch_size=options.batch,
        learning_rate=options.rate, lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": max(1, round(options.decay * options.steps)), "decay_type": "linear"},
        warmup_steps=min(options.warmup, options.steps // 4), weight_decay=options.weight_decay,
        adam_beta1=options.betas[0], adam_beta2=options.betas[1], max_grad_norm=options.clip, seed=options.seed,
        train_sampling_strategy="sequential", logging_steps=options.log_every, logging_nan_inf_filter=False,
        save_steps=options.save_every, save_total_limit=2, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
