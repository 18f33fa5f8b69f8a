"""A recipe of robust training: everything but the images, as a YAML file says it.

    model:     {architecture, experts, ratio, width, norm, router, router_width, placement, gate, stem, init}
    attack:    {epsilon, steps, step_size, start, aim, router_weight}      what is trained on
    judge:     {epsilon, steps, step_size, ...}                           what the best checkpoint is chosen by
    losses:    {form, beta, drift, balance, z}
    training:  {regime, epochs, batch, kind, rate, momentum, weight_decay, precision, save_every, ...}
    router:    {kind, rate, momentum, weight_decay, norm}                 how the router descends
    data:      {validation, augment, normalise, size}
    seed:      0

Classes, channels and size of the network are those of the images. Whatever is left out has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from coterie.errors import OptionError
from coterie.models.vision import VisionSpec
from coterie.models.vision.building import Init
from coterie.training.adversarial.attacks import Attack
from coterie.training.adversarial.options import Descent, RobustLosses, RobustOptions, training_attack
from coterie.training.filling import filled, parse_yaml, placed, recipe_file, typed
from coterie.training.images import ImageData
from coterie.training.words import check_keys, table_of, whole, word

SECTIONS = ("model", "attack", "judge", "losses", "training", "router", "data", "seed")
_OF_IMAGES = ("classes", "channels", "image_size", "mean", "std")
_DESCENT = tuple(each.name for each in dataclasses.fields(Descent))
_TRAINING = ("regime", "epochs", "batch", "precision", "save_every", "validate_every", "log_every")


@dataclass(frozen=True)
class ImageWords:
    """What becomes of the images.

    Attributes:
        validation: the share held back, by which the best checkpoint is chosen; 0: only the last is kept.
        augment: crop and flip.
        normalise: by the mean and deviation of each channel, inside the model.
        size: to which pictures are resized; 0 leaves them.
    """

    validation: float = 0.1
    augment: bool = True
    normalise: bool = True
    size: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1 or self.size < 0:
            raise OptionError(
                f"validation must be at least 0 and below 1, size at least 0, not {self.validation:g} and {self.size}."
            )


@dataclass(frozen=True)
class RobustRecipe:
    """See the module's text.

    Attributes:
        name: of the file, for messages and the card.
        model: fields of a `coterie.models.vision.VisionSpec`.
        init: how weights are drawn.
        options, data: how to learn, and from what.
        words: as they were read.
    """

    name: str
    model: Mapping[str, Any]
    init: Init = "fan_out"
    options: RobustOptions = field(default_factory=RobustOptions)
    data: ImageWords = field(default_factory=ImageWords)
    words: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, images: ImageData) -> VisionSpec:
        """The network for these images.

        Raises:
            OptionError: they are not square, too small for it, or of one class.
        """
        height, width = images.size
        if height != width:
            raise OptionError(
                f"{images.source}: images of {height} x {width} are not square. Resize them: write size: "
                f"{min(height, width)} under data, or --option data.size={min(height, width)}."
            )
        mean, std = _moments(images) if self.data.normalise else ((0.0,), (1.0,))
        with placed(f"{self.name}, for {images.source}"):
            return VisionSpec(
                **self.model, classes=len(images.classes), channels=images.channels, image_size=height,
                mean=mean, std=std,
            )  # fmt: skip


def shipped_robust_recipes() -> dict[str, Path]:
    """Name -> file of every recipe of robust training that ships with Coterie."""
    directory = Path(__file__).parents[2] / "data" / "recipes" / "robust"
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def read_robust_recipe(path: Path | str, changes: Sequence[tuple[str, Any]] = ()) -> RobustRecipe:
    """The recipe in a file, or one that ships with Coterie, by name.

    Args:
        path: file or name.
        changes: (section.name, value), or ("seed", value), put in the place of what is written.

    Raises:
        OptionError: no such file, no YAML, or a key or value that is not known; the text says where.
    """
    path = recipe_file(path, shipped_robust_recipes())
    return robust_recipe_of(_changed(table_of(parse_yaml(path), path.stem), changes), path.stem)


def robust_recipe_of(words: Any, name: str = "recipe") -> RobustRecipe:
    """From parsed words.

    Raises:
        OptionError: see `read_robust_recipe`.
    """
    given = table_of(words, name)
    check_keys(given, SECTIONS, name)
    model = dict(table_of(given.get("model"), f"{name}: model"))
    init = word(model.pop("init", "fan_out"), get_args(Init), f"{name}: model.init")
    fields = [each.name for each in dataclasses.fields(VisionSpec) if each.name not in _OF_IMAGES]
    check_keys(model, fields, f"{name}: model")
    data = filled(ImageWords, given.get("data"), f"{name}: data")
    typed_model = typed(VisionSpec, model, f"{name}: model")
    return RobustRecipe(name, typed_model, init, _options(given, data, name), data, given)  # type: ignore[arg-type]


def _options(given: Mapping[str, Any], data: ImageWords, name: str) -> RobustOptions:
    training = dict(table_of(given.get("training"), f"{name}: training"))
    check_keys(training, (*_TRAINING, *_DESCENT), f"{name}: training")
    descent = {key: training.pop(key) for key in _DESCENT if key in training}
    losses: RobustLosses = filled(RobustLosses, given.get("losses"), f"{name}: losses")
    values = typed(RobustOptions, training, f"{name}: training")
    router = dict(table_of(given.get("router"), f"{name}: router"))
    if "norm" in router:
        values |= typed(RobustOptions, {"router_norm": router.pop("norm")}, f"{name}: router")
    attack = _attack(given.get("attack"), values.get("regime", "joint"), losses, f"{name}: attack")
    with placed(name):
        return RobustOptions(
            **values, losses=losses, attack=attack, augment=data.augment, seed=whole(given.get("seed", 0), "seed", 0),
            experts=filled(Descent, descent, f"{name}: training"),
            router=filled(Descent, router, f"{name}: router") if router else None,
            validation=_judge(given.get("judge"), attack, f"{name}: judge"),
        )  # fmt: skip


def _attack(words: Any, regime: Any, losses: RobustLosses, where: str) -> Attack:
    """That of the regime, otherwise where the recipe says so."""
    given = typed(Attack, _known(words, where), where)
    with placed(where):
        return dataclasses.replace(training_attack(regime, losses.form), **given)


def _judge(words: Any, attack: Attack, where: str) -> Attack:
    """From a uniform start on the cross entropy, as far as training, otherwise where the recipe says so."""
    given = typed(Attack, _known(words, where), where)
    with placed(where):
        return dataclasses.replace(Attack(attack.epsilon, attack.steps, attack.step_size), **given)


def _known(words: Any, where: str) -> Mapping[str, Any]:
    given = table_of(words, where)
    check_keys(given, [each.name for each in dataclasses.fields(Attack)], where)
    return given


def _changed(words: Mapping[str, Any], changes: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    made = {name: dict(value) if isinstance(value, Mapping) else value for name, value in words.items()}
    for place, value in changes:
        section, dot, name = place.partition(".")
        if not dot:
            made[section] = value
        else:
            made[section] = {**table_of(made.get(section), section), name: value}
    return made


def _moments(images: ImageData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, in [0, 1], to four digits."""
    scale = 255.0 if not images.images.is_floating_point() else 1.0
    channels = [images.images[:, channel].double() / scale for channel in range(images.channels)]
    mean = tuple(round(float(each.mean()), 4) for each in channels)
    return mean, tuple(max(round(float(each.std()), 4), 1e-4) for each in channels)
