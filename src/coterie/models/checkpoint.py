"""A checkpoint opened: config, expert sites, dense tensors, sizes. Headers only; no weight is read.

Everything that can be wrong with a directory is found here, before anything big is allocated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import UnsupportedError
from coterie.experts import method_of
from coterie.models.checksum import Seal
from coterie.models.compat import read_config, resident_bytes, skeleton, text_config
from coterie.models.dense import Encoded
from coterie.models.families import WHOLE_PROMPT, check_family, dense_text
from coterie.models.hub import resolve
from coterie.models.layout import sort_tensors
from coterie.models.shards import quantization_of, read_config_json, read_ranges
from coterie.models.site import ExpertSite
from coterie.models.stored import FILE, Stored, as_base, is_routed, read_stored
from coterie.models.tensors import FLOATS, read_tensor
from coterie.ranges import TensorRange

__all__ = ["Checkpoint", "ExpertSite", "open_checkpoint", "resolve"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a directory holds. Frozen; thread-safe.

    Attributes:
        path: the directory.
        config: transformers' config, of the whole model. Not to be changed.
        ranges: disk name -> byte range of every tensor, used or not.
        sites: the layers with experts, in order.
        dense: disk name -> byte range of what else the text side has.
        encoded: name of a weight -> how several tensors of ``dense`` make it, where it is quantised.
        beside: names of modules for pictures and sounds, which are left out.
        quantization: ``quantization_config`` of config.json, None if nothing is quantised.
        compute_dtype: of the dense weights in memory and of the activations, as transformers would choose.
        dense_bytes: of dense weights and buffers in memory; tied tensors count once.
        seal: what the files were when this was opened.
        stored: what coterie.json says of a model with routers or experts of ours; None where transformers knows all.
    """

    path: Path
    config: Any = field(repr=False)
    ranges: Mapping[str, TensorRange] = field(repr=False)
    sites: tuple[ExpertSite, ...] = field(repr=False)
    dense: Mapping[str, TensorRange] = field(repr=False)
    encoded: Mapping[str, Encoded] = field(repr=False)
    beside: tuple[str, ...] = field(repr=False)
    quantization: Mapping[str, Any] | None = field(repr=False)
    compute_dtype: torch.dtype
    dense_bytes: int
    seal: Seal = field(repr=False)
    stored: Stored | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the experts when they are computed with: as on disk, where nothing is quantised."""
        return self.sites[0].dtype

    @property
    def text(self) -> Any:
        """The part of the config that describes the language model; all of it where there is nothing else."""
        return text_config(self.config)

    @cached_property
    def expert_bytes(self) -> int:
        """Of all experts, on disk."""
        return sum(part.nbytes for site in self.sites for part in site.ranges())

    @cached_property
    def bytes_per_expert(self) -> int:
        """Of the largest expert, on disk."""
        return max(site.nbytes(expert) for site in self.sites for expert in range(site.num_experts))

    @cached_property
    def float_bytes(self) -> int:
        """Of all experts as they are computed with: more than on disk where they are quantised."""
        return sum(site.computed_bytes(site.num_experts) for site in self.sites)

    @cached_property
    def bytes_per_token(self) -> int:
        """What one token reads in memory: dense weights and its experts, as they are computed with."""
        return self.dense_bytes + sum(site.computed_bytes(site.top_k) for site in self.sites)

    @property
    def num_experts(self) -> int:
        """Of all sites together."""
        return sum(site.num_experts for site in self.sites)

    @property
    def context_length(self) -> int | None:
        """Tokens the model was made for; None if its config does not say."""
        return getattr(self.text, "max_position_embeddings", None)

    @property
    def reads_in_pieces(self) -> bool:
        """Whether a prompt may be read in several forwards that share a cache."""
        return self.config.model_type not in WHOLE_PROMPT and not self.config.is_encoder_decoder

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.text.vocab_size)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text, by generation_config.json, else by config.json."""
        ids = getattr(self.config, "eos_token_id", None) or self.text.eos_token_id
        # only defaults live there: it may be absent, and a broken one is reported when the model is loaded
        with contextlib.suppress(OSError, ValueError, AttributeError):
            ids = json.loads((self.path / "generation_config.json").read_text()).get("eos_token_id", ids)
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def dense_readers(self, keep: bool = False) -> dict[str, Callable[[], Tensor]]:
        """Name of a dense weight -> what reads it, as floats where it is quantised; ``keep`` as of `read_tensor`."""
        taken = {(part.path, part.start) for each in self.encoded.values() for part in each.parts.values()}
        plain = {name: part for name, part in self.dense.items() if (part.path, part.start) not in taken}
        return {name: partial(read_tensor, part, keep=keep) for name, part in plain.items()} | {
            name: each.read for name, each in self.encoded.items()
        }

    def fingerprint(self) -> str:
        """Hash of config.json and of every tensor's name, type, shape and place; not of the weights themselves."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in _beside(self.path, self.stored is not None):
            digest.update(file.read_bytes())
        for name, part in sorted(self.ranges.items()):
            digest.update(repr((name, part.path.name, part.dtype, part.shape, part.start)).encode())
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Compare the files with what they were when this was opened.

        Sizes and times always; contents where it was opened with ``checksum`` (reads everything).

        Raises:
            ChecksumError: a file has changed.
        """
        self.seal.check()


def open_checkpoint(model: str | Path, revision: str | None = None, checksum: bool = False) -> Checkpoint:
    """Open a mixture-of-experts checkpoint: a directory, or a name on the Hugging Face hub.

    Args:
        model: where.
        revision: branch, tag or commit on the hub.
        checksum: read all files once and keep their SHA-256; files from the hub are held against the hub's.

    Raises:
        CheckpointError: missing, not a checkpoint, incomplete, damaged or contradicting itself.
        ChecksumError: with ``checksum``, a file from the hub is not what the hub says.
        UnsupportedError: a dense model, a family or a format that is not served.
    """
    path = resolve(model, revision)
    raw = read_config_json(path)
    routed = is_routed(raw)
    stored = read_stored(path) if routed else None
    check_family(as_base(raw, str(path)), str(path))
    quantization = quantization_of(raw)
    method_of(quantization, str(path))
    ranges = read_ranges(path)
    config = read_config(path)
    if stored is not None:
        config.coterie = stored.as_record()
    compute = config.dtype or text_config(config).dtype or _first_float(ranges)
    body = skeleton(config, compute)
    layout = sort_tensors(body, ranges, str(path), quantization)
    if not layout.sites:
        raise UnsupportedError(dense_text(str(path), config.model_type))
    dense_bytes = resident_bytes(body, [*layout.beside, *(site.name for site in layout.sites)])
    seal = Seal.of(
        [path / "config.json", *_beside(path, routed), *sorted({part.path for part in ranges.values()})],
        contents=checksum,
    )
    return Checkpoint(
        path, config, ranges, layout.sites, layout.dense, layout.encoded, layout.beside, quantization, compute,
        dense_bytes, seal, stored,
    )  # fmt: skip


def _beside(path: Path, routed: bool) -> list[Path]:
    return [path / FILE] if routed else []


def _first_float(ranges: Mapping[str, TensorRange]) -> torch.dtype:
    """What transformers computes in where the config does not say."""
    return next((FLOATS[part.dtype] for part in ranges.values() if part.dtype in FLOATS), torch.float32)
