"""A picture made of pixels, inside a page: PNG written by hand, nothing beside zlib."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from html import escape

import torch
from torch import Tensor

__all__ = ["figure", "img", "png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2


def png(pixels: Tensor) -> bytes:
    """A PNG file of ``pixels [C, H, W]`` in [0, 1], grey of one channel, colour of three; outside is clipped.

    Raises:
        ValueError: another number of channels or of dimensions.
    """
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"an image is [1 or 3, H, W], not {list(pixels.shape)}.")
    channels, height, width = pixels.shape
    values = (pixels.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    rows = values.permute(1, 2, 0).reshape(height, width * channels).cpu()
    # every row begins with its filter, 0: none
    data = torch.cat([rows.new_zeros(height, 1), rows], dim=1).numpy().tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, _GREY if channels == 1 else _COLOUR, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(data, 9)) + _chunk(b"IEND", b"")


def img(pixels: Tensor, alt: str, size: int = 96) -> str:
    """An ``<img>`` that carries its own file; small images keep their pixels sharp."""
    address = "data:image/png;base64," + b64encode(png(pixels)).decode()
    height, width = pixels.shape[1:]
    shown = size * height // width
    style = "image-rendering:pixelated;border-radius:4px" if max(height, width) < size else "border-radius:4px"
    return f'<img src="{address}" width="{size}" height="{shown}" alt="{escape(alt)}" style="{style}">'


def figure(pixels: Tensor, caption: str, size: int = 96) -> str:
    """An image with a line below it."""
    text = f'<figcaption style="font-size:12px;color:var(--soft)">{escape(caption)}</figcaption>'
    return f'<figure style="margin:0;text-align:center">{img(pixels, caption, size)}{text}</figure>'


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
