"""Pictures for the notebooks, so that their cells stay short. Nothing of the method is in here.

    strip     T pictures side by side, a title over each
    cells     numbers, one per cell, as pictures of the frames
    bins      packed rows, coloured by the frame that a token comes from
    tokens    what the LLM reads, a box a token
    grid      a matrix of yes and no

Frames have one colour each, dark (early) to light (late), in every picture of the course.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch, Rectangle

from stts_mini.report import picture

HEAT = "magma"  # scores, dark to light
KINDS = {"stamp": "#8c96c6", "marker": "#4d4d4d", "cell": "#41ab5d", "question": "#fdae6b", "answer": "#e6550d"}


def frame_colour(t: int, T: int):
    """The colour of frame t of T."""
    return plt.cm.viridis(0.12 + 0.85 * t / max(T - 1, 1))


def strip(pictures, titles: Sequence[str] = (), title: str = "", width: float = 10, colorbar: str = "", **options):
    """Draw T pictures side by side; `colorbar`: what their numbers are (with vmin and vmax among the options)."""
    T = len(pictures)
    side, ratio = width / T, pictures[0].shape[0] / pictures[0].shape[1]
    lines = max([text.count("\n") for text in titles], default=0)
    size = (width, side * ratio + 0.6 + 0.25 * lines)
    fig, axes = plt.subplots(1, T, figsize=size, squeeze=False, layout="constrained")
    for t, ax in enumerate(axes[0]):
        drawn = ax.imshow(pictures[t], **options)
        ax.set(xticks=[], yticks=[])
        ax.set_title(titles[t] if len(titles) else "", fontsize=9)
    if title:
        fig.suptitle(title, fontsize=11)
    if colorbar:
        fig.colorbar(drawn, ax=axes[0].tolist(), shrink=0.85, pad=0.01, label=colorbar)
    plt.show()


def cells(values, titles: Sequence[str] = (), title: str = "", label: str = "score", size: int = 48, **options):
    """Draw numbers, one per cell, (T, C), as T pictures with one scale."""
    values = np.asarray(values, float)
    options = {"vmin": 0, "vmax": values.max(), "cmap": HEAT, **options}
    strip(picture.to_pixels(values, size), titles, title, colorbar=label, **options)


def dimmed(frames: np.ndarray, keep) -> np.ndarray:
    """Frames (T, H, W, 3) whose pruned cells are nearly dark; keep (T, C) bool."""
    if frames.shape[1] == frames.shape[2]:
        return picture.clip_views(frames, np.asarray(keep), None)[1]
    raise ValueError(f"frames are {frames.shape}: give square ones")


def bins(frame, T: int, title: str = "", cell: int = 1, ax=None) -> None:
    """Draw packed rows: frame (rows, N), the source frame of every slot, −1 = spare room. `cell`: slots in a cell."""
    frame = np.asarray(frame)
    rows, N = frame.shape
    own = ax is None
    if own:
        fig, ax = plt.subplots(figsize=(9, 0.42 * rows + 1.1), layout="constrained")
    for r in range(rows):
        start = 0
        while start < N:
            t, end = frame[r, start], start
            while end < N and frame[r, end] == t:
                end += 1
            _segment(ax, start, end, r, t, T, cell)
            start = end
    ax.set(xlim=(-0.2, N + 0.2), ylim=(rows - 0.45, -0.55), yticks=range(rows), xlabel="slot (patches)", ylabel="row")
    ax.set_title(title, fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    if own:
        plt.show()


def _segment(ax, start: int, end: int, row: int, t: int, T: int, cell: int) -> None:
    """One frame's run of tokens in a row, with the borders of its cells."""
    if t < 0:
        ax.add_patch(Rectangle((start, row - 0.38), end - start, 0.76, fc="none", ec="#bbbbbb", hatch="///", lw=0.6))
        return
    ax.add_patch(Rectangle((start, row - 0.38), end - start, 0.76, fc=frame_colour(t, T), ec="white", lw=1.5))
    for x in range(start + cell, end, cell) if cell > 1 else ():
        ax.plot([x, x], [row - 0.38, row + 0.38], color="white", lw=0.5, alpha=0.6)
    dark = t / max(T - 1, 1) < 0.6
    ax.text((start + end) / 2, row, f"t={t}", ha="center", va="center", fontsize=8, color="white" if dark else "black")


def grid(matrix, title: str = "", xlabel: str = "key", ylabel: str = "query", ax=None, ticks=None) -> None:
    """Draw a matrix of yes (dark) and no (light); ticks: a text for each row and column."""
    matrix = np.asarray(matrix, float)
    own = ax is None
    if own:
        fig, ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    ax.imshow(matrix, cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=10)
    if ticks is not None:
        ax.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=7)
        ax.set_yticks(range(len(ticks)), ticks, fontsize=7)
    if own:
        plt.show()


def tokens(words: Sequence[str], kinds: Sequence[str], title: str = "", per_row: int = 22) -> None:
    """Draw a sequence of tokens, a box each, coloured by kind (one of KINDS), wrapped after `per_row`."""
    rows = -(-len(words) // per_row)
    fig, ax = plt.subplots(figsize=(10.5, 0.42 * rows + 0.9), layout="constrained")
    for i, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        y, x = divmod(i, per_row)
        ax.add_patch(Rectangle((x + 0.03, y + 0.08), 0.94, 0.84, fc=KINDS[kind], ec="none"))
        dark = kind in ("marker", "cell", "answer")
        ax.text(x + 0.5, y + 0.5, word, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set(xlim=(0, per_row), ylim=(rows, 0))
    ax.axis("off")
    ax.set_title(title, fontsize=11)
    seen = [kind for kind in KINDS if kind in kinds]
    handles = [Patch(color=KINDS[kind], label=kind) for kind in seen]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(seen), frameon=False, fontsize=8)
    plt.show()
