"""Labelled images in memory, as bytes or floats; a batch of them is float32 in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.draw import fold, word_of

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ImageData:
    """N images of one size with a label each.

    Attributes:
        images: [N, C, H, W], uint8 or float32 in [0, 1]. Bytes are kept as they are: a quarter of the memory.
        labels: [N] int64 in [0, len(classes)).
        classes: their names.
        source: what an error calls these images.

    Raises:
        OptionError: images outside [0, 1], a label outside the classes, shapes that do not fit, or nothing at all.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str = "the images"

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """C."""
        return self.images.shape[1]

    @property
    def size(self) -> Range:
        """(H, W)."""
        return self.images.shape[2], self.images.shape[3]

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(images [B, C, H, W] float32 in [0, 1], labels [B]) of the numbers ``index [B]``, on ``device``."""
        images = self.images[index].to(device)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images
        return images, self.labels[index].to(device)

    def select(self, index: Tensor | Sequence[int]) -> ImageData:
        """Those of the numbers ``index``, in its order."""
        index = torch.as_tensor(index, dtype=torch.int64)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def counts(self) -> Tensor:
        """[classes] int64: how many images each has."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    def split(self, share: float, seed: int = 0) -> tuple[ImageData, ImageData]:
        """(the rest, ``share`` of the images of every class, at least one), by lot; both in the order they have here.

        Raises:
            OptionError: the share is not between 0 and 1, or a class has one image, which cannot be on both sides.
        """
        if not 0 < share < 1:
            raise OptionError(f"A share that is held back must be between 0 and 1, not {share:g}.")
        check_splits(self)
        order = shuffled(len(self), seed, "split")
        held = torch.zeros(len(self), dtype=torch.bool)
        for label in self.labels.unique():
            of_class = order[self.labels[order] == label]
            held[of_class[: min(max(1, round(share * len(of_class))), len(of_class) - 1)]] = True
        return self.select((~held).nonzero().flatten()), self.select(held.nonzero().flatten())

    def _check_shapes(self) -> None:
        images, labels = self.images, self.labels
        if images.dim() != 4 or len(images) == 0 or 0 in images.shape:
            raise OptionError(
                f"{self.source}: no images. They must be [N, C, H, W] with N at least 1, found {tuple(images.shape)}."
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise OptionError(
                f"{self.source}: {len(images)} images need as many whole labels, found {tuple(labels.shape)} "
                f"{labels.dtype}."
            )

    def _check_values(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype not in (torch.uint8, torch.float32):
            raise OptionError(f"{self.source}: images must be uint8 or float32, found {images.dtype}.")
        if images.dtype == torch.float32:
            least, most = (float(bound) for bound in images.aminmax())
            if not (least >= 0 and most <= 1):  # NaN is neither
                raise OptionError(
                    f"{self.source}: values must be in [0, 1], found {least:g} to {most:g}. Give bytes (uint8), or "
                    "divide by 255; normalising is the model's part."
                )
        if int(labels.min()) < 0 or int(labels.max()) >= len(self.classes):
            raise OptionError(
                f"{self.source}: labels are {int(labels.min())} to {int(labels.max())}, and there are "
                f"{len(self.classes)} classes: 0 to {len(self.classes) - 1}. Number them from 0."
            )


def check_splits(data: ImageData) -> None:
    """Refuse a class of one image: it could be learned or measured, not both.

    Raises:
        OptionError: names the class.
    """
    alone = (data.counts() == 1).nonzero().flatten().tolist()
    if alone:
        raise OptionError(
            f"{data.source}: class {data.classes[alone[0]]!r} has one image, which cannot be learned from and measured "
            "on. Give it more, or leave the class out."
        )


def check_fit(data: ImageData, *, classes: int, channels: int, size: int | Range, what: str = "The model") -> None:
    """Refuse images that a model was not made for.

    Raises:
        OptionError: another number of channels or classes, or another size.
    """
    size = (size, size) if isinstance(size, int) else size
    found = (data.channels, *data.size)
    if found != (channels, *size):
        raise OptionError(
            f"{what} is for images of {channels} x {size[0]} x {size[1]} (channels, height, width), and "
            f"{data.source} has {found[0]} x {found[1]} x {found[2]}. Give images like those it was trained on."
        )
    if int(data.labels.max()) >= classes:
        raise OptionError(
            f"{what} tells {classes} classes apart, and {data.source} has labels up to {int(data.labels.max())}. "
            "Give the classes it was trained on, in the same order."
        )


def shuffled(count: int, seed: int, *words: str | int) -> Tensor:
    """[count] int64: a permutation that follows from the seed and the words alone."""
    key = seed
    for word in words:
        key = fold(key, word_of(word) if isinstance(word, str) else word)
    generator = torch.Generator().manual_seed(key)
    return torch.randperm(count, generator=generator)
