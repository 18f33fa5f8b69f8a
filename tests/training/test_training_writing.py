from __future__ import annotations

import pytest

from coterie.training.writing import known_share, most_repeated, read_words, save_words, words_of


def test_words_are_runs_of_letters():
    assert words_of("Don't stop-me, 3 Élan’s_x") == ["don't", "stop", "me", "élan’s", "x"]


def test_words_are_kept_and_read(tmp_path):
    save_words(["the Cat sat", "the mat"], tmp_path / "words.txt.gz")
    assert read_words(tmp_path / "words.txt.gz") == {"the", "cat", "sat", "mat"}


@pytest.mark.parametrize(
    ("text", "share"),
    [("the cat", 1.0), ("the cat. The dgo.", 0.75), ("the cat mul", 1.0), ("", 0.0), ("12 34", 0.0), ("cat", 0.0)],
)
def test_the_share_of_known_words(text, share):
    assert known_share(text, frozenset({"the", "cat"})) == share


@pytest.mark.parametrize(
    ("text", "times"),
    [("a b c", 0), ("a b c d", 1), ("a b c d. A b c d!", 2), ("no no no no no no", 3), ("a b c d e f g", 1)],
)
def test_the_most_frequent_run_of_four_words(text, times):
    assert most_repeated(text) == times
