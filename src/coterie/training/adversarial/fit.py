"""Robust training of an image classifier: an own loop, since two sides learn in turn on batches of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import AttackError, OptionError, RoutingError, TrainingError
from coterie.ops.draw import fold, word_of
from coterie.training.adversarial.judge import Judged, judge, route_load
from coterie.training.adversarial.keeping import Best, Keeper
from coterie.training.adversarial.learner import Learner, Side
from coterie.training.adversarial.options import RobustOptions, check_options
from coterie.training.adversarial.phases import Batch, Phases
from coterie.training.images import ImageData, check_fit, crop_and_flip, shuffled
from coterie.training.trainer import Progress, last_checkpoint

Say = Callable[[str], None]
_FAULTS = (TrainingError, AttackError, RoutingError)  # what a model that diverged ends a step with


@dataclass(frozen=True)
class RobustRun:
    """What a robust training ended with.

    Attributes:
        steps: updates, of each side.
        first_load: images on each route before learning, empty of a dense model.
        last: what the last weights were judged to be; None without images to judge by.
        best: the same of the best weights, which `load_best` reads.
    """

    steps: int
    first_load: tuple[int, ...]
    last: Judged | None
    best: Best | None


def fit_robust(
    model: Any,
    data: ImageData,
    options: RobustOptions,
    work: Path,
    *,
    validation: ImageData | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    resume: bool = False,
) -> RobustRun:
    """Train ``model`` in place, under attack. Blocks. Afterwards it has the last weights, in eval mode.

    Every draw follows from the seed and the step, so that a run which is stopped and resumed ends with the same bits,
    on one machine with one number of threads (a GPU may add in another order). torch's generator is left as it was.
    In ``work`` lie the last whole checkpoint, the best one, and ``log.jsonl``: per logged step the terms of each loss,
    rates, the load of the routes, the share of routes that an attack changed; the load also before the first step.

    Args:
        model: a `coterie.models.vision.VisionModel`.
        data: what is learned from.
        options: how.
        work: the directory of checkpoints and log.
        validation: images that are not learned from: the best checkpoint is the one most robust on them. Never give
            those that are reported on.
        progress: called as (step, steps, loss) after every step.
        say: called with what is being done besides.
        resume: go on from the last whole checkpoint in ``work``, where there is one.

    Raises:
        OptionError: images or options do not fit the model, a checkpoint is of other options, or is there and not to
            be resumed.
        TrainingError: a loss, gradient or weight is not finite, or an attack stands still; checkpoints are intact.
        MissingExtraError: accelerate is not installed.
    """
    check_options(model, options)
    if not resume and last_checkpoint(work) is not None:
        raise OptionError(f"{work} holds a training that was stopped. Resume it, or delete the directory.")
    for part in (data, *([] if validation is None else [validation])):
        check_fit(part, classes=model.spec.classes, channels=model.spec.channels, size=model.spec.image_size)
    schedule = Course(len(data), options)
    learner = Learner(model, options, schedule.steps)
    loop = _Loop(model, data, options, Keeper(work, options), learner, schedule, validation, progress, say)
    with torch.random.fork_rng(devices=_generators(learner.device)), torch.enable_grad():
        return loop.run(resume)


class Course:
    """Which images are seen when: a function of the step alone.

    Args:
        count: images.
        options: batch, epochs, seed.
    """

    def __init__(self, count: int, options: RobustOptions) -> None:
        self._count, self._seed = count, options.seed
        self.batch = min(options.batch, count)
        self.per_epoch = count // self.batch
        self.steps = self.per_epoch * options.epochs
        self._orders: dict[Side, tuple[int, Tensor]] = {}

    def numbers(self, side: Side, step: int) -> Tensor:
        """[B] int64: the images of a step. Either side has an order of its own in every epoch."""
        epoch, place = divmod(step, self.per_epoch)
        known = self._orders.get(side)
        if known is None or known[0] != epoch:
            known = self._orders[side] = (epoch, shuffled(self._count, self._seed, side, epoch))
        return known[1][place * self.batch : (place + 1) * self.batch]


@dataclass(frozen=True, eq=False)
class _Loop:
    model: Any
    data: ImageData
    options: RobustOptions
    keeper: Keeper
    learner: Learner
    course: Course
    validation: ImageData | None
    progress: Progress | None
    say: Say | None

    def run(self, resume: bool) -> RobustRun:
        began = self.keeper.resume(self.model) if resume else None
        if began is None:
            self.keeper.clear()
        first, load = self._continued(began) if began is not None else (0, self._before())
        phases, judged = Phases(self.model.train(), self.options, self.learner), None
        for step in range(first, self.course.steps):
            record = self._stepped(phases, step)
            if self.progress is not None:
                self.progress(step + 1, self.course.steps, record["loss"])
            if (step + 1) % self.options.log_every == 0 or step + 1 == self.course.steps:
                self.keeper.log(step + 1, {**record, **self.learner.rates(step), "epoch": self._epoch(step)})
            if (step + 1) % self.course.per_epoch == 0:
                judged = self._epoch_ended(step + 1, load) or judged
        self.model.eval()
        if judged is None and self.validation is not None:  # resumed at its end
            judged = self._judged()
        return RobustRun(self.course.steps, load, judged, self.keeper.best())

    def _continued(self, began: tuple[int, Any]) -> tuple[int, tuple[int, ...]]:
        step, state = began
        self.learner.load_state(state["learner"])
        return step, tuple(state["first_load"])

    def _before(self) -> tuple[int, ...]:
        """Log where images go before anything is learned: a router may send all of them one way."""
        load = route_load(self.model, self.validation or self.data)
        if load:
            self.keeper.log(0, {"load": list(load), "epoch": 0})
            if self.say is not None and max(load) == sum(load) and len(load) > 1:
                self.say("Before learning the router sends every image to one expert.")
        return load

    def _stepped(self, phases: Phases, step: int) -> dict[str, Any]:
        torch.manual_seed(fold(self.options.seed, step))  # for networks that drop out
        sides: tuple[Side, ...] = ("experts", "router") if self.options.regime == "alternating" else ("experts",)
        try:
            return phases.step(step, {side: self._batch(side, step) for side in sides})
        except _FAULTS as error:
            raise self._stopped(step, error) from error

    def _batch(self, side: Side, step: int) -> Batch:
        images, labels = self.data.batch(self.course.numbers(side, step), self.learner.device)
        if self.options.augment:
            key = fold(fold(self.options.seed, word_of(side)), step)
            images = crop_and_flip(images, key, pad=min(4, images.shape[-1] // 4))
        return images, labels

    def _epoch_ended(self, step: int, load: tuple[int, ...]) -> Judged | None:
        """Judge, keep the best, save, as often as is asked for and at the end."""
        epoch, judged, done = step // self.course.per_epoch, None, step == self.course.steps
        try:
            if self.validation is not None and (epoch % self.options.validate_every == 0 or done):
                judged = self._judged()
                self.keeper.log(step, {f"validation_{name}": value for name, value in asdict(judged).items()})
                best = self.keeper.best()
                if best is None or judged.robust_accuracy > best.judged.robust_accuracy:
                    self.keeper.save_best(step, self.model, judged)
            if epoch % self.options.save_every == 0 or done:
                self.keeper.save(step, self.model, {"learner": self.learner.state(), "first_load": list(load)})
        except _FAULTS as error:
            raise self._stopped(step, error) from error
        return judged

    def _judged(self) -> Judged:
        assert self.validation is not None
        return judge(self.model, self.validation, self.options.judge, batch=max(256, self.options.batch))

    def _epoch(self, step: int) -> float:
        return round((step + 1) / self.course.per_epoch, 3)

    def _stopped(self, step: int, error: Exception) -> TrainingError:
        return TrainingError(
            f"At step {step + 1} of {self.course.steps}: {error} The checkpoints before it are intact: go on from the "
            "last with lower rates, or begin anew with another seed."
        )


def _generators(device: torch.device) -> list[int]:
    return [] if device.type != "cuda" else [device.index or 0]
