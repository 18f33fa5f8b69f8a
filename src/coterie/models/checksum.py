"""Whether files are still what they were."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import CheckpointError, ChecksumError
from coterie.models.tensors import drop_cache

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Seal:
    """What some files were at one moment.

    Attributes:
        stamps: file -> (bytes, time of last change in ns).
        digests: file -> SHA-256 of its contents; empty where only stamps were taken.
    """

    stamps: Mapping[Path, tuple[int, int]]
    digests: Mapping[Path, str]

    @classmethod
    def of(cls, paths: Iterable[Path], *, contents: bool) -> Seal:
        """Take the seal. With ``contents`` every file is read once.

        Raises:
            ChecksumError: the contents of a file in the hub's cache are not those the hub names it by.
        """
        paths = list(paths)
        digests = {path: _digest(path) for path in paths} if contents else {}
        for path, digest in digests.items():
            # the hub's cache calls large files by their SHA-256 and links to them
            claimed = path.resolve().name
            if _SHA256.fullmatch(claimed) and claimed != digest:
                raise ChecksumError(f"{path} was damaged in the hub's cache: delete {path.resolve()} and try again.")
        return cls({path: _stamp(path) for path in paths}, digests)

    def check(self) -> None:
        """Compare with the files now; contents are read again if the seal has digests.

        Raises:
            ChecksumError: a file has changed, or is gone.
        """
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp or (path in self.digests and _digest(path) != self.digests[path]):
                raise ChecksumError(f"{path} has changed since it was opened. Open the checkpoint again.")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ChecksumError(
            f"{path} is gone since it was opened ({error}). Put it back, then open it again."
        ) from error
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    drop_cache([path])
    return digest
