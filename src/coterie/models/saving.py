"""A directory of a routed model: names as the family has them, written beside and moved into place."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.experts import FFN, KindExperts
from coterie.models.bridge import ExpertsBridge
from coterie.models.find import find_sites
from coterie.models.layout import kind_name
from coterie.models.stored import FILE

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def saved_names(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names of the family's own modules."""
    names = {}
    for site in find_sites(model):
        if isinstance(site.experts, ExpertsBridge) and not isinstance(site.experts.true_experts, KindExperts):
            path = next((name for name, part in site.experts.named_modules() if isinstance(part, FFN)), "inner")
            names[f"{site.name}.{path}."] = f"{site.name}."
    saved, of_kinds = {}, _kind_names(model)
    for name, tensor in state.items():
        if name in of_kinds:
            saved[of_kinds[name]] = tensor
            continue
        prefix = next((prefix for prefix in names if name.startswith(prefix)), None)
        saved[name if prefix is None else names[prefix] + name.removeprefix(prefix)] = tensor
    return saved


def _kind_names(model: Any) -> dict[str, str]:
    """Name in the state -> name on disk, of experts that are no plain feed-forward experts."""
    found = {}
    for number, site in enumerate(find_sites(model)):
        for path, part in site.experts.named_modules():
            if isinstance(part, KindExperts):
                for expert, name, _ in part.named_parts():
                    found[f"{site.name}.{path}.each.{expert}.{name}"] = kind_name(number, expert, name)
    return found


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """A directory to fill; what is in it replaces what ``target`` has of those names, config.json last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield part
        target.mkdir(exist_ok=True)
        files = sorted(part.iterdir(), key=lambda file: (file.name == "config.json", file.name == FILE, file.name))
        weights = {file.name for file in files if file.suffix == ".safetensors"}
        for file in files:
            os.replace(file, target / file.name)
        _drop_old(target, weights)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _drop_old(target: Path, weights: set[str]) -> None:
    """Weights of an earlier save that is gone: another number of shards, whose index would be read first."""
    if not weights:
        return
    for file in target.glob("model*.safetensors"):
        if file.name not in weights and _WEIGHTS.fullmatch(file.name):
            file.unlink()
    if "model.safetensors" in weights:
        (target / "model.safetensors.index.json").unlink(missing_ok=True)
