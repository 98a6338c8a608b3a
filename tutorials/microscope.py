"""What the two teachers say to a living scorer, over a run: do they agree on what matters?

    python tutorials/microscope.py        trains at k = 0.8 with two panels, and draws tutorials/results/teachers.png

The run is a row of the tables (`lab/paper`), seed 0, whose scorer follows its target from the first step on. In every
step, each teacher's gradient at each prunable cell is looked at, as a push on log s: up, if a higher score would lower
the loss. Cells are of three kinds: an answer depends on it (evidence), a panel that means nothing, or neither.

    mean    the push on a cell of that kind, averaged within each step and then over steps; its error is two standard
            errors, from how the steps' means differ
    noise   the standard deviation of that push from cell to cell

A teacher can move a kind of cell if mean and error are far apart. At the end it says what the kept cells of the last
steps show, for each kind of clip. It needs matplotlib, as the notebooks do.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from stts_mini.data.batches import Reader, Sampler
from stts_mini.data.clips import Clip, load_clips, prepare
from stts_mini.eval import evidence_per_cell
from stts_mini.lab.paper.rows import Row
from stts_mini.toy import world
from stts_mini.train import build_model
from stts_mini.training import checkpoint
from stts_mini.training.config import SHIPPED, TrainConfig
from stts_mini.training.health import gradients, watch
from stts_mini.training.optim import build_optimizers, rate_at, update
from stts_mini.training.step import CLIP_NORM, warm_up

HERE = Path(__file__).parent
KINDS = {"neither": "#999999", "evidence": "#d95f02", "panel": "#7570b3"}
TEACHERS = ("L_sim", "the LM's loss")
CLIPS = ("short", "watch", "parade")


def kinds_of(clips: Sequence[Clip], reader: Reader, T: int, cells: int) -> np.ndarray:
    """Of every cell of a batch, frames t ≥ 1, its place in KINDS; −1 for padding: (B, T−1, C)."""
    kinds, side = np.full((len(clips), T - 1, cells), -1), round(cells**0.5)
    for own, clip in zip(kinds, clips, strict=True):
        video = reader(clip)
        own[: len(video.frames) - 1] = 0
        some = sum(evidence_per_cell(clip, video, side).values())[1:] > 0
        own[: len(some)][some] = 1
        for panel in world.make_scene(clip.split, clip.kind, clip.seed).panels:  # a slot is a cell here
            own[: len(some), panel.slot] = 2
    return kinds


def run(config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Train, and return for every step, teacher and kind: cells, sum of pushes, sum of their squares. And for every
    step and kind of clip, of each kind of cell: kept ones of frames t ≥ 1."""
    device = torch.device("cpu")
    clips = load_clips(prepare(config.data, "train", config.train_counts, config.image_size, config.panels))
    reader = Reader(config.max_frames, config.image_size, config.fps, config.cache_gb)
    model = build_model(config, device)
    checkpoint.start_from(model, checkpoint.load(config.init), config.init)
    optimizers = build_optimizers(model, config)
    sampler = Sampler(clips, reader, config.batch_size, config.questions, config.seed)
    warm_up(model, optimizers, sampler.beyond(config.steps, config.lessons), config, device)
    pushes = np.zeros((config.steps, len(TEACHERS), len(KINDS), 3))
    kept = np.zeros((config.steps, len(CLIPS), len(KINDS)))
    for step in range(config.steps):
        output = model(sampler(step), config.k)
        encoded = output.encoded
        watch(encoded)
        (output.task_loss + config.sim_weight * output.sim_loss).backward()
        if encoded.target is not None:  # not a batch of pictures
            B, T, C = encoded.scores.shape
            kinds = kinds_of([clips[n] for n in sampler.clip_numbers(step)], reader, T, C)
            for clip, n in enumerate(sampler.clip_numbers(step)):
                own = kinds[clip][encoded.keep[clip, 1:].numpy()]
                kept[step, CLIPS.index(clips[n].kind)] += [(own == kind).sum() for kind in range(len(KINDS))]
            for teacher, gradient in enumerate(gradients(encoded, config.sim_weight / B)):
                push = (-gradient * encoded.scores.detach()[:, 1:]).numpy()  # ∂/∂log s = s · ∂/∂s
                for kind in range(len(KINDS)):
                    x = push[kinds == kind]
                    pushes[step, teacher, kind] = len(x), x.sum(), (x * x).sum()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        update(optimizers, rate_at(step, config))
    return pushes, kept


def moments(pushes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, two standard errors and noise over the first axis, the steps."""
    n, total, squares = np.moveaxis(pushes.sum(0), -1, 0)
    noise = np.sqrt(np.maximum(squares / np.maximum(n, 1) - (total / np.maximum(n, 1)) ** 2, 0))
    with np.errstate(invalid="ignore"):  # a batch of pictures has no cells
        each = pushes[..., 1] / pushes[..., 0]
    return np.nanmean(each, 0), 2 * np.nanstd(each, 0) / np.sqrt((~np.isnan(each)).sum(0)), noise


def draw(pushes: np.ndarray, path: Path, bins: int = 10) -> None:
    """Mean pushes over the run, in bins of steps, a panel for each teacher."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    parts = np.array_split(np.arange(len(pushes)), bins)
    for teacher, ax in enumerate(axes):
        for kind, (name, colour) in enumerate(KINDS.items()):
            values = [moments(pushes[part][:, teacher]) for part in parts]
            ax.errorbar(
                [part.mean() for part in parts], [mean[kind] for mean, *_ in values],
                [error[kind] for _, error, _ in values], color=colour, label=name, capsize=3,
            )  # fmt: skip
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=TEACHERS[teacher], xlabel="step")
        ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[0].set(ylabel="push on log s")
    axes[1].legend(fontsize=8, frameon=False)
    fig.savefig(path, dpi=110)
    print(f"picture: {path}")


def main() -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="data", help="folder of the prepared clips")
    parser.add_argument("--steps", type=int, default=200, help="pruned steps")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "teachers.png")
    args = parser.parse_args()
    config = Row("stts", 0.8, 0).config(args.data, SHIPPED / "base0.pt")
    config = dataclasses.replace(config, steps=args.steps)
    pushes, kept = run(config)
    print("| teacher | cells | mean push on log s, × 10⁻⁶ | its error | noise |\n|---|---|---|---|---|")
    for teacher, name in enumerate(TEACHERS):
        for kind, values in zip(KINDS, 1e6 * np.stack(moments(pushes[:, teacher])).T, strict=True):
            print(f"| {name} | {kind} | {values[0]:+.2f} | {values[1]:.2f} | {values[2]:.1f} |")
    print("kept in the last quarter of the steps, without frame 0:")
    for clip, last in zip(CLIPS, kept[-len(kept) // 4 :].sum(0), strict=True):
        print(clip, ", ".join(f"{name} {share:.0%}" for name, share in zip(KINDS, last / last.sum(), strict=True)))
    draw(pushes, args.out)


if __name__ == "__main__":
    main()
