"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import BudgetError
from coterie.units import format_bytes, parse_bytes

steady = settings(derandomize=True, max_examples=100, deadline=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GiB", 6 * 1024**3),
        ("6 GiB", 6 * 1024**3),
        ("  6gib ", 6 * 1024**3),
        ("6G", 6 * 1024**3),
        ("6GB", 6 * 1000**3),
        ("1.5 kB", 1500),
        ("512M", 512 * 1024**2),
        ("0.5TiB", 512 * 1024**3),
        ("2TB", 2 * 1000**4),
        ("7B", 7),
        ("1048576", 1048576),
        (1048576, 1048576),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "GiB", "six GiB", "6 QiB", "6GiBs", "-6GiB", "+6GiB", "1e9", "6,5GiB", "1.GiB", ".5GiB", "6 6GiB",
     "inf", "nan", "0x10", "٦GiB", "6\x00GiB", "9" * 400, "9" * 5000 + "GiB", None, True, [], 1e300],
)  # fmt: skip
def test_no_sizes(text: str) -> None:
    with pytest.raises(BudgetError, match="Write a number with a unit"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0GiB", "0.0kB", "0.4B", 0, -1])
def test_no_usable_sizes(text: str | int) -> None:
    with pytest.raises(BudgetError, match="more than zero"):
        parse_bytes(text)


@steady
@given(st.integers(1, 10**18 - 1))
def test_plain_bytes_are_exact(count: int) -> None:
    assert parse_bytes(str(count)) == parse_bytes(count) == parse_bytes(f"{count} B") == count


@steady
@given(st.integers(1, 10**6), st.integers(0, 999), st.sampled_from(["k", "m", "g", "t"]))
def test_a_prefix_is_a_power(whole: int, thousandths: int, prefix: str) -> None:
    power = "kmgt".index(prefix) + 1
    text, thousands = f"{whole}.{thousandths:03d}", whole * 1000 + thousandths
    assert parse_bytes(f"{text}{prefix}iB") == thousands * 1024**power // 1000
    assert parse_bytes(f"{text}{prefix}B") == thousands * 1000**power // 1000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (6 * 1024**3, "6.00 GiB"),
        (12.6 * 1024**2, "12.6 MiB"),
        (640 * 1024, "640 KiB"),
        (5 * 1024**5, "5120 TiB"),
        (-1536, "-1.50 KiB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text


@steady
@given(st.integers(1, 2**60))
def test_what_is_written_reads_back_to_three_digits(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=6e-3)
