"""EVS, Efficient Video Sampling (arXiv 2510.14624): a cell is worth as much as its pixels change.

    s[t,i] = mean over the cell's pixels p of |p[t] − p[t−1]|          frame 0 stays; one threshold for a whole video

It looks at nothing but RGB, so it can score before the ViT has run. A flickering panel is worth more than all else, and
an object that enters and then stands still counts for one frame.

Simplified: the paper drops tokens after the ViT, before the LLM. Here cells go where STTS's go. It marks positions in
the LLM. Here the time stamps of all frames stay. The paper trains at random rates. A row here has one k.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Scoring
from stts_mini.model import VLMConfig


def pixel_change(frames: Tensor, config: VLMConfig) -> Tensor:
    """How much each cell's pixels differ from the frame before: frames (B, T, 3, H, W) → (B, T, C), 0 for frame 0."""
    frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
    change = (frames - torch.cat([frames[:, :1], frames[:, :-1]], dim=1)).abs().mean(2)  # (B, T, H, W)
    return F.avg_pool2d(change, config.w * config.vit.patch_size).flatten(2)


class EVS(Scoring):
    """Score by `pixel_change`."""

    def score(self, frames: Tensor, x: Tensor, num_frames: Tensor) -> Tensor:
        return pixel_change(frames, self.model.config)
