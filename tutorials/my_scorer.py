"""A scorer of your own, as an example: the smallest one that has something to learn (tutorial 10).

    s = sigmoid(u · mean token + a · change + b)          change = 1 − cos to the frame before, 0 for frame 0

One linear layer: what a cell shows (its mean token), and how much it changed. No pooling by attention, no MLP.

    python -m stts_mini.train --scorer tutorials/my_scorer.py:MyScorer
"""

import torch
from torch import Tensor, nn

from stts_mini.scorer import START, ScorerConfig, temporal_target


class MyScorer(nn.Module):
    """x (B, T, N, D) cell-major, num_frames (B,) or None → scores (B, T, C) in (0, 1)."""

    injects_bias = True  # both teachers: its log-scores enter block l+1, and L_sim asks for change

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width + 1, 1)
        nn.init.constant_(self.linear.bias, START)  # scores of about 0.05, near their targets

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        w = self.config.w
        shown = x.unflatten(2, (-1, w * w)).mean(3)  # (B, T, C, D)
        change = nn.functional.pad(temporal_target(x, w), (0, 0, 1, 0))  # (B, T, C), 0 for frame 0
        features = torch.cat([shown, change[..., None].to(shown.dtype)], dim=-1)  # (B, T, C, D + 1)
        return self.linear(features).squeeze(-1).float().sigmoid()
