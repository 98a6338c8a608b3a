"""Contrast within a cell: the shortest scorer there is, and no paper's.

    s[t,i] = mean over channels of the standard deviation over the cell's w² patches, after block l

It keeps what has edges and drops what is plain, with one threshold for a whole video. It is the example of
tutorials/fork_me.md.
"""

from __future__ import annotations

from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Scoring


class Contrast(Scoring):
    """Score by how much a cell's patches differ from each other."""

    def score(self, frames: Tensor, x: Tensor, num_frames: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.model.config.w**2)).std(dim=3, correction=0).mean(-1)
