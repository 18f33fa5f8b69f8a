"""What was made smaller learns from what it was made of: a checkpoint taught by another, put back in its place."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.jobs.locate import locate
from coterie.jobs.running.load import load
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.compat import quiet
from coterie.models.prompts import Prompts
from coterie.training.distill import KD_WEIGHT, TEMPERATURE, LiveTeacher, distill, teacher_logits
from coterie.training.next_token import next_token_loss
from coterie.training.text import read_text, split_text
from coterie.training.tokens import token_ids
from coterie.training.trainer import Options
from coterie.training.windows import Windows

__all__ = ["Recovered", "recover"]

HELD_BACK = 0.05  # of the text, to measure on
MEASURED = 64  # windows at most

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recovered:
    """What `recover` did.

    Attributes:
        path: of the student.
        steps, tokens: made, and learned from.
        before, after, teacher: nats per token of text that was held back.
    """

    path: Path
    steps: int
    tokens: int
    before: float
    after: float
    teacher: float

    def describe(self) -> str:
        """In a sentence."""
        return (
            f"Distilled over {self.steps} steps ({self.tokens:,} tokens): perplexity on text held back "
            f"{_exp(self.before)} -> {_exp(self.after)}; the original's is {_exp(self.teacher)}."
        )

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        losses = {"before": self.before, "after": self.after, "teacher": self.teacher}
        return {"steps": self.steps, "tokens": self.tokens, "nats per token": losses}


def recover(
    student: str | Path,
    teacher: str | Path,
    texts: Sequence[str | Path],
    steps: int,
    *,
    kd_weight: float = KD_WEIGHT,
    temperature: float = TEMPERATURE,
    rate: float = 1e-4,
    batch: int = 4,
    length: int = 256,
    memory: str | int | None = None,
    seed: int = 0,
    revision: str | None = None,
    resume: bool = False,
    say: Say = lambda text: None,
) -> Recovered:
    """Train the checkpoint at ``student`` to predict what ``teacher`` predicts; routers stay. Training. Blocks.

    The student is in memory in float32 with its gradients and AdamW's moments (16 bytes a parameter), and is put back
    in its own dtypes when it is whole; until then the directory is as it was. A twentieth of the text is held back to
    measure on.

    Args:
        student: a directory that `coterie.jobs.merge`, `prune` or `compress` made, or any other that transformers or
            Coterie loads.
        teacher: what it was made of; directory or hub name.
        texts: UTF-8 files or directories of them.
        steps: updates of ``batch`` windows.
        kd_weight, temperature: as of `coterie.training.distill`.
        rate: learning rate at its peak, falling to zero.
        batch, length: windows of a step, tokens of a window; no more than the model was made for.
        memory: that the teacher runs in, through the store; None: all of it is loaded.
        seed: of the order of the windows.
        revision: of the teacher.
        resume: go on from the last checkpoint of a run that was cut off.
        say: told what is being done.

    Raises:
        OptionError: text that is too short, another vocabulary, experts stored as integers, or numbers out of range.
        CheckpointError, BudgetError, TrainingError, MissingExtraError: as of what is called.
    """
    path = Path(student).expanduser()
    options = Options(
        steps, batch, rate, warmup=max(1, steps // 10), decay=1.0, weight_decay=0.01, betas=(0.9, 0.98), seed=seed,
        save_every=max(50, steps // 4), log_every=max(1, steps // 20),
    )  # fmt: skip
    length = min(length, _checked(path).context_length or length)
    learned, measured = _windows(path, texts, options, length)
    work = path.with_name(f".{path.name}.distill")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    say("Reading the student and its teacher")
    model, dtypes = _student(path)
    tutor = _teacher(teacher, revision, memory, max(batch, 1), length)
    before, best = _loss(model, measured, batch), _loss(tutor, measured, batch)
    try:
        distill(
            model, LiveTeacher(tutor, temperature), learned, options, work, kd_weight=kd_weight, resume=resume,
            progress=lambda step, of, loss: say(f"Distilling: step {step} of {of}, loss {loss:.3f}"),
        )  # fmt: skip
    finally:
        if hasattr(tutor, "coterie"):
            tutor.coterie.close()
    _put_dtypes(model.eval(), dtypes)
    made = Recovered(path, steps, steps * batch * length, before, _loss(model, measured, batch), best)
    say("Putting the student in place")
    _replace(path, model, made, kd_weight, temperature)
    shutil.rmtree(work, ignore_errors=True)
    return made


def _checked(path: Path) -> Checkpoint:
    """The student, if it can learn."""
    checkpoint = open_checkpoint(path)
    kinds = {site.kind.name for site in checkpoint.sites if site.kind is not None}
    if wrong := kinds - {"factored"}:
        raise OptionError(
            f"The experts of {path} are stored as {', '.join(sorted(wrong))}, which cannot learn. Distil first, then "
            "make them so."
        )
    return checkpoint


def _windows(path: Path, texts: Sequence[str | Path], options: Options, length: int) -> tuple[Windows, Tensor]:
    """What is learned from, and [B, length] windows of text that was held back."""
    if not texts:
        raise OptionError("There is no text to learn from. Give files with --text FILE.")
    if length < 2:
        raise OptionError(f"A window has 2 tokens or more, not {length}.")
    prompts = Prompts.of(path, None)
    learn, measure = (token_ids(part, prompts.tokenizer) for part in split_text(read_text(texts), HELD_BACK))
    windows = Windows({"the text to distil on": learn}, length, options.steps * options.batch, seed=options.seed)
    count = min(MEASURED, len(measure) // length)
    if not count:
        raise OptionError(
            f"The text has {len(learn) + len(measure):,} tokens, of which a twentieth is held back: less than a window "
            f"of {length}. Give more text."
        )
    return windows, measure[: count * length].view(count, length)


def _student(path: Path) -> tuple[Any, dict[str, torch.dtype]]:
    """In float32, ready to learn; and what it is stored in."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    dtypes = {name: tensor.dtype for name, tensor in _floats(model)}
    return model.float().requires_grad_(True), dtypes


