"""What a rival is: a class made from a model, whose instances encode instead of `VLM.encode_video`.

    encode = EVS(model)
    model(batch, k, encode);  evaluate(model, clips, reader, k, encode)

The budget is STTS's: floor(k·C·T) cells of a video, and those of frame 0 stay (`packing.select`). A rival with another
rule says so in its attributes, and tests/lab/paper/test_rivals.py holds it to what it says. Rivals have no weights.

Legend: B videos · T frames · N patches, C cells of a frame · w² patches of a cell · D ViT width
"""

from __future__ import annotations

import torch
from torch import Tensor

from stts_mini.data.files import require
from stts_mini.model import VLM, Encoded


class Rival:
    """Base class. Attributes, for those that differ:

    gone_from  where pruned tokens are first gone: "stem" (ViT block 0), "packed" (block l+2), "connected" (after the
               connector, before the LLM), "llm" (in its layers)
    frame_0    whether frame 0 is kept whole
    exact      whether a video loses `num_removed` cells; False: fewer, but three quarters of them at least
    merges     whether tokens hold what was in other cells, so that nobody can say which evidence is kept
    """

    gone_from = "packed"
    frame_0 = True
    exact = True
    merges = False

    def __init__(self, model: VLM):
        self.model = model

    def __call__(self, frames: Tensor, num_frames: Tensor | None = None, k: float = 0.5) -> Encoded:
        """As `VLM.encode_video`: frames (B, T, 3, H, W), num_frames (B,) → what is kept."""
        raise NotImplementedError


class Scoring(Rival):
    """A rival that scores cells. All else is STTS's: `select`, packing, and where in the ViT cells go. Raises
    ValueError for a model with `spread`, which takes scores in (0, 1): a rival's may have any size."""

    def __init__(self, model: VLM):
        super().__init__(model)
        spread = model.config.spread
        require(not spread, f"{type(self).__name__} cannot prune a model with spread = {spread}: give one without")

    def score(self, frames: Tensor, x: Tensor, num_frames: Tensor) -> Tensor:
        """frames (B, T, 3, H, W), x (B, T, N, D) after block l, cell-major, num_frames (B,) on the CPU → (B, T, C)."""
        raise NotImplementedError

    def __call__(self, frames: Tensor, num_frames: Tensor | None = None, k: float = 0.5) -> Encoded:
        scored = torch.no_grad()(lambda x, counts: self.score(frames, x, counts))
        return self.model.encode_video(frames, num_frames, k, scored)
