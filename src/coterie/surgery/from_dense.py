"""A dense checkpoint written as a mixture of experts of a native family, one layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import CheckpointError, OptionError
from coterie.models.checkpoint import open_checkpoint
from coterie.models.compat import class_without, load_dense, skeleton
from coterie.surgery.card import write_card
from coterie.surgery.dense import DenseCheckpoint, DenseLayer, read_ffn
from coterie.surgery.method import Method
from coterie.surgery.mixture import EMPTY, MixtureFamily, NewMixture, mixture_family
from coterie.surgery.rewrite import MAX_SHARD, Rewritten, Say, copy_beside
from coterie.surgery.size import size_of
from coterie.surgery.verify import NEAR, logits_of, probe_ids, written_logits
from coterie.surgery.writer import CheckpointWriter, refuse_existing

__all__ = ["from_dense", "mixture_host"]

MixtureEdit = Callable[[DenseLayer], NewMixture]


def from_dense(
    dense: DenseCheckpoint,
    out: str | Path,
    edit: MixtureEdit,
    *,
    top_k: int,
    about: Method,
    family: str = "auto",
    progress: Say | None = None,
    resume: bool = False,
    max_shard: int = MAX_SHARD,
    check: bool = True,
) -> Rewritten:
    """Write ``dense`` with every feed-forward replaced by the mixture that ``edit`` makes of it. Blocks.

    Attention, norms, embeddings and head are copied byte for byte; norm epsilon, rotation, tied embeddings and window
    of the dense config are carried over. The result loads in plain transformers.

    Args:
        dense: of `open_dense`.
        out: the directory to make; must not exist.
        edit: one feed-forward to its mixture; E, F' and the shared expert's size must be those of the other layers.
            Called twice per layer, and must say the same.
        top_k: experts of each token.
        about, progress, resume, max_shard, check: as in `coterie.surgery.rewrite`.
        family: one of `FAMILY_NAMES`; "auto" chooses by what the dense model is.

    Raises:
        OptionError: ``out`` exists, layers of different sizes, or a family that cannot hold it.
        UnsupportedError: no native family has this model's attention.
        CheckpointError: the source is damaged or holds NaN, the disk is full, or the check failed.
    """
    out, say = Path(out).expanduser(), progress or (lambda *_: None)
    refuse_existing(out, resume)
    first = edit(read_ffn(dense, dense.ffns[0])).checked(dense.ffns[0].shape.width, "layer 0")
    sizes = first.sizes
    if not 1 <= top_k <= sizes[0]:
        raise OptionError(f"A token goes to 1 up to all of the {sizes[0]} experts, not {top_k}.")
    target = mixture_family(dense, family, shared=first.shared is not None)
    config = target.config(dense, sizes, top_k)
    job = {
        "source": dense.fingerprint(), "method": about.as_record(), "container": target.name, "sizes": [*sizes, top_k]
    }  # fmt: skip
    per_layer = 3 * sizes[0] + 8
    names = (90 * per_layer * len(dense.ffns) + sum(map(len, dense.ranges)), per_layer * len(dense.ffns) + 400)
    with CheckpointWriter(out, job, names=names, max_shard=max_shard, resume=resume) as writer:
        layers = _write_layers(dense, edit, target, sizes, writer, say)
        write_rest(dense, writer)
        writer.complete(json.loads(config.to_json_string(use_diff=False)), lambda part: copy_beside(dense.path, part))
        written = open_checkpoint(writer.part)
        difference = _check(dense, edit, top_k, writer.part) if check else None
        made = Rewritten(
            out, "native", size_of(dense), size_of(written), layers, difference, writer.held
        )  # fmt: skip
        write_card(writer.part, dense, about, made)
        writer.move()
    return made


def _write_layers(
    dense: DenseCheckpoint, edit: MixtureEdit, target: MixtureFamily, sizes: tuple[int, int, int],
    writer: CheckpointWriter, say: Say,
) -> dict[int, Mapping[str, Any]]:  # fmt: skip
    layers: dict[int, Mapping[str, Any]] = {}
    for number, ffn in enumerate(dense.ffns):
        say(f"Layer {ffn.layer}", number, len(dense.ffns))
        if (kept := writer.unit(ffn.name)) is not None:
            layers[ffn.layer] = kept
            continue
        layer = read_ffn(dense, ffn)
        new = edit(layer).checked(ffn.shape.width, f"layer {ffn.layer}")
        if new.sizes != sizes:
            raise OptionError(
                f"layer {ffn.layer} has (experts, inner width, shared width) {new.sizes}, the first {sizes}: "
                "config.json has one number for all layers. Make them alike."
            )
        names = []
        for name, tensor in target.tensors(number, new, layer.weights["down_proj"].dtype, sizes[2] or EMPTY):
            writer.add(name, tensor)
            names.append(name)
        layers[ffn.layer] = json.loads(json.dumps(dict(new.about or {}), default=str))
        writer.finish_unit(ffn.name, layers[ffn.layer], names)
    return layers


def write_rest(dense: DenseCheckpoint, writer: CheckpointWriter) -> None:
    """Everything that is no feed-forward, as it is; what is quantised as floats, like the feed-forwards."""
    gone = {name for ffn in dense.ffns for name in ffn.names.values()}
    made = {(part.path, part.start) for each in dense.encoded.values() for part in each.parts.values()}
    for name, part in dense.dense.items():
        if name not in gone and (part.path, part.start) not in made:
            writer.copy(name, part)
    for name, encoded in dense.encoded.items():
        if name not in gone:
            writer.add(name, encoded.read(dense.compute_dtype))


def _check(dense: DenseCheckpoint, edit: MixtureEdit, top_k: int, path: Path) -> float:
    ids = probe_ids(dense, 16)
    expected = logits_of(mixture_host(dense, edit, top_k), ids)
    found = written_logits(path, ids)
    difference = float((found - expected).abs().max() / expected.std().clamp(min=1e-6))
    if not difference <= NEAR:
        raise CheckpointError(
            f"The written model does not answer as the edit does: logits differ by {difference:.2g} of their spread, "
            f"where rounding makes {NEAR:g} at most. Nothing was put in place."
        )
    return difference


def mixture_host(dense: DenseCheckpoint, edit: MixtureEdit | None, top_k: int) -> Any:
    """The dense model in float32 with ``edit``'s mixture in place of each feed-forward, made when it is computed.

    ``edit=None``: the feed-forwards themselves, read one at a time.
    """
    body = skeleton(dense.config, torch.float32)
    names = [*dense.beside, *(ffn.name for ffn in dense.ffns)]
    taken = {name for ffn in dense.ffns for name in ffn.names.values()}
    readers = {name: read for name, read in dense.dense_readers().items() if name not in taken}
    host = load_dense(class_without(type(body), names), dense.path, body.config, readers, torch.float32)
    for ffn in dense.ffns:
        host.set_submodule(ffn.name, _Mixture(dense, ffn, edit, top_k))
    return host.requires_grad_(False).eval()


class _Mixture(nn.Module):
    def __init__(self, dense: DenseCheckpoint, ffn: Any, edit: MixtureEdit | None, top_k: int) -> None:
        super().__init__()
        self.given = (dense, ffn, edit)
        self.top_k = top_k

    def forward(self, hidden_states: Tensor) -> Tensor:
        dense, ffn, edit = self.given
        layer = read_ffn(dense, ffn)
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        y = computed(x, layer.weights, layer) if edit is None else _mixed(x, edit(layer), layer, self.top_k)
        return y.view(hidden_states.shape)


def _mixed(x: Tensor, new: NewMixture, layer: DenseLayer, top_k: int) -> Tensor:
    dtype = layer.weights["down_proj"].dtype
    probs = F.linear(x, new.router.to(dtype).to(x.dtype)).softmax(-1)
    weights, chosen = probs.topk(top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        item, rank = (chosen == expert).nonzero(as_tuple=True)
        own = {name: stack[expert].to(dtype) for name, stack in new.experts.items()}
        y[item] += computed(x[item], own, layer) * weights[item, rank, None]
    if new.shared is not None:
        y = y + computed(x, {name: weight.to(dtype) for name, weight in new.shared.items()}, layer)
    return y


def computed(x: Tensor, weights: Mapping[str, Tensor], layer: DenseLayer) -> Tensor:
    """[n, D] through one feed-forward with the activation of ``layer``."""

    def linear(name: str, rows: Tensor) -> Tensor:
        bias = weights.get(f"{name}_bias")
        return F.linear(rows, weights[name].to(x.dtype), None if bias is None else bias.to(x.dtype))

    shape = replace(layer.shape, inner=weights["up_proj"].shape[0])
    gate = linear("gate_proj", x) if shape.gated else None
    return linear("down_proj", shape.hidden(linear("up_proj", x), gate))
