"""From a YAML file to a `Recipe`. What is wrong is named with its place in the file and, if near, the right word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from coterie.errors import OptionError
from coterie.ops.balance import Source
from coterie.routers.presets import PRESETS, preset_options
from coterie.training.consistency import Consistency
from coterie.training.filling import filled, parse_yaml, placed, recipe_file, typed
from coterie.training.groups import Group, Groups
from coterie.training.objective import Objective
from coterie.training.recipe import PYTHON, DataWords, ModelWords, Recipe, SteeringWords, shipped_recipes
from coterie.training.schedules import Schedule, schedule
from coterie.training.step_loss import SCHEDULED
from coterie.training.trainer import Options
from coterie.training.words import check_keys, number, numbers, table_of, text, texts, whole, word

SECTIONS = (
    "model", "router", "losses", "data", "training", "schedules", "groups", "steering", "curve", "seed",
)  # fmt: skip
_FROM = "from"  # a checkpoint; not a name in Python


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a file, or one that ships with Coterie, by name.

    Raises:
        OptionError: no such file, no YAML, or a key or value that is not known; the text says where.
    """
    path = recipe_file(path, shipped_recipes())
    return _beside(recipe_of(parse_yaml(path), path.stem), path.parent)


def _beside(recipe: Recipe, directory: Path) -> Recipe:
    """Paths that exist beside the recipe are meant from there; others are left as they are."""

    def found(name: str) -> str:
        near = directory / name
        return str(near) if name and name != PYTHON and near.exists() else name

    data = dataclasses.replace(recipe.data, text=tuple(map(found, recipe.data.text)))
    return dataclasses.replace(
        recipe, data=data, model=dataclasses.replace(recipe.model, source=found(recipe.model.source))
    )


def recipe_of(words: Any, name: str = "recipe") -> Recipe:
    """From parsed words.

    Raises:
        OptionError: see `read_recipe`.
    """
    given = table_of(words, name)
    check_keys(given, SECTIONS, name)
    if "model" not in given or "router" not in given:
        raise OptionError(f"{name} needs 'model' and 'router'. See docs/training.md for a recipe to begin with.")
    model = _model(given["model"], f"{name}: model")
    router, options = _router(given["router"], f"{name}: router")
    training = dict(table_of(given.get("training"), f"{name}: training"))
    dropout = number(training.pop("dropout", 0), f"{name}: training.dropout")
    objective, borrowed = _objective(given.get("losses"), f"{name}: losses")
    return Recipe(
        name=name, model=model, router=router, router_options=options, dropout=dropout, words=given,
        objective=objective, borrowed=borrowed,
        data=_data(given.get("data"), f"{name}: data"),
        options=_training(training, given.get("seed", 0), name),
        schedules=_schedules(given.get("schedules"), f"{name}: schedules"),
        groups=_groups(given.get("groups"), f"{name}: groups"),
        steering=filled(SteeringWords, given.get("steering"), f"{name}: steering"),
        curve=_curve(given.get("curve"), f"{name}: curve"),
    )  # fmt: skip


def _model(words: Any, where: str) -> ModelWords:
    given = dict(table_of(words, where))
    if _FROM in given:
        check_keys(given, (_FROM,), where)
        return ModelWords(source=text(given[_FROM], f"{where}.from"))
    check_keys(given, [field.name for field in dataclasses.fields(ModelWords) if field.name != "source"], where)
    config = table_of(given.pop("config", None), f"{where}.config")
    dense = [whole(each, f"{where}.dense_layers", 0) for each in given.pop("dense_layers", ())]
    made: ModelWords = filled(ModelWords, given, where)
    for name in ("layers", "width", "heads", "experts", "inner", "k"):
        whole(getattr(made, name), f"{where}.{name}", 1)
    if made.k > made.experts:
        raise OptionError(f"{where}.k is {made.k}, and there are {made.experts} experts. Ask for 1 to {made.experts}.")
    return dataclasses.replace(made, config=dict(config), dense_layers=tuple(dense))


