"""Tensor names on disk -> names in memory, by transformers' own conversion table.

Most families store one tensor per expert and projection and hold one [E, ...] parameter per
projection. The table says which pattern of names is stacked into which parameter, which are laid
side by side (the n-th pattern of a converter is the n-th part of the parameter), and what lies on
disk in another order than in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_STACK, _BESIDE = ("MergeModulelist", 0), ("Concatenate", 1)
_SPLIT_MODALITIES = ("ErnieFuseAndSplitTextVisionExperts", None)


@dataclass(frozen=True)
class Place:
    """Where a tensor on disk belongs.

    Attributes:
        name: the parameter or buffer in memory; may be none of the model's.
        expert: its number, None where the tensor is the whole parameter.
        part: which of ``parts`` equal pieces of the expert's matrix it is.
        order: "same", "transposed" (the last two dimensions are exchanged on disk) or "interleaved" (gate and up
            alternate on disk).
        converted: something else is done to it; then its shape on disk says nothing.
        fills: every parameter that is made from it.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    order: str = "same"
    converted: bool = False
    fills: tuple[str, ...] = ()


class DiskNames:
    """The conversion table of one model.

    Args:
        model: may be a skeleton.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        table = get_model_conversion_mapping(model)
        self._converters = [entry for entry in table if isinstance(entry, WeightConverter)]
        self._renamings = [entry for entry in table if not isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()
        self._by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}

    def place(self, name: str) -> Place:
        """Where the tensor called ``name`` on disk belongs."""
        from transformers.core_model_loading import rename_source_key

        renamed, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        if pattern is None or (renamed not in self._state and name in self._state):
            known = name if renamed not in self._state and name in self._state else renamed
            return Place(known, fills=(known,))
        converter = self._by_pattern[pattern]
        steps = [(type(op).__name__, getattr(op, "dim", None)) for op in converter.operations]
        number = re.search(_expert_number(pattern), self._renamed(name))
        if steps == [_BESIDE] and renamed in self._state and self._state[renamed].dim() == 3:  # stacked already
            beside = converter.source_patterns
            return Place(renamed, part=beside.index(pattern), parts=len(beside), fills=(renamed,))
        if number is None or not number.groups():
            return self._whole(renamed, converter, [step for step, _ in steps])
        part, parts = converter.source_patterns.index(pattern), len(converter.source_patterns)
        if steps == [_SPLIT_MODALITIES]:
            renamed, expert = self._of_modality(renamed, converter, int(number[1]))
            return Place(renamed, expert, part, parts, fills=(renamed,))
        stacked = steps == ([_STACK] if parts == 1 else [_STACK, _BESIDE])
        return Place(renamed, int(number[1]), part, parts, converted=not stacked, fills=(renamed,))

    def _whole(self, renamed: str, converter: Any, steps: list[str]) -> Place:
        """A tensor that is all of a parameter, or that several parameters are made from."""
        order = {"Transpose": "transposed", "Interleave": "interleaved"}.get("+".join(steps), "same")
        first, *others = map(_plain, converter.target_patterns)
        fills = (renamed, *(renamed.replace(first, other) for other in others))
        return Place(renamed, order=order, converted=True, fills=fills)

    def _of_modality(self, renamed: str, converter: Any, number: int) -> tuple[str, int]:
        """Experts of several modalities are numbered on disk as if they were one list: equal shares, in order."""
        targets = converter.target_patterns
        count = self._state[renamed].shape[0] if renamed in self._state else number + 1
        which = min(number // count, len(targets) - 1)
        return renamed.replace(targets[0], targets[which]), number - which * count

    def _renamed(self, name: str) -> str:
        """As the converters see it: only the plain renamings are done."""
        from transformers.core_model_loading import apply_renamings

        return apply_renamings(name, self._renamings)


def _plain(pattern: str) -> str:
    """A pattern of the table as the text it stands for."""
    return pattern.replace("\\", "").strip("^$")


def _expert_number(pattern: str) -> str:
    """A regular expression for the number where the table has a star."""
    return re.escape(_plain(pattern)).replace(r"\*", r"(\d+)")
