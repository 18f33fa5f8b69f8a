"""A student learns to predict what its teacher predicts: recovery after experts were merged, pruned or factored.

MC-SMoE (arXiv 2310.01334, section 3.1), which distils a merged model from the full one:

    loss = CE(student) + w KL(softmax(z_T / tau) || softmax(z_S / tau))        in nats per predicted token

w = 0.2, tau = 2; no factor tau^2, as published. Means are over predicted tokens, so that padding counts for nothing
and a sequence's length changes nothing; the authors' code divides by sequences alone. Routers are frozen, their own
losses are off, and the student is in eval mode: it learns as it will be used, without dropout or jitter.

`LiveTeacher` asks the teacher at every step; `store_teacher` asks it once and keeps its likeliest tokens in a file, so
that a teacher that does not fit beside its student can be heard before (`coterie.load` serves one larger than memory).
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from coterie.errors import OptionError
from coterie.models.find import find_sites
from coterie.training.fit import fit
from coterie.training.groups import Groups
from coterie.training.objective import Objective
from coterie.training.trainer import Options, Progress

__all__ = ["LiveTeacher", "Teacher", "distill", "distillation_loss"]

KD_WEIGHT, TEMPERATURE = 0.2, 2.0  # of the paper's table A11


def distillation_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """Mean over valid rows of KL(softmax(teacher / tau) || softmax(student / tau)), in float32 or wider.

    Gradient flows to ``student``; 0, and so is the gradient, where both say the same or no row is valid.

    Args:
        student, teacher: [..., V] logits.
        mask: [...] bool, False where a row does not count.
        temperature: tau.

    Raises:
        OptionError: different vocabularies.
    """
    if student.shape != teacher.shape:
        raise OptionError(
            f"The student predicts {student.shape[-1]} tokens and the teacher {teacher.shape[-1]}: distillation needs "
            "one vocabulary. Take the model that the student was made of."
        )
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    said, wanted = (torch.log_softmax(_wide(each) / temperature, -1) for each in (student, teacher.detach()))
    rows = torch.where(wanted > -math.inf, wanted.exp() * (wanted - said), 0.0)
    return rows.sum() / max(1, rows[..., 0].numel())


class Teacher(ABC):
    """Who is imitated. Says how far a student's predictions are from its own.

    Attributes:
        temperature: tau, by which logits are divided.
    """

    temperature: float

    @abstractmethod
    def divergence(self, first: int, inputs: Mapping[str, Any], logits: Tensor) -> Tensor:
        """Mean nats over predicted tokens.

        Args:
            first: number of the batch's first window in the order of the data.
            inputs: input_ids, labels [B, N] (-100 where nothing is predicted), attention_mask where there is padding.
            logits: [B, N, V] of the student.
        """

    @abstractmethod
    def check(self, windows: int) -> None:
        """Whether ``windows`` windows can be taught.

        Raises:
            OptionError: they cannot.
        """


class LiveTeacher(Teacher):
    """A causal language model that is asked at every step. Final.

    Args:
        model: of transformers, or as `coterie.load` gives it; put into eval mode. Its weights are not touched.
        temperature: tau.

    Raises:
        OptionError: a temperature of 0 or less.
    """

    def __init__(self, model: Any, temperature: float = TEMPERATURE) -> None:
        self.model, self.temperature = model.eval(), check_temperature(temperature)

    def check(self, windows: int) -> None:
        """Any number can."""

    def divergence(self, first: int, inputs: Mapping[str, Any], logits: Tensor) -> Tensor:
        wanted = teacher_logits(self.model, inputs).to(logits.device)
        valid = inputs["labels"][:, 1:].to(logits.device) != -100
        return distillation_loss(logits[:, :-1], wanted[:, :-1], valid, self.temperature)


def distill(
    student: Any,
    teacher: Any,
    data: Dataset[Any],
    options: Options,
    work: Path,
    *,
    kd_weight: float = KD_WEIGHT,
    temperature: float = TEMPERATURE,
    frozen: Sequence[str] = (),
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
) -> None:
    """Train ``student`` in place to predict the text and what ``teacher`` predicts of it; its routers stay. Blocks.

    Stopped and resumed it ends with the same bits. ``log.jsonl`` in ``work`` tells both losses; "distillation" there
    is weighted.

    Args:
        student: a causal transformers model, routed or dense, such as one with merged or factored experts.
        teacher: another one of the same vocabulary, or a `Teacher`, such as `StoredTeacher`.
        data, options, work, progress, callbacks, resume: as of `coterie.training.fit`; a
            `coterie.training.Sparsify` among the callbacks prunes factors on the way.
        kd_weight: w; 0 learns from the text alone.
        temperature: tau, where ``teacher`` is a model.
        frozen: what else takes no part in learning, see `coterie.training.Groups`.

    Raises:
        OptionError: a student that is its own teacher, other vocabularies, or numbers out of range.
        TrainingError, MissingExtraError: as of `coterie.training.fit`.
    """
    if teacher is student:
        raise OptionError("The student and the teacher are one model, which would learn nothing. Load it twice.")
    if not (kd_weight >= 0 and math.isfinite(kd_weight)):
        raise OptionError(f"kd_weight={kd_weight} is not allowed: write a number from 0 on.")
    tutor = teacher if isinstance(teacher, Teacher) else LiveTeacher(teacher, temperature)
    tutor.check(options.steps * options.accumulate * options.batch)
    with _learning_kept(student):
        fit(
            student, data, options, work, objective=Objective(balance=0.0),
            groups=Groups(frozen=(*router_patterns(student), *frozen)), progress=progress, callbacks=callbacks,
            resume=resume, beside=_Lesson(tutor, kd_weight, options), eval_mode=True,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What the teacher adds to a step's loss."""

    teacher: Teacher
    weight: float
    options: Options

    def __call__(self, place: tuple[int, int], inputs: Mapping[str, Any], logits: Tensor) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        step, micro_step = place
        first = (step * self.options.accumulate + micro_step) * self.options.batch
        return {"distillation": self.weight * self.teacher.divergence(first, inputs, logits)}


def router_patterns(model: nn.Module) -> tuple[str, ...]:
    """Patterns of the names of every parameter of a model's routers, whoever made them."""
    gates = [site.gate_name for site in find_sites(model) if any(True for _ in site.gate.parameters())]
    return tuple(f"{name}.*" for name in gates)


@torch.no_grad()
def teacher_logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[B, N, V] of a batch, labels or not."""
    given = {name: value.to(model.device) for name, value in inputs.items() if name != "labels"}
    logits: Tensor = model(**given, use_cache=False).logits
    return logits


def check_temperature(temperature: float) -> float:
    """``temperature`` if logits can be divided by it.

    Raises:
        OptionError: they cannot.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise OptionError(f"A temperature is a number above 0, not {temperature}.")
    return temperature


def checksum(ids: Tensor) -> int:
    """Of a window's ids [N]: tells whether a file of a teacher's words is about this text."""
    return zlib.crc32(ids.detach().cpu().to(torch.int64).contiguous().numpy().tobytes())


@contextmanager
def _learning_kept(model: nn.Module) -> Iterator[None]:
    """What wanted a gradient before wants one after."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
