"""The tokenizer of a checkpoint in a GGUF file, as far as llama.cpp has its like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["NO_WORDS", "add_words"]

NO_WORDS = "no_vocab"
"""What llama.cpp calls a model whose tokens have no words."""

# how a byte-level tokenizer cuts text before it merges, by a part of its regular expression -> llama.cpp's name
_CUTS = (
    (r"\p{N}{1,3}", "llama-bpe"),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", "qwen2"),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+", "gpt-2"),
)


def add_words(gguf: Any, writer: Any, path: Path, count: int) -> str:
    """Put the tokenizer of the directory ``path`` into ``writer``; says what kind went in.

    Byte-level BPE and byte-fallback BPE are known; anything else is left out, and said to be.

    Args:
        count: rows of the embedding; missing words are filled up.
    """
    file = path / "tokenizer.json"
    table = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    model = table.get("model", {})
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return _byte_fallback(gguf, writer, path, count)
    cut = _cut(table)
    if model.get("type") != "BPE" or cut is None:
        writer.add_tokenizer_model(NO_WORDS)
        return NO_WORDS
    words, types = _words(gguf, table, count)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(words)
    writer.add_token_types(types)
    gguf.SpecialVocab(path, load_merges=True, n_vocab=count).add_to_gguf(writer, quiet=True)
    return f"byte-level BPE ({cut})"


def _byte_fallback(gguf: Any, writer: Any, path: Path, count: int) -> str:
    vocabulary = gguf.LlamaHfVocab(path)
    words, scores, types = (list(column) for column in zip(*vocabulary.all_tokens(), strict=True))
    for number in range(len(words), count):
        words.append(f"<pad{number}>".encode())
        scores.append(-1000.0)
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(path, n_vocab=count).add_to_gguf(writer, quiet=True)
    return "byte-fallback BPE"


def _cut(table: dict[str, Any]) -> str | None:
    """llama.cpp's name of how a byte-level tokenizer cuts text; None where it has none."""
    before = json.dumps(table.get("pre_tokenizer") or {}, ensure_ascii=False)
    if '"ByteLevel"' not in before:
        return None
    plain = json.loads(before)
    steps = plain.get("pretokenizers", [plain])
    patterns = [str(step["pattern"].get("Regex", "")) for step in steps if "pattern" in step]
    if patterns:
        return next((name for part, name in _CUTS if any(part in pattern for pattern in patterns)), None)
    return "gpt-2" if any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps) else None


def _words(gguf: Any, table: dict[str, Any], count: int) -> tuple[list[bytes], list[int]]:
    known = {number: word for word, number in table["model"]["vocab"].items()}
    added = {each["id"]: each for each in table.get("added_tokens", [])}
    known |= {number: each["content"] for number, each in added.items()}
    words, types = [], []
    for number in range(count):
        words.append(known.get(number, f"[PAD{number}]").encode())
        if number in added:
            types.append(gguf.TokenType.CONTROL if added[number].get("special") else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL if number in known else gguf.TokenType.UNUSED)
    return words, types
