from __future__ import annotations

import gzip
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.training.text import SPLITS, python_sources, read_domains, read_text, split_text


@pytest.fixture
def folder(tmp_path):
    for split in SPLITS:
        (tmp_path / f"notes.{split}.txt").write_text(f"the {split} text")
    return tmp_path


def test_domains_are_found_by_their_train_file(texts):
    corpus = read_domains(texts)
    assert list(corpus) == ["manuals", "stories"]
    assert all(set(splits) == set(SPLITS) for splits in corpus.values())
    assert corpus["manuals"]["train"].startswith("The ")


def test_domains_come_in_the_order_asked(texts):
    assert list(read_domains(texts, ["stories", "manuals"])) == ["stories", "manuals"]


def test_files_and_directories_are_one_text(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "more.txt.gz").write_bytes(gzip.compress(b"deep text"))
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    assert read_text([folder / "notes.train.txt", folder / "deep"]) == "the train text\n\ndeep text"
    assert read_text([folder]).count("text") == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b" \n\n ", "is empty"), (b"a\0b", "binary"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_file_without_text_is_named(folder, content, said):
    (folder / "notes.valid.txt").write_bytes(content)
    with pytest.raises(OptionError, match=said) as raised:
        read_domains(folder)
    assert "notes.valid.txt" in str(raised.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-6], lambda data: b"no gzip", lambda data: data[:12] + b"\xff" * 9]
)
def test_a_damaged_archive_is_named(folder, damage):
    (folder / "more.txt.gz").write_bytes(damage(gzip.compress(b"some text " * 50)))
    with pytest.raises(OptionError, match=r"more\.txt\.gz cannot be read"):
        read_text([folder / "more.txt.gz"])


def test_a_missing_split_is_named(folder):
    (folder / "notes.test.txt").unlink()
    with pytest.raises(OptionError, match=r"notes\.test\.txt is missing"):
        read_domains(folder)


def test_what_is_not_there_is_said_with_what_is(folder, tmp_path):
    with pytest.raises(OptionError, match="Choose among: notes"):
        read_domains(folder, ["novels"])
    with pytest.raises(OptionError, match="not a directory"):
        read_domains(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="does not exist"):
        read_text([tmp_path / "nowhere"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(OptionError, match=r"<domain>\.train\.txt"):
        read_domains(tmp_path / "bare")
    with pytest.raises(OptionError, match=r"holds no \.txt"):
        read_text([tmp_path / "bare"])


@given(st.text(min_size=1, max_size=3000), st.sampled_from([0.05, 0.1, 0.3, 0.5]))
def test_a_text_is_split_without_loss(text, share):
    learn, unseen = split_text(text, share)
    assert Counter(learn + unseen) == Counter(text)
    if len(text) >= 200:
        assert len(unseen) / len(text) == pytest.approx(share, abs=share / 2)


def test_what_is_measured_on_is_spread_over_the_text():
    text = "".join(chr(0x100 + place // 1000) for place in range(100_000))
    _, unseen = split_text(text, 0.05)
    assert len(set(unseen)) > 4
    assert unseen[0] < chr(0x100 + 20) < chr(0x100 + 80) < unseen[-1]


def test_every_machine_with_python_has_text():
    text = python_sources(20_000)
    assert text == python_sources(20_000)
    assert len(text) >= 20_000
    assert "def " in text
