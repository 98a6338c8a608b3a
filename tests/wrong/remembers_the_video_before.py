"""Wrong on purpose, as in the public code: frame 0 of a later video sees the last frame of the video before."""

import torch
import torch.nn.functional as F

from stts_mini.scorer import Scorer as RightScorer


class Scorer(RightScorer):
    def forward(self, x, num_frames=None):
        pooled = self.pooler(x.unflatten(2, (-1, self.config.w**2)))  # (B, T, C, D)
        flat = pooled.flatten(0, 1)
        previous = torch.cat([torch.zeros_like(flat[:1]), flat[:-1]]).view_as(pooled)
        h = torch.cat([previous, pooled], dim=-1)
        for layer in self.mlp[:-1]:
            h = F.silu(layer(h))
        return self.mlp[-1](h).squeeze(-1).sigmoid()
