"""Wrong on purpose: frame 0 can lose cells like any other."""

import torch

from stts_mini.packing import num_removed


def select(scores, k, num_frames=None):
    keep = torch.ones(scores.shape, dtype=torch.bool)
    B, T, C = scores.shape
    for b in range(B):
        frames = T if num_frames is None else int(num_frames[b])
        order = scores[b, :frames].flatten().argsort(stable=True)
        keep[b, :frames].view(-1)[order[: num_removed(k, C, frames)]] = False
        keep[b, frames:] = False
    return keep
