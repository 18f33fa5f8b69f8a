"""First rows of the gates of an upcycled model: by lot, or by what prompts look like to the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.jobs.growing.upcycle_plan import UpcyclePlan
from coterie.models.checkpoint import Checkpoint
from coterie.models.compat import DiskNames, skeleton
from coterie.models.find import find_sites
from coterie.models.prompt_states import mean_embeddings, mean_inputs
from coterie.models.prompts import Prompts
from coterie.surgery.dense import DenseCheckpoint
from coterie.surgery.from_dense import mixture_host
from coterie.surgery.upcycle import ALIKE, prompt_rows
from coterie.surgery.verify import served

__all__ = ["Alike", "Gate", "first_gates", "new_states"]

Gate = Tensor
"""[E, D] float32."""
_YES, _NO = "prompts of expert {}", "negative prompts of expert {}"


@dataclass(frozen=True)
class Alike:
    """How well prompts tell experts apart.

    Attributes:
        layers: of the model.
        close: those in which two experts' prompts look nearly the same.
        most: the largest cosine of two experts' mean inputs, over all layers.
    """

    layers: int
    close: int
    most: float

    @property
    def note(self) -> str:
        """A sentence where it matters."""
        if not self.close:
            return ""
        return (
            f"In {self.close} of {self.layers} layers the prompts of two experts look alike to the base (cosine up to "
            f"{self.most:.3f}): give prompts that differ more, or train the router."
        )


def first_gates(
    base: DenseCheckpoint, plan: UpcyclePlan, say: Callable[[str], None]
) -> tuple[Callable[[str, int], Gate], Alike | None]:
    """(name of a feed-forward, number of its layer) -> [E, D] rows; and how alike prompts are, where there are any.

    Raises:
        PromptError: a prompt is empty or too long.
        CheckpointError: the base has no tokenizer, or computes numbers that are not finite.
        OptionError: embeddings are asked for, and are of another width than the layers.
    """
    width, count = base.ffns[0].shape.width, len(plan.experts)
    if not plan.needs_prompts:

        def drawn(name: str, layer: int) -> Gate:
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + layer)
            rows = torch.randn(count, width, generator=generator) * width**-0.5
            return rows if plan.gates == "random" else torch.zeros(count, width)

        return drawn, None
    prompts = Prompts.of(base.path, base.context_length)
    groups = _groups([each.prompts for each in plan.experts], [each.negative for each in plan.experts])
    if plan.gates == "cheap_embed":
        table = _embedding(base)
        if table.shape[1] != width:
            raise OptionError(
                f"The embeddings of {base.path} are {table.shape[1]} wide and its layers {width}, so that rows of a "
                "gate cannot be made of them. Choose gates by hidden."
            )
        means = mean_embeddings(table, prompts, groups)
        states = {ffn.name: means for ffn in base.ffns}
    else:
        host = mixture_host(base, None, 1)
        modules = {ffn.name: host.get_submodule(ffn.block) for ffn in base.ffns}
        pooling: Any = "last" if plan.gates == "hidden_last" else "mean"
        states = mean_inputs(host, modules, prompts, groups, pooling=pooling, say=say)
    made = {name: _rows(means, count) for name, means in states.items()}
    cosines = [alike for _, alike in made.values()]
    close = sum(alike > ALIKE for alike in cosines)
    return lambda name, layer: made[name][0], Alike(len(cosines), close, max(cosines))


def new_states(
    checkpoint: Checkpoint, prompts: Sequence[str], negative: Sequence[str], say: Callable[[str], None]
) -> Mapping[str, tuple[Tensor, Tensor | None]]:
    """Experts' module path -> [D] mean input of the layer over the prompts, and over the negative ones.

    The mixture runs with one layer's experts in memory at a time.

    Raises:
        PromptError, CheckpointError: as of `first_gates`.
    """
    host = served(checkpoint)
    modules = {site.name: host.get_submodule(site.block_name) for site in find_sites(host)}
    groups = _groups([prompts], [negative])
    found = mean_inputs(host, modules, Prompts.of(checkpoint.path, checkpoint.context_length), groups, say=say)
    return {name: (means[_YES.format(0)], means.get(_NO.format(0))) for name, means in found.items()}


def _groups(positive: Sequence[Sequence[str]], negative: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    yes = {_YES.format(number): texts for number, texts in enumerate(positive)}
    return yes | {_NO.format(number): texts for number, texts in enumerate(negative) if texts}


def _rows(means: Mapping[str, Tensor], count: int) -> tuple[Tensor, float]:
    positive = torch.stack([means[_YES.format(number)] for number in range(count)])
    empty = torch.full_like(positive[0], torch.nan)
    negative = torch.stack([means.get(_NO.format(number), empty) for number in range(count)])
    return prompt_rows(positive, negative)


def _embedding(base: DenseCheckpoint) -> Tensor:
    """[V, D]: the input embeddings."""
    body = skeleton(base.config, base.compute_dtype)
    table = body.get_input_embeddings()
    full = next(f"{name}.weight" for name, module in body.named_modules() if module is table)
    names, readers = DiskNames(body), base.dense_readers()
    return next(read() for disk, read in readers.items() if full in names.place(disk).fills)
