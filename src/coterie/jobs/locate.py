"""What MODEL means: a directory, a hub name, or the pocket model, made on the spot and kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from coterie.models.checkpoint import resolve

POCKET = "pocket"


def locate(
    model: str | Path, revision: str | None = None, progress: Callable[[int, int, float], None] | None = None
) -> Path:
    """The directory of a checkpoint. Trains the pocket model if it is asked for and not cached yet (blocks).

    Raises:
        CheckpointError: there is no such directory, and the hub does not have or cannot send it.
    """
    if str(model) != POCKET:
        return resolve(model, revision)
    home = cache_home() / "pocket-1"
    if not (home / "config.json").exists():
        _make_pocket(home, progress)
    return home


def cache_home() -> Path:
    """Where Coterie keeps what it makes for itself: COTERIE_HOME, else coterie under the user's cache folder."""
    if own := os.environ.get("COTERIE_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coterie"


def _make_pocket(home: Path, progress: Callable[[int, int, float], None] | None) -> None:
    """Train beside the target and move into place, so that an interruption leaves nothing half made."""
    from coterie.training import train_pocket

    home.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="pocket-", dir=home.parent))
    try:
        train_pocket(scratch, progress=progress)
        if not home.exists():
            scratch.rename(home)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
