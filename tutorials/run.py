"""Run every notebook of tutorials/ from a clean kernel; fail on the first error.

    python tutorials/run.py            check only
    python tutorials/run.py 02 05      only those whose name begins so
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
    wanted = tuple(a for a in sys.argv[1:] if a != "--write") or ("",)
    for path in sorted(p for p in FOLDER.glob("*.ipynb") if p.name.startswith(wanted)):
        began = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        where = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=300, coalesce_streams=True, resources=where).execute()
        if "--write" in sys.argv[1:]:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # when it ran is nobody's business
            nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
