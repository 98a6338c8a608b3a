"""Merging over time, after DyCoke (arXiv 2411.15024): a cell that looks as it did in the frame before is joined to it.

    c[t,i] = cos(x[t,i], x[t−1,i])        the cells with the largest c are joined to the one before, k of all
    a chain of joined cells becomes one, where the first of them was: their mean

Like the cosine heuristic it keeps what changes. But what it drops is not all lost: a slow change stays as a mean.

Simplified: the means are ours. DyCoke's public code drops what is alike, at a fixed ratio, between pairs of frames in
windows of four, which could not lose 80%. Here cells are joined in chains of any length. Within a frame nothing is
merged, and nothing is pruned while the LLM decodes. Cells are merged after block l+1, where STTS prunes, instead of
before the LLM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Rival
from stts_mini.model import Encoded, ragged
from stts_mini.packing import select
from stts_mini.scorer import temporal_target
from stts_mini.sequence import sent


def run_means(x: Tensor, keep: Tensor, real: Tensor) -> Tensor:
    """The mean of each run: x (B, T, C, ·), keep (B, T, C) bool with all of frame 0, real (B, T) bool → (B, T, C, ·).
    A run goes from a kept cell to the last one before the next; its mean stands in all its places, though padding
    counts in none.

    >>> x, keep = torch.tensor([2.0, 4.0, 5.0]).view(1, 3, 1, 1), torch.tensor([True, False, True]).view(1, 3, 1)
    >>> run_means(x, keep, torch.ones(1, 3).bool()).flatten().tolist()
    [3.0, 3.0, 5.0]
    """
    time = torch.arange(x.shape[1], device=x.device)[None, :, None]
    first = torch.where(keep, time, 0).cummax(1).values[..., None].expand_as(x)  # of the run that a cell belongs to
    counted = real[..., None, None].to(x).expand_as(x)
    total, size = (torch.zeros_like(x).scatter_add(1, first, y) for y in (x * counted, counted))
    return (total / size.clamp(min=1)).gather(1, first)


class DyCoke(Rival):
    """Merge over time after block l+1."""

    merges = True

    def __call__(self, frames: Tensor, num_frames: Tensor | None = None, k: float = 0.5) -> Encoded:
        model, cfg, first = self.model, self.model.config, self.model.config.score_after + 2
        counts, real, prunable = ragged(frames, num_frames, k, cfg.cells, None)
        there = sent(real, frames.device)
        x = model.vit.blocks[first - 1](model.stem(frames[there]))  # (F, N, D)
        grid = x.new_zeros(*real.shape, *x.shape[1:]).masked_scatter(there[..., None, None], x)  # (B, T, N, D)
        change = F.pad(temporal_target(grid.detach(), cfg.w), (0, 0, 1, 0))  # (B, T, C)
        keep = select(change.cpu(), k, counts)
        kept = sent(keep, x.device)
        merged = run_means(grid.unflatten(2, (cfg.cells, -1)).flatten(3), kept, there)  # (B, T, C, w²·D)
        x = merged[there].view_as(x)
        tokens, packed = model.encode_kept(x, keep[real], first, bool(prunable.any()))
        return Encoded(tokens, keep.sum(2), real, kept.nonzero(), kept, packed=packed)
