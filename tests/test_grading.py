"""The grader: modules that are wrong on purpose fail, by the property that they break, with a small example.

It runs from a folder outside the checkout, which has tests and settings of its own.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import stts_mini
from stts_mini import model, packing, scorer
from stts_mini.lab import grade as command
from tests import conftest
from tests.grading import GRADED, put_in_place, replace
from tests.test_fork_me import PYTHON

ROOT = Path(__file__).parent.parent
WRONG = ROOT / "tests" / "wrong"
CAUGHT_BY = {  # the first property that each breaks
    "one_row_per_frame": ("packing", "test_first_fit_is_the_oracle"),
    "frames_mixed": ("packing", "test_block_mask_is_the_oracle"),
    "padding_seen": ("packing", "test_block_mask_is_the_oracle"),
    "cells_interleaved": ("packing", "test_pack_keeps_a_frame_together_in_order_and_nothing_else"),
    "ties_reversed": ("packing", "test_select_is_the_oracle"),
    "token_lost": ("packing", "test_pack_and_unpack_are_a_round_trip"),
    "first_frame_pruned": ("packing", "test_select_is_the_oracle"),
    "remembers_the_video_before": ("scorer", "test_scorer_is_a_loop_over_cells"),
    "bias_on_the_first_frame": ("scorer", "test_attention_bias_is_the_log_of_the_cells_score"),
}


MINE = """
from stts_mini.packing import pack as right_pack, select
from torch import nn

def pack(x, keep):
    return right_pack(x, keep)

class MyScorer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w2 = config.w**2

    def forward(self, x, num_frames=None):
        return x.unflatten(2, (-1, self.w2)).mean((3, 4))
"""


@pytest.fixture
def elsewhere(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    for empty in ("empty.py", "a.ini"):
        (tmp_path / empty).touch()
    return tmp_path


def test_every_wrong_module_is_listed():
    assert {path.stem for path in WRONG.glob("*.py")} == set(CAUGHT_BY)


def wrong(name):
    module, test = CAUGHT_BY[name]
    marks = [pytest.mark.graded({"wrong.py": (WRONG / f"{name}.py").read_text()}, [f"--{module}", "wrong.py"])]
    return pytest.param(test, marks=marks + [pytest.mark.slow] * (name != "one_row_per_frame"), id=name)


@pytest.mark.parametrize("test", [*map(wrong, CAUGHT_BY)])
def test_a_wrong_module_is_caught_with_a_small_counter_example(test, report):
    assert report.returncode == 1, report.stdout
    assert re.search(rf"FAILED \S+::{test}\b", report.stdout), report.stdout[-2000:]
    example = re.split(r"(?:Falsifying|Failing) (?:explicit )?(?:example|test case)", report.stdout)[1]
    assert len(example.split("Explanation:")[0].split("short test summary")[0]) < 1500, example


@pytest.mark.graded({"mine.py": MINE}, ["--packing", "mine.py", "-k", "test_select_is_the_oracle or round_trip"])
def test_a_right_module_passes_and_nothing_is_written_beside_it(report):
    """What the file only imports from us is not graded."""
    assert report.returncode == 0, report.stdout
    first = "grading mine.py: pack (ours: num_removed, select, first_fit_descending, block_mask)"
    assert report.stdout.splitlines()[0] == first and "2 passed" in report.stdout
    assert not report.written


@pytest.mark.graded({"my_file.py": dict(PYTHON)["my_file.py"]}, ["--scorer", "my_file.py:Contrast"])
def test_a_scorer_class_is_graded(report):
    """The one of the page for forks."""
    assert report.returncode == 0, report.stdout
    assert report.stdout.splitlines()[0] == "grading my_file.py:Contrast" and "8 passed" in report.stdout


RIVAL = """
class Mine:
    def __init__(self, model):
        self.model = model

    def __call__(self, frames, num_frames=None, k=0.5):
        spread = lambda x, counts: x.unflatten(2, (-1, 4)).mean((3, 4)) BATCH
        return self.model.encode_video(frames, num_frames, k, spread)
"""


def rival(batch):
    return pytest.mark.graded({"mine.py": RIVAL.replace("BATCH", batch)}, ["--rival", "mine.py:Mine", "-k", "[mine"])


@pytest.mark.parametrize(
    "caught",
    [
        pytest.param(None, marks=[rival(""), pytest.mark.slow]),
        pytest.param("test_a_video_alone_is_as_in_a_batch", marks=rival("* (1.5 - len(x))")),
    ],
)
def test_a_rival_is_graded(caught, report):
    """One that is right, and one that sees how many videos there are in the batch."""
    assert report.stdout.splitlines()[0] == "grading mine.py:Mine"
    assert report.returncode == bool(caught) and (caught or "11 passed") in report.stdout, report.stdout


@pytest.mark.slow
@pytest.mark.graded({}, ["--packing", str(WRONG / "frames_mixed.py"), "--encoder", "-k", "any_batch"])
def test_the_encoder_is_tested_with_the_part_inside(report):
    assert report.returncode == 1 and "1 failed" in report.stdout, report.stdout


def test_a_part_is_replaced_wherever_the_package_holds_it():
    def new_mask(frame): ...

    class NewScorer(scorer.Scorer): ...

    for old, new in ((packing.block_mask, new_mask), (scorer.Scorer, NewScorer)):
        replace(old, new)
        try:
            held = (packing.block_mask, model.block_mask, stts_mini.block_mask)
            held += (scorer.Scorer, stts_mini.Scorer, scorer.SCORERS["stts"])
            assert sum(part is new for part in held) == 3 and not any(part is old for part in held)
        finally:
            replace(new, old)


def test_what_cannot_be_graded_is_refused(elsewhere):
    for module in GRADED:
        for name, message in (
            ("missing.py", "no such file"),
            ("empty.py", "defines none of"),
            ("broken.py", "cannot be imported"),
            ("a.ini", r"must end in \.py"),
        ):
            with pytest.raises(ValueError, match=message):
                put_in_place(module, str(elsewhere / name), {f"test_{module}.py"})


def test_a_class_is_named_and_graded_by_its_own_tests(elsewhere):
    """Not by others, which would pass without looking at it."""
    mine, own = str(elsewhere / "mine.py"), {"test_any_scorer.py"}
    refused = [
        ("scorer", mine, own, rf"name it, as --scorer {mine}:MyScorer"),
        ("scorer", mine, {"test_scorer.py"}, rf"defines none of .*--scorer {mine}:MyScorer"),
        ("scorer", f"{mine}:MyScorer", {"test_scorer.py", "test_model.py"}, "only test_any_scorer.py grades a class"),
        ("scorer", f"{mine}:Nobody", own, "no nn.Module class 'Nobody'"),
        ("packing", f"{mine}:pack", {"test_packing.py"}, "give a file alone"),
    ]
    for module, path, files, message in refused:
        with pytest.raises(ValueError, match=message):
            put_in_place(module, path, files)
    given = SimpleNamespace(args=["tests/test_any_scorer.py"], getoption={"--scorer": mine}.get)
    with pytest.raises(pytest.UsageError, match=f"--scorer {mine}:MyScorer"):  # pytest says it in one line
        conftest.pytest_configure(given)


def test_a_flag_without_effect_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--rival", "mine.py:Mine", "--encoder"])
    assert "--encoder has no effect beside --rival" in capsys.readouterr().err


def test_an_installation_without_the_tests_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        command.main(["--packing", "mine.py"])
    assert "clone the repository" in capsys.readouterr().err
