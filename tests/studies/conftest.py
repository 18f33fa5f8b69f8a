from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # runs import the toy study in their own processes


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    """A directory with a little text in the three splits."""
    place = tmp_path_factory.mktemp("prose")
    for number, split in enumerate(("train", "valid", "test")):
        days = range(14_000 if split == "train" else 2_000)
        lines = [f"On day {day} the otter swam to weir {day * (7 + number) % 11}." for day in days]
        (place / f"literature.{split}.txt").write_text("\n".join(lines))
    return place
