"""Hugging Face's Trainer, set up for language models: what to train with, where it resumes, what it tells.

Everything of a step depends on the global step alone, so a run that is stopped and resumed ends with the same bits.
`language_trainer` takes the loss that the model computes itself; `coterie.training.fit` puts its own in its place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor
from torch.utils.data import Dataset

from coterie.errors import MissingExtraError, OptionError, TrainingError
from coterie.models.compat import quiet

if TYPE_CHECKING:
    from transformers import Trainer

COMPLETE, LOG = "complete", "log.jsonl"

KEPT = (
    "Resume from the last checkpoint with a lower rate, or start anew with another seed; the weights saved before are "
    "intact."
)

Progress = Callable[[int, int, float], None]
DecayShape = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Options:
    """How to train. Steps count updates; a batch is in windows; the rate warms up, stays, and decays to zero.

    Attributes:
        batch: windows of one forward; a step sees ``accumulate`` times as many.
        rate: the learning rate at its peak.
        warmup: steps, at most a quarter of all.
        decay: the share of all steps, at the end, in which the rate falls to zero; 1 from the end of the warm-up on.
        decay_shape: along a line or half a cosine.
        save_every, log_every: steps; the last step is always saved, unless ``save_every`` is 0: then nothing is.
        accumulate: forwards whose gradients make one step.
        activation_checkpointing: compute activations again in the backward pass instead of keeping them.
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
    decay_shape: DecayShape = "linear"
    accumulate: int = 1
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise OptionError(f"steps and batch must be at least 1, not {self.steps} and {self.batch}.")
        if self.accumulate < 1 or self.log_every < 1 or self.save_every < 0 or self.warmup < 0:
            raise OptionError("accumulate and log_every must be at least 1, save_every and warmup at least 0.")
        if not self.rate > 0 or not math.isfinite(self.rate) or not 0 <= self.decay <= 1:
            raise OptionError(f"rate must be above 0 and decay from 0 to 1, not {self.rate} and {self.decay}.")
        if self.decay_shape not in get_args(DecayShape):
            raise OptionError(f"decay_shape={self.decay_shape!r} is not known. Write 'linear' or 'cosine'.")
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
    from coterie.training.callbacks import Log

    return checked_trainer(model, data, options, work, progress, [Log(work / LOG), *callbacks])


def checked_trainer(
    model: Any, data: Dataset[Any], options: Options, work: Path, progress: Progress | None, callbacks: Sequence[Any],
    optimizer: Any = None,
) -> Any:  # fmt: skip
    """As `language_trainer`, with nothing logged by itself and, where one is given, an optimizer of its own."""
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", extra="train")
    from transformers import PrinterCallback, default_data_collator

    from coterie.training.callbacks import CheckedTrainer, Complete

    trainer = CheckedTrainer(
        model=model, args=_arguments(options, work), train_dataset=data, data_collator=default_data_collator,
        callbacks=[*callbacks, Complete()], optimizers=(optimizer, None),
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
        raise TrainingError(f"The loss became {value} at step {step}. {KEPT}")
    return value


def _arguments(options: Options, work: Path) -> Any:
    import torch
    from transformers import TrainingArguments

    warmup = min(options.warmup, options.steps // 4)
    decay = min(max(1, round(options.decay * options.steps)), options.steps - warmup)
    return TrainingArguments(
        output_dir=str(work), max_steps=options.steps, per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate, activation_checkpointing=options.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if options.activation_checkpointing else None,
        learning_rate=options.rate, lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": options.decay_shape},
        warmup_steps=warmup, weight_decay=options.weight_decay,
        adam_beta1=options.betas[0], adam_beta2=options.betas[1], max_grad_norm=options.clip, seed=options.seed,
        train_sampling_strategy="sequential", logging_steps=options.log_every, logging_nan_inf_filter=False,
        save_strategy="steps" if options.save_every else "no", save_steps=options.save_every or 1,
        save_total_limit=2, report_to="none", disable_tqdm=True, dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
