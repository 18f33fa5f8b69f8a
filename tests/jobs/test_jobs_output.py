"""Outputs are whole or not there, and what cannot be written is said before the work."""

from __future__ import annotations

import os
import stat

import pytest

from coterie.errors import OptionError
from coterie.jobs.output import check_output, write_output


def test_an_old_file_is_replaced_whole(tmp_path):
    target = tmp_path / "page.html"
    target.write_text("old")
    write_output(target, "n\u00e9w")
    assert target.read_text(encoding="utf-8") == "n\u00e9w"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_output(tmp_path / "ours", b"x")
    (tmp_path / "theirs").write_bytes(b"x")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("ours", "theirs")}
    assert len(modes) == 1


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OptionError, match="No space left"):
        write_output(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_checking_leaves_nothing_behind(tmp_path):
    assert check_output(tmp_path / "new.html") == tmp_path / "new.html"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="is a directory"):
        check_output(tmp_path)
    with pytest.raises(OptionError, match="mkdir -p"):
        check_output(tmp_path / "nowhere" / "page.html")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(OptionError, match="Permission denied"):
        check_output(tmp_path / "page.html")
