"""A dense checkpoint written as a mixture of experts, one layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.models.checkpoint import open_checkpoint
from coterie.models.compat import class_without, load_dense, skeleton
from coterie.models.dense_mixture import take_place
from coterie.surgery.card import write_card
from coterie.surgery.dense import DenseCheckpoint, DenseLayer, read_ffn
from coterie.surgery.forward import by_channels
from coterie.surgery.marks import Marks, marks_of
from coterie.surgery.method import Method
from coterie.surgery.mixture import mixture_family
from coterie.surgery.narrow import dense_dtype, widened
from coterie.surgery.new_mixture import MixtureTarget, NewMixture
from coterie.surgery.rewrite import MAX_SHARD, Rewritten, Say, copy_beside
from coterie.surgery.size import size_of
from coterie.surgery.threads import computing
from coterie.surgery.verify import check_written, logits_of, probe_ids
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
    of the dense config are carried over. Where a native family has all of it, the result loads in plain transformers;
    else it is the dense family's own format with coterie.json.

    Args:
        dense: of `open_dense`.
        out: the directory to make; must not exist.
        edit: one feed-forward to its mixture; E, F' and the shared expert's size must be those of the other layers.
            Called once per layer, in order.
        top_k: experts of each token.
        about, progress, resume, max_shard, check: as in `coterie.surgery.rewrite`.
        family: one of `FAMILY_NAMES`; "auto" chooses by what the dense model is.

    Raises:
        OptionError: ``out`` exists, layers of different sizes, or a family that cannot hold it.
        UnsupportedError: feed-forwards that differ from layer to layer.
        CheckpointError: the source is damaged or holds NaN, the disk is full, or the check failed.
    """
    out, say = Path(out).expanduser(), progress or (lambda *_: None)
    refuse_existing(out, resume)
    first = edit(read_ffn(dense, dense.ffns[0])).checked(dense.ffns[0].shape, "layer 0")
    sizes = first.sizes
    if not 1 <= top_k <= sizes[0]:
        raise OptionError(f"A token goes to 1 up to all of the {sizes[0]} experts, not {top_k}.")
    target = mixture_family(dense, family, shared=first.shared is not None)
    config, stored = target.written_config(dense, sizes, top_k), target.stored(dense, sizes, top_k, about)
    job = {
        "source": dense.fingerprint(), "method": about.as_record(), "container": target.name, "sizes": [*sizes, top_k]
    }  # fmt: skip
    per_layer = 3 * sizes[0] + 8
    names = (90 * per_layer * len(dense.ffns) + sum(map(len, dense.ranges)), per_layer * len(dense.ffns) + 400)
    with CheckpointWriter(out, job, names=names, max_shard=max_shard, resume=resume) as writer:
        layers = _NewMixtures(dense, edit, target, writer, say, first, mark=check)
        with computing(torch.get_num_threads() - 1):  # the writer has one of its own
            expected = logits_of(mixture_host(dense, layers.make, top_k), probe_ids(dense)) if check else None
            layers.make_rest()
        copied = write_rest(dense, writer)
        writer.complete(config, lambda part: copy_beside(dense.path, part, stored))
        written = open_checkpoint(writer.part)
        difference = None
        if expected is not None:
            say("Checking", len(dense.ffns), len(dense.ffns))
            marks = {site.name: layers.marks[ffn.name] for site, ffn in zip(written.sites, dense.ffns, strict=True)}
            difference = check_written(dense, written, expected, marks, copied)
        made = Rewritten(
            out, target.container, size_of(dense), size_of(written), layers.about, difference, writer.held
        )  # fmt: skip
        write_card(writer.part, dense, about, made)
        writer.move()
    return made


