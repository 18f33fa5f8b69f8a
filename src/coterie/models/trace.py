"""Recording who went where: a model's own routing decisions, as a `RoutePlan`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import RoutingError, UnsupportedError
from coterie.models.compat import Sent, called_body
from coterie.models.find import MoESite, find_sites
from coterie.models.items import Items, items_of
from coterie.routing import RoutePlan, Routing

# says nothing about who goes where
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


class Recording:
    """What `trace` has heard so far, on the CPU. Filled by one thread."""

    def __init__(self, sites: list[MoESite], model: str) -> None:
        self._sites, self._model = sites, model
        self._forwards: list[tuple[Items, dict[str, Routing]]] = []
        self._items: Items | None = None
        self._heard: dict[str, Routing] = {}
        self._logits: dict[str, Tensor] = {}
        self._first = self._next = 0

    @property
    def num_forwards(self) -> int:
        """Forwards recorded: one per prefill and decode step."""
        return len(self._forwards)

    def plan(self) -> RoutePlan:
        """Everything heard, one `Routing` per site named by its experts' module path, forward after forward.

        ``chosen`` is in the order the experts were given. Sites that nothing was sent to (experts for another kind
        of token) are left out. A forward with an empty cache starts new sequences,
        one with a filled cache continues those of the forward before.

        Raises:
            RoutingError: nothing was heard.
        """
        if not self._forwards:
            raise RoutingError("Nothing was recorded: call the model, or its generate, inside the trace.")
        items = [items for items, _ in self._forwards]
        ids = [i.ids for i in items if i.ids is not None]
        return RoutePlan(
            {name: _joined([heard[name] for _, heard in self._forwards]) for name in self._everywhere()},
            sequence=torch.cat([i.sequence for i in items]), position=torch.cat([i.position for i in items]),
            mask=torch.cat([i.mask for i in items]), ids=torch.cat(ids) if len(ids) == len(items) else None,
            model=self._model,
        )  # fmt: skip

    def _everywhere(self) -> list[str]:
        """Sites heard in every forward."""
        return [site.name for site in self._sites if all(site.name in heard for _, heard in self._forwards)]

    def _begin(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        items = items_of(body, args, kwargs)
        if items.past == 0 or not self._forwards:
            self._first, self._next = self._next, self._next + items.batch
        self._items = Items(
            items.sequence.cpu() + self._first, items.position.cpu(), items.mask.cpu(),
            None if items.ids is None else items.ids.cpu(), items.past, items.batch,
        )  # fmt: skip
        self._heard = {}

    def _decide(self, site: MoESite, output: Any) -> None:
        """What a router returned; only its logits are used, since routers return the rest in ways of their own."""
        logits = site.logits(output)
        if isinstance(logits, Tensor) and logits.shape[-1] == site.num_experts:
            self._logits[site.name] = logits.detach().cpu().reshape(-1, site.num_experts)

    def _hear(self, site: MoESite, sent: Sent) -> None:
        """What the experts were told, which is the same for all families."""
        if self._items is None:  # a recomputation for the backward pass
            return
        indices, weights = (table.detach().cpu() for table in sent.table())
        logits = self._logits.pop(site.name, None)
        chosen = indices.clamp(max=site.num_true)  # an identity is no expert that anybody has to read
        self._heard[site.name] = Routing.from_padded(
            weights, site.experts_at(chosen), site.num_stored, chosen=chosen.long(),
            logits=logits if logits is not None and len(logits) == len(indices) else None,
        )  # fmt: skip

    def _end(self) -> None:
        if self._items is not None and self._heard:
            self._forwards.append((self._items, self._heard))
        self._items = None


@contextmanager
def trace(model: Any) -> Iterator[Recording]:
    """Record every routing decision of ``model`` (stock, or from `load_host`) inside the ``with``.

    Hooks listen to the routers' and the experts' own calls; nothing is computed twice, and nothing stays behind.

    >>> with trace(model) as recording:            # doctest: +SKIP
    ...     model.generate(**inputs)
    >>> plan = recording.plan()                    # doctest: +SKIP

    Raises:
        UnsupportedError: the model does not route, or it reads with an encoder and writes with a decoder.
    """
    sites = find_sites(model)
    if not sites:
        raise UnsupportedError(f"{type(model).__name__} has no mixture-of-experts layer to trace. Trace an MoE model.")
    if model.config.is_encoder_decoder:
        raise UnsupportedError(
            f"{type(model).__name__} reads with an encoder and writes with a decoder: its layers see different tokens, "
            "which one plan cannot hold. Trace a model that only decodes."
        )
    recording = Recording(sites, routing_hash(model, sites))
    body = called_body(model)
    handles = [
        body.register_forward_pre_hook(recording._begin, with_kwargs=True),
        body.register_forward_hook(lambda *_: recording._end()),
        *(site.gate.register_forward_hook(_decisions(recording, site)) for site in sites),
        *(site.experts.register_forward_pre_hook(_orders(recording, site), with_kwargs=True) for site in sites),
    ]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def routing_hash(model: Any, sites: list[MoESite] | None = None) -> str:
    """Hash of the config and the routers' weights: equal for models that route alike by construction.

    The same checkpoint hosted and stock, resident and in a store, has one hash. Another dtype has another.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for site in find_sites(model) if sites is None else sites:
        for name, tensor in site.gate.state_dict().items():
            digest.update(f"{site.name}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _decisions(recording: Recording, site: MoESite) -> Callable[..., None]:
    def listen(gate: nn.Module, args: Any, output: Any) -> None:
        recording._decide(site, output)

    return listen


def _orders(recording: Recording, site: MoESite) -> Callable[..., None]:
    def listen(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording._hear(site, site.sent(args, kwargs))

    return listen


def _joined(parts: list[Routing]) -> Routing:
    """Routings of successive items as one."""
    starts = torch.tensor([0, *(p.num_items for p in parts)]).cumsum(0).tolist()
    logits = [p.logits for p in parts if p.logits is not None]
    return Routing(
        torch.cat([p.item + start for p, start in zip(parts, starts, strict=False)]),
        torch.cat([p.expert for p in parts]),
        torch.cat([p.weight for p in parts]),
        starts[-1],
        parts[0].num_experts,
        chosen=_stacked([p.chosen for p in parts if p.chosen is not None], parts[0].num_routes),
        logits=torch.cat(logits) if len(logits) == len(parts) else None,
    )


def _stacked(tables: list[Tensor], empty: int) -> Tensor:
    """[T_i, K_i] tables below each other, narrow ones filled up."""
    most = max(table.shape[1] for table in tables)
    return torch.cat([nn.functional.pad(table, (0, most - table.shape[1]), value=empty) for table in tables])
