"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import importlib.util

import torch

from coterie.errors import MissingExtraError
from coterie.training.images.data import ImageData

TEST = 500


def digits() -> ImageData:
    """All 1,797, in the order of the package.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("scikit-learn", extra="vision")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    return ImageData(images, labels, tuple(map(str, range(10))), "digits")


def split_digits(two_domains: bool = False) -> tuple[ImageData, ImageData]:
    """(1,297 to learn from, 500 to measure on), by a permutation that is always the same.

    Args:
        two_domains: every second image of each part is inverted (1 - x), its label kept: two domains that even an
            attacker cannot confuse, so that a router has something to learn. Image i is of domain i % 2.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    data = digits()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    parts = data.select(order[TEST:]), data.select(order[:TEST])
    learn, measure = map(_invert_every_second, parts) if two_domains else parts
    return learn, measure


def _invert_every_second(data: ImageData) -> ImageData:
    images = data.images.clone()
    images[1::2] = 1 - images[1::2]
    return ImageData(images, data.labels, data.classes, data.source)
