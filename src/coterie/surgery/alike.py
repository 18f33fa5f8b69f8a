"""Whether checkpoints are of one architecture, so that a mean of their weights means something."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.errors import OptionError, UnsupportedError
from coterie.models.checkpoint import Checkpoint
from coterie.models.shards import read_json
from coterie.models.tensors import FLOATS

__all__ = ["check_alike"]

# fields of a config that say how a model is trained, loaded or ended, not what it computes
_ASIDE = re.compile(
    r"^_|dropout|drop$|^pdrop|initializer|init_|token_id|loss|jitter|dtype|^use_cache$|^architectures$|"
    r"^max_position_embeddings$|transformers_version|output_|label2id|id2label|problem_type|task_specific|^chunk_size"
)


def check_alike(models: Sequence[Checkpoint]) -> list[str]:
    """Refuse models that no mean can be made of; names of the first one's tensors, in its order.

    Raises:
        OptionError: another family, config, vocabulary, tensor or shape; says which.
        UnsupportedError: a model is quantised, or its experts are stored in a form of their own.
    """
    base = models[0]
    for model in models:
        if model.quantization is not None or model.encoded:
            raise UnsupportedError(
                f"{model.path} is quantised: a mean is made of floats. Choose the model in bfloat16, float16 or "
                "float32."
            )
        kind = next((site.kind for site in model.sites if site.kind is not None), None)
        if kind is not None:
            raise UnsupportedError(
                f"The experts of {model.path} are stored as {kind.name}: the mean of such numbers is not the mean of "
                "the experts. Take the models they were made of."
            )
    for other in models[1:]:
        _check_config(base, other)
        _check_vocabulary(base, other)
        _check_tensors(base, other)
    return list(base.ranges)


def _check_config(base: Checkpoint, other: Checkpoint) -> None:
    pairs: list[tuple[str, Any, Any]] = [("model_type", base.config.model_type, other.config.model_type)]
    here, there = (_computes(model.config.to_dict()) for model in (base, other))
    pairs += [(name, here.get(name), there.get(name)) for name in sorted(here.keys() | there.keys())]
    pairs += [("experts in coterie.json", _ours(base), _ours(other))]
    for name, wanted, found in pairs:
        if wanted != found:
            raise OptionError(
                f"{other.path} and {base.path} are not of one architecture: {name} is {_short(found)} there and "
                f"{_short(wanted)} here. A mean is of models that were trained from one base."
            )


def _computes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says about the function, tables within it too."""
    kept = {name: value for name, value in config.items() if not _ASIDE.search(name)}
    return {name: _computes(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _ours(model: Checkpoint) -> Any:
    if model.stored is None:
        return None
    record = model.stored.as_record()
    return record.get("router"), record.get("experts")


def _check_vocabulary(base: Checkpoint, other: Checkpoint) -> None:
    here, there = _vocabulary(base.path), _vocabulary(other.path)
    if here is not None and there is not None and here != there:
        raise OptionError(
            f"{other.path} and {base.path} have different tokenizers: rows of their embeddings stand for different "
            "tokens, and the mean of those is neither. Take models of one tokenizer."
        )


def _vocabulary(path: Path) -> Any:
    """What the ids of tokens mean, in any form that compares; None where there is no tokenizer."""
    if (path / "tokenizer.json").is_file():
        table = read_json(path / "tokenizer.json")
        model = table.get("model")
        added = table.get("added_tokens") or []
        more = {str(each.get("content")): each.get("id") for each in added if isinstance(each, Mapping)}
        words = model.get("vocab") if isinstance(model, Mapping) else None
        return {**words, **more} if isinstance(words, Mapping) else (words, more)
    if (path / "vocab.json").is_file():
        return read_json(path / "vocab.json")
    file = path / "tokenizer.model"
    return file.read_bytes() if file.is_file() else None


def _check_tensors(base: Checkpoint, other: Checkpoint) -> None:
    for name in sorted(_used(base) ^ _used(other)):
        having, lacking = (base, other) if name in base.ranges else (other, base)
        if name not in lacking.ranges:
            raise OptionError(
                f"{having.path} has the tensor {name!r}, which {lacking.path} lacks: load and save both with the same "
                "transformers, so that they are stored alike."
            )
    for name in sorted(base.ranges.keys() & other.ranges.keys()):
        here, there = base.ranges[name], other.ranges[name]
        if here.shape != there.shape:
            raise OptionError(
                f"{name!r} is {list(there.shape)} in {other.path} and {list(here.shape)} in {base.path}. A mean is of "
                "models of one shape."
            )
        if (here.dtype in FLOATS) != (there.dtype in FLOATS):
            raise OptionError(f"{name!r} is {there.dtype} in {other.path} and {here.dtype} in {base.path}.")


def _used(model: Checkpoint) -> set[str]:
    """Tensors that the model computes with."""
    experts = {name for site in model.sites for names in site.names.values() for name in _names(names)}
    return {*model.dense, *experts}


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
