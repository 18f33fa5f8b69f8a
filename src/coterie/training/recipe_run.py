"""Making the model of a recipe: read, route, calibrate, learn, measure, save."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.models.attach import RouterBridge, session_of
from coterie.models.calibrating import calibrate
from coterie.models.checkpoint import open_checkpoint
from coterie.models.compat import quiet
from coterie.models.find import find_sites
from coterie.models.routed import RouterSpec, route, set_curves
from coterie.ops.balance import convert_coefficient
from coterie.training.curve import Worth, measure_curve, worth
from coterie.training.fit import fit
from coterie.training.model_for import model_for
from coterie.training.objective import Objective
from coterie.training.places import RECIPE, check_places, finishing, learning_in, work_of
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
    dtype = open_checkpoint(recipe.model.source).compute_dtype if recipe.model.source else None
    _check_same(recipe, work)
    say("Reading text")
    reading = read_for(recipe)
    say("Making the model")
    torch.manual_seed(recipe.options.seed)
    model = model_for(recipe.model, reading.tokenizer, recipe.data.length)
    say("Measuring")
    original = _original(model, recipe, reading)
    start = _give_router(model, recipe, reading)
    _check_curve(model, recipe, reading)
    _learn(model, recipe, reading, work, resume, progress)
    if dtype is not None:
        _cast(model, dtype)
    if thresholds(model):
        say("Calibrating")
        calibrate(model, _windows(recipe, reading), recipe.steering.mean_experts)
    curves = _curves(model, recipe, reading, say)
    say("Measuring")
    outcome = Outcome(recipe, model, start, worth(model, reading.unseen), curves, reading.facts(), work, original)
    _save(outcome, reading.tokenizer, work, out)
    return outcome


def _check_same(recipe: Recipe, work: Path) -> None:
    """Refuse to go on with another recipe than that beside the checkpoints."""
    kept = work / RECIPE
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != _without_steps(recipe.words):
        raise OptionError(
            f"{work} holds a training by another recipe. Only the number of steps may change on the way: give the "
            "recipe it was begun with, or another --out."
        )


def _without_steps(words: Mapping[str, Any]) -> Any:
    training = {name: value for name, value in (words.get("training") or {}).items() if name != "steps"}
    return json.loads(json.dumps({**words, "training": training}, default=str))


def _original(model: Any, recipe: Recipe, reading: Reading) -> Worth | None:
    """What a checkpoint is worth as it came; None of a model that was made."""
    if not recipe.model.source:
        return None
    found = worth(model, reading.unseen)
    return found if session_of(model) is not None else replace(found, mean_experts=find_sites(model)[0].top_k)


def _give_router(model: Any, recipe: Recipe, reading: Reading) -> Worth:
    """Route the model in place; what it is worth before it learns."""
    route(model, RouterSpec(recipe.router, recipe.router_options), keep_gate=bool(recipe.model.source))
    target = recipe.steering.mean_experts
    if recipe.model.source and target is not None and thresholds(model):
        calibrate(model, _windows(recipe, reading), target)
    return worth(model, reading.unseen)


def _windows(recipe: Recipe, reading: Reading) -> Tensor:
    """[B, N] ids to calibrate on: some thousand tokens of what is learned."""
    length = recipe.data.length
    count = min(_CALIBRATION, len(reading.train)) // length
    return reading.train[: count * length].view(count, length)


def _check_curve(model: Any, recipe: Recipe, reading: Reading) -> None:
    """Ask for every value of the curve once, on one window, before a long run finds out that it is not allowed."""
    window = replace(reading.unseen, ids=reading.unseen.ids[: recipe.data.length])
    for option, values in recipe.curve.items():
        if option == "mean_experts" and not thresholds(model):
            raise OptionError("curve: mean_experts needs a router with a threshold, top_p or min_p. Leave it out.")
        for value in values if option != "mean_experts" else ():  # understood once the trained model is calibrated
            worth(model, window, {option: value})


def _learn(
    model: Any, recipe: Recipe, reading: Reading, work: Path, resume: bool, progress: Progress | None
) -> None:  # fmt: skip
    options, steered = recipe.options, _steering(recipe)
    count = options.steps * options.batch * options.accumulate
    work.mkdir(parents=True, exist_ok=True)
    (work / RECIPE).write_text(json.dumps(_without_steps(recipe.words)), encoding="utf-8")
    windows = Windows({"text": reading.train}, recipe.data.length, count, seed=options.seed)
    undo = residual_dropout(model, recipe.dropout) if recipe.dropout else None
    try:
        with learning_in(work):
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
    with finishing(work, out) as scratch:
        with quiet():
            outcome.model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        write_summary(outcome, scratch)