class _NewMixtures:
    """Makes and writes the mixtures, each when a forward comes to its feed-forward.

    Attributes:
        about: what the edit said of each layer, by the layer's number.
        marks: name of a feed-forward -> of its experts.
    """

    def __init__(
        self, dense: DenseCheckpoint, edit: MixtureEdit, target: MixtureTarget, writer: CheckpointWriter, say: Say,
        first: NewMixture, *, mark: bool,
    ) -> None:  # fmt: skip
        self.dense, self.edit, self.target, self.writer, self.say, self.mark = dense, edit, target, writer, say, mark
        self.sizes = first.sizes
        self._first: NewMixture | None = first
        self._numbers = {ffn.name: number for number, ffn in enumerate(dense.ffns)}
        self._made: set[str] = set()
        self.about: dict[int, Mapping[str, Any]] = {}
        self.marks: dict[str, Marks] = {}

    def make(self, layer: DenseLayer) -> NewMixture:
        """Edit, check and write one layer; tensors that an earlier writer has written stay."""
        ffn, number = layer.ffn, self._numbers[layer.ffn.name]
        self.say(f"Layer {ffn.layer}", len(self._made), len(self.dense.ffns))
        new, self._first = (None, self._first) if number else (self._first, None)
        if new is None:
            new = self.edit(layer).checked(ffn.shape, f"layer {ffn.layer}")
        if ffn.name in self._made:  # a module that a forward passes several times
            return new
        if new.sizes != self.sizes:
            raise OptionError(
                f"layer {ffn.layer} has (experts, inner width, shared width) {new.sizes}, the first {self.sizes}: "
                "config.json has one number for all layers. Make them alike."
            )
        names, dtype = [], layer.weights["down_proj"].dtype
        for name, tensor in self.target.tensors(number, ffn, new, dtype):
            self.writer.add(name, tensor)
            names.append(name)
        self.about[ffn.layer] = json.loads(json.dumps(dict(new.about or {}), default=str))
        self.writer.finish_unit(ffn.name, self.about[ffn.layer], names)
        self._made.add(ffn.name)
        if self.mark:
            self.marks[ffn.name] = marks_of(new.experts, dtype)
        return new

    def make_rest(self) -> None:
        """Without a check nothing has been asked for: all, but for what an earlier writer finished."""
        for ffn in self.dense.ffns:
            if ffn.name in self._made:
                continue
            if (kept := self.writer.unit(ffn.name)) is not None:
                self.about[ffn.layer] = kept
            else:
                self.make(read_ffn(self.dense, ffn))


def write_rest(dense: DenseCheckpoint, writer: CheckpointWriter) -> list[str]:
    """Everything that is no feed-forward, as it is; what is quantised as floats, like the feed-forwards.

    Returns the names of what was copied as it is.
    """
    gone = {name for ffn in dense.ffns for name in ffn.names.values()}
    made = {(part.path, part.start) for each in dense.encoded.values() for part in each.parts.values()}
    copied = [
        name for name, part in dense.dense.items() if name not in gone and (part.path, part.start) not in made
    ]  # fmt: skip
    for name in copied:
        writer.copy(name, dense.dense[name])
    for name, encoded in dense.encoded.items():
        if name not in gone:
            writer.add(name, encoded.read(dense.compute_dtype))
    return copied


def mixture_host(dense: DenseCheckpoint, edit: MixtureEdit | None, top_k: int) -> Any:
    """The dense model in float32 with ``edit``'s mixture in place of each feed-forward, made when it is computed.

    ``edit=None``: the feed-forwards themselves, read one at a time.
    """
    dtype = dense_dtype(dense)
    body = skeleton(dense.config, dtype)
    names = [*dense.beside, *(path for ffn in dense.ffns for path in ffn.held)]
    taken = {name for ffn in dense.ffns for name in ffn.names.values()}
    readers = {name: read for name, read in dense.dense_readers(keep=True).items() if name not in taken}
    host = load_dense(class_without(type(body), names), dense.path, body.config, readers, dtype)
    blocks = [(ffn.block, _Mixture(dense, ffn, edit, top_k)) for ffn in dense.ffns]
    take_place(host, blocks, [path for ffn in dense.ffns for path in ffn.empty], str(dense.path))
    return widened(host).requires_grad_(False).eval()


class _Mixture(nn.Module):
    def __init__(self, dense: DenseCheckpoint, ffn: Any, edit: MixtureEdit | None, top_k: int) -> None:
        super().__init__()
        self.given = (dense, ffn, edit)
        self.top_k = top_k

    def forward(self, hidden_states: Tensor) -> Tensor:
        dense, ffn, edit = self.given
        layer = read_ffn(dense, ffn)
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        y = by_channels(x, layer.weights, layer.shape) if edit is None else _mixed(x, edit(layer), layer, self.top_k)
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
        y[item] += by_channels(x[item], own, layer.shape) * weights[item, rank, None]
    if new.shared is not None:
        y = y + by_channels(x, {name: weight.to(dtype) for name, weight in new.shared.items()}, layer.shape)
    return y
