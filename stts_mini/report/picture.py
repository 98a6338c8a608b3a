"""Pictures of what is pruned: frames with the pruned cells dimmed, beside the scores, question and answer.

`draw_clips` writes pruned.png, with a band for each clip. `draw_curve` draws a training log. They need only numpy and
PyAV, since this file has a pixel font of its own.

    a band of a clip, from the top:   time stamps · frames · kept cells (pruned ones dimmed) · scores (dark 0, light 1)

What this file does not do: decide what is pruned. It shows what `encode_video` returned.
"""

from __future__ import annotations

import csv
import os
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from stts_mini.data.batches import TOKENIZER, AnyTokenizer, Reader, collate, pick_questions
from stts_mini.data.clips import OWN, Clip, normalised
from stts_mini.data.files import replacing
from stts_mini.data.video import Video
from stts_mini.model import VLM

COLUMNS = bytes.fromhex(  # the characters from space to ~: five columns each, whose top pixel is the lowest bit
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649552250 0005030000 001c224100 0041221c00 "
    "082a1c2a08 08083e0808 0050300000 0808080808 0060600000 2010080402 3e5149453e 00427f4000 4261514946 2141454b31 "
    "1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0036360000 0056360000 0814224100 1414141414 "
    "0041221408 0201510906 324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a "
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e "
    "7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0708700807 6151494543 007f414100 "
    "0204081020 0041417f00 0402010204 4040404040 0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418 "
    "087e090102 18a4a4a47c 7f08040478 00447d4000 4080847d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438 "
    "fc24242418 18242424fc 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c 4428102844 1ca0a0a07c "
    "4464544c44 0008364100 00007f0000 0041360800 0804080408 "
)
GLYPHS = np.unpackbits(np.frombuffer(COLUMNS, np.uint8).reshape(95, 5, 1), 2, bitorder="little").swapaxes(1, 2) == 1
LOSS, ACCURACY, HEALTH = (250, 180, 50), (110, 190, 250), ((240, 110, 90), (150, 210, 120))
GREY = (170, 170, 170)
LETTER = 12  # pixels from one letter to the next
SIDE, GAP, PER_ROW = 96, 12, 6  # of pruned.png: pixels of a frame, pixels between two, frames in a row
WIDTH = GAP + PER_ROW * (SIDE + GAP)
HEAT = np.array([(15, 10, 45), (110, 25, 110), (215, 70, 60), (250, 180, 50), (255, 255, 200)], float)
DIM = 0.2


def write_text(picture: np.ndarray, text: str, x: int, y: int, scale: int = 2, colour=(255, 255, 255)) -> None:
    """Draw text into picture (H, W, 3) uint8 with its top left corner at (x, y). Text that does not fit is cut."""
    for letter in text:
        bits = GLYPHS[ord(letter) - 32] if " " <= letter <= "~" else np.ones((7, 5), bool)
        bits = bits.repeat(scale, 0).repeat(scale, 1)
        area = picture[y : y + len(bits), x : x + bits.shape[1]]
        area[bits[: area.shape[0], : area.shape[1]]] = colour
        x += LETTER // 2 * scale


def save_png(picture: np.ndarray, png: str | os.PathLike) -> None:
    """Write a picture (H, W, 3) uint8, all or nothing."""
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = picture.shape[:2]
    codec.pix_fmt, codec.time_base, codec.options = "rgb24", Fraction(1), {"pred": "mixed"}
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    with replacing(png) as partial:
        partial.write_bytes(b"".join(map(bytes, [*codec.encode(frame), *codec.encode(None)])))


def heat(scores: np.ndarray) -> np.ndarray:
    """Scores in [0, 1], any shape → colours (..., 3) uint8, dark to light."""
    at = np.clip(scores, 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(at, range(len(HEAT)), HEAT[:, c]) for c in range(3)], -1).astype(np.uint8)


def to_pixels(cells: np.ndarray, size: int) -> np.ndarray:
    """Per-cell values (T, C) → (T, size, size), each cell at its size in the frame."""
    side = round(cells.shape[1] ** 0.5)
    part = np.arange(size) * side // size
    return cells.reshape(-1, side, side)[:, part][:, :, part]


