"""One model answering one conversation at a time, streaming."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

from coterie.errors import CoterieError, OptionError
from coterie.models.prompts import Prompts
from coterie.models.requests import RouteOptions, routed_as
from coterie.serve.sampling import Sampling


@dataclass(frozen=True)
class Generation:
    """What one call to `Engine.generate` produced. Seconds are wall time; the first token includes the prefill.

    ``mean_experts`` are those used per token and layer, prompt included; None where the routers are the family's own.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    seconds: float
    finish: str
    mean_experts: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of the decode alone, without the prompt."""
        decode = self.seconds - self.first_token_seconds
        return (self.new_tokens - 1) / decode if self.new_tokens > 1 and decode > 0 else 0.0


class Engine:
    """A loaded model with its prompts. Blocks while it generates; not thread-safe.

    Keeps the KV cache of the last conversation, so that a follow-up reads only what is new; one that was made with
    other routes is not kept.

    Args:
        model, prompts: loaded.
        route: what is asked of the model's routers, unless a call asks otherwise.
    """

    def __init__(self, model: Any, prompts: Prompts, route: RouteOptions | None = None) -> None:
        self.model, self.prompts = model, prompts
        self.route = route or RouteOptions()
        self._cached_route = self.route
        self._cache: Any = None
        self._cached: Any = None

    def generate(
        self, ids: Any, sampling: Sampling, on_text: Callable[[str], None] | None = None,
        route: RouteOptions | None = None,
    ) -> Generation:  # fmt: skip
        """Continue ``ids`` [1, N]; ``on_text`` receives each piece of text as soon as it is sure.

        Raises:
            CoterieError: the model's logits are not finite (damaged weights).
            OptionError: the routers do not know what ``route`` asks, or there is no memory for it.
        """
        route = self._routed(route)
        stream = _Stream(self.prompts.tokenizer, on_text)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        began = time.perf_counter()
        with routed_as(self.model, route) as session:
            output = self._call(ids, sampling, stream)
            mean = None if session is None else session.usage.mean_experts
        seconds = time.perf_counter() - began
        # a decoder with an encoder beside it begins with one token of its own, not with the prompt
        new = output[0, 1 if self.model.config.is_encoder_decoder else ids.shape[1] :]
        return Generation(
            text=self.prompts.tokenizer.decode(new, skip_special_tokens=True),
            prompt_tokens=ids.shape[1],
            new_tokens=len(new),
            first_token_seconds=(stream.first or time.perf_counter()) - began,
            seconds=seconds,
            finish="stop" if len(new) and int(new[-1]) in self._ends() else "length",
            mean_experts=mean,
        )

    def _routed(self, route: RouteOptions | None) -> RouteOptions:
        """What is asked now, a cache of other routes forgotten."""
        route = self.route if route is None else route
        most = self.model.coterie.most_experts
        everyone = max(site.num_experts for site in self.model.coterie.checkpoint.sites)
        asked = everyone if route.draw == "average" else min(route.k or 0, everyone)
        if most is not None and asked > most:
            raise OptionError(
                f"{route} needs more memory than the budget made room for, which is {most} experts per token. Load the "
                f"model with route=RouteOptions(k={asked}) or more."
            )
        if route != self._cached_route:
            self._cache = self._cached = None
        self._cached_route = route
        return route

    def _call(self, ids: Any, sampling: Sampling, stream: _Stream) -> Any:
        options = sampling.for_generate() | {"max_new_tokens": self.prompts.room(ids, sampling.max_new_tokens)}
        if sampling.stop:
            options |= {"stop_strings": list(sampling.stop), "tokenizer": self.prompts.tokenizer}
        cache = self._reusable(ids)
        try:
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=cache, streamer=stream,
                return_dict_in_generate=True, **options,
            )  # fmt: skip
        except RuntimeError as error:
            self._cache = self._cached = None
            if "probability tensor contains" in str(error):
                raise CoterieError(
                    "The model's logits are not finite. Its weights are damaged, or the temperature is too small: "
                    "try --temperature 0, then coterie verify MODEL."
                ) from error
            raise
        except BaseException:
            self._cache = self._cached = None
            raise
        self._cache, self._cached = output.past_key_values, output.sequences[:, :-1]
        return output.sequences

    def _reusable(self, ids: Any) -> Any:
        """The kept cache cut back to what ``ids`` begins with, or None."""
        if self._cache is None or self._cached is None:
            return None
        length = min(self._cached.shape[1], ids.shape[1] - 1)
        same = (self._cached[0, :length] == ids[0, :length]).long().cumprod(0).sum()
        if int(same) == 0 or not self.model.coterie.checkpoint.reads_in_pieces:
            return None
        if surplus := self._cache.get_seq_length() - int(same):
            if not self._cache.is_croppable:  # it holds a state instead of every token
                return None
            self._cache.crop(-surplus)
        return self._cache

    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends]) - {None}


class _Stream(TextStreamer):
    """transformers' streamer, handing its text on and noting when the first token came."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.first: float | None = None
        self._on_text = on_text

    def put(self, value: Any) -> None:
        if not self.next_tokens_are_prompt and self.first is None:
            self.first = time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text and self._on_text is not None:
            self._on_text(text)
