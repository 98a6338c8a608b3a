"""What the LLM reads: the sequence of a video and its questions, and who sees whom in it.

    12.0 <frame> cell cell … </frame>  12.5 <frame> cell … </frame>  …    the prefix, once
    <question> what … <answer> red <end>                                  a branch, for every question

Stamps and markers of every frame survive pruning (paper Table 6 counts it so). Every branch starts at the
position after the prefix, and sees the prefix and itself. Attention is causal, with one exception: cells and frame
markers of a video see each other in both directions.

Legend: B videos · L length of a row · A answer tokens to predict · CELL stands in a row of ids where a kept
cell's token goes.

Several pictures are laid out like frames, with their numbers instead of time stamps. `Marks` are the tokens that
stand around frames, fill rows and end answers: the toy world's by default, a real LLM's own if it has one.

What this file does not do: encode (`model.py`), make questions (`data/batches.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CELL = -1
Branches = list[list[tuple[list[int], list[int]]]]


@dataclass(frozen=True)
class Marks:
    """Token ids that the sequence is built with: `pad` fills (nobody sees it), `end` closes an answer, and a frame's
    cells stand between `frame_start` and `frame_end`."""

    pad: int = 0
    end: int = 1
    frame_start: int = 2
    frame_end: int = 3


MARKS = Marks()  # the world's


@dataclass
class Batch:
    """Videos and what is asked about them.

    frames      (B, T, 3, H, W) uint8, or floats in [−1, 1]; padding frames may hold anything
    num_frames  (B,) int, on the CPU
    stamps      for each video, for each frame, the token ids of its time stamp
    branches    for each video, for each question, (prompt ids, answer ids); the end token is added
    scores      (B, T, C), instead of what the model's scorer says (an oracle's, for example), or None
    still       (B,) bool, on the CPU: several pictures, not a video, so nothing of it is pruned; None: all are videos
    tasks       (questions, tasks) bool, on the CPU: which task each question belongs to, for the training log; or None
    """

    frames: Tensor
    num_frames: Tensor
    stamps: list[list[list[int]]]
    branches: Branches
    scores: Tensor | None = None
    still: Tensor | None = None
    tasks: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its frames on `device`."""
        return replace(self, frames=sent(self.frames, device))

    def pin_memory(self) -> Batch:
        """The same batch with its frames in pinned memory; DataLoader asks for it."""
        return replace(self, frames=self.frames.pin_memory())


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x on `device`. To a GPU it travels from pinned memory, while Python goes on: nobody waits for what the GPU is
    busy with."""
    to_gpu = torch.device(device).type == "cuda" and not x.is_cuda
    return (x.pin_memory() if to_gpu else x).to(device, non_blocking=to_gpu)


def prefix_ids(stamps: list[list[list[int]]], kept: Tensor, shown: Tensor, marks: Marks = MARKS) -> list[list[int]]:
    """For each video: stamp, frame start, CELL × kept, frame end, for every shown frame, in time order.

    stamps (B lists, one stamp a frame, shown or not), kept (B, T) int: cells of each frame, shown (B, T) bool.
    Raises ValueError for a shown frame without a stamp, or more stamps than frames (none shown: blind, no prefix).

    >>> prefix_ids([[[20], [21]]], torch.tensor([[2, 0]]), torch.ones(1, 2).bool()) == [
    ...     [20, MARKS.frame_start, CELL, CELL, MARKS.frame_end, 21, MARKS.frame_start, MARKS.frame_end]]
    True
    """
    prefixes = []
    for b, (video, counts, seen) in enumerate(zip(stamps, kept.tolist(), shown.tolist(), strict=True)):
        there = [t for t, is_shown in enumerate(seen) if is_shown]
        if there and not there[-1] < len(video) <= len(seen):
            raise ValueError(f"video {b} has {len(video)} time stamps and {len(seen)} frames: give one a frame")
        ids: list[int] = []
        for t in there:
            ids += [*video[t], marks.frame_start, *[CELL] * counts[t], marks.frame_end]
        prefixes.append(ids)
    return prefixes


def check_prompts(branches: Branches) -> None:
    """Raise ValueError for a batch without a question, or a question without a prompt."""
    if not any(branches):
        raise ValueError("a batch without any question: give each video at least one (prompt ids, answer ids)")
    empty = [f"video {b}, question {q}" for b, video in enumerate(branches) for q, (p, _) in enumerate(video) if not p]
    if empty:
        raise ValueError(f"{empty[0]} has an empty prompt: give at least one token to answer after")


@dataclass(frozen=True)
class Layout:
    """Rows of a batch, padded on the right; who sees whom; and where each answer token is predicted.

    ids        (B, L), CELL for a kept cell's place, `marks.pad` for padding
    positions  (B, L): contiguous in the prefix; every branch goes on from the prefix's end
    segment    (B, L): 0 prefix, 1.. branches, −1 padding
    mask       (B, 1, L, L) bool, True = may attend
    answers    (4, A): row, column of the token before, the token itself, the question's running number
    tokens     how many of the B·L are no padding
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    mask: Tensor
    answers: Tensor
    tokens: int

    @staticmethod
    def build(prefixes: list[list[int]], branches: Branches, device: torch.device, marks: Marks = MARKS) -> Layout:
        """One row for each video: its prefix, then its branches, prompt + answer + end, one after another.
        The end is predicted, and never read."""
        rows, answers, number = [], [], 0
        for b, (prefix, own) in enumerate(zip(prefixes, branches, strict=True)):
            ids, positions, segment = list(prefix), list(range(len(prefix))), [0] * len(prefix)
            for branch, (prompt, answer) in enumerate(own, start=1):
                before = len(ids) + len(prompt) - 1  # the column that predicts the answer's first token
                answers += [(b, before + i, token, number) for i, token in enumerate([*answer, marks.end])]
                ids += [*prompt, *answer]
                positions += range(len(prefix), len(prefix) + len(prompt) + len(answer))
                segment += [branch] * (len(prompt) + len(answer))
                number += 1
            rows.append((ids, positions, segment))
        L = max(len(ids) for ids, _, _ in rows)
        fills = (marks.pad, 0, -1)
        padded = [[part + [f] * (L - len(part)) for part, f in zip(row, fills, strict=True)] for row in rows]
        padded = torch.tensor(padded, dtype=torch.long).view(len(rows), 3, L)
        ids, positions, segment = sent(padded, device).unbind(1)
        query, key = segment[:, :, None], segment[:, None, :]
        at = torch.arange(L, device=device)
        causal = at[:, None] >= at
        # padding (−1) sees the padding before it, so that no query sees nothing; nobody else sees it
        mask = causal & ((query == key) | ((key == 0) & (query > 0)))  # (B, L, L)
        vision = (segment == 0) & ((ids == CELL) | (ids == marks.frame_start) | (ids == marks.frame_end))
        mask |= vision[:, :, None] & vision[:, None, :]
        index = sent(torch.tensor(answers, dtype=torch.long).view(-1, 4), device).T
        return Layout(ids, positions, segment, mask[:, None], index, sum(len(ids) for ids, _, _ in rows))
