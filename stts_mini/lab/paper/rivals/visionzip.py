"""VisionZip's dominant tokens (arXiv 2412.04467): a cell is worth as much attention as it receives in the ViT.

    s[t,i] = Σ over the cell's patches j of  mean over heads and queries q of  softmax(QKᵀ/√d)[q, j]

The sum over all cells of a frame is 1, so a frame's cells compete with each other. Time plays no part in a score: what
attracts attention counts as much if it stands still.

Simplified: one threshold for a whole video, so frames keep different numbers of cells; the paper takes the same from
each frame. Attention of block l+1, where STTS prunes, instead of the last block but one. (SigLIP has no CLS token, so
the mean over queries is the paper's own rule.) The other tokens are dropped, not merged into contextual ones: 9 cells a
frame are too few to cluster.
"""

from __future__ import annotations

from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Scoring


class VisionZip(Scoring):
    """Score by attention received in block l+1."""

    def score(self, frames: Tensor, x: Tensor, num_frames: Tensor) -> Tensor:
        """Attention received in block l+1, summed over the cell's patches: (B, T, C)."""
        block = self.model.vit.blocks[self.model.config.score_after + 1]
        projections = (block.attention.q_proj, block.attention.k_proj)
        x = block.layer_norm1(x)
        q, k = (p(x).unflatten(-1, (block.attention.heads, -1)).transpose(2, 3) for p in projections)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # (B, T, heads, N, N)
        return weights.mean((2, 3)).unflatten(-1, (-1, self.model.config.w**2)).sum(-1)  # (B, T, C)
