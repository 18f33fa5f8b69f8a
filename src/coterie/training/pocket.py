"""The pocket model: a small OLMoE that every machine can make for itself.

It is trained on text every Python has: the language reference that ships as ``pydoc_data.topics``
and the docstrings of the standard library. It shows the whole path on a real, learned router; it
is no good writer.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.models.compat import quiet

VOCABULARY = 2048
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "max_position_embeddings": 1024,
    "norm_topk_prob": True, "tie_word_embeddings": True, "output_router_logits": True,
}  # fmt: skip
STEPS, BATCH, LENGTH, PEAK_RATE = 600, 16, 128, 4e-3

Progress = Callable[[int, int, float], None]


def train_pocket(path: Path, *, steps: int = STEPS, progress: Progress | None = None) -> None:
    """Train the pocket model and save it, with its tokenizer, as a bf16 checkpoint in ``path``.

    Deterministic for one version of Python, torch and tokenizers on one machine. Blocks for one
    to three minutes on two cores. ``progress(step, steps, loss)`` is called after every step.
    """
    text = "\n\n".join(python_prose())
    tokenizer = _tokenizer(text)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = _model(tokenizer)
        _fit(model, ids, steps, progress)
    model.config.output_router_logits = False
    with quiet():
        model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


def python_prose() -> Iterator[str]:
    """The English that comes with Python: the language reference, then docstrings of the library."""
    from pydoc_data import topics

    yield from (_unmarked(text) for _, text in sorted(topics.topics.items()))
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        yield from _docstrings(tree)


def _docstrings(tree: ast.AST) -> Iterator[str]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, owners) and len(text := ast.get_docstring(node) or "") > 200:
            yield text


def _unmarked(text: str) -> str:
    """Without heading rules and emphasis marks, which would drown the words."""
    return re.sub(r"^[*=~\-^]{3,}\n", "", text, flags=re.MULTILINE).replace("“", '"').replace("”", '"')


def _tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(text.split("\n\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[0], pad_token=special[1], clean_up_tokenization_spaces=False
    )


def _model(tokenizer: Any) -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        **SHAPE, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    return OlmoeForCausalLM(config).train()


def _fit(model: Any, ids: Tensor, steps: int, progress: Progress | None) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps + 1, pct_start=0.1)
    for step in range(1, steps + 1):
        start = torch.randint(len(ids) - LENGTH, (BATCH, 1))
        batch = ids[start + torch.arange(LENGTH)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if progress is not None:
            progress(step, steps, float(loss.detach()))
