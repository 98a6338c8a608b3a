"""The tests as a grader: put somebody else's functions and classes into the package, before any test is imported.

    python -m stts_mini.lab.grade --packing path/to/mine.py         from any folder
    pytest tests/test_packing.py --packing path/to/mine.py          from a checkout

What the file defines of the names below replaces ours, everywhere; what it lacks stays ours.
"""

import importlib.util
import sys
from pathlib import Path

from stts_mini import packing, scorer
from stts_mini.scorer import SCORERS, find_scorer

GRADED = {
    "packing": ("num_removed", "select", "first_fit_descending", "pack", "block_mask"),
    "scorer": ("cell_major", "CellPooler", "Scorer", "temporal_target", "similarity_loss", "attention_bias"),
}
OURS = {"packing": packing, "scorer": scorer}
ANY_SCORER = "test_any_scorer.py"  # the file that grades a class: --scorer mine.py:MyScorer


def put_in_place(module: str, path: str, files: set[str]) -> str:
    """Put what --<module> names in place, for the test files that run; returns the report's line about it.

    Raises ValueError, with the remedy, for what cannot be graded, or not by these files.
    """
    if ":" not in path:
        if module == "scorer" and files == {ANY_SCORER}:
            raise ValueError(f"--scorer {path}: {ANY_SCORER} grades one class; name it, as --scorer {path}:MyScorer")
        found = put_names_in_place(module, path)
        ours = [name for name in GRADED[module] if name not in found]
        return f"grading {path}: {', '.join(found)}" + (f" (ours: {', '.join(ours)})" if ours else "")
    if module != "scorer":
        raise ValueError(f"--{module} {path}: give a file alone, as --{module} mine.py")
    if ANY_SCORER not in files and all(name.endswith(".py") for name in files):
        raise ValueError(f"--scorer {path}: only {ANY_SCORER} grades a class; give a file alone to these tests")
    find_scorer(path)
    return f"grading {path}"


def put_names_in_place(module: str, path: str) -> list[str]:
    """Replace names of stts_mini.<module> by those of the file; returns which. Raises ValueError for a path
    that is no file, cannot be imported, or defines none of the names."""
    if not Path(path).is_file():
        raise ValueError(f"--{module} {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"graded_{module}", path)
    if spec is None:
        raise ValueError(f"--{module} {path}: not a Python file (its name must end in .py)")
    theirs = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(theirs)
    except Exception as error:  # whatever somebody's file may raise
        raise ValueError(f"--{module} {path} cannot be imported ({type(error).__name__}: {error})") from error
    ours = vars(OURS[module])
    found = [name for name in GRADED[module] if getattr(theirs, name, ours[name]) is not ours[name]]
    if not found:
        hint = f"; a scorer class is named as --scorer {path}:MyScorer" if module == "scorer" else ""
        raise ValueError(f"--{module} {path} defines none of {', '.join(GRADED[module])}{hint}")
    for name in found:
        replace(ours[name], getattr(theirs, name))
    return found


def replace(old: object, new: object) -> None:
    """Wherever the package holds `old`, imported by whatever module or listed among the scorers, it holds `new`."""
    modules = [vars(module) for name, module in sys.modules.items() if name.split(".")[0] == "stts_mini"]
    for names in (*modules, SCORERS):
        for name in [name for name, value in names.items() if value is old]:
            names[name] = new
