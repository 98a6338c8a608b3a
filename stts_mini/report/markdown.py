"""Tables in Markdown: for what the commands print, and for the pages in the repository."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of a head and rows. Cells are printed with `str`, and an empty one is a single space.

    >>> print(markdown(["", "k", "seconds"], [["training", 0.5, "1.69"], ["", 0.8, "0.95"]]))
    | | k | seconds |
    |---|---|---|
    | training | 0.5 | 1.69 |
    | | 0.8 | 0.95 |
    """
    line = lambda cells: " ".join(["|", *(f"{cell} |".lstrip() for cell in cells)])
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])
