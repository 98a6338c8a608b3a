"""Exercises that are left blank: `tutorials/run.py` sees each fail as it stands, and pass with its solution."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
spec = importlib.util.spec_from_file_location("run", Path(__file__).parent.parent / "tutorials" / "run.py")
spec.loader.exec_module(run := importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("body", "solution", "error", "says"),
    [
        ("return 3", "return 4", None, ""),
        ("return 4", "return 4", ValueError, "passes before"),
        ("return 3", "return 5", nbclient.exceptions.CellExecutionError, "AssertionError"),
    ],
)
def test_an_exercise_fails_blank_and_passes_solved(tmp_path, body, solution, error, says):
    code = nbformat.v4.new_code_cell
    cells = [code(f"def four():\n    {body}"), code("assert four() == 4", metadata={"tags": ["raises-exception"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_mine.ipynb")
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "01.md").write_text(f"**1.**\n\n```python\ndef four():\n    {solution}\n```\n")
    if error:
        with pytest.raises(error, match=says):
            run.run(tmp_path / "01_mine.ipynb")
    else:
        done = run.run(tmp_path / "01_mine.ipynb")
        assert len(done.cells) == 2 and done.cells[1].outputs == []
