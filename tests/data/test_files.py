"""Files are written whole or not at all, through links, and never in place of what is no file."""

import json
import os
import stat

import pytest

from stts_mini.data.files import replacing, writable, write_json, write_text


def test_a_file_is_written_whole_or_stays_what_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"k": 0.5})
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half of")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"k": 0.5} and os.listdir(tmp_path) == ["a.json"]


def test_links_are_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_pipes_and_folders_are_refused_before_anything_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "no regular file"), (".", "is a folder"), ("new/a", "there is no folder")):
        with pytest.raises(ValueError, match=message):
            write_text(tmp_path / name, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and os.listdir(tmp_path) == ["pipe"]
    assert writable(tmp_path / "a") == (tmp_path / "a").resolve()
