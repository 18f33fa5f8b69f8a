"""Where the text of a study comes from."""

from __future__ import annotations

import gzip

import pytest

from coterie.errors import OptionError
from coterie.studies import Corpus, plain_text


def test_every_machine_has_text():
    corpus = plain_text(None, size=200_000)
    assert "standard library" in corpus.source
    assert {name: len(data) for name, data in corpus.parts.items()} == {
        "train": 180_000, "valid": 10_000, "test": 10_000,
    }  # fmt: skip
    assert corpus.digest == plain_text(None, size=200_000).digest
    assert b"def " in corpus.parts["valid"]


def test_a_directory_with_literature_gives_literature(tmp_path):
    for domain in ("literature", "law"):
        for split, size in (("train", 90_000), ("valid", 40_000), ("test", 40_000)):
            data = f"{domain} {split} ".encode() * (size // 10)
            (tmp_path / f"{domain}.{split}.txt.gz").write_bytes(gzip.compress(data))
    corpus = plain_text(tmp_path, size=100_000)
    assert corpus.source.startswith("literature of ")
    assert [len(corpus.parts[name]) for name in ("train", "valid", "test")] == [90_000, 5_000, 5_000]
    assert all(name.encode() in data and b"law" not in data for name, data in corpus.parts.items())


def test_all_domains_where_there_is_no_literature(tmp_path):
    for domain in ("law", "letters"):
        for split in ("train", "valid", "test"):
            (tmp_path / f"{domain}.{split}.txt").write_text(f"{domain} {split} " * 5000)
    corpus = plain_text(tmp_path, size=100_000)
    assert corpus.source.startswith("law, letters of ")
    assert b"law train" in corpus.parts["train"]
    assert b"letters train" in corpus.parts["train"]


def test_any_file_is_cut_into_parts(tmp_path):
    (tmp_path / "notes.txt").write_text("".join(f"line {number}\n" for number in range(60_000)))
    corpus = plain_text(tmp_path / "notes.txt", size=500_000)
    assert [len(corpus.parts[name]) for name in ("train", "valid", "test")] == [450_000, 25_000, 25_000]
    assert len({corpus.parts["train"][:100], corpus.parts["valid"][:100], corpus.parts["test"][:100]}) == 3


def test_it_travels(tmp_path):
    corpus = Corpus("a, b", {"train": b"\x00\xff", "pairs": b"x\ty\n"})
    corpus.save(tmp_path / "text")
    back = Corpus.load(tmp_path / "text")
    assert (back.source, dict(back.parts), back.digest) == (corpus.source, dict(corpus.parts), corpus.digest)


@pytest.mark.parametrize(("name", "said"), [("nowhere", "does not exist"), ("short.txt", "at least 400,000")])
def test_text_that_will_not_do(tmp_path, name, said):
    (tmp_path / "short.txt").write_text("A few words.")
    with pytest.raises(OptionError, match=said):
        plain_text(tmp_path / name)


def test_an_empty_directory(tmp_path):
    with pytest.raises(OptionError, match=r"no \.txt"):
        plain_text(tmp_path)
