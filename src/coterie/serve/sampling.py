"""How the next token is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coterie.errors import OptionError

_BOUNDS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, float("inf")),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, float("inf")),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


@dataclass(frozen=True)
class Sampling:
    """Request-time options; None leaves a choice to the checkpoint's own generation_config.json.

    ``temperature`` 0 is greedy; any other value samples. ``seed`` makes samples repeatable.

    Raises:
        OptionError: a value outside its range.
    """

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionError(f"{name} must be between {low:g} and {high:g}, not {value:g}.")

    def for_generate(self) -> dict[str, Any]:
        """Arguments of transformers' ``generate``."""
        given = {name: getattr(self, name) for name in _BOUNDS if getattr(self, name) is not None}
        if self.temperature == 0:
            given = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
            given |= {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
            if self.repetition_penalty is not None:
                given["repetition_penalty"] = self.repetition_penalty
        elif len(given.keys() - {"max_new_tokens", "repetition_penalty"}):
            given["do_sample"] = True
        return given
