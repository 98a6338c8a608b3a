"""The training command with the lab's additions: saliency, spreading, any number of frames.

    python -m stts_mini.lab.paper.train --saliency-steps 60 --spread 0.3 --sim-weight 0 --k 0.8
    python -m stts_mini.lab.paper.train --preset base           the first run of the unpruned model that rows start from

All of this is ours, not the paper's. tutorials/results/FINDINGS.md says what each one gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stts_mini.data.files import require
from stts_mini.train import job
from stts_mini.training.config import PRESETS, TrainConfig, parse_flags, setting


@dataclass(frozen=True)
class PaperConfig(TrainConfig):
    """A training run with the lab's own settings. Raises ValueError for impossible values."""

    thinning: float = setting(1.0, "divide max_frames and fps by a random factor up to this, drawn in each step")
    coarse_steps: int = setting(0, "until this step, divide by --thinning itself: few frames are cheap", may_be_0=True)
    saliency_steps: int = setting(
        0, "unpruned steps after the stages, in which the scorer learns saliency, and after that no more", may_be_0=True
    )
    spread: float = setting(0.0, "weight of a fixed pattern that spreads kept cells over time. 0: off", may_be_0=True)
    blind: bool = setting(False, "train without any vision tokens (the control)")
    scorer_steps: int = setting(
        400, "steps of L_sim alone for the scorer, before pruning begins. At most as many as are pruned", may_be_0=True
    )
    video_size: int = setting(0, "side of a frame in pixels, in the world's files. 0: as --image-size", may_be_0=True)

    def __post_init__(self):
        object.__setattr__(self, "video_size", self.video_size or self.image_size)  # the way to set a frozen field
        super().__post_init__()
        steps, named = self.saliency_steps, f"saliency_steps = {self.saliency_steps}"
        require(self.thinning >= 1, f"thinning = {self.thinning}: give 1 for every frame, or more")
        require(not steps or self.k, f"{named} teach what to keep, but k = 0 keeps all: give --k")
        require(not steps or self.llm_depth >= 2, f"{named} need an LLM of 2 layers or more: give --llm-depth 2")
        frozen = f"{named} teach nothing at scorer_lr_ratio = 0: give a --scorer-lr-ratio, or --saliency-steps 0"
        require(not steps or self.scorer_lr_ratio, frozen)
        blind = "blind training has no cells whose saliency could be learned: give --saliency-steps 0"
        require(not steps or not self.blind, blind)


BASE = dict(
    out="runs/base", k=0.0, train_clips=dict(short=3000, watch=1500, parade=1500, image=400, brief=1100, glance=2000),
    max_frames=64, fps=10.0, thinning=5.0, coarse_steps=4100, steps=4600, questions=10,
    stages=dict(image=400, brief=400, glance=700), save_every=50, cache_gb=4.0, video_size=48,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    prog = "python -m stts_mini.lab.paper.train"
    job(prog, *parse_flags(argv, config_type=PaperConfig, presets={**PRESETS, "base": BASE}, prog=prog))


if __name__ == "__main__":
    main()
