"""One expert of a split as a plain dense checkpoint: every feed-forward cut to the expert's channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coterie.errors import OptionError, UnsupportedError
from coterie.models.shards import read_config_json
from coterie.surgery.card import write_card
from coterie.surgery.channels import Channels
from coterie.surgery.dense import DenseCheckpoint, DenseLayer, open_dense, read_ffn
from coterie.surgery.feed_forward import feed_forward
from coterie.surgery.from_dense import mixture_host, write_rest
from coterie.surgery.method import Method
from coterie.surgery.new_mixture import NewMixture
from coterie.surgery.orientation import laid_out
from coterie.surgery.rewrite import MAX_SHARD, Rewritten, Say, copy_beside
from coterie.surgery.size import size_of
from coterie.surgery.split import one_expert
from coterie.surgery.verify import distance, logits_of, probe_ids
from coterie.surgery.writer import CheckpointWriter, refuse_existing

__all__ = ["write_slice"]

# what configs call the inner width of a feed-forward
_INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")


def write_slice(
    dense: DenseCheckpoint,
    out: str | Path,
    channels: Channels,
    expert: int,
    *,
    about: Method,
    progress: Say | None = None,
    resume: bool = False,
    max_shard: int = MAX_SHARD,
) -> Rewritten:
    """Write ``dense`` with the channels of one expert alone: what `coterie.surgery.masked` computes, smaller. Blocks.

    The same family, a smaller inner width; loads wherever the dense model does. Peak memory is one layer.

    Args:
        dense: the model that was split.
        out: the directory to make; must not exist.
        channels: of all its feed-forwards.
        expert: which.
        about, progress, resume, max_shard: as in `coterie.surgery.rewrite`.

    Raises:
        OptionError: ``out`` exists, or the channels are of another model.
        UnsupportedError: the family's config cannot say the inner width.
        CheckpointError: the source is damaged, the disk is full, or the check failed.
    """
    out, say = Path(out).expanduser(), progress or (lambda *_: None)
    refuse_existing(out, resume)
    _check_fits(dense, channels, expert)
    inner = max(len(layer.of(expert)) for layer in channels.layers.values())
    config = _config(dense, inner)
    job = {"source": dense.fingerprint(), "method": about.as_record(), "container": f"slice {expert}"}
    sizes = (2 * sum(map(len, dense.ranges)), 2 * len(dense.ranges))

    def cut(layer: DenseLayer) -> dict[str, Any]:
        return one_expert(feed_forward(layer), channels.layers[layer.ffn.name], expert, inner)

    with CheckpointWriter(out, job, names=sizes, max_shard=max_shard, resume=resume) as writer:
        for number, ffn in enumerate(dense.ffns):
            say(f"Layer {ffn.layer}", number, len(dense.ffns))
            for name, tensor in laid_out(cut(read_ffn(dense, ffn)), replace(ffn.disk, inner=inner)).items():
                writer.add(ffn.names[name], tensor)
        write_rest(dense, writer)
        writer.complete(config, lambda part: copy_beside(dense.path, part))
        written = open_dense(writer.part)
        difference = _check(dense, cut, written)
        made = Rewritten(out, "native", size_of(dense), size_of(written), {}, difference, writer.held)
        write_card(writer.part, dense, about, made)
        writer.move()
    return made


def _check_fits(dense: DenseCheckpoint, channels: Channels, expert: int) -> None:
    for ffn in dense.ffns:
        layer = channels.layers.get(ffn.name)
        if layer is None or layer.inner != ffn.shape.inner:
            raise OptionError(f"The channels are not of {dense.path}: they do not fit {ffn.name}.")
        if not 0 <= expert < layer.num_experts:
            raise OptionError(f"There is no expert {expert}: there are 0 to {layer.num_experts - 1}.")


def _config(dense: DenseCheckpoint, inner: int) -> Mapping[str, Any]:
    config = read_config_json(dense.path)
    live = dense.config.to_dict()
    for name in _INNER:
        if name in live and live[name] in (dense.ffns[0].shape.inner, None):
            return {**config, name: inner}
    raise UnsupportedError(
        f"config.json of the family {dense.config.model_type!r} has no field for the inner width of its feed-forwards, "
        "so that no smaller one can be said."
    )


def _check(dense: DenseCheckpoint, cut: Any, written: DenseCheckpoint) -> float:
    """The largest difference of logits from the dense model with the slice computed in memory, of their spread."""

    def alone(layer: DenseLayer) -> NewMixture:
        one = {name: weight[None] for name, weight in cut(layer).items()}
        return NewMixture(one, torch.zeros(1, layer.shape.width))

    ids = probe_ids(dense)
    expected = logits_of(mixture_host(dense, alone, 1), ids)
    found = logits_of(mixture_host(written, None, 1), ids)
    return distance(found, expected, "the slice")
