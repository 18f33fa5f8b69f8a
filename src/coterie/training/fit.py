"""Learning with a router: one call for any causal transformers model, routed or dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from coterie.errors import OptionError
from coterie.training.groups import Groups, freeze, optimizer
from coterie.training.objective import Objective
from coterie.training.schedules import Schedule
from coterie.training.trainer import LOG, Options, Progress, checked_trainer, train_from

if TYPE_CHECKING:
    from coterie.training.step_loss import Beside


def fit(
    model: Any,
    data: Dataset[Any],
    options: Options,
    work: Path,
    *,
    objective: Objective | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    groups: Groups | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
    beside: Beside | None = None,
    eval_mode: bool = False,
) -> None:
    """Train ``model`` in place, with the losses of its routers. Blocks.

    Stopped and resumed it ends with the same bits, on one machine with one number of threads: draws, schedules and
    data depend on the step alone. What a run keeps lies in ``work``: whole checkpoints and ``log.jsonl``, which tells
    per logged step each loss, the experts per item and the load of every expert.

    Args:
        model: a causal transformers model. Its losses are computed here, from its logits; where it has routers of
            ours (`coterie.models.route`, `coterie.models.attach`), with theirs. The routers that transformers gives a
            model have none here: route it by ``top_k`` to balance it.
        data: ``options.steps * options.accumulate * options.batch`` items in order: input_ids and labels [N], and
            attention_mask where there is padding.
        options: how to train.
        work: the directory of checkpoints and log.
        objective: the losses; default a little balance.
        schedules: request-time options (k, p, mean_experts...) -> their course over the run.
        groups: own rates and decays; what is frozen.
        progress: called as (step, steps, loss) after every step.
        callbacks: ``TrainerCallback`` objects; a `Steering` among them sees the routing of each step.
        resume: go on from the last whole checkpoint in ``work``, where there is one.
        beside: further losses: ((step, micro-step), inputs, logits [B, N, V]) -> means over the predicted tokens by
            name; see `coterie.training.distill`.
        eval_mode: learn without dropout and without what else only training does.

    Raises:
        OptionError: something is scheduled, frozen or balanced that the model does not have; or ``beside`` where every
            batch is put through twice.
        TrainingError: the loss is not finite. The checkpoints before it are intact.
        MissingExtraError: accelerate is not installed.
    """
    from coterie.training.callbacks import Log
    from coterie.training.steering import Steering
    from coterie.training.step_loss import StepLoss

    objective = objective or Objective()
    if beside is not None and objective.consistency is not None:
        raise OptionError("Further losses and consistency of two passes cannot be had together. Leave one out.")
    groups = groups or Groups()
    freeze(model, groups.frozen)
    lesson = StepLoss(model, objective, schedules or {}, options.seed, beside=beside, eval_mode=eval_mode)
    for callback in callbacks:
        if isinstance(callback, Steering):
            callback.join(lesson)
    made = [Log(work / LOG, lesson), *callbacks]
    trainer = checked_trainer(model, data, options, work, progress, made, optimizer(model, groups, options))
    trainer.teach(lesson)
    try:
        with torch.enable_grad():
            train_from(trainer, resume=resume)
    finally:
        lesson.end()
