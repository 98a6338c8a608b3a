"""How a scorer dies, in a minute: L_sim alone, on features that stand still.

    python tutorials/dead_scorer.py        prints a table and draws tutorials/results/dead_scorer.png

The features are those of an unpruned base model (`base0.pt`) on clips of the world without panels. Little changes
there, so most targets are near 0. A fresh scorer learns them by L_sim alone, for 100 steps of four clips, at several
rates, by two optimisers, from two starts, with three seeds. Then it scores clips that it has not seen.

    start   the output bias at the beginning: 0, a score of about 0.5; −3, about 0.05
    r       correlation of scores and targets: 1 is perfect
    dead    share of the scores below 0.001, where the sigmoid hardly has a slope

It needs matplotlib, as the notebooks do.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from stts_mini.data.batches import Reader, Sampler
from stts_mini.data.clips import load_clips, prepare
from stts_mini.lab.paper.rows import Row
from stts_mini.scorer import similarity_loss, temporal_target
from stts_mini.train import CLIP_NORM, build_model
from stts_mini.training import checkpoint
from stts_mini.training.config import SHIPPED, TrainConfig
from stts_mini.training.optim import build_optimizers, rate_at, update

HERE = Path(__file__).parent
STEPS, BATCH, HELD_OUT, SEEDS = 100, 4, 8, (0, 1, 2)
COUNTS = dict(short=120, watch=60, parade=60)
RATES = {"Muon, rate × 5": (5.0, 0.002), "Muon": (1.0, 0.002), "AdamW, rate × 5": (5.0, 0.0), "AdamW": (1.0, 0.0)}
STARTS = (0.0, -3.0)

Features = tuple[Tensor, Tensor, Tensor]  # tokens after block l (B, T, N, D), num_frames (B,), targets (B, T−1, C)


@torch.no_grad()
def frozen_features(config: TrainConfig) -> list[Features]:
    """Batches of the base's features, with what L_sim wants of them."""
    model = build_model(config, torch.device("cpu"))
    checkpoint.start_from(model, checkpoint.load(config.init), config.init)
    clips = load_clips(prepare(config.data, "train", COUNTS, config.image_size, config.panels))
    reader = Reader(config.max_frames, config.image_size, config.fps)
    sampler, batches = Sampler(clips, reader, BATCH, 1, seed=0), []
    for step in range(sum(COUNTS.values()) // BATCH):
        batch = sampler(step)
        real = (torch.arange(batch.frames.shape[1]) < batch.num_frames[:, None]).nonzero().unbind(1)
        x = model.stem(batch.frames[real])  # (F, N, D)
        grid = x.new_zeros(*batch.frames.shape[:2], *x.shape[1:]).index_put(real, x)
        batches.append((grid, batch.num_frames, temporal_target(grid, config.w)))
    return batches


def after_frame_0(num_frames: Tensor) -> Tensor:
    """Which of the frames 1, 2, … are real: (B, T−1) bool."""
    return torch.arange(1, int(num_frames.max())) < num_frames[:, None]


def learn(config: TrainConfig, start: float, batches: list[Features]) -> tuple[list[float], float, float]:
    """A fresh scorer after STEPS steps of L_sim: the mean of its scores at every step, r and dead."""
    model = build_model(config, torch.device("cpu"))
    scorer, optimizers, means = model.scorer, build_optimizers(model, config), []
    torch.nn.init.constant_(scorer.mlp[-1].bias, start)
    for step in range(STEPS):
        grid, num_frames, target = batches[step % (len(batches) - HELD_OUT)]
        scores = scorer(grid, num_frames)
        similarity_loss(scores, target, num_frames).backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), CLIP_NORM)
        update(optimizers, rate_at(step, config))
        means.append(float(scores[:, 1:].detach().mean()))
    s, t = [], torch.cat([target[after_frame_0(n)].flatten() for _, n, target in batches[-HELD_OUT:]]).double()
    for grid, num_frames, _ in batches[-HELD_OUT:]:
        s.append(scorer(grid, num_frames).detach()[:, 1:][after_frame_0(num_frames)].flatten())
    s = torch.cat(s).double()
    r = float(torch.corrcoef(torch.stack([s, t]))[0, 1].nan_to_num())  # scores that are all alike follow nothing
    return means, r, float((s < 1e-3).float().mean())


def draw(curves: dict[tuple[str, float], list[list[float]]], mean_target: float, path: Path) -> None:
    """The mean score over the steps, for every way to learn; a line a seed."""
    fig, axes = plt.subplots(1, len(RATES), figsize=(11, 2.8), sharey=True, layout="constrained")
    for ax, rate in zip(axes, RATES, strict=True):
        for start, colour in zip(STARTS, ("#d7301f", "#2171b5"), strict=True):
            for seed, means in enumerate(curves[rate, start]):
                label = f"start at {1 / (1 + np.exp(-start)):.2f}" if seed == 0 else None
                ax.semilogy(np.clip(means, 1e-6, 1), color=colour, lw=1, label=label)
        ax.axhline(mean_target, color="grey", ls=":", lw=1, label="mean target")
        ax.set(title=rate, xlabel="step", ylim=(1e-6, 1))
    axes[0].set(ylabel="mean score")
    axes[1].legend(fontsize=8, loc="lower left")
    fig.savefig(path, dpi=110)
    print(f"picture: {path}")


def main() -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="data", help="folder of the prepared clips")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "dead_scorer.png")
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # a dying scorer's numbers are, and they are slow
    config = Row("stts", 0.8, 0, panels=0).config(args.data, SHIPPED / "base0.pt")
    batches = frozen_features(config)
    mean_target = float(torch.cat([target[after_frame_0(n)].flatten() for _, n, target in batches]).mean())
    print(f"mean target {mean_target:.3f}, seeds {SEEDS}\n")
    print("| optimiser | start | r | dead |\n|---|---|---|---|")
    curves = {}
    for (rate, (ratio, muon)), start in itertools.product(RATES.items(), STARTS):
        own = [dataclasses.replace(config, seed=s, scorer_lr_ratio=ratio, muon_lr=muon) for s in SEEDS]
        means, r, dead = zip(*(learn(c, start, batches) for c in own), strict=True)
        curves[rate, start] = means
        print(f"| {rate} | {start:g} | {', '.join(f'{x:.2f}' for x in r)} | {', '.join(f'{x:.0%}' for x in dead)} |")
    draw(curves, mean_target, args.out)


if __name__ == "__main__":
    main()
