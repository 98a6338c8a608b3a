"""The house: the method alone on the top shelf, and imports that run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stts_mini

ROOT = Path(stts_mini.__file__).parent
LEAVES = {"packing", "scorer", "vit", "llm"}
FLOOR = {"toy": 0, "method": 0, "data": 1, "training": 2, "report": 3, "eval": 4, "train": 5, "lab": 6}  # see imports
METHOD = {*LEAVES, "sequence", "model"}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    """lab/speed/bench.py → lab.speed.bench."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room(module: str) -> str:
    """The room that a module stands in, or the module itself for the two commands."""
    first = module.split(".")[0]
    return "method" if first in METHOD else first


def imports(path: Path) -> set[str]:
    """What a file imports of ours, inside functions, too: as "data.video"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            if node.module.split(".")[0] == "stts_mini":
                of_package = (ROOT / Path(*node.module.split(".")[1:])).is_dir()
                found |= {f"{node.module}.{alias.name}" if of_package else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "stts_mini"}
    return {name.removeprefix("stts_mini.") for name in found}


def test_the_shelf_holds_the_method_and_the_two_commands():
    assert {path.stem for path in ROOT.glob("*.py")} == {*METHOD, "train", "eval", "__init__"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    """Downwards, or within a room; the leaves and the toy world import nothing of ours."""
    own, wanted = name_of(path), imports(path)
    for name in wanted:
        assert (ROOT / Path(*name.split("."))).with_suffix(".py").is_file(), f"{own} imports {name}: no such module"
        assert FLOOR[room(name)] < FLOOR[room(own)] or room(name) == room(own), (
            f"{own} imports {name}, which is above it"
        )
        if room(own) == "toy":
            assert room(name) == "toy"
        if room(own) == "method":
            assert room(name) == "method" and own not in LEAVES
    if own == "sequence":
        assert not wanted


def test_no_circle():
    graph = {name_of(path): imports(path) for path in MODULES}
    while free := {name for name, wanted in graph.items() if not wanted & graph.keys()}:
        graph = {name: wanted for name, wanted in graph.items() if name not in free}
    assert not graph, f"these import each other: {sorted(graph)}"


def test_every_room_says_what_it_is_for():
    for room_file in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(room_file.read_text())), room_file
    assert all(hasattr(stts_mini, name) for name in stts_mini.__all__)


def test_the_check_sees_a_wrong_import(tmp_path):
    """Both ways of spelling, and inside a function."""
    (tmp_path / "wrong.py").write_text("from stts_mini import train\ndef f():\n    import stts_mini.lab.ask\n")
    assert imports(tmp_path / "wrong.py") == {"train", "lab.ask"}
    (tmp_path / "wrong.py").write_text("from stts_mini.data import video\nfrom stts_mini.eval import evaluate\n")
    assert imports(tmp_path / "wrong.py") == {"data.video", "eval"}


def test_the_face_loads_nothing_before_it_is_asked():
    """Whoever only writes clips, in many processes, does not wait for PyTorch."""
    script = "import sys, stts_mini.data.clips; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert stts_mini.packing.select and stts_mini.VLM
    with pytest.raises(AttributeError, match="stts_mini has no 'nothing'; it has Batch, Encoded"):
        stts_mini.nothing  # noqa: B018
