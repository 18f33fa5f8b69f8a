import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from coterie.errors import UnsupportedError
from coterie.ranges import TensorRange, read_header
from coterie.store import Blob
from coterie.store.arena import Arena
from coterie.store.blob import ALIGNMENT
from coterie.store.disk import DiskTier

ONE, TWO = Path("one"), Path("two")

DTYPES = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.int16,
    torch.uint8, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def part(path, start, nbytes):
    return TensorRange(path, "U8", (nbytes,), start, nbytes)


def test_neighbours_are_one_read():
    blob = Blob({"up": part(ONE, 5100, 9000), "down": part(ONE, 14_100, 700)})
    (segment,) = blob.segments
    assert (segment.start, segment.length, segment.needed) == (4096, 12_288, 14_800 - 4096)
    assert blob.slot_bytes == 12_288
    assert blob.nbytes == 9700


def test_order_of_the_parts_does_not_matter():
    parts = {"up": part(ONE, 5100, 9000), "down": part(ONE, 14_100, 700)}
    assert Blob(parts).segments == Blob(dict(reversed(parts.items()))).segments


def test_distant_parts_and_other_files_are_reads_of_their_own():
    blob = Blob({"a": part(ONE, 0, 10), "b": part(ONE, 100_000, 10), "c": part(TWO, 0, 10)})
    assert [(s.path, s.start, s.offset) for s in blob.segments] == [(ONE, 0, 0), (ONE, 98_304, 4096), (TWO, 0, 8192)]


def test_overlapping_parts_share_their_bytes():
    blob = Blob({"all": part(ONE, 0, 5000), "inside": part(ONE, 10, 20)})
    (segment,) = blob.segments
    assert (segment.length, segment.needed) == (8192, 5000)


def test_every_dtype_comes_back_from_a_file(tmp_path):
    saved = {}
    for place, dtype in enumerate(DTYPES):
        saved[f"t{place}"] = torch.arange(12).reshape(3, 4).to(dtype)
    save_file(saved, tmp_path / "x.safetensors")
    blob = Blob(read_header(tmp_path / "x.safetensors"))
    buffer = Arena(1, blob.slot_bytes).view(0)
    DiskTier().read(blob, buffer)
    for name, tensor in blob.tensors(buffer).items():
        assert tensor.dtype == saved[name].dtype
        assert tensor.shape == (3, 4)
        assert tensor.untyped_storage().nbytes() <= blob.slot_bytes
        assert torch.equal(tensor.view(torch.uint8), saved[name].view(torch.uint8))
        assert not tensor.requires_grad


def test_packed_and_empty_tensors():
    blob = Blob({"packed": TensorRange(ONE, "F4", (2, 6), 16, 6), "empty": TensorRange(ONE, "F32", (0, 3), 22, 0)})
    tensors = blob.tensors(Arena(1, blob.slot_bytes).view(0))
    assert tensors["packed"].shape == (2, 3)
    assert tensors["packed"].dtype == torch.float4_e2m1fn_x2
    assert tensors["empty"].shape == (0, 3)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 4095, 4097])
def test_parts_across_their_element_size_are_copied(start):
    values = torch.arange(5, dtype=torch.float32)
    blob = Blob({"w": TensorRange(ONE, "F32", (5,), start, 20)})
    buffer = Arena(1, blob.slot_bytes).view(0)
    place = start % ALIGNMENT
    buffer[place : place + 20] = values.numpy().tobytes()
    tensor = blob.tensors(buffer)["w"]
    assert torch.equal(tensor, values)
    assert tensor.data_ptr() % 4 == 0
    buffer[place : place + 20] = bytes(20)
    assert (tensor.sum() == 0) == (start % 4 == 0)  # a view follows its slot, a copy does not


def test_a_dtype_torch_cannot_hold_is_refused():
    with pytest.raises(UnsupportedError, match="F6"):
        Blob({"w": TensorRange(ONE, "F6", (4,), 0, 3)})


def test_stacked_experts_lie_side_by_side():
    stack = TensorRange(ONE, "BF16", (4, 32, 64), 1000, 4 * 32 * 64 * 2)
    blobs = [Blob({"w": stack.slice(expert)}) for expert in range(4)]
    assert all(len(blob.segments) == 1 for blob in blobs)
    assert all(blob.slot_bytes == math.ceil((blob.nbytes + 1000) / ALIGNMENT) * ALIGNMENT for blob in blobs)
