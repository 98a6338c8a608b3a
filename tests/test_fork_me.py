"""The page for forks keeps its word: its diffs apply to this very package, and train."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "tutorials" / "fork_me.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
PROBE = """
import torch
from stts_mini.model import VLM
from stts_mini.training.config import TrainConfig
model = VLM(TrainConfig().model)
with torch.no_grad():
    encoded = model.encode_video(torch.randint(0, 256, (2, 20, 3, 48, 48), dtype=torch.uint8), None, 0.5)
print(encoded.kept.sum(1).tolist(), encoded.keep[:, 0].all().item(), len(encoded.tokens))
"""


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, under git, which `git apply` needs."""
    shutil.copytree(ROOT / "stts_mini", tmp_path / "stts_mini", ignore=shutil.ignore_patterns("__pycache__"))
    run(tmp_path, "git", "init", "-q")
    return tmp_path


def flags(**options):
    every = {**TINY, "data": "data", "out": "run", "test_clips": 2, **options}
    return [f"--{name.replace('_', '-')}={value}" for name, value in every.items()]


def apply(folder, diff):
    (folder / "a.diff").write_text(diff)
    run(folder, "git", "apply", "--verbose", "a.diff")


@pytest.mark.slow
def test_a_built_in_scorer(copy):
    apply(copy, DIFFS[0])
    said = run(copy, sys.executable, "-m", "stts_mini.train", *flags(scorer="contrast"))
    assert "scorer=contrast" in said and "all done" in said
    said = run(copy, sys.executable, "-m", "stts_mini.eval", "run/checkpoint.pt", "--clips=2")
    assert "scorer contrast (trained: contrast)" in said


@pytest.mark.slow
def test_a_second_pruning_stage(copy):
    before = run(copy, sys.executable, "-c", PROBE)
    apply(copy, DIFFS[1])
    after = run(copy, sys.executable, "-c", PROBE)
    assert before.split() == ["[90,", "90]", "True", "180"] and after.split() == ["[36,", "36]", "True", "72"]
    assert "all done" in run(copy, sys.executable, "-m", "stts_mini.train", *flags(vit_depth=6))


def test_the_diffs_apply(copy):
    """Both, in any order: when the code moves on, the page must."""
    assert len(DIFFS) == 2
    for diff in DIFFS[::-1]:
        apply(copy, diff)


def test_a_scorer_in_a_file_of_ones_own(tmp_path):
    source = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "my_file.py" in block)
    (tmp_path / "my_file.py").write_text(source)
    test = ROOT / "tests" / "test_any_scorer.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), "--scorer"]
    said = run(ROOT, *command, f"{tmp_path / 'my_file.py'}:Contrast")
    assert "passed" in said or "100%" in said


def test_the_pages_data_is_in_the_format():
    from stts_mini.data.clips import parse_clip

    lines = [line for line in PAGE.splitlines() if line.startswith("{")]
    clips = [parse_clip(line, i, Path(".")) for i, line in enumerate(lines)]
    assert [(c.start, len(c.images), c.qa[0].task) for c in clips] == [
        (None, 0, "question"), (61.5, 0, "free"), (None, 2, "question"),
    ]  # fmt: skip
