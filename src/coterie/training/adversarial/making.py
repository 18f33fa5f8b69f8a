"""Making the model of a recipe: read, build, learn under attack, keep the best, say what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import OptionError
from coterie.models.vision import VisionModel, build_vision, save_vision
from coterie.training.adversarial.fit import RobustRun, Say, fit_robust
from coterie.training.adversarial.judge import Judged
from coterie.training.adversarial.keeping import load_best
from coterie.training.adversarial.options import check_options
from coterie.training.adversarial.recipe import RobustRecipe
from coterie.training.images import ImageData, check_splits, read_images
from coterie.training.places import RECIPE, check_places, finishing, learning_in, work_of
from coterie.training.trainer import Progress

LAST = "last"  # within the finished directory: the last weights, where the best are others


@dataclass(frozen=True, eq=False)
class RobustOutcome:
    """What a robust training ended with.

    Attributes:
        recipe, model: what was done, and what came of it: the best weights, the last where nothing was judged.
        run: see `RobustRun`.
        images, held: how many were learned from, and judged by.
        classes: their names.
        source: where the images are from.
        work: where the log is, while it is.
    """

    recipe: RobustRecipe
    model: VisionModel
    run: RobustRun
    images: int
    held: int
    classes: tuple[str, ...]
    source: str
    work: Path

    @property
    def judged(self) -> Judged | None:
        """Of the model that is kept."""
        return self.run.last if self.run.best is None else self.run.best.judged


def train_robust(
    recipe: RobustRecipe,
    images: str | Path | ImageData,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> RobustOutcome:
    """Train as a recipe says and save in ``out``: the best weights, the last in ``out/last``, report and card. Blocks.

    Checkpoints and the log lie in ``out`` + ``.work`` meanwhile; ``out`` appears when all is done. On one machine, with
    one number of threads, the same recipe and images give the same weights, stopped and resumed or not.

    Args:
        recipe: from `read_robust_recipe`.
        images: what `coterie.training.images.read_images` reads, or images. Those that are reported on are not
            among them.
        out: a directory that does not exist yet.
        resume: go on from the last whole checkpoint; rates may differ from before, nothing else.
        progress: called as (step, steps, loss) after every step.
        say: called with what is being done besides.

    Raises:
        OptionError: recipe and images do not fit, ``out`` exists, or there is nothing to resume.
        TrainingError: a loss, gradient or weight is not finite. The checkpoints before it are intact.
        MissingExtraError: accelerate, Pillow or scikit-learn is needed and not installed.
    """
    say, work = say or (lambda text: None), work_of(out)
    check_places(out, work, resume)
    say("Reading images")
    data = images if isinstance(images, ImageData) else read_images(images, size=recipe.data.size or None)
    check_splits(data)
    if len(data.classes) < 2:
        raise OptionError(f"{data.source} has one class. Give two or more, to tell them apart.")
    model = build_vision(recipe.spec(data), recipe.options.seed, recipe.init)
    check_options(model, recipe.options)
    _check_same(recipe, data, work)
    share = recipe.data.validation
    learn, held = data.split(share, recipe.options.seed) if share else (data, None)
    with learning_in(work):
        run = fit_robust(model, learn, recipe.options, work, validation=held, resume=resume, progress=progress, say=say)
    outcome = RobustOutcome(
        recipe, model, run, len(learn), 0 if held is None else len(held), data.classes, data.source, work
    )
    say("Writing")
    _save(outcome, out)
    return outcome


def _check_same(recipe: RobustRecipe, data: ImageData, work: Path) -> None:
    """Refuse to go on with another recipe or other images than those of the checkpoints; note which they are."""
    now = json.loads(json.dumps({"recipe": _plain(recipe), "images": _facts(data)}))
    kept, found = work / RECIPE, None
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
    if found is not None and found != now:
        what = "by another recipe" if found.get("recipe") != now["recipe"] else "with other images"
        raise OptionError(
            f"{work} holds a training {what}. Only rates may change on the way: give what it was begun "
            "with, or another --out."
        )
    work.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(now), encoding="utf-8")


def _plain(recipe: RobustRecipe) -> Mapping[str, Any]:
    """Words without rates."""
    return {
        name: {key: each for key, each in value.items() if key != "rate"} if isinstance(value, Mapping) else value
        for name, value in recipe.words.items()
    }


def _facts(data: ImageData) -> Mapping[str, Any]:
    """What tells images from others without keeping them."""
    digest = hashlib.blake2b(data.images.contiguous().numpy().tobytes(), digest_size=16)
    digest.update(data.labels.contiguous().numpy().tobytes())
    return {"count": len(data), "classes": list(data.classes), "bytes": digest.hexdigest()}


def _save(outcome: RobustOutcome, out: Path) -> None:
    from coterie.training.adversarial.summary import write_robust_summary

    model, best = outcome.model, outcome.run.best
    with finishing(outcome.work, out) as scratch:
        if best is not None and best.step != outcome.run.steps:
            save_vision(model, scratch / LAST)
            load_best(model, outcome.work)
        save_vision(model, scratch)
        write_robust_summary(outcome, scratch)