def clip_views(frames: np.ndarray, keep: np.ndarray, scores: np.ndarray | None) -> list[np.ndarray]:
    """The three views of a clip, each (T, H, W, 3) uint8: frames, pruned cells dimmed, scores.

    frames (T, H, W, 3) uint8, keep (T, C) bool, scores (T, C) in [0, 1]. None is drawn as scores of 1.
    """
    size = frames.shape[1]
    kept = to_pixels(keep, size)[..., None]
    dimmed = np.where(kept, frames, frames * DIM).astype(np.uint8)
    heated = heat(to_pixels(np.ones(keep.shape) if scores is None else scores, size))
    return [frames, dimmed, heated]


@torch.no_grad()
def look(model: VLM, clip: Clip, reader: Reader, k: float, tokenizer: AnyTokenizer = TOKENIZER):
    """Run the model on one clip. Returns its video, keep (T, C), scores (T, C) or None, and lines of text about it."""
    video = reader(clip)
    qa, _ = pick_questions(clip)[0]
    device = next(model.parameters()).device
    batch = collate([video], [[(tokenizer.prompt(qa.question), [])]], tokenizer=tokenizer).to(device)
    encoded = model.encode(batch, k)
    said = tokenizer.decode(model.generate(batch, k, encode=lambda *_: encoded)[0][0])
    scores = None if encoded.scores is None else encoded.scores[0].float().cpu().numpy()
    right = normalised(said) == normalised(qa.answer)
    lines = [
        qa.question[:1].upper() + qa.question[1:],
        f"Model: {said or '(nothing)'}. {'Right' if right else f'Wrong, the answer is: {qa.answer}'}.",
        f"Kept {int(encoded.kept.sum())} of {encoded.keep.numel()} cells (k = {k:g}).",
        "Rows: frames, kept cells, scores (0 dark, 1 light).",
    ]
    return video, encoded.keep[0].cpu().numpy(), scores, lines


