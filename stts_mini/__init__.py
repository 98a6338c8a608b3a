"""Spatio-Temporal Token Scoring (STTS, arXiv 2603.18004): a video VLM that prunes its vision tokens inside the ViT.

The method stands on the top shelf. Read it in this order: `packing`, `scorer`, `vit`, `llm`, `sequence`, `model`.
`model.VLM.encode_video` is the paper's Figure 3, from top to bottom. Everything else has a room of its own:

    toy        the toy world: what happens in it, and how it looks
    data       from video files to a `Batch`
    training   what the training loop needs
    report     tables and pictures of what was scored and pruned
    lab        tools on top of all: speed, the paper's tables, a page to look inside, real backbones

Two commands: `python -m stts_mini.train` and `python -m stts_mini.eval`. The course is in tutorials/, and a fork begins
at tutorials/fork_me.md. The names below are what a fork imports.
"""

from stts_mini.model import VLM, Encoded, VLMConfig
from stts_mini.packing import Packed, block_mask, first_fit_descending, pack, select
from stts_mini.scorer import Scorer, ScorerConfig, attention_bias, find_scorer, similarity_loss, temporal_target
from stts_mini.sequence import Batch

__all__ = [
    "VLM", "Batch", "Encoded", "Packed", "Scorer", "ScorerConfig", "VLMConfig", "attention_bias", "block_mask",
    "find_scorer", "first_fit_descending", "pack", "select", "similarity_loss", "temporal_target",
]  # fmt: skip
