"""The grader: modules that are wrong on purpose fail, by the property that they break, with a small example."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.grading import GRADED, put_in_place

WRONG = Path(__file__).parent / "wrong"
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


def grade(module, path, *options):
    command = [sys.executable, "-m", "pytest", f"tests/test_{module}.py", f"--{module}", str(path), "-x", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=WRONG.parents[1])


def test_every_wrong_module_is_listed():
    assert {path.stem for path in WRONG.glob("*.py")} == set(CAUGHT_BY)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CAUGHT_BY if name != "token_lost"]


@pytest.mark.parametrize("name", ["token_lost", *SLOW])
def test_a_wrong_module_is_caught_with_a_small_counter_example(name):
    module, test = CAUGHT_BY[name]
    done = grade(module, WRONG / f"{name}.py", "-p", "no:cacheprovider")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"FAILED \S+::{test}\b", done.stdout), done.stdout[-2000:]
    example = re.split(r"(?:Falsifying|Failing) (?:explicit )?(?:example|test case)", done.stdout)[1]
    assert len(example.split("Explanation:")[0].split("short test summary")[0]) < 1500, example


def test_ours_passes_in_its_own_place(tmp_path):
    (tmp_path / "mine.py").write_text("from stts_mini.packing import pack, select\n")
    done = grade("packing", tmp_path / "mine.py", "-v", "-k", "test_select_is_the_oracle or round_trip")
    assert done.returncode == 0, done.stdout
    assert "mine.py: select, pack (ours: num_removed, first_fit_descending, block_mask)" in done.stdout


def test_what_cannot_be_graded_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    for module in GRADED:
        with pytest.raises(ValueError, match="no such file"):
            put_in_place(module, str(tmp_path / "missing.py"))
        with pytest.raises(ValueError, match="defines none of"):
            put_in_place(module, str(tmp_path / "empty.py"))
    done = grade("packing", tmp_path / "missing.py")
    assert done.returncode == 4 and "no such file" in done.stderr and "Traceback" not in done.stderr
