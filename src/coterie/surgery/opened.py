"""Any checkpoint opened, dense or with experts."""

from __future__ import annotations

from pathlib import Path

import torch

from coterie.models.checkpoint import Checkpoint, open_checkpoint, resolve
from coterie.models.compat import read_config, skeleton
from coterie.models.families import check_family
from coterie.models.find import find_sites
from coterie.models.shards import read_config_json
from coterie.models.stored import is_routed
from coterie.surgery.dense import open_dense

__all__ = ["open_any"]


def open_any(model: str | Path, revision: str | None = None) -> Checkpoint:
    """Open ``model`` whatever it is: a `DenseCheckpoint` where it has no experts. Headers only.

    Of a dense model whose feed-forwards are of no known form, ``ffns`` is empty.

    Raises:
        CheckpointError: missing, not a checkpoint, incomplete, damaged or contradicting itself.
        UnsupportedError: a family that transformers does not know, or a format that is not served.
    """
    path = resolve(model, revision)
    raw = read_config_json(path)
    if is_routed(raw):
        return open_checkpoint(path)
    check_family(raw, str(path))
    if find_sites(skeleton(read_config(path), torch.float32)):
        return open_checkpoint(path)
    return open_dense(path, any_form=True)
