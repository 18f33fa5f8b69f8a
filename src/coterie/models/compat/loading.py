"""Dense weights through transformers' own loader; expert tensors are never named to it, so never read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError


class _OnDisk:
    """A tensor the loader may slice, as it slices those of safetensors: reading happens then, into fresh memory."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def load_dense(
    model_class: Any, path: Path, config: Any, tensors: Mapping[str, Callable[[], Tensor]], dtype: torch.dtype
) -> Any:
    """A model of ``model_class`` in eval mode, filled with ``tensors`` (names as on disk) and nothing else.

    Each is read when it is its turn, by several threads.

    Names are converted, dtypes cast, tied weights tied and buffers made by transformers. Blocks while reading.

    Raises:
        CheckpointError: a parameter of the model is not among ``tensors``, or has another shape.
    """
    with quiet():
        model, found = model_class.from_pretrained(
            None, config=copy.deepcopy(config), dtype=dtype, output_loading_info=True,
            state_dict={name: _OnDisk(read) for name, read in tensors.items()},
        )  # fmt: skip
    wrong = [*found["missing_keys"], *found["mismatched_keys"], *found["error_msgs"]]
    if wrong:
        raise CheckpointError(
            f"{path} does not fill the model: {sorted(map(str, wrong))[0]}. Copy or download it again."
        )
    model.config.name_or_path = str(path)
    _read_generation_config(model, path)
    return model


def _read_generation_config(model: Any, path: Path) -> None:
    """What the loader does itself when it is given a path: sampling defaults and end-of-text ids."""
    from transformers import GenerationConfig

    if (path / "generation_config.json").exists():
        try:
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path / 'generation_config.json'} is not valid: {error}. Mend or delete it: it only holds defaults."
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars from transformers inside. The switch is global; it is put back afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
