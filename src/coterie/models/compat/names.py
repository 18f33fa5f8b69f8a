"""Tensor names on disk -> names in memory, by transformers' own conversion table.

Most families store one tensor per expert and projection and hold one [E, ...] parameter per
projection. The table says which pattern of names is stacked into which parameter, and which are
laid side by side: the n-th pattern of a converter is the n-th part of the parameter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from coterie.errors import UnsupportedError


@dataclass(frozen=True)
class Place:
    """Where a tensor on disk belongs.

    Attributes:
        name: the parameter or buffer in memory; may be none of the model's.
        expert: its number, None where the tensor is the whole parameter.
        part: which of ``parts`` equal pieces of the expert's matrix it is.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1


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
        """Where the tensor called ``name`` on disk belongs.

        Raises:
            UnsupportedError: it would have to be converted by more than stacking experts.
        """
        from transformers.core_model_loading import rename_source_key

        renamed, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        if renamed not in self._state and name in self._state:
            return Place(name)  # stored under its name in memory already
        if pattern is None:
            return Place(renamed)
        converter = self._by_pattern[pattern]
        if renamed in self._state and not _stacks(converter):
            raise UnsupportedError(
                f"{name!r} is stored in a layout ({converter.operations}) that Coterie does not read yet. Load and "
                "save the checkpoint with transformers, save_original_format=False."
            )
        number = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), self._renamed(name))
        expert = int(number[1]) if number else None
        return Place(renamed, expert, converter.source_patterns.index(pattern), len(converter.source_patterns))

    def _renamed(self, name: str) -> str:
        """As the converters see it: only the plain renamings are done."""
        from transformers.core_model_loading import apply_renamings

        return apply_renamings(name, self._renamings)


def _stacks(converter: Any) -> bool:
    """Whether the converter does nothing but stack experts, and lay several matrices of each below each other."""
    steps = [(type(op).__name__, getattr(op, "dim", None)) for op in converter.operations]
    expected = [("MergeModulelist", 0)]
    return steps == (expected if len(converter.source_patterns) == 1 else [*expected, ("Concatenate", 1)])