def _teacher(name: str | Path, revision: str | None, memory: str | int | None, batch: int, length: int) -> Any:
    path = locate(name, revision)
    if memory is not None:
        return load(path, memory, context=length, batch=batch, prefill=length, all_logits=True)
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval().requires_grad_(False)


def _loss(model: Any, windows: Tensor, batch: int) -> float:
    """Nats per token, in eval mode."""
    model.eval()
    total = 0.0
    for rows in windows.split(batch):
        total += float(next_token_loss(teacher_logits(model, {"input_ids": rows}), rows)) * len(rows)
    return total / len(windows)


def _floats(model: Any) -> list[tuple[str, Tensor]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]


def _put_dtypes(model: Any, dtypes: dict[str, torch.dtype]) -> None:
    for name, tensor in _floats(model):
        tensor.data = tensor.data.to(dtypes[name])
    model.config.dtype = next(model.parameters()).dtype


def _replace(path: Path, model: Any, made: Recovered, kd_weight: float, temperature: float) -> None:
    """The directory with the weights of ``model``: written beside, then moved into place."""
    part, old = (path.with_name(f".{path.name}.{end}") for end in ("recovered", "unrecovered"))
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        shutil.copytree(path, part, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
        with quiet():
            model.save_pretrained(part)
        _add_to_card(part / "README.md", made, kd_weight, temperature)
        open_checkpoint(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    path.rename(old)
    try:
        part.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _add_to_card(card: Path, made: Recovered, kd_weight: float, temperature: float) -> None:
    text = ""
    with suppress(OSError):
        text = card.read_text(encoding="utf-8").rstrip() + "\n\n"
    card.write_text(
        f"{text}## Distillation\n\n**training**: its weights, routers excepted, were then changed by learning from the "
        f"original: cross entropy and {kd_weight} times the divergence at temperature {temperature}. "
        f"{made.describe()}\n",
        encoding="utf-8",
    )


def _exp(nats: float) -> str:
    return f"{math.exp(min(nats, 700)):.4g}"
