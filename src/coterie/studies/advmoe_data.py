"""Images for the studies of AdvMoE, and how large the networks are that learn them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.torch import load, save

from coterie.errors import OptionError
from coterie.models.vision import VisionSpec
from coterie.models.vision.building import Init
from coterie.studies.corpus import Corpus
from coterie.training.adversarial import Descent
from coterie.training.images import ImageData, read_images, shuffled, split_digits

PARTS = ("train", "test")
LEARNED, MEASURED = 5000, 500  # images of a user's data that are taken


@dataclass(frozen=True)
class Setting:
    """What a study of AdvMoE does to its images.

    Attributes:
        dense: the network that experts are cut from.
        epochs, batch: of training.
        augment: crop and flip.
        epsilon: of every attack.
        steps, step_size: of the attack in training.
        measure_steps, measure_step_size: of the attacks that are measured with.
        beta, drift, balance: coefficients of the losses; ``drift`` is eta.
        init: of the convolutions; see `coterie.models.vision.build_vision`.
        router: how the router descends.
    """

    dense: VisionSpec
    epochs: int
    batch: int
    augment: bool
    epsilon: float
    steps: int
    step_size: float
    measure_steps: int
    measure_step_size: float
    beta: float = 3.0
    drift: float = 3.0
    balance: float = 0.1
    init: Init = "fan_out"
    router: Descent = field(default_factory=lambda: Descent("adam", 2e-3, weight_decay=0.0))

    def experts(self, experts: int, norm: str = "per_expert") -> VisionSpec:
        """The network of half-width experts; with 0 of them the dense one of half the width."""
        return replace(self.dense, experts=experts, ratio=0.5, norm=norm)  # type: ignore[arg-type]


def digits_of_two_domains(given: Path | None) -> Corpus:
    """scikit-learn's digits, every second one inverted.

    Raises:
        OptionError: the user gave images, which belong to the other study.
        MissingExtraError: scikit-learn is not installed.
    """
    if given is not None:
        raise OptionError(
            f"This study measures scikit-learn's digits. For images of your own: coterie reproduce advmoe-images "
            f"--data {given}"
        )
    return packed("scikit-learn's digits, every second one inverted", *split_digits(two_domains=True))


def images_of(given: Path | None) -> Corpus:
    """A sample of the user's images: a directory with ``*train*.npz`` and ``*test*.npz``, or one set that is split.

    Raises:
        OptionError: no images were given, or they cannot be read.
    """
    if given is None:
        raise OptionError("This study needs images: --data DIR, or an .npz. See docs/robust-training.md for the forms.")
    files = [sorted(given.glob(f"*{part}*.npz")) for part in PARTS] if given.is_dir() else [[], []]
    if all(files):
        learn, measure = (read_images(found[0]) for found in files)
    else:
        learn, measure = read_images(given).split(0.2)
    return packed(f"images of {given.name}", sampled(learn, LEARNED), sampled(measure, MEASURED))


def sampled(data: ImageData, count: int) -> ImageData:
    """``count`` of the images by lot, always the same; all of them where there are not more."""
    return data if len(data) <= count else data.select(shuffled(len(data), 0, "sample")[:count].sort().values)


def packed(source: str, learn: ImageData, measure: ImageData) -> Corpus:
    """Both parts as bytes that are equal for equal images."""
    parts = {name: _bytes(data) for name, data in zip(PARTS, (learn, measure), strict=True)}
    return Corpus(source, {**parts, "classes": json.dumps(learn.classes).encode()})


def unpacked(corpus: Corpus) -> tuple[ImageData, ImageData]:
    """(to learn from, to measure on), as they were `packed`."""
    classes = tuple(json.loads(corpus.parts["classes"]))
    learn, measure = (load(corpus.parts[part]) for part in PARTS)
    return tuple(ImageData(each["images"], each["labels"], classes, corpus.source) for each in (learn, measure))  # type: ignore[return-value]


def _bytes(data: ImageData) -> bytes:
    return save({"images": data.images.contiguous(), "labels": data.labels.contiguous()})
