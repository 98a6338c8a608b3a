"""Grade a packing, a scorer or a whole way to prune of your own by the package's tests, from any folder.

    python -m stts_mini.lab.grade --packing mine.py             your functions instead of ours with the same names
    python -m stts_mini.lab.grade --scorer mine.py              the same for the parts of the scorer
    python -m stts_mini.lab.grade --scorer mine.py:MyScorer     what every scorer must do, for your class
    python -m stts_mini.lab.grade --rival mine.py:Mine          what every pruner must do, see lab/paper/rivals
    python -m stts_mini.lab.grade --packing mine.py -x -k round_trip        other flags go to pytest

It runs pytest with this project's settings, so your own pytest settings, conftest.py and tests/ have no effect. Nothing
is written to your folder. The exit status is pytest's. tests/README.md lists the names that you can replace.

What this file does not do: put your part in place (`tests/conftest.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser("python -m stts_mini.lab.grade", description=__doc__.split("\n")[0])
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument("--packing", metavar="FILE", help="a file that defines select, pack, …")
    part.add_argument("--scorer", metavar="FILE[:CLASS]", help="a file that defines CellPooler, …, or a scorer class")
    part.add_argument("--rival", metavar="FILE:CLASS", help="a file that defines a way to prune: a class of a model")
    parser.add_argument("--encoder", action="store_true", help="test the whole video encoder with your part inside")
    args, for_pytest = parser.parse_known_args(argv)
    if args.rival and args.encoder:
        parser.error("--encoder has no effect beside --rival, which is an encoder already: leave it out")
    if not (ROOT / "tests" / "grading.py").is_file():
        parser.error(
            f"there are no tests in {ROOT}: clone the repository, and run pip install -e '.[test]' in the clone"
        )
    if not (find_spec("pytest") and find_spec("hypothesis")):
        parser.error(f"pytest and hypothesis are needed: run pip install -e '.[test]' in {ROOT}")
    import pytest

    sys.dont_write_bytecode = True  # nothing beside the file that is graded

    module, path = next((name, path) for name, path in vars(args).items() if path and name != "encoder")
    tests = "test_model.py" if args.encoder else "test_any_scorer.py" if ":" in path else f"test_{module}.py"
    tests = "lab/paper/test_rivals.py" if module == "rival" else tests
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "stts_mini_grade"))
    settings = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-W", "default"]
    graded = f"--{module}={path}"  # one word, because pytest would load the conftest.py beside a path alone
    sys.exit(pytest.main([*settings, str(ROOT / "tests" / tests), graded, *for_pytest]))


if __name__ == "__main__":
    main()
