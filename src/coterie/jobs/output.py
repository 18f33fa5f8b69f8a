"""Files that a task writes: refused before the long work, complete or not there at all afterwards."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from coterie.errors import OptionError


def check_output(path: str | Path) -> Path:
    """``path``, if a file can be written there. Writes nothing that stays.

    Raises:
        OptionError: it is a directory, its directory does not exist, or may not be written to.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise OptionError(f"{target} is a directory. Name a file in it, such as {target / 'report.html'}.")
    if not target.parent.is_dir():
        raise OptionError(f"There is no directory {target.parent}. Make it first: mkdir -p {target.parent}")
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise OptionError(f"{target} cannot be written ({error.strerror}). Name a file elsewhere.") from error
    os.close(handle)
    os.unlink(scratch)
    return target


def write_output(path: str | Path, data: str | bytes) -> None:
    """Put ``data`` in ``path``, replacing what is there in one step; on failure that stays as it was.

    Raises:
        OptionError: the file cannot be written.
    """
    target = check_output(path)
    handle, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.chmod(scratch, 0o666 & ~_umask())
        os.replace(scratch, target)
    except OSError as error:
        raise OptionError(f"{target} cannot be written ({error.strerror}). What was there is unchanged.") from error
    finally:
        with suppress(OSError):
            os.unlink(scratch)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
