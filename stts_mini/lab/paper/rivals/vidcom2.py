"""VidCom² (arXiv 2505.14454): unusual frames keep more, and of each frame the unusual cells.

    x[t,i] = mean over the cell's patches of the ViT's tokens after block l
    u[t,i] = 1 − cos(x[t,i], mean of the video)      v[t,i] = 1 − cos(x[t,i], mean of the frame)
    a[t]   = 1 + softmax over t of (mean over i of u[t,i] / τ) − 1/T               τ = 0.01
    frame t keeps (1 − k)·a[t] of its cells: those with the largest u + v

As one score: the cell of rank r in its frame (0 is the most unusual) is kept where r < (1 − k)·a[t]·C, so the order of
all cells of a video is by s = −(r + ½)/a[t], and `select` meets the budget exactly.

Simplified: cosines. (The public code normalises tokens before the means, and adds up Gaussian kernels of several widths
over the half of the channels that vary least.) Frame 0, which everybody keeps, takes part in the softmax.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Scoring
from stts_mini.scorer import real_frames

TAU = 0.01


class VidCom2(Scoring):
    """Score by the frame's share and the cell's rank in its frame."""

    def score(self, frames: Tensor, x: Tensor, num_frames: Tensor) -> Tensor:
        """How unusual a frame is among its video's, and a cell among its frame's: (B, T, C)."""
        cells = x.unflatten(2, (-1, self.model.config.w**2)).mean(3)  # (B, T, C, D)
        real = real_frames(cells[..., 0], num_frames)  # (B, T, 1)
        n = real.sum(1, keepdim=True)  # (B, 1, 1)
        of_frames = cells.mean(2, keepdim=True)  # (B, T, 1, D)
        of_video = (of_frames * real[..., None]).sum(1, keepdim=True) / n[..., None]
        u, v = (1 - F.cosine_similarity(cells, mean, dim=-1) for mean in (of_video, of_frames))  # (B, T, C)
        unusual = (u.mean(2, keepdim=True) / TAU).masked_fill(~real, -torch.inf)
        share = 1 + unusual.softmax(1) - 1 / n  # (B, T, 1)
        rank = (u + v).argsort(dim=2, descending=True, stable=True).argsort(dim=2)
        return -(rank + 0.5) / share.clamp(min=1e-6)
