"""Does what lies on disk answer as the edit does? It is opened afresh and read once, one expert at a time.

Two things are compared. Bytes: every expert with what the edit made, under the names and in the layout that loading
it goes by, and every tensor that was copied with the source. Logits: a few tokens through the whole model, with the
edit's in memory; that is what would show a config that says another thing than the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, CoterieError, UnsupportedError
from coterie.experts import Experts
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.compat import auto_class, quiet, text_inputs
from coterie.models.language import load_host
from coterie.routing import Routing
from coterie.surgery.disk import pieces
from coterie.surgery.forward import rows_of
from coterie.surgery.marks import Marks, experts_on_disk
from coterie.surgery.narrow import dense_dtype, widened

__all__ = ["NEAR", "check_written", "distance", "logits_of", "probe_ids", "served"]

NEAR = 2e-3
"""Largest difference of logits, as a share of their spread, that is rounding: both sides compute in float32."""
_WHOLE = 64 << 20  # bytes of a checkpoint up to which transformers loads it whole, as a user would


def check_written(
    source: Checkpoint, written: Checkpoint, expected: Tensor, marks: Mapping[str, Marks], copied: Iterable[str]
) -> float:
    """Compare a checkpoint with what it should be. Blocks; peak memory is its dense weights.

    A checkpoint up to 64 MiB is loaded by transformers itself.

    Args:
        source: what it was made of.
        written: opened afresh.
        expected: [N, V] logits of the edit in memory for `probe_ids`.
        marks: module path of a layer's experts in ``written`` -> what they must be.
        copied: names of tensors that must have the bytes they have in ``source``.

    Returns:
        the largest difference of logits as a share of their standard deviation.

    Raises:
        CheckpointError: bytes differ, or logits by more than rounding.
    """
    for name in copied:
        _check_copy(name, source, written)
    return distance(_written_logits(written, probe_ids(source, len(expected)), marks), expected, "the edit")


def distance(found: Tensor, expected: Tensor, of: str) -> float:
    """The largest difference of logits as a share of their standard deviation.

    Raises:
        CheckpointError: it is more than rounding, or the model has another vocabulary; ``of`` is called what it
            should be.
    """
    if found.shape != expected.shape:
        raise CheckpointError(
            f"The written model has logits {list(found.shape)} where {of} has {list(expected.shape)}. Nothing was put "
            "in place."
        )
    difference = float((found - expected).abs().max() / expected.std().clamp(min=1e-6))
    if not difference <= NEAR:
        raise CheckpointError(
            f"The written model does not answer as {of} does: logits differ by {difference:.2g} of their spread, "
            f"where rounding makes {NEAR:g} at most. Nothing was put in place."
        )
    return difference


def probe_ids(checkpoint: Checkpoint, tokens: int = 8) -> Tensor:
    """[1, N] token ids, always the same for one vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(checkpoint.vocab_size, (1, tokens), generator=generator)


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """[N, V] float32 logits of a live model for ``ids`` [1, N]."""
    logits: Tensor = model(input_ids=ids, **text_inputs(model, ids)).logits
    return logits[0].float()


def served(checkpoint: Checkpoint, marks: Mapping[str, Marks] | None = None) -> Any:
    """The model in float32 with each layer's experts read when they are computed, and forgotten after.

    Args:
        checkpoint: opened.
        marks: as of `check_written`; a forward raises where experts are not what they say.
    """
    dtype = dense_dtype(checkpoint)
    return widened(load_host(checkpoint, lambda site: _OnDemand(site, (marks or {}).get(site.name)), dtype, keep=True))


class _OnDemand(Experts):
    def __init__(self, site: ExpertSite, marks: Marks | None) -> None:
        super().__init__()
        self.site, self.marks, self.num_experts = site, marks, site.num_experts

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        return rows_of(x, routing, experts_on_disk(self.site, self.marks))


def _written_logits(written: Checkpoint, ids: Tensor, marks: Mapping[str, Marks]) -> Tensor:
    """Logits of a checkpoint that was opened afresh, whose experts are held against ``marks`` on the way."""
    if sum(part.nbytes for part in written.ranges.values()) > _WHOLE:
        return logits_of(served(written, marks), ids)
    for site in written.sites:
        for _ in experts_on_disk(site, marks.get(site.name)):
            pass
    try:
        with quiet():
            return logits_of(auto_class(written.config).from_pretrained(written.path, dtype=torch.float32).eval(), ids)
    except UnsupportedError:  # a family whose experts only the host can call
        return logits_of(served(written), ids)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:  # of the loader
        if isinstance(error, CoterieError) or "can't allocate memory" in str(error):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise CheckpointError(
            f"transformers does not load what was written: {reason} Nothing was put in place."
        ) from error


def _check_copy(name: str, source: Checkpoint, written: Checkpoint) -> None:
    before, after = source.ranges[name], written.ranges.get(name)
    alike = after is not None and (before.dtype, before.shape) == (after.dtype, after.shape)
    if after is None or not alike or not all(map(_equal, pieces(before), pieces(after))):
        raise CheckpointError(
            f"What was written is not what was copied: {name}. Nothing was put in place. Is the disk sound?"
        )


def _equal(a: memoryview, b: memoryview) -> bool:
    return torch.equal(torch.frombuffer(a, dtype=torch.uint8), torch.frombuffer(b, dtype=torch.uint8))
