"""What is left of factored experts' matrices, pruned by rows, columns or hidden neurons while they learn, or without.

MC-SMoE (arXiv 2310.01334, section 3.2): a unit of S counts by the mean of |s dL/ds| over its numbers, smoothed over
steps; a share of all units of all layers that falls as a cube survives, and the others are set to zero after every
step. They may grow back before the next. `coterie.surgery.pack_model` then drops what is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from coterie.errors import OptionError
from coterie.experts import Factored, KindExperts
from coterie.ops.structure import UNITS, check_schedule, keep_units, kept_share, neuron_scores, smoothed, unit_scores
from coterie.training.next_token import next_token_loss

__all__ = ["SAMPLES", "Sparsify", "zero_shot"]

SAMPLES = 512
"""Most windows that the zero-shot variant reads, as the paper has it."""
_FILE = "Sparsify.safetensors"


@dataclass(eq=False)
class _Remainder:
    """S of one matrix, or (by hidden neurons) those of one expert; its smoothed score per unit."""

    parts: Mapping[str, nn.Parameter]
    unit: str
    score: Tensor | None = None

    def feel(self) -> None:
        """Look at weights and gradients as they are now. The mean of a smoothed number is the smoothed mean."""
        zero = {name: torch.zeros_like(part) for name, part in self.parts.items() if part.grad is None}
        with torch.no_grad():
            felt = {
                name: smoothed(None, part, zero[name] if part.grad is None else part.grad)
                for name, part in self.parts.items()
            }
            now = neuron_scores(felt) if self.unit == "neuron" else unit_scores(next(iter(felt.values())), self.unit)
            self.score = now if self.score is None else smoothed(self.score, now, torch.ones_like(now))

    def prune(self, mask: Tensor) -> None:
        """Zero what is not in ``mask``."""
        with torch.no_grad():
            for name, part in self.parts.items():
                rows = self.unit == "row" or (self.unit == "neuron" and name != "down_proj")
                (part if rows else part.T)[~mask] = 0


class Sparsify(TrainerCallback):
    """Prunes S of every factored expert of the model that is trained. Final.

    A callback of `coterie.training.fit` and of anything built on Hugging Face's Trainer. Whatever is to be pruned must
    have all of its S (`coterie.surgery.factorize_model`). Its scores go into checkpoints, so that a resumed run ends
    with the same bits.

    Args:
        keep: share of all units that is left in the end.
        begin, end: shares of the steps before pruning begins, and after the last unit went (the paper: 400 and 1600 of
            10000).
        unit: "row", "col", or "neuron".

    Raises:
        OptionError: a share outside 0 to 1, or another unit.
    """

    def __init__(self, keep: float = 0.1, begin: float = 0.04, end: float = 0.16, unit: str = "row") -> None:
        if unit not in UNITS:
            raise OptionError(f"What is pruned is one of: {', '.join(UNITS)}; not {unit!r}.")
        if min(begin, end) < 0 or begin + end > 1:
            raise OptionError(f"begin={begin} and end={end} are shares of the steps: from 0, together at most 1.")
        check_schedule(1, 0, 0, keep)
        self.keep, self.begin, self.end, self.unit = keep, begin, end, unit
        self.share = 1.0
        self._remainders: list[_Remainder] = []

    def join(self, model: nn.Module) -> None:
        """Find what is to be pruned.

        Raises:
            OptionError: there is nothing, or S is not all there, or of other units.
        """
        found = [part for part in model.modules() if isinstance(part, KindExperts) and isinstance(part.kind, Factored)]
        self._remainders = [each for experts in found for each in _remainders(experts, self.unit)]
        if not self._remainders:
            raise OptionError(
                "There is nothing to prune: the model has no factored experts with all of their S. Make them with "
                "coterie.surgery.factorize_model(model, rank)."
            )

    def prune(self, step: int, total: int) -> float:
        """Take the gradients that are there into the scores and zero what falls behind. ``step`` counts from 1.

        Returns the share of units that survives. Called after the weights moved: the new weight, the old gradient, as
        the authors' code does.

        Raises:
            OptionError: a score is no number.
        """
        for each in self._remainders:
            each.feel()
        self.share = kept_share(step, total, round(self.begin * total), round(self.end * total), self.keep)
        if self.share < 1:
            scores = [each.score for each in self._remainders if each.score is not None]
            for each, mask in zip(self._remainders, keep_units(scores, self.share), strict=True):
                each.prune(mask)
        return self.share

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.join(model)
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
        if state.global_step and file.is_file():
            kept = load_file(file)
            for number, each in enumerate(self._remainders):
                each.score = kept[str(number)]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.prune(state.global_step + 1, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        scores = {str(n): each.score for n, each in enumerate(self._remainders) if each.score is not None}
        if scores:
            save_file(scores, Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE)


def zero_shot(model: Any, windows: Sequence[Tensor], sparsify: Sparsify) -> float:
    """Prune S of ``model`` in place without an optimiser: gradients only feed the scores. Blocks.

    Args:
        model: a causal language model with factored experts, see `Sparsify`; in eval mode.
        windows: of token ids [N] or [B, N]; one step each.
        sparsify: the schedule, over as many steps as there are windows.

    Returns the mean loss in nats per token of what was read, over the course of the pruning.

    Raises:
        OptionError: there are no windows, or more than `SAMPLES`; or nothing to prune.
    """
    if not 1 <= len(windows) <= SAMPLES:
        raise OptionError(f"Pruning without training reads 1 to {SAMPLES} windows of text, not {len(windows)}.")
    sparsify.join(model)
    parts = [part for each in sparsify._remainders for part in each.parts.values()]
    losses = []
    with torch.enable_grad(), _only(model, parts):
        for step, window in enumerate(windows, 1):
            ids = window if window.dim() == 2 else window[None]
            loss = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids)
            for part, gradient in zip(parts, torch.autograd.grad(loss, parts, allow_unused=True), strict=True):
                part.grad = gradient
            losses.append(float(loss.detach()))
            sparsify.prune(step, len(windows))
    for part in parts:
        part.grad = None
    return sum(losses) / len(losses)


def _remainders(experts: KindExperts, unit: str) -> Iterator[_Remainder]:
    """What of one layer's experts can be pruned."""
    assert isinstance(experts.kind, Factored)
    sizes = experts.kind.shape.weight_shapes()
    for expert in range(experts.num_experts):
        parts = experts.weights_of(expert)
        whole: dict[str, nn.Parameter] = {}
        for name, each in experts.kind.factors.items():
            factors = each[expert]
            if factors.rank and factors.kept and factors.whole(*sizes[name]):
                whole[name] = parts[f"{name}_s"]  # type: ignore[assignment]
        if unit == "neuron" and whole:
            yield _Remainder(whole, unit)
        elif unit != "neuron":
            yield from (_Remainder({name: part}, unit) for name, part in whole.items())


@contextmanager
def _only(model: nn.Module, parts: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, nothing but ``parts`` wants a gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
