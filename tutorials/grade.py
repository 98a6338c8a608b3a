"""The package's property tests as a grader for what you write in a notebook.

    grade("packing", first_fit_descending, only="first_fit")      your function instead of ours, then the tests
    grade_scorer("my_scorer.py:MyScorer")                         what every scorer must do, asked of yours
    grade_rival("mine.py:Mine")                                   what every way to prune must do

What you hand in is written to a file of its own, after HEADER. The same as a command: `stts_mini.lab.grade`.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = """
import math
from decimal import Decimal
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
"""


def grade(module: str, *parts, only: str = "") -> bool:
    """Run tests/test_<module>.py with these functions or classes (or their text) instead of ours.

    `only`: tests whose names match, as pytest's -k. Prints what was run, or the first failing example.
    """
    texts = [part if isinstance(part, str) else inspect.getsource(part) for part in parts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.py"
        path.write_text(HEADER + "\n\n".join(["", *texts]))
        return _run(f"tests/test_{module}.py", f"--{module}", str(path), *(["-k", only] if only else []))


def grade_scorer(name: str) -> bool:
    """Run tests/test_any_scorer.py on a class of yours, "my_file.py:MyScorer"."""
    return _run("tests/test_any_scorer.py", "--scorer", name)


def grade_rival(name: str) -> bool:
    """Run tests/lab/paper/test_rivals.py on a class of yours, "mine.py:Mine"."""
    return _run("tests/lab/paper/test_rivals.py", "--rival", name)


def _run(tests: str, *options: str) -> bool:
    """The grader with these options; prints what passed, or the end of what it said."""
    command = [sys.executable, "-m", "stts_mini.lab.grade", *options, "-x", "--color=no"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-30:]))
    else:
        print(", ".join(re.findall(r"\d+ passed", done.stdout)), "tests of", tests)
    return done.returncode == 0
