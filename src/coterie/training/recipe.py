"""A recipe: everything that makes a model besides its text, as a YAML file says it.

    model:     {family, layers, width, heads, experts, inner, k}, or {from: DIR}
    router:    {name, and its options}
    losses:    {balance, entropy, z, balance_norm, nulls, layers, consistency}
    data:      {text, tokenizer, length, validation}
    training:  {steps, batch, rate, warmup, ...}
    schedules: {k: {shape: linear, start: 4, end: 8}}
    groups:    {router: {rate, weight_decay}, experts: ..., freeze: [...]}
    steering:  {balance_bias, mean_experts, null_offset}
    curve:     {k: [1, 2, 4]}
    seed:      0

Only ``model`` and ``router`` are needed; whatever is left out has the default of the class it fills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coterie.errors import OptionError
from coterie.ops.balance import Source
from coterie.training.groups import Groups
from coterie.training.objective import Objective
from coterie.training.schedules import Schedule
from coterie.training.trainer import Options

PYTHON = "python"  # in place of a path of text: the standard library's sources


@dataclass(frozen=True)
class ModelWords:
    """What is trained: a checkpoint (``source``), or a model of a transformers family made on the spot.

    Attributes:
        source: a directory or hub name; "" where the model is made.
        family: a transformers model type.
        layers, width, heads, kv_heads, experts, inner, k: its sizes; ``inner`` is that of one expert.
        dense_layers, dense_inner: layers without experts, and their inner width.
        config: further fields of the family's own configuration.
    """

    source: str = ""
    family: str = "qwen3_moe"
    layers: int = 3
    width: int = 64
    heads: int = 4
    kv_heads: int = 0
    experts: int = 8
    inner: int = 64
    k: int = 2
    dense_layers: tuple[int, ...] = ()
    dense_inner: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataWords:
    """What is read.

    Attributes:
        text: files and directories; "python" is the sources of the standard library.
        tokenizer: "bytes", "model" (that of the checkpoint), the entries of one trained on the text; "" is that of the
            checkpoint where there is one, otherwise bytes.
        length: tokens of a window.
        validation: the share of the text, at its end, that is measured on and not learned from.
    """

    text: tuple[str, ...] = ()
    tokenizer: str | int = ""
    length: int = 64
    validation: float = 0.05

    def __post_init__(self) -> None:
        if self.length < 2 or not 0 < self.validation < 1:
            raise OptionError(
                f"data: length must be at least 2 and validation between 0 and 1, not {self.length} and "
                f"{self.validation}."
            )


@dataclass(frozen=True)
class SteeringWords:
    """What moves routers besides gradients; None leaves it out.

    Attributes:
        balance_bias: the rate of loss-free balancing's correction (arXiv 2408.15664).
        mean_experts: experts per token that a controller holds.
        null_offset: the step by which nulls that were pinned come back, a factor below 1.
    """

    balance_bias: float | None = None
    mean_experts: float | None = None
    null_offset: float | None = None


@dataclass(frozen=True)
class Recipe:
    """See the module's text.

    Attributes:
        name: of the file, for messages and the card.
        router, options: a preset and its options.
        borrowed: (whose, value) of a balance coefficient in another form, converted once the model is known.
        dropout: the share of outputs of attention and feed-forward blocks that is dropped.
        curve: option -> its values: where the finished model is measured.
        words: as they were read, for the card.
    """

    name: str
    model: ModelWords
    router: str
    router_options: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    data: DataWords = field(default_factory=DataWords)
    options: Options = field(default_factory=lambda: Options(500))
    borrowed: tuple[Source, float] | None = None
    dropout: float = 0.0
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    steering: SteeringWords = field(default_factory=SteeringWords)
    curve: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)


def changed(
    recipe: Recipe, *, text: Sequence[Path | str] | None = None, steps: int | None = None, seed: int | None = None,
    rate: float | None = None, batch: int | None = None, length: int | None = None, source: str | None = None,
) -> Recipe:  # fmt: skip
    """The recipe with some things otherwise, its words included; None leaves a thing as it is.

    Raises:
        OptionError: a value is not allowed.
    """
    options = {"steps": steps, "seed": seed, "rate": rate, "batch": batch}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    data: dict[str, Any] = {} if text is None else {"text": tuple(map(str, text))}
    if length is not None:
        data["length"] = length
    words = {
        **recipe.words,
        "training": {**(recipe.words.get("training") or {}), **{n: v for n, v in given.items() if n != "seed"}},
        "data": {**(recipe.words.get("data") or {}), **{n: list(v) if n == "text" else v for n, v in data.items()}},
        **({} if seed is None else {"seed": seed}),
    }
    model = recipe.model if source is None else replace(recipe.model, source=source)
    return replace(
        recipe, words=words, model=model, options=replace(recipe.options, **given), data=replace(recipe.data, **data)
    )


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with Coterie."""
    directory = Path(__file__).parents[1] / "data" / "recipes"
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
