"""Pictures of what is pruned: frames with the pruned cells dimmed, beside the scores, question and answer.

`draw_clips` writes pruned.png, a band for each clip; `draw_curve` draws a training log. Only numpy and PyAV are needed;
the letters are a 3 × 5 pixel font below.

    band of a clip:   time stamps · frames · kept cells (pruned ones dimmed) · scores (dark 0, light 1)

What this file does not do: decide anything. It shows what `encode_video` returned.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch

from stts_mini.data.batches import TOKENIZER, AnyTokenizer, Reader, collate, pick_questions
from stts_mini.data.clips import OWN, Clip, normalised
from stts_mini.model import VLM

GLYPHS = {  # 3 × 5 pixels each, row by row
    "a": "010101111101101", "b": "110101110101110", "c": "011100100100011", "d": "110101101101110",
    "e": "111100110100111", "f": "111100110100100", "g": "011100101101011", "h": "101101111101101",
    "i": "111010010010111", "j": "001001001101010", "k": "101101110101101", "l": "100100100100111",
    "m": "101111111101101", "n": "110101101101101", "o": "010101101101010", "p": "110101110100100",
    "q": "010101101110011", "r": "110101110101101", "s": "011100010001110", "t": "111010010010010",
    "u": "101101101101111", "v": "101101101101010", "w": "101101111111101", "x": "101101010101101",
    "y": "101101010010010", "z": "111001010100111", "0": "111101101101111", "1": "010110010010111",
    "2": "110001010100111", "3": "110001010001110", "4": "101101111001001", "5": "111100110001110",
    "6": "011100111101111", "7": "111001010010010", "8": "111101111101111", "9": "111101111001110",
    ".": "000000000000010", ",": "000000000010100", "?": "110001010000010", ":": "000010000010000",
    "-": "000000111000000", "/": "001001010100100", "=": "000111000111000", "%": "101001010100101",
    "(": "010100100100010", ")": "010001001001010", "<": "001010100010001", ">": "100010001010100",
}  # fmt: skip
LOSS, ACCURACY, HEALTH = (250, 180, 50), (110, 190, 250), ((240, 110, 90), (150, 210, 120))
UNKNOWN = "111111111111111"
HEAT = np.array([(15, 10, 45), (110, 25, 110), (215, 70, 60), (250, 180, 50), (255, 255, 200)], float)
DIM = 0.2


def write_text(picture: np.ndarray, text: str, x: int, y: int, scale: int = 2, colour=(255, 255, 255)) -> None:
    """Draw text into picture (H, W, 3) uint8 with its top left corner at (x, y); what does not fit is cut."""
    for letter in text.lower():
        if letter != " ":
            bits = np.array([c == "1" for c in GLYPHS.get(letter, UNKNOWN)]).reshape(5, 3)
            bits = bits.repeat(scale, 0).repeat(scale, 1)
            area = picture[y : y + 5 * scale, x : x + 3 * scale]
            area[bits[: area.shape[0], : area.shape[1]]] = colour
        x += 4 * scale


def heat(scores: np.ndarray) -> np.ndarray:
    """Scores in [0, 1], any shape → colours (..., 3) uint8, dark to light."""
    at = np.clip(scores, 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(at, range(len(HEAT)), HEAT[:, c]) for c in range(3)], -1).astype(np.uint8)


def to_pixels(cells: np.ndarray, size: int) -> np.ndarray:
    """Per-cell values (T, C) → (T, size, size), every cell as large as it is in the frame."""
    side = round(cells.shape[1] ** 0.5)
    part = np.arange(size) * side // size
    return cells.reshape(-1, side, side)[:, part][:, :, part]


def clip_views(frames: np.ndarray, keep: np.ndarray, scores: np.ndarray | None) -> list[np.ndarray]:
    """The three views of a clip, each (T, H, W, 3) uint8: frames, pruned cells dimmed, scores.

    frames (T, H, W, 3) uint8, keep (T, C) bool, scores (T, C) in [0, 1] or None (then all are drawn as 1).
    """
    size = frames.shape[1]
    kept = to_pixels(keep, size)[..., None]
    dimmed = np.where(kept, frames, frames * DIM).astype(np.uint8)
    heated = heat(to_pixels(np.ones(keep.shape) if scores is None else scores, size))
    return [frames, dimmed, heated]


@torch.no_grad()
def look(model: VLM, clip: Clip, reader: Reader, k: float, tokenizer: AnyTokenizer = TOKENIZER):
    """One clip through the model: its video, keep (T, C), scores (T, C) or None, and a line of text."""
    video = reader(clip)
    qa, _ = pick_questions(clip)[0]
    device = next(model.parameters()).device
    batch = collate([video], [[(tokenizer.prompt(qa.question), [])]], tokenizer=tokenizer).to(device)
    encoded = model.encode(batch, k)
    said = tokenizer.decode(model.generate(batch, k, encode=lambda *_: encoded)[0][0])
    scores = None if encoded.scores is None else encoded.scores[0].float().cpu().numpy()
    kept = f"{int(encoded.kept.sum())}/{encoded.keep.numel()} kept"
    verdict = "right" if normalised(said) == normalised(qa.answer) else f"answer: {qa.answer}"
    text = f"{qa.question}  said: {said}  {verdict}  k={k:g} {kept}"
    return video, encoded.keep[0].cpu().numpy(), scores, text


def band(video, keep: np.ndarray, scores: np.ndarray | None, text: str, scale: int = 2) -> np.ndarray:
    """One clip as a picture: a line of text, the stamps, and its three views below each other."""
    views = [np.concatenate(list(view), axis=1) for view in clip_views(video.frames, keep, scores)]
    views = [view.repeat(scale, 0).repeat(scale, 1) for view in views]
    head = np.zeros((34, views[0].shape[1], 3), np.uint8)
    write_text(head, text, 4, 4)
    for t, stamp in enumerate(video.stamps):
        write_text(head, stamp, t * video.frames.shape[2] * scale + 4, 20, colour=(170, 170, 170))
    gap = np.full((3, views[0].shape[1], 3), 60, np.uint8)
    return np.concatenate([head, views[0], gap, views[1], gap, views[2], np.zeros_like(gap)])


def draw_clips(
    model: VLM,
    clips: Sequence[Clip],
    reader: Reader,
    k: float,
    out: str | os.PathLike,
    count: int = 4,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> Path | None:
    """Write pruned.png into `out` for the first clips that have more than one frame, the last of them a long one if
    there is one; returns its path, or None if no clip can be read."""
    clips = [c for c in clips if c.source not in reader.broken]
    short = [c for c in clips if c.kind == "short"]
    long = [c for c in clips if c.kind not in ("short", "image", OWN)]
    chosen = (short[: count - 1] + long[:1]) or clips[:count]
    if not chosen:
        return None
    bands = [band(*look(model, clip, reader, k, tokenizer)) for clip in chosen]
    width = max(b.shape[1] for b in bands)
    bands = [np.pad(b, ((0, 8), (0, width - b.shape[1]), (0, 0))) for b in bands]
    png = Path(out) / "pruned.png"
    av.VideoFrame.from_ndarray(np.concatenate(bands), format="rgb24").save(str(png))
    return png


def draw_curve(log: str | os.PathLike, png: str | os.PathLike, size: tuple[int, int] = (900, 420)) -> None:
    """Draw a log.csv (`Log` in training/logging.py), smoothed over 2% of the steps: loss (L_task, on a logarithmic
    scale) and accuracy against steps. Below, if it was watched, the scorer's health (training/health.py): the gradients
    of its two teachers, and its correlation with the target (drawn at 0 where it is less) and the share saturated."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    window = max(len(rows) // 50, 1)

    def column(name: str) -> np.ndarray:
        """One column, smoothed; NaN where nothing is known."""
        y = np.array([float(row.get(name) or "nan") for row in rows])
        known = np.isfinite(y)
        if known.any():
            padded = np.pad(y[known], (window - 1, 0), "edge")
            y[known] = np.convolve(padded, np.ones(window) / window, "valid")
        return y

    panels = [({"loss": (column("task_loss"), LOSS)}, {"accuracy": (column("accuracy"), ACCURACY)})]
    if np.isfinite(teacher := column("sim_gradient")).any():
        gradients = {"gradient of l-sim": (teacher, LOSS), "of the lm": (column("lm_gradient"), HEALTH[0])}
        shares = {"r": (column("correlation"), ACCURACY), "saturated": (column("saturated"), HEALTH[1])}
        panels.append((gradients, shares))
    picture = np.concatenate([panel(*curves, size) for curves in panels])
    write_text(picture, f"{rows[0]['step']}", 70, len(picture) - 26, colour=(170, 170, 170))
    steps = f"{int(rows[-1]['step']) + 1} steps"
    write_text(picture, steps, size[0] - 160, len(picture) - 26, colour=(170, 170, 170))
    av.VideoFrame.from_ndarray(picture, format="rgb24").save(str(png))


