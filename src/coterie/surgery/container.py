"""Which directory can say what the layers have become, and what its config says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from coterie.errors import OptionError, UnsupportedError
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import skeleton
from coterie.models.find import find_sites
from coterie.models.shards import read_config_json
from coterie.models.stored import SiteExperts, Stored, write_stored
from coterie.surgery.method import Method
from coterie.surgery.new_config import as_coterie, as_native, count_in, says_inner, with_counts, without_quantisation
from coterie.surgery.writer import CheckpointWriter

__all__ = ["CONTAINERS", "Container", "copy_beside", "finish", "needed_container", "refuse_early"]

Container = Literal["auto", "native", "alias", "coterie"]
CONTAINERS: tuple[Container, ...] = ("auto", "native", "alias", "coterie")
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_OURS = ("config.json", "coterie.json", "README.md", "model.safetensors.index.json")


def needed_container(checkpoint: Checkpoint, layers: list[SiteExperts]) -> str:
    """The plainest container that can say these layers."""
    stored = checkpoint.stored
    if stored is not None and (stored.router is not None or stored.mixture is not None):
        return "coterie"
    if any(each.kind is not None for each in layers) or len({each.routes for each in layers}) > 1:
        return "coterie"
    if any(each.experts_of is not None for each in layers):
        return "alias"
    widths = {each.inner for each in layers}
    said = len(widths) == 1 and (widths == {None} or says_inner(checkpoint, *widths))
    return "native" if said or not layers else "coterie"


def refuse_early(checkpoint: Checkpoint, layers: list[SiteExperts], container: str, layer: int) -> None:
    """As soon as it is known that the container that was asked for cannot say what comes."""
    needed = needed_container(checkpoint, layers)
    if needed != "native" and any(_own(checkpoint)):
        raise UnsupportedError(
            f"The family {checkpoint.config.model_type!r} keeps its experts in a way of its own: all its layers must "
            "have as many experts, each with its own row of the gate."
        )
    if container in ("native", "alias") and CONTAINERS.index(needed) > CONTAINERS.index(container):
        if checkpoint.stored is not None and checkpoint.stored.mixture is not None:
            raise OptionError(
                f"The {container} container cannot hold this: transformers has no mixture of the family "
                f"{checkpoint.config.model_type!r}. Choose the coterie container."
            )
        raise OptionError(_cannot_say(layers, container, needed, layer))


def _own(checkpoint: Checkpoint) -> list[bool]:
    return [site.own is not None for site in find_sites(skeleton(checkpoint.config, checkpoint.compute_dtype))]


def _cannot_say(layers: list[SiteExperts], container: str, needed: str, layer: int) -> str:
    if needed == "alias":
        reason = f"in layer {layer} several rows of the gate lead to one expert, which config.json has no word for"
        remedy = "Choose the alias container (exact), or drop the rows of merged experts (lossy)"
    elif any(each.kind is not None for each in layers):
        reason = "its experts are stored in a form of their own, which transformers does not compute"
        remedy = "Choose the coterie container"
    else:
        counts = sorted({each.routes for each in layers})
        if len(counts) == 1:
            return (
                f"The {container} container cannot hold this: config.json has no word for the inner width of experts "
                "alone. Choose the coterie container."
            )
        reason = f"config.json has one number of experts for all layers, and they would have {counts}"
        remedy = "Keep as many in every layer (uniform), or choose the coterie container"
    return f"The {container} container cannot hold this: {reason}. {remedy}."


def finish(
    checkpoint: Checkpoint, writer: CheckpointWriter, container: str, layers: Mapping[str, SiteExperts], about: Method
) -> None:
    config = read_config_json(checkpoint.path)
    if checkpoint.quantization is not None:
        config = without_quantisation(config, str(checkpoint.compute_dtype).removeprefix("torch."))
    before, after = count_in(config), max(each.routes for each in layers.values())
    before = checkpoint.sites[0].num_routes if before is None else before
    first = next(iter(layers.values()))
    uniform = len({each.routes for each in layers.values()}) == 1
    inner = None
    if container == "native" and first.inner is not None:
        inner = (checkpoint.sites[0].shape.inner, first.inner)
    if checkpoint.stored is None or checkpoint.stored.mixture is None:  # else coterie.json has all numbers
        config = with_counts(config, before, after if uniform else before, inner)
    stored = None
    if container == "native":
        config = as_native(config)
    else:
        config = as_coterie(config)
        old = checkpoint.stored or Stored(None)
        stored = replace(old, experts=layers, method=about.as_record())

    writer.complete(config, lambda part: copy_beside(checkpoint.path, part, stored))


def copy_beside(source: Path, target: Path, stored: Stored | None = None) -> None:
    """Tokenizer, templates, defaults of generation: whatever lies beside the weights and is no weight itself.

    With ``stored`` a coterie.json that says it.
    """
    if stored is not None:
        write_stored(target, stored)
    for file in sorted(source.iterdir()):
        hidden = file.name.startswith(".")
        if file.is_file() and not hidden and not file.name.endswith(_NOT_COPIED) and file.name not in _OURS:
            shutil.copyfile(file, target / file.name)
