"""What was announced against what a forward really holds."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from coterie.errors import OptionError
from coterie.models import footprint, load_host, open_checkpoint, resident_experts
from coterie.testing.checkpoints import FAMILIES, save_tiny


class Live(TorchDispatchMode):
    """The bytes of tensors that operators made and somebody still holds, now and at their peak."""

    def __init__(self, model):
        super().__init__()
        self.now = self.peak = 0
        # operators also return views of the weights, which were there before
        self._known = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage):
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key, nbytes):
        self._known.discard(key)
        self.now -= nbytes


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    sizes = {"layers": 2, "experts": 8, "k": 2, "width": 64, "inner": 48}
    return open_checkpoint(save_tiny(path, request.param, dtype=torch.bfloat16, tokenizer=False, **sizes))


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 64), (3, 40)])
@torch.no_grad()
def test_the_cache_is_what_a_forward_leaves(checkpoint, batch, length):
    host = load_host(checkpoint, resident_experts)
    cache = DynamicCache(config=host.config)
    host(torch.full((batch, length), 5), past_key_values=cache)
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert footprint(checkpoint, batch, length).cache == found


@pytest.mark.parametrize("all_logits", [True, False])
@pytest.mark.parametrize(("batch", "length"), [(1, 128), (2, 256), (4, 64)])
@torch.no_grad()
def test_the_workspace_bounds_a_prefill(checkpoint, batch, length, all_logits):
    host = load_host(checkpoint, resident_experts)
    ids = torch.randint(2, 300, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    host(ids, attention_mask=mask)  # what is made once and kept does not count
    announced = footprint(checkpoint, batch, length, all_logits=all_logits)
    with Live(host) as live:
        host(ids, attention_mask=mask, logits_to_keep=0 if all_logits else 1)
    assert live.peak <= announced.cache + announced.workspace
    assert announced.cache + announced.workspace <= 6 * live.peak


def test_the_parts(checkpoint):
    one, two = footprint(checkpoint, 1, 100), footprint(checkpoint, 2, 100)
    assert one.dense == two.dense == checkpoint.dense_bytes
    assert two.cache == 2 * one.cache
    assert one.total == one.dense + one.cache + one.workspace
    assert footprint(checkpoint, 1, 100, chunk=10).workspace < one.workspace
    assert footprint(checkpoint, 1, 100, chunk=1000) == one
    assert footprint(checkpoint, 1, 100, all_logits=False).workspace <= one.workspace


@pytest.mark.parametrize("numbers", [(0, 1, None), (1, 0, None), (1, 1, 0)])
def test_impossible_numbers(checkpoint, numbers):
    batch, length, chunk = numbers
    with pytest.raises(OptionError, match="must be 1 or more"):
        footprint(checkpoint, batch, length, chunk=chunk)
