"""How they learn: whatever reads a loss, a label or a gradient."""

from coterie.training.pocket import Recipe, train_pocket
from coterie.training.text import read_domains, read_text
from coterie.training.tokens import token_ids, train_tokenizer
from coterie.training.trainer import Options, language_trainer, last_checkpoint, read_log, train_from
from coterie.training.trigram import Trigram
from coterie.training.windows import Windows

__all__ = [
    "Options",
    "Recipe",
    "Trigram",
    "Windows",
    "language_trainer",
    "last_checkpoint",
    "read_domains",
    "read_log",
    "read_text",
    "token_ids",
    "train_from",
    "train_pocket",
    "train_tokenizer",
]
