"""Run every notebook of tutorials/ from a clean kernel; fail on the first error.

    python tutorials/run.py            check only
    python tutorials/run.py --write    and write the outputs back into the notebooks

Needs `pip install -e '.[tutorials]'`.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        began = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
        if "--write" in sys.argv[1:]:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # when it ran is nobody's business
            nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
