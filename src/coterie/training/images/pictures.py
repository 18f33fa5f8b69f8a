"""Picture files through Pillow: decoded, brought to one size and one number of channels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coterie.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
else:
    Picture = Any

_GREY = ("1", "L", "I;16", "I", "F", "LA")


def decode(file: Path | IO[bytes], name: str) -> Picture:
    """One picture, whole in memory: grey (L) or coloured (RGB).

    Args:
        file: a path, or an open file.
        name: what an error calls it.

    Raises:
        OptionError: it cannot be read as a picture.
        MissingExtraError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("Pillow", extra="vision")
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.convert("L" if picture.mode in _GREY else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise OptionError(f"{name} cannot be read as a picture: {error}. Replace it, or take it out.") from error


def stacked(pictures: list[Picture], source: str, size: int | None) -> Tensor:
    """[N, C, H, W] uint8: grey where all are, otherwise in colour. Pictures of several sizes need ``size``.

    Args:
        pictures: from `decode`.
        source: what an error calls them.
        size: height and width to resize to (the shorter side is fitted, the middle is kept); None leaves them.

    Raises:
        OptionError: there are none, or they differ in size.
    """
    if not pictures:
        raise OptionError(f"{source}: no images. A folder has one folder for each class, with pictures in it.")
    if size is not None:
        pictures = [_resized(picture, size) for picture in pictures]
    if len(sizes := {picture.size for picture in pictures}) > 1:
        (w, h), (w2, h2) = sorted(sizes)[0], sorted(sizes)[-1]
        raise OptionError(
            f"{source}: pictures have {len(sizes)} sizes, from {w} x {h} to {w2} x {h2}. Give --size, to resize all "
            "(size= in Python)."
        )
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    arrays = np.stack([np.asarray(picture if picture.mode == mode else picture.convert(mode)) for picture in pictures])
    images = torch.from_numpy(arrays)
    return images[:, None] if mode == "L" else images.permute(0, 3, 1, 2).contiguous()


def _resized(picture: Picture, size: int) -> Picture:
    from PIL import Image, ImageOps

    return picture if picture.size == (size, size) else ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
