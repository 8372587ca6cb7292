"""Where a study is: what is taken for one, and what a killed writer left is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.errors import RunError, SettingsError
from tidegate.tuning.place import Place, mend

LINE = b'{"op_code":0,"worker_id":"a"}\n'


@pytest.mark.parametrize("content", [b"", b'{"op', LINE, LINE + b'{"op_code":1'])
def test_an_empty_file_and_one_that_begins_as_a_study_may_be_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    assert Place.of(tmp_path / "s").check() is bool(content)
    assert Place.of(tmp_path / "none").check() is False


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"notes", b"{}", b"\x00\x01", b'{"op_codes": 1}'])
def test_another_file_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(RunError, match="is not the file of a study, and nothing in it is touched"):
        Place.of(tmp_path / "s").check()
    assert (tmp_path / "s").read_bytes() == content


def test_a_folder_a_dangling_link_and_a_database_have_sentences_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is a folder; a study is a file. Name one, such as .*tune.study"):
        Place.of(tmp_path).check()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(RunError, match="is a link to what isn't there"):
        Place.of(tmp_path / "link").check()
    (tmp_path / "a.db").write_bytes(b"SQLite format 3\x00...")
    with pytest.raises(RunError, match=r"is an SQLite database\. Name it by its URL: --study sqlite:///"):
        Place.of(tmp_path / "a.db").check()


def test_a_url_is_a_database_and_its_password_is_not_shown(tmp_path: Path) -> None:
    place = Place.of("postgresql://me:secret@host/base", "one")
    assert (place.url, place.name, place.path) == ("postgresql://me:secret@host/base", "one", None)
    assert str(place) == "the study 'one' in postgresql://me:***@host/base"
    assert Place.of(f"sqlite:///{tmp_path}/a.db").check() is False
    with pytest.raises(SettingsError, match="names a study in a database, and a file has one study alone"):
        Place.of(tmp_path / "s", "one")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (LINE, LINE),
        (LINE + b'{"op', LINE),
        (b'{"op', b""),
        (LINE * 2 + b"x" * 10_000, LINE * 2),
        (b"x" * 9_000, b""),
    ],
)
def test_a_last_line_that_is_not_whole_is_cut_off(tmp_path: Path, before: bytes, after: bytes) -> None:
    (tmp_path / "s").write_bytes(before)
    mend(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == after


def test_the_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(LINE * 2 + b"garbage\n" + LINE)
    assert Place.of(tmp_path / "s").damage() == "line 3"
    (tmp_path / "s").write_bytes(LINE * 2 + b'{"op')
    assert Place.of(tmp_path / "s").damage() == ""
