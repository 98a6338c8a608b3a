"""Token merging (ToMe, arXiv 2210.09461) instead of pruning: an encoder to compare STTS with.

At the depth at which STTS prunes, the most similar two cells of a frame become one, their size-weighted mean,
again and again until the frame has lost its share; in the blocks that follow a merged cell counts as many keys
as it holds (log size is added to the attention logits, as in ToMe's proportional attention). The budget is
STTS's, floor(k·C·T) of a video, spread over its frames but the first as evenly as can be.

Where we differ from ToMe: pairs are found one by one among all cells, not by its faster bipartite matching (a
frame has few cells here); cells are merged, not patches, and once, not in every block, so that budget and depth
are the same as everybody's. Cells are compared by their features, not by the attention's keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.lab.paper.rivals.protocol import Rival
from stts_mini.model import Encoded, ragged
from stts_mini.packing import block_mask, num_removed, pack


def merge(x: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Merge cells of a frame, the most similar pair first.

    x (F, C, P, D): the P patches of each cell; removed (F,) int, 0 to C − 1: how many cells each frame loses
    returns  x with each merged cell where the earlier of its two was, and size (F, C): how many cells it holds, 0
    for those that are gone

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]).view(1, 3, 1, 2)     # cells 0 and 2 look alike
    >>> merged, size = merge(x, torch.tensor([1]))
    >>> size.tolist(), merged[0, 0, 0].tolist()
    ([[2.0, 1.0, 0.0]], [1.5, 0.0])
    """
    C = x.shape[1]
    size = x.new_ones(x.shape[:2])
    for done in range(int(removed.max())):
        look = F.normalize(x.detach().flatten(2), dim=-1)
        alive = size > 0
        pair = (alive[:, :, None] & alive[:, None, :]).triu(1)  # (F, C, C): the earlier cell, the later one
        best = (look @ look.mT).masked_fill(~pair, -2).flatten(1).argmax(1)
        active = (done < removed).to(x)[:, None]
        into, gone = (F.one_hot(i, C).to(x) * active for i in (best // C, best % C))  # (F, C)
        moved = (size * gone).sum(1, keepdim=True)  # (F, 1)
        part = moved / (size * (into + gone)).sum(1, keepdim=True).clamp(min=1)
        mean = torch.einsum("fc,fcpd->fpd", into * (1 - part) + gone * part, x)
        x = torch.where(into[..., None, None] > 0, mean[:, None], x)
        size = size + into * moved - gone * size
    return x, size


def shares(k: float, cells: int, frames: int) -> list[int]:
    """How many cells each frame of a video loses: floor(k·C·T) in all, none of frame 0, and no frame loses all.

    >>> shares(0.5, cells=9, frames=4)
    [0, 6, 6, 6]
    >>> shares(0.8, cells=9, frames=4), shares(0.5, cells=9, frames=1)
    ([0, 8, 8, 8], [0])
    """
    later = frames - 1
    lost = min(num_removed(k, cells, frames), (cells - 1) * later)
    return [0, *((t + 1) * lost // later - t * lost // later for t in range(later))]


class ToMe(Rival):
    """Merging, at the depth at which STTS prunes. Every frame keeps a cell, so a video loses (C−1)·(T−1) at most."""

    exact, merges = False, True

    def __call__(self, frames: Tensor, num_frames: Tensor | None = None, k: float = 0.5) -> Encoded:
        model, cfg, first = self.model, self.model.config, self.model.config.score_after + 2
        counts, real, _ = ragged(frames, num_frames, k, cfg.cells, None)
        x = model.vit.blocks[first - 1](model.stem(frames[real.to(frames.device)]))  # (F, N, D)
        removed = torch.tensor([r for n in counts.tolist() for r in shares(k, cfg.cells, n)], device=x.device)
        cells, size = merge(x.unflatten(1, (cfg.cells, -1)), removed)
        x, size = cells.flatten(1, 2), size.repeat_interleave(cfg.w**2, dim=1)  # (F, N, D), (F, N)
        packed = pack(x, size > 0)
        log_size = pack(size[..., None].clamp(min=1).log(), size > 0).x.squeeze(2)  # (F', N)
        mask = block_mask(packed.frame) if (removed > 0).any() else None
        outputs = [packed.x]
        for block in model.vit.blocks[first:]:
            outputs.append(block(outputs[-1], key_bias=log_size, mask=mask))
        tapped = packed.unpack(torch.cat([outputs[tap] for tap in cfg.taps], dim=-1))
        tokens = model.connector(tapped.unflatten(0, (-1, cfg.w**2)))
        keep = torch.zeros(*real.shape, cfg.cells, dtype=torch.bool, device=x.device)
        keep[real.to(x.device)] = size.unflatten(1, (cfg.cells, -1))[..., 0] > 0
        return Encoded(tokens, keep.sum(2).cpu(), real, keep.nonzero(), keep, None, packed)