def panel(logs: dict[str, tuple], shares: dict[str, tuple], size: tuple[int, int]) -> np.ndarray:
    """Curves over their index as a picture of this (width, height), each given as {name: (values, colour)}, NaN where
    there is none: `logs` on a logarithmic scale, left, `shares` from 0 to 100%, right."""
    width, height = size
    left, top, right, bottom = 70, 40, width - 70, height - 40
    picture = np.full((height, width, 3), 24, np.uint8)
    logs = {name: (np.log10(np.maximum(y, 1e-8)), colour) for name, (y, colour) in logs.items()}
    every = np.concatenate([y for y, _ in logs.values()])
    low, high = np.floor(np.nanmin(every)), np.ceil(np.nanmax(every))
    high = max(high, low + 1)
    curves = [((y - low) / (high - low), colour) for y, colour in logs.values()]
    for i in range(5):
        y = round(bottom - i * (bottom - top) / 4)
        picture[y, left:right] = 70
        write_text(picture, f"{10 ** (low + i * (high - low) / 4):.2g}", 4, y - 5, colour=curves[0][1])
        write_text(picture, f"{25 * i}%", right + 8, y - 5, colour=next(iter(shares.values()))[1])
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
        x += 8 * len(name) + 24
    x = right
    for name, (_, colour) in shares.items():
        x -= 8 * len(name)
        write_text(picture, name, x, 12, colour=colour)
        x -= 24
    return picture
