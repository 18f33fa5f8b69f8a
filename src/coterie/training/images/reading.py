"""Labelled images from where people have them: a folder, numpy files, or scikit-learn's digits by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from coterie.errors import OptionError
from coterie.training.images.arrays import IMAGES, LABELS, read_npz, read_pair
from coterie.training.images.data import ImageData
from coterie.training.images.digits import digits, split_digits
from coterie.training.images.pictures import Picture, decode, stacked

DIGITS, TWO_DOMAINS = "digits", "two-domain-digits"
NAMES = (DIGITS, f"{DIGITS}:train", f"{DIGITS}:test", f"{TWO_DOMAINS}:train", f"{TWO_DOMAINS}:test")
_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
_FORMS = "Give a folder of class folders, an .npz, 'x.npy,y.npy', or " + ", ".join(NAMES) + "."


def read_images(source: str | Path, *, size: int | None = None) -> ImageData:
    """Read labelled images into memory, as bytes where they are bytes. Blocks.

    Args:
        source: a folder with a folder of pictures for each class; an .npz with ``images`` (or x) and ``labels``
            (or y), and ``classes`` where they have names, or with picture files in one ``blob``, its ``offsets`` and
            ``labels``; 'x.npy,y.npy', or a folder with both; or a name: digits, digits:train, digits:test,
            two-domain-digits:train, two-domain-digits:test.
        size: height and width to which pictures are resized; they must be of one size without it.

    Raises:
        OptionError: nothing there, a picture or file that cannot be read, mixed sizes, values outside [0, 1], labels
            outside the classes, a class folder that is empty.
        MissingExtraError: Pillow or scikit-learn is needed and not installed.
    """
    if size is not None and size < 1:
        raise OptionError(f"size must be at least 1 pixel, not {size}.")
    name, path = str(source), Path(source)
    if not path.exists() and name.partition(":")[0] in (DIGITS, TWO_DOMAINS):
        return _digits(name)
    if "," in name and not path.exists():
        first, _, second = name.partition(",")
        return read_pair(_there(Path(first.strip())), _there(Path(second.strip())), size)
    path = _there(path)
    if path.is_dir():
        pair = _pair_in(path)
        return read_pair(*pair, size) if pair else _folder(path, size)
    if path.suffix == ".npz":
        return read_npz(path, size)
    raise OptionError(f"{path} is no kind of image data that is known. {_FORMS}")


def _digits(name: str) -> ImageData:
    if name not in NAMES:
        raise OptionError(f"There are no images {name!r}. Write one of: {', '.join(NAMES)}.")
    if name == DIGITS:
        return digits()
    which, _, part = name.partition(":")
    learn, measure = split_digits(two_domains=which == TWO_DOMAINS)
    data = learn if part == "train" else measure
    return ImageData(data.images, data.labels, data.classes, name)


def _there(path: Path) -> Path:
    if not path.exists():
        raise OptionError(f"There are no images {str(path)!r}. {_FORMS}")
    return path


def _pair_in(path: Path) -> tuple[Path, Path] | None:
    """x.npy and y.npy, or images.npy and labels.npy."""
    for images, labels in zip(IMAGES, LABELS, strict=True):
        pair = path / f"{images}.npy", path / f"{labels}.npy"
        if all(file.is_file() for file in pair):
            return pair
    return None


def _folder(path: Path, size: int | None) -> ImageData:
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not folders:
        raise OptionError(f"{path} has no class folders. {_FORMS}")
    pictures, labels = [], []
    for label, folder in enumerate(folders):
        found = list(_pictures(folder))
        pictures += found
        labels += [label] * len(found)
    images = stacked(pictures, str(path), size)
    return ImageData(images, torch.tensor(labels), tuple(folder.name for folder in folders), str(path))


def _pictures(folder: Path) -> Iterator[Picture]:
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() in _PICTURES)
    if not files:
        inner = sorted(each.name for each in folder.iterdir() if each.is_dir())
        hint = f" It holds folders ({', '.join(inner[:3])}): is {folder} what you mean?" if inner else ""
        raise OptionError(f"Class folder {folder} has no pictures.{hint} Fill it, or take it out.")
    for file in files:
        yield decode(file, str(file))
