"""The weights of a checkpoint that are no experts: which tensors they are, and whether all are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError, UnsupportedError
from coterie.experts import Encoding, Part
from coterie.models.compat import Place
from coterie.models.tensors import FLOATS, INTEGERS, read_tensor
from coterie.ranges import TensorRange


@dataclass(frozen=True)
class Encoded:
    """One weight that several tensors on disk make: numbers and their scales.

    Attributes:
        encoding: how.
        parts: role -> where.
    """

    encoding: Encoding
    parts: Mapping[str, TensorRange] = field(repr=False)

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight as floats, in fresh memory. Blocks; thread-safe."""
        tensors = {role: read_tensor(self.parts[role]) for role in self.encoding.parts()}
        return self.encoding.decode(tensors, dtype)


class Dense:
    """Collects a model's dense tensors, then says whether they are complete.

    Args:
        state: parameters and buffers of the model.
        outside: prefixes of what is left out.
        quantization: ``quantization_config`` of config.json.
        where: what to call the checkpoint in errors.
    """

    def __init__(
        self, state: Mapping[str, Any], outside: tuple[str, ...], quantization: Mapping[str, Any] | None, where: str
    ) -> None:
        self.ranges: dict[str, TensorRange] = {}
        self.encoded: dict[str, Encoded] = {}
        self._state, self._outside, self._quantization, self._where = state, outside, quantization, where
        self._filled: dict[str, TensorRange | None] = {}
        self._roles: dict[str, dict[str, TensorRange]] = defaultdict(dict)
        self._places: dict[str, Place] = {}

    def add(self, base: str, role: str, place: Place, name: str, part: TensorRange) -> None:
        """A tensor called ``name`` on disk, of the weight ``base``; nothing happens if the model has none such."""
        wanted = [one for one in place.fills if one in self._state and not one.startswith(self._outside)]
        if not wanted:
            return
        self.ranges[name] = part
        self._roles[base][role], self._places[base] = part, place
        self._filled |= dict.fromkeys(wanted, None if place.converted or role else part)

    def check(self, expected: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]) -> None:
        """Work out how weights are stored and that none is missing.

        Raises:
            CheckpointError: one is, or has another shape.
            UnsupportedError: one is stored in a type that is not served.
        """
        for base, roles in self._roles.items():
            self._check(base, roles, expected)
        twins: dict[str, set[str]] = defaultdict(set)
        for target, source in tied.items():
            twins[target].add(source)
            twins[source].add(target)
        missing = [name for name in expected if name not in self._filled and not twins[name] & self._filled.keys()]
        if missing:
            raise CheckpointError(
                f"{self._where} is incomplete: it lacks {missing[0]!r} ({len(missing)} tensors of the model are "
                "missing). Copy or download it again."
            )

    def _check(self, base: str, roles: Mapping[str, TensorRange], expected: Mapping[str, tuple[int, ...]]) -> None:
        place = self._places[base]
        if roles.keys() - {""}:
            shape = expected[place.name] if place.name in expected and not place.converted else roles[""].shape
            found = {role: Part(part.dtype, part.shape) for role, part in roles.items()}
            encoding = Encoding.of(self._quantization, shape, found, f"{self._where}: {base}")
            self.encoded[base] = Encoded(encoding, dict(roles))
            return
        integers = not any(self._state[name].is_floating_point() for name in place.fills if name in self._state)
        check_type(base, roles[""], self._where, INTEGERS if integers else FLOATS)
        if not place.converted:
            check_shape(base, roles[""].shape, expected[place.name], self._where)


def check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    """Refuse a tensor of another shape than the config makes it."""
    if found != expected:
        raise CheckpointError(
            f"{where} contradicts itself: {name!r} is {list(found)}, config.json makes it {list(expected)}. "
            "Config and weights are of different models: copy or download both again."
        )


def check_type(name: str, part: TensorRange, where: str, allowed: Mapping[str, Any] = FLOATS) -> None:
    """Refuse a tensor that is no weight as it stands."""
    if part.dtype not in allowed:
        raise UnsupportedError(
            f"{where} is quantised: {name!r} is stored as {part.dtype}, and config.json does not say how to read that. "
            "Choose the checkpoint in bfloat16, float16 or float32, or copy its config.json again."
        )
