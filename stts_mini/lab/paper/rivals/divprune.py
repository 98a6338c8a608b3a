"""DivPrune (arXiv 2503.02175): keep cells that are as far from each other as can be.

    next = argmax over cells i not yet kept of  min over cells j kept of  1 − cos(x[i], x[j])

This is the greedy answer to the max–min diversity problem. It goes on until all cells are in order, and the order is
the score: any k cuts it off where the greedy choice would have stopped.

Simplified: it begins with frame 0, which everybody keeps. The paper begins with the cell that is farthest from its
nearest neighbour. A cell's patches are compared laid end to end, after block l. The paper compares LLM tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Scoring
from stts_mini.scorer import real_frames


class DivPrune(Scoring):
    """Score by the place in the greedy order."""

    def score(self, frames: Tensor, x: Tensor, num_frames: Tensor) -> Tensor:
        """Minus the place in the greedy order, (B, T, C); 0 for frame 0, and for padding."""
        cells = x.unflatten(2, (-1, self.model.config.w**2)).flatten(3)  # (B, T, C, w²·D)
        B, T, C, _ = cells.shape
        look = F.normalize(cells.flatten(1, 2), dim=-1)
        distance = 1 - look @ look.mT  # (B, T·C, T·C)
        nearest, scores, video = distance[:, :, :C].amin(2), look.new_zeros(B, T * C), torch.arange(B, device=x.device)
        waiting = real_frames(cells[..., 0], num_frames).repeat(1, 1, C).flatten(1)  # (B, T·C); padding never comes
        waiting[:, :C] = False
        for place in range(1, (T - 1) * C + 1):
            chosen = nearest.masked_fill(~waiting, -torch.inf).argmax(1)  # (B,)
            scores[video, chosen] = torch.where(waiting[video, chosen], -float(place), scores[video, chosen])
            waiting[video, chosen] = False
            nearest = torch.minimum(nearest, distance[video, chosen])
        return scores.view(B, T, C)
