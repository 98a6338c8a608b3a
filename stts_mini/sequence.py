"""What the LLM reads: the sequence of a video and its questions, with positions and an attention mask.

    12.0 <frame> cell cell … </frame>  12.5 <frame> cell … </frame>  …    the prefix, once
    <question> what … <answer> red <end>                                  a branch, for every question

Pruning keeps the stamps and markers of every frame, as in the token counts of the paper's Table 6. Every branch
starts at the position after the prefix, and sees the prefix and itself. Attention is causal, with one exception:
cells and frame markers of a video see each other in both directions.

Legend: B videos · L length of a row · A answer tokens to predict · CELL in a row of ids: a kept cell's token
goes here.

Several pictures are laid out like frames, with their numbers instead of time stamps. `Marks` are the tokens that
enclose frames, fill rows and end answers. The default is the toy world's, and a real LLM brings its own.

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
    """Token ids that the sequence is built with: `pad` fills rows and is not seen, `end` closes an answer, and a
    frame's cells are between `frame_start` and `frame_end`."""

    pad: int = 0
    end: int = 1
    frame_start: int = 2
    frame_end: int = 3


MARKS = Marks()  # the toy world's


@dataclass
class Batch:
    """Videos and what is asked about them.

    frames      (B, T, 3, H, W) uint8, or floats in [−1, 1]; padding frames may hold anything
    num_frames  (B,) int, on the CPU
    stamps      for each video, for each frame, the token ids of its time stamp
    branches    for each video, for each question, (prompt ids, answer ids); the end token is added
    scores      (B, T, C) to use instead of the scorer's (an oracle's, for example), or None
    still       (B,) bool, on the CPU, True = several pictures, not a video: never pruned; None: all are videos
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
        """The same batch with its frames in pinned memory. DataLoader calls this."""
        return replace(self, frames=self.frames.pin_memory())


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x on `device`. It is copied to a GPU from pinned memory, and Python does not wait for the copy."""
    to_gpu = torch.device(device).type == "cuda" and not x.is_cuda
    return (x.pin_memory() if to_gpu else x).to(device, non_blocking=to_gpu)


def prefix_ids(stamps: list[list[list[int]]], kept: Tensor, shown: Tensor, marks: Marks = MARKS) -> list[list[int]]:
    """For each video: stamp, frame start, CELL × kept, frame end, for every shown frame, in time order.

    stamps (B lists, one stamp a frame, shown or not), kept (B, T) int: cells of each frame, shown (B, T) bool.
    Raises ValueError for a shown frame without a stamp, more stamps than frames, or a negative id in a stamp. If no
    frame is shown (blind), the prefix is empty.

    >>> prefix_ids([[[20], [21]]], torch.tensor([[2, 0]]), torch.ones(1, 2).bool()) == [
    ...     [20, MARKS.frame_start, CELL, CELL, MARKS.frame_end, 21, MARKS.frame_start, MARKS.frame_end]]
    True
    """
    prefixes = []
    for b, (video, counts, seen) in enumerate(zip(stamps, kept.tolist(), shown.tolist(), strict=True)):
        frames = [t for t, is_shown in enumerate(seen) if is_shown]
        if frames and not frames[-1] < len(video) <= len(seen):
            raise ValueError(f"video {b} has {len(video)} time stamps and {len(seen)} frames: give one a frame")
        if any(i < 0 for t in frames for i in video[t]):
            raise ValueError(f"video {b} has a time stamp with a negative token id: give ids from 0 on")
        ids: list[int] = []
        for t in frames:
            ids += [*video[t], marks.frame_start, *[CELL] * counts[t], marks.frame_end]
        prefixes.append(ids)
    return prefixes


def check_prompts(branches: Branches) -> None:
    """Raise ValueError for a batch without a question, a question without a prompt, or a negative id, which would be
    taken for a cell."""
    if not any(branches):
        raise ValueError("a batch without any question: give each video at least one (prompt ids, answer ids)")
    for b, video in enumerate(branches):
        for q, (prompt, answer) in enumerate(video):
            which = f"video {b}, question {q}"
            if not prompt:
                raise ValueError(f"{which} has an empty prompt: give at least one token to answer after")
            if (least := min([*prompt, *answer])) < 0:
                raise ValueError(f"{which} has the token id {least}: give ids from 0 on")


@dataclass(frozen=True)
class Layout:
    """The sequences of a batch as rows, padded on the right, with their mask and where answers are predicted.

    ids        (B, L), CELL for a kept cell, `marks.pad` for padding
    positions  (B, L): contiguous in the prefix; every branch continues from the prefix's end
    segment    (B, L): 0 prefix, 1.. branches, −1 padding
    mask       (B, 1, L, L) bool, True = may attend
    answers    (4, A): of each answer token the row, the column that predicts it, its id, its question's number
    tokens     how many of the B·L are not padding
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    mask: Tensor
    answers: Tensor
    tokens: int

    @staticmethod
    def build(prefixes: list[list[int]], branches: Branches, device: torch.device, marks: Marks = MARKS) -> Layout:
        """One row for each video: its prefix, then its branches (prompt + answer), one after another."""
        rows, answers, number = [], [], 0
        for b, (prefix, questions) in enumerate(zip(prefixes, branches, strict=True)):
            ids, positions, segment = list(prefix), list(range(len(prefix))), [0] * len(prefix)
            for branch, (prompt, answer) in enumerate(questions, start=1):
                before = len(ids) + len(prompt) - 1  # the column that predicts the answer's first token
                answers += [(b, before + i, token, number) for i, token in enumerate([*answer, marks.end])]
                ids += [*prompt, *answer]  # without the end token, which is predicted but never read
                # each branch gets the positions that it would have alone, so its answer does not depend on the others
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
        # a branch sees itself and the prefix (0); padding (−1) sees only padding: without any key it could become NaN
        mask = causal & ((query == key) | ((key == 0) & (query > 0)))  # (B, L, L)
        vision = (segment == 0) & ((ids == CELL) | (ids == marks.frame_start) | (ids == marks.frame_end))
        mask |= vision[:, :, None] & vision[:, None, :]  # what a frame shows may depend on later frames
        index = sent(torch.tensor(answers, dtype=torch.long).view(-1, 4), device).T
        return Layout(ids, positions, segment, mask[:, None], index, sum(len(ids) for ids, _, _ in rows))
