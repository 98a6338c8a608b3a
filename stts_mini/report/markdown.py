"""Markdown, as the lab's pages are written in it."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table: the column names, then a line for each row.

    >>> print(markdown(["k", "short"], [[50, 98.8]]))
    | k | short |
    |---|---|
    | 50 | 98.8 |
    """
    lines = [head, *rows]
    cells = [f"| {' | '.join(map(str, line))} |" for line in lines]
    return "\n".join([cells[0], "|---" * len(head) + "|", *cells[1:]])
