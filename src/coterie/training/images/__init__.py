"""Labelled images: read from folders, numpy files or by name; split, augmented."""

from coterie.training.images.augment import crop_and_flip
from coterie.training.images.data import ImageData, check_fit, check_splits, shuffled
from coterie.training.images.digits import digits, split_digits
from coterie.training.images.reading import read_images

__all__ = [
    "ImageData",
    "check_fit",
    "check_splits",
    "crop_and_flip",
    "digits",
    "read_images",
    "shuffled",
    "split_digits",
]
