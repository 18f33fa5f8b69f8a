"""Pictures of pixels: what is written is read back, by hand and by a library."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.pictures.image import figure, img, png


def read(data):
    """The pixels [C, H, W] of a PNG as `png` writes it, uint8, with every checksum looked at."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, head = 8, b"", None
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + chunk)
        head = chunk if kind == b"IHDR" else head
        body += chunk if kind == b"IDAT" else b""
        at += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", head[:10])
    assert depth == 8
    channels = {0: 1, 2: 3}[colour]
    rows = torch.frombuffer(bytearray(zlib.decompress(body)), dtype=torch.uint8).view(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels).permute(2, 0, 1)


@given(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_what_is_written_is_read_back(channels, height, width, seed):
    pixels = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(read(png(pixels / 255)), pixels.to(torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_library_reads_the_same(channels):
    image = pytest.importorskip("PIL.Image")
    pixels = torch.rand(channels, 5, 7)
    opened = image.open(io.BytesIO(png(pixels)))
    opened.load()
    assert opened.size == (7, 5)
    found = torch.tensor(list(opened.tobytes()), dtype=torch.uint8).view(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(found, (pixels * 255).round().to(torch.uint8))


def test_what_is_outside_is_clipped_and_what_is_no_number_is_black():
    pixels = torch.tensor([[[-1.0, 2.0, float("nan"), 0.5]]])
    assert read(png(pixels)).flatten().tolist() == [0, 255, 0, 128]


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 1, 4, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="1 or 3, H, W"):
        png(torch.zeros(shape))


def test_a_figure_carries_its_file_and_escapes_its_words():
    made = figure(torch.zeros(1, 8, 4), "a <b> & 3")
    assert made.count("data:image/png;base64,") == 1
    assert "<b>" not in made
    assert "a &lt;b&gt; &amp; 3" in made
    assert 'width="96" height="192"' in made
    assert "pixelated" in made
    assert "pixelated" not in img(torch.zeros(3, 128, 128), "large")
