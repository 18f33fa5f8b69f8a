"""What MODEL means: a directory, a hub name, or the pocket model, which is shipped."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from coterie.errors import CheckpointError
from coterie.models.checkpoint import resolve

POCKET = "pocket"


def locate(model: str | Path, revision: str | None = None) -> Path:
    """The directory of a checkpoint. A hub name may be downloaded (blocks).

    Raises:
        CheckpointError: there is no such directory, the hub does not have or cannot send it, or the installation
            came without the pocket model.
    """
    if str(model) != POCKET:
        return resolve(model, revision)
    home = Path(str(files("coterie") / "data" / POCKET))
    if not (home / "config.json").exists():
        raise CheckpointError(f"The pocket model is missing from {home}. Install Coterie again, or give another MODEL.")
    return home
