"""What stands beside the pocket model's weights: measurements, a sample of the text, its words, a chart, the card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import OptionError
from coterie.pictures.line_chart import line_chart
from coterie.training.report import SAMPLE, Streams, history, judge
from coterie.training.text import Corpus
from coterie.training.writing import read_words, save_words

if TYPE_CHECKING:
    from coterie.training.pocket import PocketRecipe

MEASURES, SAMPLES, SOURCES, WORDS, CHART, CARD = (
    "measures.json", "samples.json", "sources.json", "words.txt.gz", "loss.svg", "README.md",
)  # fmt: skip
Sources = Mapping[str, Mapping[str, str]]  # domain -> what, licence, attribution


def read_sources(path: Path | None, domains: Sequence[str]) -> Sources:
    """Where the text of each domain is from, from a JSON file of {domain: {what, licence, attribution}}.

    Raises:
        OptionError: the file is missing or not of this form.
    """
    if path is None:
        return {domain: {} for domain in domains}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {domain: {str(key): str(value) for key, value in table.get(domain, {}).items()} for domain in domains}
    except (OSError, ValueError, AttributeError) as error:
        raise OptionError(
            f"{path} does not say where the text is from: {error}. Write "
            '{"DOMAIN": {"what": "...", "licence": "...", "attribution": "..."}}, or leave --sources out.'
        ) from error


def finish(path: Path, work: Path, corpus: Corpus, streams: Streams, recipe: PocketRecipe, sources: Sources) -> None:
    """Measure the checkpoint in ``path`` as it is shipped and write everything else beside it. Blocks for minutes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    samples = {domain: splits["test"][:SAMPLE] for domain, splits in corpus.items()}
    _write_json(path / SAMPLES, samples)
    _write_json(path / SOURCES, sources)
    save_words((splits["train"] for splits in corpus.values()), path / WORDS)
    vocabulary = read_words(path / WORDS)
    measures = {
        "recipe": {**dataclasses.asdict(recipe), "shape": dict(recipe.shape)},
        "tokens": {split: {domain: len(ids) for domain, ids in part.items()} for split, part in streams.items()},
        "parameters": model.num_parameters(), "active_parameters": _active(model),
        "versions": _versions(), "history": history(work, recipe),
        **judge(model, tokenizer, corpus, streams, samples, vocabulary, recipe.length),
    }  # fmt: skip
    _write_json(path / MEASURES, measures)
    write_card(path)


def write_card(path: Path) -> None:
    """Write the chart and the model card of a finished directory anew, from its measurements."""
    from coterie.training.card_text import card_text

    measures = json.loads((path / MEASURES).read_text(encoding="utf-8"))
    sources = json.loads((path / SOURCES).read_text(encoding="utf-8"))
    sampling = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    (path / CHART).write_text(_chart(measures["history"]), encoding="utf-8")
    size = sum(file.stat().st_size for file in (path / "model.safetensors", *path.glob("tokenizer*")))
    (path / CARD).write_text(card_text(measures, sources, sampling, size), encoding="utf-8")


def _chart(history: Mapping[str, Any]) -> str:
    lines = {"training": history["train"]}
    for record in history["valid"]:
        for name in record.keys() - {"step"}:
            lines.setdefault(name.removeprefix("valid_"), []).append((record["step"], record[name]))
    ordered = {name: lines[name] for name in ["training", *sorted(lines.keys() - {"training"})] if lines[name]}
    return line_chart(ordered, "step", "nats per token, on unseen text by domain")


def _active(model: Any) -> int:
    """Parameters one token meets: all but the experts that were not chosen."""
    experts = sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)
    config = model.config
    return int(model.num_parameters() - experts * (1 - config.num_experts_per_tok / config.num_experts))


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    named = {name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate")}
    return {"python": platform.python_version(), **named}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