def band(video: Video, keep: np.ndarray, scores: np.ndarray | None, lines: Sequence[str]) -> np.ndarray:
    """One clip as a picture (H, WIDTH, 3): lines of text, then its frames, PER_ROW in a row. Above a frame is its
    stamp. Below it are its other two views and the share of its cells that is kept."""
    lines = [part for line in lines for part in textwrap.wrap(line, (WIDTH - 2 * GAP) // LETTER)]
    head = np.zeros((2 * GAP + 20 * len(lines), WIDTH, 3), np.uint8)
    for i, line in enumerate(lines):
        write_text(head, line, GAP, GAP + 20 * i)
    at = np.arange(SIDE) * video.frames.shape[1] // SIDE  # the nearest pixels
    views = [view[:, at][:, :, at] for view in clip_views(video.frames, keep, scores)]
    rows = [head]
    for first in range(0, len(keep), PER_ROW):
        row = np.zeros((20 + 3 * (SIDE + 4) + 36, WIDTH, 3), np.uint8)
        for i, t in enumerate(range(first, min(first + PER_ROW, len(keep)))):
            x = GAP + i * (SIDE + GAP)
            write_text(row, video.stamps[t] + " s" * (not video.still), x, 0, colour=GREY)
            for v, view in enumerate(views):
                row[20 + v * (SIDE + 4) :][:SIDE, x : x + SIDE] = view[t]
            share = "all" if keep[t].all() else f"{keep[t].mean():.0%}"
            write_text(row, f"Kept {share}", x, 20 + 3 * (SIDE + 4), colour=GREY)
        rows.append(row)
    return np.concatenate(rows)


def draw_clips(
    model: VLM,
    clips: Sequence[Clip],
    reader: Reader,
    k: float,
    out: str | os.PathLike,
    count: int = 3,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> Path | None:
    """Write pruned.png into `out` for the first `count` videos, the last one a long video if there is one. Returns
    its path, or None if no clip can be read."""
    clips = [c for c in clips if c.source not in reader.broken]
    short = [c for c in clips if c.kind == "short"]
    long = [c for c in clips if c.kind not in ("short", "image", OWN)]
    chosen = (short[: count - 1] + long[:1]) or clips[:count]
    if not chosen:
        return None
    line = np.full((2, WIDTH, 3), GREY, np.uint8)
    bands = [part for clip in chosen for part in (line, band(*look(model, clip, reader, k, tokenizer)))]
    png = Path(out) / "pruned.png"
    save_png(np.concatenate(bands[1:]), png)
    return png


def draw_curve(log: str | os.PathLike, png: str | os.PathLike, size: tuple[int, int] = (900, 420)) -> None:
    """Draw a log.csv (`Log` in training/logging.py), smoothed over 2% of the steps.

    The upper panel has L_task on a logarithmic scale and the accuracy. The lower one has the scorer's health, if it was
    logged (training/health.py). It shows the gradients from L_sim and from the LM, the correlation with the target
    (drawn at 0 if negative) and the share of saturated scores."""
    with open(log, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    window = max(len(rows) // 50, 1)

    def column(name: str) -> np.ndarray:
        """One column, smoothed. NaN where there is no value."""
        y = np.array([float(row.get(name) or "nan") for row in rows])
        known = np.isfinite(y)
        if known.any():
            padded = np.pad(y[known], (window - 1, 0), "edge")
            y[known] = np.convolve(padded, np.ones(window) / window, "valid")
        return y

    panels = [({"Loss": (column("task_loss"), LOSS)}, {"Accuracy": (column("accuracy"), ACCURACY)})]
    if np.isfinite(sim_gradient := column("sim_gradient")).any():
        gradients = {"Gradient of L_sim": (sim_gradient, LOSS), "of the LM": (column("lm_gradient"), HEALTH[0])}
        shares = {"r": (column("correlation"), ACCURACY), "Saturated": (column("saturated"), HEALTH[1])}
        panels.append((gradients, shares))
    picture = np.concatenate([panel(*curves, size) for curves in panels])
    write_text(picture, f"{rows[0]['step']}", 96, len(picture) - 26, colour=GREY)
    steps = f"{int(rows[-1]['step']) + 1} steps"
    write_text(picture, steps, size[0] - 160, len(picture) - 26, colour=GREY)
    save_png(picture, png)


def panel(logs: dict[str, tuple], shares: dict[str, tuple], size: tuple[int, int]) -> np.ndarray:
    """Draw curves over their index as a picture of this (width, height). Each is {name: (values, colour)}, with NaN for
    missing values. `logs` have a logarithmic scale on the left, `shares` go from 0 to 100% on the right."""
    width, height = size
    left, top, right, bottom = 96, 40, width - 70, height - 40
    picture = np.full((height, width, 3), 24, np.uint8)
    logs = {name: (np.log10(np.maximum(y, 1e-8)), colour) for name, (y, colour) in logs.items()}
    every = np.concatenate([y for y, _ in logs.values()])
    low, high = np.floor(np.nanmin(every)), np.ceil(np.nanmax(every))
    high = max(high, low + 1)
    curves = [((y - low) / (high - low), colour) for y, colour in logs.values()]
    for i in range(5):
        y = round(bottom - i * (bottom - top) / 4)
        picture[y, left:right] = 70
        write_text(picture, f"{10 ** (low + i * (high - low) / 4):.2g}", 4, y - 7, colour=curves[0][1])
        write_text(picture, f"{25 * i}%", right + 8, y - 7, colour=next(iter(shares.values()))[1])
    for curve, colour in (*curves, *((np.clip(y, 0, 1), colour) for y, colour in shares.values())):
        known = np.flatnonzero(np.isfinite(curve))
        if not len(known):
            continue
        at = np.interp(np.linspace(0, len(curve) - 1, right - left), known, curve[known], left=np.nan)
        there = np.flatnonzero(np.isfinite(at))
        ys = np.round(bottom - at[there] * (bottom - top)).astype(int)
        for x, a, b in zip(there + left, ys, [ys[0], *ys[:-1]], strict=True):  # joined, two pixels thick
            picture[min(a, b) : max(a, b) + 2, x] = colour
    x = left
    for name, (_, colour) in logs.items():
        write_text(picture, name, x, 12, colour=colour)
        x += LETTER * len(name) + 24
    x = right
    for name, (_, colour) in shares.items():
        x -= LETTER * len(name)
        write_text(picture, name, x, 12, colour=colour)
        x -= 24
    return picture
