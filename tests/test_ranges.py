"""Headers of safetensors files: true ones agree with safetensors' own reading, lying ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from coterie.errors import CheckpointError
from coterie.ranges import TensorRange, read_header

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip
steady = settings(derandomize=True, max_examples=60, deadline=None)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def put(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with this header, told to be ``length`` bytes long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read_or_refused(path: Path) -> None:
    """Whatever lies there, ranges are inside the file, or the error is ours and names the file."""
    try:
        ranges = read_header(path)
    except CheckpointError as error:
        ranges, text = {}, str(error)
        assert str(path) in text
    assert all(r.end <= path.stat().st_size for r in ranges.values())


@pytest.fixture(scope="module")
def true_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ranges") / "true.safetensors"
    tensors = {f"of {dtype}": torch.randint(0, 2, (3, 2, 5)).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "ein Täuschwort": torch.randn(7)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_a_true_file_agrees_with_safetensors(true_file: Path) -> None:
    ranges, content = read_header(true_file), true_file.read_bytes()
    with safe_open(true_file, framework="pt") as file:
        assert set(ranges) == set(file.keys())
        for name, found in ranges.items():
            tensor, view = file.get_tensor(name), file.get_slice(name)
            assert (found.dtype, list(found.shape)) == (view.get_dtype(), view.get_shape())
            assert found.path == true_file
            assert content[found.start : found.end] == raw_bytes(tensor)


def test_a_slice_is_the_row_s_bytes(true_file: Path) -> None:
    name = "of torch.bfloat16"
    content, whole = true_file.read_bytes(), read_header(true_file)[name]
    with safe_open(true_file, framework="pt") as file:
        tensor = file.get_tensor(name)
    for index in range(3):
        row = whole.slice(index)
        assert row.shape == (2, 5)
        assert content[row.start : row.end] == raw_bytes(tensor[index])
        assert row.slice(1).end == row.end
    with pytest.raises(AssertionError):
        whole.slice(3)


def test_a_file_of_nothing(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    assert read_header(tmp_path / "none.safetensors") == {}


@pytest.mark.parametrize(("dtype", "shape"), [("F4", (3, 2)), ("F6_E2M3", (4,)), ("F6_E3M2", (2, 2))])
def test_narrow_values_share_bytes(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = put(tmp_path / "narrow.safetensors", {"w": entry(dtype, shape, [0, 3])}, b"abc")
    with safe_open(path, framework="np") as file:
        assert (file.get_slice("w").get_dtype(), tuple(file.get_slice("w").get_shape())) == (dtype, shape)
    assert read_header(path)["w"] == TensorRange(path, dtype, shape, path.stat().st_size - 3, 3)


def test_gaps_and_order_do_not_matter(tmp_path: Path) -> None:
    header = {
        "late": entry(offsets=[16, 24]),
        "early": entry(offsets=[0, 8]),
        "nothing": entry(shape=[0], offsets=[4, 4]),
    }
    ranges = read_header(put(tmp_path / "gap", header, bytes(24)))
    assert ranges["late"].start - ranges["early"].start == 16


LIES = {
    "no dtype": {"w": {"shape": [2], "data_offsets": [0, 8]}},
    "no shape": {"w": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no offsets": {"w": {"dtype": "F32", "shape": [2]}},
    "one offset": {"w": entry(offsets=[8])},
    "three offsets": {"w": entry(offsets=[0, 4, 8])},
    "offsets of text": {"w": entry(offsets="08")},
    "offset of text": {"w": entry(offsets=["0", "8"])},
    "offset of fraction": {"w": entry(offsets=[0.0, 8.0])},
    "offset of truth": {"w": entry("U8", [1], [False, True])},
    "negative offset": {"w": entry(offsets=[-8, 0])},
    "offsets turned round": {"w": entry(offsets=[8, 0])},
    "negative shape": {"w": entry(shape=[-1, -2])},
    "shape of text": {"w": entry(shape="2")},
    "shape of number": {"w": entry(shape=2)},
    "shape of null": {"w": entry(shape=[None])},
    "shape larger than bytes": {"w": entry(shape=[3])},
    "shape smaller than bytes": {"w": entry(shape=[1])},
    "shape beyond all files": {"w": entry(shape=[10**30])},
    "unknown dtype": {"w": entry("F12")},
    "dtype of list": {"w": entry(["F32"])},
    "dtype of null": {"w": entry(None)},
    "beyond the end": {"w": entry(offsets=[80, 88])},
    "far beyond the end": {"w": entry(offsets=[10**30, 10**30 + 8])},
    "overlap": {"w": entry(), "v": entry(offsets=[4, 12])},
    "same bytes twice": {"w": entry(), "v": entry()},
    "entry of text": {"w": "F32"},
    "entry of list": {"w": [1, 2]},
    "entry of null": {"w": None},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named_with_file_and_tensor(lie: str, tmp_path: Path) -> None:
    path = put(tmp_path / "lie.safetensors", LIES[lie], bytes(16))
    with pytest.raises(CheckpointError, match=r"tensor '[wv]' .*copy or download it again\.$") as error:
        read_header(path)
    assert str(error.value).startswith(str(path))


HEADERS = {
    "list": b"[1, 2]",
    "text": b'"header"',
    "null": b"null",
    "number": b"12",
    "half": b'{"w": {"dtype": "F32", "sha',
    "no JSON": b"\x80\x02}q\x00.",
    "no text": b"\xff\xfe\xfd\xfc",
    "nothing": b"",
    "abyss": b"[" * 100_000,
    "number beyond measure": b'{"w": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_are_none(header: str, tmp_path: Path) -> None:
    path = put(tmp_path / "header.safetensors", HEADERS[header], bytes(16))
    with pytest.raises(CheckpointError, match=r"Copy or download it again\.$") as error:
        read_header(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 1000])
def test_a_header_longer_than_the_file(length: int, tmp_path: Path) -> None:
    path = put(tmp_path / "long.safetensors", {"w": entry()}, bytes(8), length=length)
    with pytest.raises(CheckpointError, match=f"its header claims {length}"):
        read_header(path)


def test_a_header_shorter_than_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(put(tmp_path / "short.safetensors", {"w": entry()}, bytes(8), length=11))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_files_too_short_for_a_length(size: int, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"it holds {size} bytes"):
        read_header(path)


def test_every_truncation_is_noticed(true_file: Path, tmp_path: Path) -> None:
    content, path = true_file.read_bytes(), tmp_path / "cut.safetensors"
    for size in {*range(0, len(content), 97), len(content) - 1}:
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_no_file_and_no_file_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "nul\x00"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_header(path)


def test_a_pickled_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_header(tmp_path / "model.bin")


@steady
@given(st.binary(max_size=60), st.integers(0, 80))
def test_noise_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + noise)
    read_or_refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from(["F32", "U8", "F4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@steady
@given(st.dictionaries(st.sampled_from(["w", "v", "__metadata__"]), JSON, max_size=3))
def test_any_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
    path = put(tmp_path_factory.getbasetemp() / "any.safetensors", header, bytes(16))
    read_or_refused(path)
