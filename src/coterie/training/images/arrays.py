"""Images out of numpy files: an .npz with arrays, an .npz with JPEG files in one blob, or a pair of .npy."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.training.images.data import ImageData
from coterie.training.images.pictures import Picture, decode, stacked

IMAGES, LABELS, CLASSES, BLOB, OFFSETS = (
    ("images", "x", "data"),
    ("labels", "y", "target"),
    "classes",
    "blob",
    "offsets",
)
_CHANNELS = (1, 3, 4)


def read_npz(path: Path, size: int | None) -> ImageData:
    """From an archive with ``images`` (or x) and ``labels`` (or y), or with ``blob``, ``offsets`` and ``labels``.

    Raises:
        OptionError: no numpy archive, arrays are missing or do not fit, values are outside [0, 1].
    """
    arrays = _opened(path)
    labels = _named(arrays, LABELS, path)
    if BLOB in arrays and OFFSETS in arrays:
        images = stacked(_blob(arrays[BLOB], arrays[OFFSETS], path), str(path), size)
    else:
        images = as_images(_named(arrays, IMAGES, path), str(path), size)
    return _made(images, labels, arrays.get(CLASSES), str(path))


def read_pair(images: Path, labels: Path, size: int | None) -> ImageData:
    """From two .npy files.

    Raises:
        OptionError: see `read_npz`.
    """
    return _made(as_images(_array(images), str(images), size), _array(labels), None, str(images))


def as_images(array: np.ndarray[Any, Any], source: str, size: int | None) -> Tensor:
    """[N, C, H, W] of an array [N, H, W], [N, H, W, C] or [N, C, H, W], of bytes or of floats in [0, 1].

    Raises:
        OptionError: another shape or kind of number.
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in _CHANNELS and array.shape[3] in _CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in _CHANNELS:
        raise OptionError(
            f"{source}: images must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1, 3 or 4, found "
            f"{tuple(array.shape)}."
        )
    if array.dtype != np.uint8:
        if not (np.issubdtype(array.dtype, np.floating)):
            raise OptionError(f"{source}: images must be bytes (uint8) or floats in [0, 1], found {array.dtype}.")
        array = array.astype(np.float32)
    if size is not None and array.shape[2:] != (size, size):
        raise OptionError(
            f"{source}: images are {array.shape[2]} x {array.shape[3]}. Arrays are not resized; make them "
            f"{size} x {size}, or give a folder of pictures."
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def _opened(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with path.open("rb") as file:  # np.load would leave its own open where the archive is damaged
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.ndarray):
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} cannot be read as a numpy archive: {error}. Save it anew with np.savez.") from error
    raise OptionError(f"{path} is one array. Give 'x.npy,y.npy', or an .npz of images and labels.")


def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OptionError(f"{path} cannot be read as a numpy array: {error}. Save it anew with np.save.") from error
    if not isinstance(array, np.ndarray):
        raise OptionError(f"{path} is an archive. Give it alone, not in a pair.")
    return array


def _named(arrays: Mapping[str, np.ndarray[Any, Any]], names: Sequence[str], path: Path) -> np.ndarray[Any, Any]:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise OptionError(
        f"{path} has no array {' or '.join(map(repr, names))}; it has: {', '.join(arrays) or 'nothing'}. It needs "
        "images and labels, or blob, offsets and labels."
    )


def _blob(blob: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any], path: Path) -> list[Picture]:
    """Picture files that lie one after the other: the i-th is blob[offsets[i]:offsets[i+1]]."""
    places = offsets.astype(np.int64).ravel()
    if blob.dtype != np.uint8 or len(places) < 2 or (np.diff(places) <= 0).any() or places[-1] > blob.size:
        raise OptionError(
            f"{path}: offsets must rise from 0 to the {blob.size} bytes of the blob, which is of uint8. The file is "
            "damaged, or cut off."
        )
    data = blob.tobytes()
    return [
        decode(io.BytesIO(data[begin:end]), f"{path}, picture {number}")
        for number, (begin, end) in enumerate(zip(places[:-1].tolist(), places[1:].tolist(), strict=True))
    ]


def _made(images: Tensor, labels: np.ndarray[Any, Any], classes: np.ndarray[Any, Any] | None, source: str) -> ImageData:
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or not _whole(flat):
        raise OptionError(
            f"{source}: labels must be [N] whole numbers from 0, found {labels.dtype} {tuple(labels.shape)}."
        )
    if len(flat) and int(flat.min()) < 0:
        raise OptionError(f"{source}: a label is {int(flat.min())}. Number the classes from 0.")
    names = _names(flat, classes)
    return ImageData(images, torch.from_numpy(flat.astype(np.int64)), names, source)


def _whole(labels: np.ndarray[Any, Any]) -> bool:
    if np.issubdtype(labels.dtype, np.floating):
        return bool(np.equal(np.mod(labels, 1), 0).all())
    return np.issubdtype(labels.dtype, np.integer)


def _names(labels: np.ndarray[Any, Any], classes: np.ndarray[Any, Any] | None) -> tuple[str, ...]:
    if classes is not None:
        return tuple(map(str, classes.ravel().tolist()))
    return tuple(map(str, range(int(labels.max()) + 1 if len(labels) else 1)))
