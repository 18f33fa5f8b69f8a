"""From what a person typed to token ids, before any weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coterie.errors import CheckpointError, PromptError

Message = dict[str, str]

_VOCABULARIES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"}
_COPY_TOKENIZER = "Copy tokenizer.json and tokenizer_config.json of the model beside its weights."


class Prompts:
    """A checkpoint's tokenizer and chat template. Not thread-safe for writing; encoding is."""

    def __init__(self, tokenizer: Any, context: int | None) -> None:
        self.tokenizer, self.context = tokenizer, context

    @classmethod
    def of(cls, path: Path, context: int | None) -> Prompts:
        """Read the tokenizer of the checkpoint in ``path``.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        from transformers import AutoTokenizer

        if not any(file.name in _VOCABULARIES for file in path.iterdir()):
            # transformers would make up an empty tokenizer instead of saying so
            raise CheckpointError(f"{path} has no tokenizer. {_COPY_TOKENIZER}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except Exception as error:  # transformers raises many kinds for a missing or broken tokenizer
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"The tokenizer in {path} cannot be read ({reason}). {_COPY_TOKENIZER}") from error
        return cls(tokenizer, context)

    @property
    def is_chat(self) -> bool:
        """Whether the checkpoint brings a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, text: str, *, raw: bool = False, system: str | None = None) -> Any:
        """[1, N] int64 ids of one prompt: through the chat template where there is one, unless ``raw``.

        Raises:
            PromptError: the prompt is empty or fills the model's context.
        """
        if not text.strip():
            raise PromptError('The prompt is empty. Type one: coterie run MODEL "Once upon a time"')
        if self.is_chat and not raw:
            return self.encode_chat([*_system(system), {"role": "user", "content": text}])
        return self._checked(self.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"])

    def encode_chat(self, messages: list[Message]) -> Any:
        """[1, N] ids of a conversation up to where the model speaks next.

        Raises:
            PromptError: the template refuses the conversation, or it fills the model's context.
        """
        try:
            ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        except Exception as error:  # templates raise jinja2's errors and their own
            raise PromptError(f"The model's chat template refuses this conversation: {error}. Try --raw.") from error
        return self._checked(ids if hasattr(ids, "shape") else ids["input_ids"])

    def room(self, ids: Any, max_new_tokens: int) -> int:
        """How many tokens may be generated after ``ids``: what was asked, or what the context leaves."""
        return max_new_tokens if self.context is None else min(max_new_tokens, self.context - ids.shape[1])

    def _checked(self, ids: Any) -> Any:
        if ids.shape[1] == 0:
            raise PromptError("The prompt has no tokens for this model's tokenizer. Type some words.")
        if self.context is not None and ids.shape[1] >= self.context:
            raise PromptError(
                f"The prompt is {ids.shape[1]} tokens; the model's context is {self.context} and must hold the "
                "answer too. Shorten the prompt."
            )
        return ids


def _system(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []
