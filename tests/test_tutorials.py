"""Exercises: `tutorials/run.py` sees each fail as it stands, and pass with its solution. Pictures have words."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
TUTORIALS = Path(__file__).parent.parent / "tutorials"
spec = importlib.util.spec_from_file_location("run", TUTORIALS / "run.py")
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


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.name[:2])
def test_every_notebook_has_exercises_with_solutions_and_words_for_its_pictures(path):
    cells = nbformat.read(path, as_version=4).cells
    exercises = [
        cell for cell in cells if cell.cell_type == "markdown" and re.search(r"^\*\*1\.\*\* ", cell.source, re.M)
    ]
    checks = sum(map(run.is_check, cells))
    page = (TUTORIALS / "solutions" / f"{path.name[:2]}.md").read_text()
    assert len(exercises) == 1 and checks == 3 == page.count("```python\n")
    outputs = [output for cell in cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", ())]
    alts = [output.metadata["image/png"]["alt"] for output in outputs]
    run.describe(cells)
    assert alts == [output.metadata["image/png"]["alt"] for output in outputs]  # the words that stand below it now


def test_a_picture_without_words_is_refused():
    picture = nbformat.v4.new_output("display_data", {"image/png": ""})
    drawn = nbformat.v4.new_code_cell("plt.show()", outputs=[picture])
    told = nbformat.v4.new_markdown_cell("*The picture: two rows.*\n\nAnd so on.")
    run.describe([drawn, told])
    assert picture.metadata["image/png"] == {"alt": "two rows."}
    with pytest.raises(ValueError, match="show"):
        run.describe([drawn, nbformat.v4.new_markdown_cell("And so on.")])
    with pytest.raises(ValueError, match="show"):
        run.describe([drawn])


def test_the_results_notebook_has_seen_all_rows():
    """Its outputs are made by hand (`run.py --write 09`), and grow old when rows come."""
    results = TUTORIALS / "results" / "rows"
    few = sum(path.stem.endswith("-panels0") for path in results.glob("*.json"))
    shown = (TUTORIALS / "09_results.ipynb").read_text()
    assert f"without panels: {few} rows" in shown
    assert f"two panels: {len([*results.glob('*.json')]) - few} rows" in shown
