"""Whether files are still what they were."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from coterie.errors import ChecksumError
from coterie.models import open_checkpoint


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved("olmoe"), tmp_path / "model")


def flip(path, at=-100):
    """Change one byte, keeping size and time of the last change."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_unchanged(model):
    open_checkpoint(model).check_unchanged()
    open_checkpoint(model, checksum=True).check_unchanged()


def test_a_silent_flip_is_seen_by_contents_only(model):
    stamped, summed = open_checkpoint(model), open_checkpoint(model, checksum=True)
    flip(model / "model.safetensors")
    stamped.check_unchanged()
    with pytest.raises(ChecksumError, match=r"model\.safetensors has changed since it was opened"):
        summed.check_unchanged()


@pytest.mark.parametrize("checksum", [True, False])
def test_a_file_replaced_or_gone(model, checksum):
    checkpoint = open_checkpoint(model, checksum=checksum)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(ChecksumError, match="has changed"):
        checkpoint.check_unchanged()
    weights.unlink()
    with pytest.raises(ChecksumError, match="is gone"):
        checkpoint.check_unchanged()


def test_a_file_of_the_hubs_cache_is_held_against_its_name(model):
    weights = model / "model.safetensors"
    blob = model.parent / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    open_checkpoint(model, checksum=True)
    flip(blob)
    open_checkpoint(model)
    with pytest.raises(ChecksumError, match="damaged in the hub's cache: delete"):
        open_checkpoint(model, checksum=True)
