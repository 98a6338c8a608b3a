"""Files are written whole or not at all, through links, and never in place of what is no file."""

import json
import os
import stat

import pytest

from stts_mini import eval as evaluation
from stts_mini import train as training
from stts_mini.data.files import check_outputs, replacing, writable, write_json, write_text
from stts_mini.lab import long
from stts_mini.lab.paper import tables
from stts_mini.lab.speed import bench
from stts_mini.training import checkpoint
from tests.tiny import tiny


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
    (tmp_path / "ahead").symlink_to("later")
    write_text(tmp_path / "ahead", "new")
    assert (tmp_path / "ahead").is_symlink() and (tmp_path / "later").read_text() == "new"


def test_pipes_and_folders_are_refused_before_anything_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("pipe", "no regular file"), ("loop", "no regular file"), (".", "is a folder"), ("new/a", "there is no folder"),
        ("a" * 250, "cannot be written: File name too long"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            writable(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and sorted(os.listdir(tmp_path)) == ["loop", "pipe"]
    assert writable(tmp_path / "a") == (tmp_path / "a").resolve()


def test_a_folder_that_takes_no_file_is_noticed_before_the_work(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.touch", full)
    with pytest.raises(ValueError, match="a cannot be written: No space left on device"):
        writable(tmp_path / "a")


def test_what_is_read_is_not_written_to_nor_anything_twice(tmp_path):
    (tmp_path / "read").write_text("x")
    (tmp_path / "link").symlink_to("read")
    for outputs in (["link"], ["a", "b", "./a"]):
        with pytest.raises(ValueError, match="is also an input, or is given twice"):
            check_outputs([tmp_path / name for name in outputs], [tmp_path / "read"])
    check_outputs([tmp_path / "a", tmp_path / "b"], [tmp_path / "read"])


@pytest.mark.parametrize(
    "command, words",
    [
        (bench, ["-o", "OUT"]), (bench, ["--plot", "OUT"]), (long, ["--curve", "OUT"]),
        (evaluation, ["none.pt", "--json", "OUT"]), (tables, ["--results", "."]),
        (tables, ["--results", "rows", "--readme", "link.md"]),
    ],
)  # fmt: skip
def test_commands_look_at_what_they_will_write_before_they_work(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("README.md")
    os.mkdir("rows")
    os.symlink("README.md", "link.md")
    with pytest.raises(SystemExit, match=r"no regular file: give the name of a file to write"):
        command.main([word.replace("OUT", "README.md") for word in words])
    assert stat.S_ISFIFO(os.stat("README.md").st_mode)


@pytest.mark.parametrize("name", ["", *checkpoint.FILES])
def test_a_folder_of_a_run_is_looked_at_before_its_data(name, tmp_path):
    (tmp_path / "run").mkdir()
    os.rmdir(tmp_path / "run") if not name else None
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(ValueError, match="no regular file" if name else "cannot write to the folder"):
        training.train(tiny(tmp_path), False, training.torch.device("cpu"))
    assert not (tmp_path / "data").exists()
