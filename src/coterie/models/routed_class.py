"""The class of models that keep routers and experts of ours when they are saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.models.attach import attach, session_of
from coterie.models.checkpoint import open_checkpoint
from coterie.models.compat import register_auto, text_config
from coterie.models.dense_mixture import insert_mixtures
from coterie.models.find import MoESite, find_sites
from coterie.models.own_experts import experts_of_kinds, give_experts
from coterie.models.reshape import reshape
from coterie.models.saving import saved_names, written_beside
from coterie.models.stored import FILE, Stored, read_stored, routers_for, write_stored
from coterie.routers import SiteShape

__all__ = ["Routed", "site_shapes"]


class Routed:
    """What a routed model does beyond its family's class: load, save, and say who its sequences are. Mixed in."""

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if (record := getattr(config, "coterie", None)) is not None:
            stored = Stored.from_record(record, FILE)
            if stored.mixture is not None:
                insert_mixtures(self, stored.mixture, FILE)
            if stored.experts:
                reshape(self, stored.experts, FILE)
            sites = tuple(find_sites(self))
            if stored.router is not None:
                routers = routers_for(stored.router, site_shapes(self, sites), FILE, sites[0].gate)
                by_name = {site.name: router for site, router in zip(sites, routers, strict=True)}
                attach(self, router=lambda site, old: by_name[site.name])
            for site in sites:  # a block's own initialisation would reach for the gate it no longer has
                self.get_submodule(site.block_name)._is_hf_initialized = True  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As in transformers. A directory is looked through before anything is read, and must say how it routes.

        Raises:
            CheckpointError: something is missing, or of another shape or format; says what.
        """
        checkpoint = None
        if path is not None:
            checkpoint = open_checkpoint(path, kwargs.get("revision"))
            path, config = checkpoint.path, checkpoint.config if config is None else config
            config.coterie = read_stored(checkpoint.path).as_record()
        loaded = super().from_pretrained(path, *args, config=config, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _place(model)
        give_experts(model, experts_of_kinds(checkpoint))
        return loaded

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        model = super()._from_config(config, **kwargs)  # type: ignore[misc]
        give_experts(model)
        return model

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """As in transformers, with coterie.json. Written beside, then moved into place."""
        push, target = kwargs.pop("push_to_hub", False), Path(save_directory)
        named = saved_names(self, self.state_dict() if state_dict is None else state_dict)  # type: ignore[attr-defined]
        with written_beside(target) as part:
            super().save_pretrained(part, *args, state_dict=named, **kwargs)  # type: ignore[misc]
            if kwargs.get("is_main_process", True):
                write_stored(part, Stored.from_record(self.config.coterie, FILE))
        if push:
            self.push_to_hub(kwargs.pop("repo_id", target.name))  # type: ignore[attr-defined]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. The rows of a beam search are one sequence, whichever of them goes on."""
        session = session_of(self)
        inputs = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        settings = kwargs.get("generation_config") or self.generation_config  # type: ignore[attr-defined]
        beams = kwargs.get("num_beams") or settings.num_beams or 1
        if session is None or session.sequences is not None or beams == 1 or not isinstance(inputs, Tensor):
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        session.sequences = torch.arange(inputs.shape[0], device=inputs.device)
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            session.sequences = None


@torch.no_grad()
def _place(model: Any) -> None:
    """Move weights to addresses where their products have the bits they had when they were saved.

    transformers leaves tensors where they lie in the mapped file. At addresses off a multiple of 64 the processor's
    matrix library takes another order of addition, and off a multiple of 16 grouped products are not to be had.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def site_shapes(model: Any, sites: tuple[MoESite, ...]) -> list[SiteShape]:
    """What a preset must know of each site to make its router."""
    config = text_config(model.config)
    width, vocabulary = int(config.hidden_size), int(config.vocab_size)
    return [SiteShape(width, site.num_true, site.top_k, vocabulary) for site in sites]


register_auto(Routed)
