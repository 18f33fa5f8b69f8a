"""Making the model of a recipe: read, route, calibrate, learn, measure, save."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coterie.errors import OptionError
from coterie.models.attach import RouterBridge
from coterie.models.calibrating import calibrate
from coterie.models.compat import quiet
from coterie.models.find import find_sites
from coterie.models.routed import RouterSpec, route, set_curves
from coterie.ops.balance import convert_coefficient
from coterie.training.curve import Worth, measure_curve, worth
from coterie.training.fit import fit
from coterie.training.model_for import model_for
from coterie.training.objective import Objective
from coterie.training.places import RECIPE, check_places, work_of
from coterie.training.reading import Reading, read_for
from coterie.training.recipe import Recipe
from coterie.training.residual import residual_dropout
from coterie.training.settings import thresholds
from coterie.training.summary import Outcome, write_summary
from coterie.training.trainer import Progress
from coterie.training.windows import Windows

Say = Callable[[str], None]
MEASURE = "bits per byte"
_CALIBRATION = 8192  # tokens


def train_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Outcome:
    """Train as a recipe says and save in ``out``: weights, tokenizer, curves, report and card. Blocks.

    Checkpoints and the log lie in ``out`` + ``.work`` meanwhile; ``out`` appears when all is done. On one machine,
    with one number of threads, the same recipe and text give the same weights, stopped and resumed or not. Sets
    torch's seed.

    Args:
        recipe: from `read_recipe`.
        out: a directory that does not exist yet.
        resume: go on from the last whole checkpoint; how many steps there are may differ from before, nothing else.
        progress: called as (step, steps, loss) after every step.
        say: called with what is being done before and after learning.

    Raises:
        OptionError: the recipe does not fit its model or text, ``out`` exists, or there is nothing to resume.
        CheckpointError, UnsupportedError: the model cannot be read, or has no experts.
        TrainingError: the loss is not finite. The checkpoints before it are intact.
        MissingExtraError: accelerate is not installed.
    """
    say, work = say or (lambda text: None), work_of(out)
    check_places(out, work, resume)
    _check_same(recipe, work)
    say("Reading text")
    reading = read_for(recipe)
    say("Making the model")
    torch.manual_seed(recipe.options.seed)
    model = model_for(recipe.model, reading.tokenizer, recipe.data.length)
    dtype = model.config.dtype if recipe.model.source else None
    say("Measuring")
    start = _give_router(model, recipe, reading)
    _learn(model, recipe, reading, work, resume, progress)
    if dtype is not None:
        _cast(model, dtype)
    curves = _curves(model, recipe, reading, say)
    outcome = Outcome(recipe, model, start, worth(model, reading.unseen), curves, reading.facts(), work)
    _save(outcome, reading.tokenizer, work, out)
    return outcome


def _check_same(recipe: Recipe, work: Path) -> None:
    """Keep the recipe beside the checkpoints, and refuse to go on with another."""
    kept, words = work / RECIPE, _without_steps(recipe.words)
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != words:
        raise OptionError(
            f"{work} holds a training by another recipe. Only the number of steps may change on the way: give the "
            "recipe it was begun with, or another --out."
        )
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(words), encoding="utf-8")


def _without_steps(words: Mapping[str, Any]) -> Any:
    training = {name: value for name, value in (words.get("training") or {}).items() if name != "steps"}
    return json.loads(json.dumps({**words, "training": training}, default=str))


def _give_router(model: Any, recipe: Recipe, reading: Reading) -> Worth:
    """Route the model in place; what it is worth before it learns."""
    route(model, RouterSpec(recipe.router, recipe.router_options), keep_gate=bool(recipe.model.source))
    target = recipe.steering.mean_experts
    if recipe.model.source and target is not None and thresholds(model):
        length = recipe.data.length
        windows = min(_CALIBRATION, len(reading.train)) // length
        calibrate(model, reading.train[: windows * length].view(-1, length), target)
    return worth(model, reading.unseen)


def _learn(
    model: Any, recipe: Recipe, reading: Reading, work: Path, resume: bool, progress: Progress | None
) -> None:  # fmt: skip
    options, steered = recipe.options, _steering(recipe)
    count = options.steps * options.batch * options.accumulate
    windows = Windows({"text": reading.train}, recipe.data.length, count, seed=options.seed)
    undo = residual_dropout(model, recipe.dropout) if recipe.dropout else None
    try:
        fit(
            model, windows, options, work, objective=_objective(model, recipe), schedules=recipe.schedules,
            groups=recipe.groups, progress=progress, callbacks=steered, resume=resume,
        )  # fmt: skip
    finally:
        if undo is not None:
            undo()


def _objective(model: Any, recipe: Recipe) -> Objective:
    """The recipe's, with a coefficient of others converted now that k and the number of layers are known."""
    if recipe.borrowed is None:
        return recipe.objective
    sites, (source, value) = find_sites(model), recipe.borrowed
    k = recipe.router_options.get("k", sites[0].top_k)
    balance = convert_coefficient(value, source, k=k, num_layers=len(sites), layers=recipe.objective.layers)
    return replace(recipe.objective, balance=balance)


def _steering(recipe: Recipe) -> list[Any]:
    from coterie.training.steering import BalanceBias, MeanExperts, NullOffset

    words = recipe.steering
    made = ((BalanceBias, words.balance_bias), (MeanExperts, words.mean_experts), (NullOffset, words.null_offset))
    return [kind(value) for kind, value in made if value is not None]


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Everything but the routers back to the dtype the checkpoint came in. Mutates."""
    routers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, RouterBridge))
    for name, parameter in model.named_parameters():
        if not name.startswith(routers):
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _curves(model: Any, recipe: Recipe, reading: Reading, say: Say) -> dict[str, list[tuple[float, Worth]]]:
    """Measure the finished model where the recipe asks, and keep the curves with it."""
    curves = {
        option: measure_curve(model, reading.unseen, option, values, say) for option, values in recipe.curve.items()
    }
    if curves:
        points = {name: [[at, round(each.bits_per_byte, 4)] for at, each in curve] for name, curve in curves.items()}
        set_curves(model, {**points, "measure": MEASURE})
    return curves


def _save(outcome: Outcome, tokenizer: Any, work: Path, out: Path) -> None:
    scratch = work / "finished"
    shutil.rmtree(scratch, ignore_errors=True)
    with quiet():
        outcome.model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    for file in scratch.glob("*.safetensors"):
        file.chmod(0o644)  # they are written for their owner alone
    write_summary(outcome, scratch)
    scratch.rename(out)
    shutil.rmtree(work)