def _router(words: Any, where: str) -> tuple[str, dict[str, Any]]:
    given = {"name": words} if isinstance(words, str) else dict(table_of(words, where))
    if "name" not in given:
        raise OptionError(f"{where} needs a name. There are: {', '.join(PRESETS)}.")
    name = word(given.pop("name"), list(PRESETS), f"{where}.name")
    check_keys(given, preset_options(name), where)
    return name, given


def _objective(words: Any, where: str) -> tuple[Objective, tuple[Source, float] | None]:
    given, borrowed = dict(table_of(words, where)), None
    check_keys(given, [field.name for field in dataclasses.fields(Objective)], where)
    made: dict[str, Any] = {}
    if _is_foreign(given.get("balance")):
        borrowed = _foreign(given.pop("balance"), f"{where}.balance")
    for name in ("balance", "entropy", "z"):
        if name in given:
            value, place = given.pop(name), f"{where}.{name}"
            made[name] = schedule(value, place) if isinstance(value, Mapping) else number(value, place)
    if (consistency := given.pop("consistency", None)) is not None:
        alone = consistency if isinstance(consistency, Mapping) else {"alpha": consistency}
        made["consistency"] = filled(Consistency, alone, f"{where}.consistency")
    rest: Objective = filled(Objective, given, where)
    return dataclasses.replace(rest, **made), borrowed


def _is_foreign(words: Any) -> bool:
    return isinstance(words, Mapping) and "shape" not in words


def _foreign(words: Mapping[str, Any], where: str) -> tuple[Source, float]:
    """A coefficient of others: {transformers: 0.01}."""
    if len(words) != 1:
        raise OptionError(f"{where} must be a number, a schedule with 'shape', or such as {{transformers: 0.01}}.")
    [(source, value)] = words.items()
    known: Any = word(source, get_args(Source), where)
    return known, number(value, f"{where}.{source}")


def _data(words: Any, where: str) -> DataWords:
    given = dict(table_of(words, where))
    check_keys(given, [field.name for field in dataclasses.fields(DataWords)], where)
    made: dict[str, Any] = {}
    if "text" in given:
        made["text"] = texts(given.pop("text"), f"{where}.text")
    if "tokenizer" in given:
        tokenizer = given.pop("tokenizer")
        if not isinstance(tokenizer, int) or isinstance(tokenizer, bool):
            tokenizer = word(tokenizer, ("bytes", "model"), f"{where}.tokenizer (or a number of entries)")
        elif tokenizer < 258:
            raise OptionError(f"{where}.tokenizer has {tokenizer} entries; 256 bytes and two marks are the least: 258.")
        made["tokenizer"] = tokenizer
    return dataclasses.replace(filled(DataWords, given, where), **made)


def _training(given: dict[str, Any], seed: Any, name: str) -> Options:
    where = f"{name}: training"
    check_keys(given, [f.name for f in dataclasses.fields(Options) if f.name != "seed"] + ["dropout"], where)
    if "betas" in given:
        betas = numbers(given["betas"], f"{where}.betas")
        if len(betas) != 2:
            raise OptionError(f"{where}.betas must be two numbers, not {len(betas)}.")
        given["betas"] = betas
    values = typed(Options, {"steps": 500, "warmup": 0, **given}, where)
    with placed(where):
        return Options(**values, seed=whole(seed, f"{name}: seed", 0))


def _schedules(words: Any, where: str) -> dict[str, Schedule]:
    given = table_of(words, where)
    check_keys(given, SCHEDULED, where)
    return {name: schedule(value, f"{where}.{name}") for name, value in given.items()}


def _groups(words: Any, where: str) -> Groups:
    given = dict(table_of(words, where))
    check_keys(given, ("router", "experts", "embeddings", "freeze"), where)
    frozen = texts(given.pop("freeze"), f"{where}.freeze") if "freeze" in given else ()
    own = {name: filled(Group, value, f"{where}.{name}") for name, value in given.items()}
    return Groups(frozen=frozen, **own)


def _curve(words: Any, where: str) -> dict[str, tuple[float, ...]]:
    given = table_of(words, where)
    check_keys(given, SCHEDULED, where)
    values = {name: numbers(value, f"{where}.{name}") for name, value in given.items()}
    return {name: tuple(map(int, each)) if name == "k" else each for name, each in values.items()}
