"""What a convolutional network is, dense or of experts: the fields of its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from coterie.errors import OptionError
from coterie.registry import did_you_mean

Architecture = Literal["resnet18", "wrn28_10", "vgg16", "densenet40", "small"]
ImageRouter = Literal["resnet20", "resnet14", "resnet8", "small"]
Placement = Literal["image", "layer"]
Gate = Literal["softmax", "selected", "prob"]
Norm = Literal["per_expert", "shared"]
Stem = Literal["auto", "cifar", "imagenet"]

_WORDS: Mapping[str, tuple[str, ...]] = {
    "architecture": get_args(Architecture), "router": get_args(ImageRouter), "placement": get_args(Placement),
    "gate": get_args(Gate), "norm": get_args(Norm), "stem": get_args(Stem),
}  # fmt: skip
_CIFAR_LIMIT = 64  # pixels; images larger than this go through the ImageNet stem


@dataclass(frozen=True)
class VisionSpec:
    """One convolutional network in numbers and words; equal specs make networks of equal shape.

    Attributes:
        architecture: "resnet18", "wrn28_10", "vgg16" (with batch norm), "densenet40" (growth 12, three blocks of 6
            bottleneck layers) or "small" (three 3x3 convolutions behind a stem of 16 channels).
        classes: numbers it tells apart.
        channels: of the images.
        image_size: pixels of their height and width.
        experts: E of every routed convolution; 0 makes the plain, dense network.
        ratio: r in (0, 1], channels of one expert over those of the dense network. With ``experts=0`` the whole
            network is that much narrower, stem included: the small dense network that experts compete with.
        width: factor on all channels of network and head, for experiments smaller or larger than the published sizes.
        norm: batch norms of routed convolutions, one for each expert or one for all.
        router: who looks at the image, where ``placement`` is "image".
        router_width: channels of the first stage of a residual router; "small" has one size.
        router_size: pixels that the images are averaged down to for the router; None: as they are up to 64, a quarter
            of that beyond, where a router of small pictures would cost more than the network.
        router_bound: logits of routers are kept within plus and minus this, smoothly; 0 is no bound.
        placement: "image": one decision for the whole network; "layer": one per routed step, from the pooled input.
        gate: where the router's gradient comes from: "softmax" (straight-through, all logits), "selected"
            (straight-through, the chosen logit alone) or "prob" (outputs are scaled by the chosen probability).
        stem: "cifar" (3x3, keeps the size), "imagenet" (7x7 and a pool, a quarter of it); "auto": by the image size.
            VGG and "small" have one form.
        mean, std: per channel or one for all; images in [0, 1] are normalised inside the model.

    Raises:
        OptionError: a value that is not allowed; says which are.
    """

    architecture: Architecture = "resnet18"
    classes: int = 10
    channels: int = 3
    image_size: int = 32
    experts: int = 0
    ratio: float = 1.0
    width: float = 1.0
    norm: Norm = "per_expert"
    router: ImageRouter = "resnet20"
    router_width: int = 16
    router_size: int | None = None
    router_bound: float = 0.0
    placement: Placement = "image"
    gate: Gate = "softmax"
    stem: Stem = "auto"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name, words in _WORDS.items():
            _check_word(name, getattr(self, name), words)
        for name, least in (("classes", 2), ("channels", 1), ("image_size", 1), ("experts", 0), ("router_width", 1)):
            _check_whole(name, getattr(self, name), least)
        if self.router_size is not None:
            _check_whole("router_size", self.router_size, 4)
        if self.router_bound != 0:
            _check_share("router_bound", self.router_bound, most=math.inf)
        _check_share("ratio", self.ratio, most=1.0)
        _check_share("width", self.width, most=math.inf)
        self._check_normalisation()
        self._check_size()

    @property
    def routed(self) -> bool:
        """Whether it has experts and a router."""
        return self.experts > 0

    @property
    def large_stem(self) -> bool:
        """Whether images go through the ImageNet stem."""
        if self.architecture in ("vgg16", "small"):
            return False
        return self.stem == "imagenet" or (self.stem == "auto" and self.image_size > _CIFAR_LIMIT)

    @property
    def seen_size(self) -> int:
        """Pixels of the side of what the router looks at."""
        if self.router_size is not None:
            return self.router_size
        return self.image_size if self.image_size <= _CIFAR_LIMIT else self.image_size // 4

    def scaled(self, channels: int) -> int:
        """Channels of one expert, or of the dense network, where the published dense network has ``channels``."""
        return max(1, round(channels * self.width * self.ratio))

    def unscaled(self, channels: int) -> int:
        """Channels of a step that experts share and that is not narrower for them; a dense network has `scaled`."""
        return max(1, round(channels * self.width)) if self.routed else self.scaled(channels)

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> VisionSpec:
        """What `as_record` made; fields that are absent have their defaults.

        Raises:
            OptionError: a field that is not known, or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for name in record:
            if name not in known:
                raise OptionError(
                    f"There is no field {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}."
                )
        return cls(**record)

    def _check_normalisation(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise OptionError(
                    f"{name} has {len(getattr(self, name))} numbers for {self.channels} channels. Give one for each, "
                    "or one for all."
                )
        if min(self.std) <= 0:
            raise OptionError(f"std must be above 0, found {min(self.std):g}: images are divided by it.")

    def _check_size(self) -> None:
        if self.seen_size > self.image_size:
            raise OptionError(f"router_size={self.router_size} is more than image_size={self.image_size}. Give less.")
        least = 32 if self.large_stem else {"vgg16": 16, "small": 2}.get(self.architecture, 4)
        if self.routed and self.placement == "image":
            least = max(least, 4)
        if self.image_size < least:
            smaller = "" if self.architecture == "small" else " the architecture 'small', or"
            raise OptionError(
                f"{self.architecture} needs images of {least} pixels or more, found image_size={self.image_size}. "
                f"Choose{smaller} larger images."
            )


def _check_word(name: str, value: Any, words: tuple[str, ...]) -> None:
    if value not in words:
        raise OptionError(f"There is no {name} {value!r}.{did_you_mean(value, words)} There are: {', '.join(words)}.")


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} must be a whole number of {least} or more, found {value!r}.")


def _check_share(name: str, value: Any, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most or math.isinf(value):
        limit = "above 0" if math.isinf(most) else f"above 0 and at most {most:g}"
        raise OptionError(f"{name} must be a number {limit}, found {value!r}.")


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    listed = [value] if isinstance(value, int | float) else value
    if (
        not isinstance(listed, list | tuple)
        or not listed
        or not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in listed)
    ):
        raise OptionError(f"{name} must be numbers, one per channel or one for all, found {value!r}.")
    return tuple(float(x) for x in listed)
