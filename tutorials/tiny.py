"""A world in miniature, in which a scorer learns within seconds. For the notebooks only.

A clip has five frames, half a second apart. One object enters after frame 0 and then *stands still*; three
panels flicker all the time and mean nothing. Two questions: the object's colour, and its shape.

    what a cell shows:   0 background · 1 the object · 2 a panel

Scenes, pictures, questions and the model are the package's own, only smaller: see world.py and model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stts_mini.data.batches import TOKENIZER, collate
from stts_mini.data.video import Video
from stts_mini.model import VLM, Output
from stts_mini.sequence import Batch
from stts_mini.toy import drawing
from stts_mini.train import CLIP_NORM, build_model
from stts_mini.training.config import TrainConfig
from stts_mini.training.optim import build_optimizers, update

TIMES = np.arange(5) / 2  # seconds
SIZE = 48  # pixels
PANELS = 3
QUESTIONS = ("which colour is in view ?", "what shape is the object ?")
BACKGROUND, OBJECT, PANEL = range(3)
UNSEEN = range(10**6, 10**6 + 60)  # seeds that no training run reaches


def scene(seed: int) -> tuple[drawing.Scene, np.ndarray]:
    """A scene, and its nine slots in random order: the object's, the panels', and free ones."""
    rng = np.random.default_rng(seed)
    slots = rng.permutation(9)
    row, column = divmod(int(slots[0]), 3)
    x, y = (np.array([column, row]) + 0.5) * drawing.SLOT + rng.uniform(-0.02, 0.02, 2)
    colour, shape = str(rng.choice(list(drawing.COLOURS))), str(rng.choice(drawing.SHAPES))
    thing = drawing.Object(shape, colour, x, y, enter=float(rng.choice([0.5, 1.0])))
    panels = tuple(drawing.Panel("flicker", int(s), int(rng.integers(1 << 31))) for s in slots[1 : 1 + PANELS])
    return drawing.Scene("tiny", TIMES[-1], 2.0, (thing,), panels, (0.0, 0.0), int(rng.integers(1 << 31))), slots


def clip(seed: int) -> Video:
    """The clip of a seed, as `video.read_video` would give it back."""
    return Video(drawing.render(scene(seed)[0], TIMES, SIZE), TIMES.tolist(), float(TIMES[-1]))


def batch(seeds: Sequence[int]) -> Batch:
    """Clips and both questions about each."""
    asked = []
    for seed in seeds:
        thing = scene(seed)[0].objects[0]
        answers = zip(QUESTIONS, (thing.colour, thing.shape), strict=True)
        asked.append([(TOKENIZER.prompt(text), TOKENIZER.encode(answer)) for text, answer in answers])
    return collate([clip(seed) for seed in seeds], asked)


def shows(seeds: Sequence[int]) -> Tensor:
    """What every cell shows, (B, T, C): 0 background, 1 the object (once it is there), 2 a panel."""
    what = torch.zeros(len(seeds), len(TIMES), 9, dtype=torch.long)
    for b, seed in enumerate(seeds):
        made, slots = scene(seed)
        what[b, :, slots[1 : 1 + PANELS]] = PANEL
        enter = made.objects[0].enter
        what[b, enter <= TIMES, slots[0]] = OBJECT
    return what


def config(**settings) -> TrainConfig:
    """A model that is small enough for seconds of training."""
    small = dict(
        k=0.7, steps=140, stages={}, lr=2e-3, muon_lr=0.01, vit_width=64, vit_mlp=256, vit_depth=4,
        llm_width=64, llm_depth=2, llm_heads=2, llm_kv_heads=1,
    )  # fmt: skip
    return TrainConfig(**{**small, **settings})


def train(
    cfg: TrainConfig, loss: Callable[[Output], Tensor], unpruned: int = 40, batch_size: int = 16
) -> tuple[VLM, list[tuple]]:
    """Train a fresh model: `unpruned` steps first, then pruned ones. `loss` says what to minimise.

    Returns the model and a row (step, L_task, L_sim, mean score of background, object, panel) every 10 steps.
    """
    model, rows = build_model(cfg, torch.device("cpu")), []
    torch.nn.init.zeros_(model.scorer.mlp[-1].bias)  # a third of the cells changes here, so scores may start at 0.5
    optimizers = build_optimizers(model, cfg)
    for step in range(cfg.steps):
        seeds = range(step * batch_size, (step + 1) * batch_size)
        output = model(batch(seeds), cfg.k if step >= unpruned else 0.0)
        loss(output).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        rate = min((step + 1) / 10, 1.0) * 0.5 * (1 + np.cos(np.pi * step / cfg.steps))  # warm-up, then a cosine
        update(optimizers, rate)
        if step >= unpruned and step % 10 == 9:
            rows.append((step + 1, *_losses(output), *by_kind(output.encoded.scores, shows(seeds))))
    return model.eval(), rows


def _losses(output: Output) -> tuple[float, float]:
    return float(output.task_loss.detach()), float(torch.as_tensor(output.sim_loss).detach())


def by_kind(values: Tensor, what: Tensor) -> list[float]:
    """The mean of values (B, T, C) over background, object and panel cells, frame 0 left out."""
    values, what = values[:, 1:].detach().float(), what[:, 1:]
    return [float(values[what == kind].mean()) for kind in (BACKGROUND, OBJECT, PANEL)]


@torch.no_grad()
def judge(model: VLM, k: float, scorer: Callable | None = None, seeds: Sequence[int] = UNSEEN) -> dict:
    """On clips it has never seen: accuracy of both questions, mean score and share kept of each kind of cell."""
    data = batch(seeds)
    encode = lambda frames, num_frames, k: model.encode_video(frames, num_frames, k, scorer=scorer)
    output = model(data, k, encode)
    right = (output.logits.argmax(-1) == output.targets).view(len(seeds), len(QUESTIONS), -1)[:, :, 0].float().mean(0)
    kept = by_kind(output.encoded.keep, shows(seeds))
    scores = [float("nan")] * 3 if output.encoded.scores is None else by_kind(output.encoded.scores, shows(seeds))
    return dict(colour=float(right[0]), shape=float(right[1]), scores=scores, kept=kept)
