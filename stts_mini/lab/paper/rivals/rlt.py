"""RLT, run-length tokenization (arXiv 2411.05222): what repeats is dropped before the ViT sees it.

    a run: a cell in frames t0 < t1 < … whose pixels change less than τ from each frame to the next
    of every run only the first cell is kept, and only kept cells enter block 0

It asks what EVS asks, but sooner, so the ViT's first blocks are saved, too.

Simplified: the paper's transformer attends over time. Ours goes frame by frame, so in all blocks a kept cell sees only
the kept cells of its frame, without the still background around it. τ is chosen for each video such that the budget is
met (the paper has one τ, and saves what it may). No learned embedding says how long a run is: the weights at hand have
none. Runs are of cells, not of patches, since a cell becomes one token. All patches are embedded before they are
dropped: one matrix, and no attention.
"""

from __future__ import annotations

from torch import Tensor

from stts_mini.lab.paper.rivals.evs import pixel_change
from stts_mini.lab.paper.rivals.protocol import Rival
from stts_mini.model import Encoded, normalise, ragged
from stts_mini.packing import select
from stts_mini.scorer import cell_major
from stts_mini.sequence import sent


class RLT(Rival):
    """Select by `pixel_change`, and run all blocks on packed rows."""

    gone_from = "stem"

    def __call__(self, frames: Tensor, num_frames: Tensor | None = None, k: float = 0.5) -> Encoded:
        vit, cfg = self.model.vit, self.model.config
        counts, real, prunable = ragged(frames, num_frames, k, cfg.cells, None)
        keep = select(pixel_change(frames, cfg).cpu(), k, counts)  # (B, T, C)
        x = vit.embed(normalise(frames[sent(real, frames.device)], vit.position_embedding.dtype))  # (F, N, D)
        tokens, packed = self.model.encode_kept(cell_major(x, cfg.w), keep[real], 0, bool(prunable.any()))
        place, there = sent(keep.nonzero(), x.device), sent(keep, x.device)
        return Encoded(tokens, keep.sum(2), real, place, there, packed=packed)
