"""Run every notebook of tutorials/ from a clean kernel; fail on the first error.

    python tutorials/run.py            check only
    python tutorials/run.py 02 05      only those whose name begins so
    python tutorials/run.py --write    and write the outputs back into the notebooks

The bodies of exercises are blank or wrong on purpose. The cell that checks one has the tag `raises-exception`, so that
Jupyter goes on after it. Here it must fail as it stands, and pass with the solution: the first check with the first
code block of the notebook's page in solutions/, and so on.

A picture needs words, for those who do not see it: the Markdown under its cell begins with a line `*The picture: …*`.
Screen readers get it there. The picture's metadata has it, too, for pages that show that as alternative text.

Needs `pip install -e '.[tutorials]'`.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def is_check(cell: nbformat.NotebookNode) -> bool:
    """Whether the cell checks an exercise."""
    return "raises-exception" in cell.metadata.get("tags", ())


def describe(cells: list[nbformat.NotebookNode]) -> None:
    """Write each picture's alternative text beside it. Raises ValueError for a picture without words."""
    for cell, below in zip(cells, [*cells[1:], nbformat.v4.new_markdown_cell()], strict=True):
        words = re.match(r"\*The pictures?: (.+)\*$", below.source, re.MULTILINE)
        for output in cell.get("outputs", ()):
            if "image/png" not in output.get("data", ()):
                continue
            if not words:
                raise ValueError(f"no line `*The picture: …*` under this cell:\n{cell.source}")
            output.metadata["image/png"] = {"alt": words[1]}


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs. Raises what a cell raises, and ValueError for an exercise whose check passes as it
    stands, for more or fewer solutions than checks, and for a picture without words."""
    notebook = nbformat.read(path, as_version=4)
    cells, checks = notebook.cells, [cell for cell in notebook.cells if is_check(cell)]
    if checks:
        page = (path.parent / "solutions" / f"{path.name[:2]}.md").read_text()
        solutions = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        for check, solution in zip(checks, solutions, strict=True):  # at the end: the cells keep their numbers
            notebook.cells = notebook.cells + [nbformat.v4.new_code_cell(text) for text in (solution, check.source)]
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, coalesce_streams=True, resources=where).execute()
    notebook.cells = cells
    for check in checks:
        if not any(output.output_type == "error" for output in check.outputs):
            raise ValueError(f"{path.name}: this check passes before the exercise is done:\n{check.source}")
        check.outputs = []  # that it fails is no news
    describe(cells)
    return notebook


def main() -> None:
    wanted = tuple(a for a in sys.argv[1:] if a != "--write") or ("",)
    for path in sorted(p for p in FOLDER.glob("*.ipynb") if p.name.startswith(wanted)):
        began = time.monotonic()
        notebook = run(path)
        if "--write" in sys.argv[1:]:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # when it ran is nobody's business
            nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
