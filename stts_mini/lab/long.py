"""Encode videos of any length in chunks. Memory grows only with the scores and the kept tokens.

    python -m stts_mini.lab.long talk.mp4 --k 0.8                     what it takes, with runs/cpu/checkpoint.pt
    python -m stts_mini.lab.long talk.mp4 --k 0.8 --one-pass          cheaper, and an approximation
    python -m stts_mini.lab.long --curve curve.json                   cost and memory from 8 frames to two hours

There are two passes, because selection is over the whole video. The first runs blocks 0..l on every frame and keeps
only the scores. Then `select` decides. The second runs blocks 0..l again, block l+1 with the bias, and the rest on kept
tokens. The result is what `VLM.encode_video` would give with enough memory. With --one-pass, each chunk gets its share
of the budget at once. This saves about half of the dense blocks' work. But frames of different chunks do not compete,
so other cells are kept.

The encoder's cost for a frame does not depend on the number of frames. The LLM's does, because every token attends to
all tokens before it (measured in speed/SPEED.md).

What this file does not do: train, or make the LLM's context shorter.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.data.files import require, writable, write_json
from stts_mini.data.video import read_chunks
from stts_mini.eval import parse_k
from stts_mini.lab.speed.machine import MACHINE, in_own_process, machine, process_memory
from stts_mini.lab.speed.passes import SHAPES, build
from stts_mini.model import VLM, Encoded, check_scores, must_be_bounded
from stts_mini.packing import check_k, num_removed, select
from stts_mini.report.markdown import markdown
from stts_mini.scorer import attention_bias, spread
from stts_mini.training import checkpoint
from stts_mini.training.logging import one_line_errors, parser_of, several

Chunks = Callable[[], Iterable[Tensor]]  # each call gives all frames, (n, 3, H, W) at a time


@torch.no_grad()
def encode_long(model: VLM, chunks: Chunks, k: float, one_pass: bool = False) -> Encoded:
    """One video's kept cells as LLM tokens, as `VLM.encode_video` gives them, with bounded memory.

    chunks    called twice, or once if `one_pass`. Gives frames (n, 3, H, W) at a time, uint8 or floats in [−1, 1]
    one_pass  decide chunk by chunk, each with its share of the budget. This is an approximation. The scorer may look
    back one frame only. Raises ValueError for an impossible k, and for a model that prunes more than once.
    """
    check_k(k)
    cfg, l = model.config, model.config.score_after
    require(cfg.stages == 1, f"this model prunes in {cfg.stages} stages: lab.long knows one")
    injects = getattr(model.scorer, "injects_bias", False) and cfg.bias != "none"
    tokens, keeps, scores = [], [], []  # of each chunk
    for x, own, keep, pruned in (in_one_pass if one_pass else in_two_passes)(model, chunks, k):
        some, key_bias = keep.any(1), None  # frames without a kept cell go no further
        if injects and pruned:
            one_before = F.pad(own[None], (0, 0, 1, 0), value=1.0)  # because the first frame given has no bias
            key_bias = attention_bias(one_before, cfg.w, rescale=cfg.bias == "rescaled")[0, 1:]  # (n, N)
            if not keeps:
                key_bias[0] = 0  # the video's first frame
            key_bias = key_bias[some]
        x = model.vit.blocks[l + 1](x, key_bias=key_bias)
        tokens.append(model.encode_kept(x, keep[some], l + 2, pruned)[0])
        keeps.append(keep)
        scores.append(own)
    require(keeps, "there are no frames: chunks() must give all frames at each call")
    keep = torch.cat(keeps)[None]  # (1, T, C)
    shown = torch.ones(keep.shape[:2], dtype=torch.bool)
    return Encoded(torch.cat(tokens), keep.sum(2).cpu(), shown, keep.nonzero(), keep, torch.cat(scores)[None])


# of a chunk: tokens of frames with a kept cell, scores (n, C), keep (n, C), whether the video loses anything
Part = tuple[Tensor, Tensor, Tensor, bool]


def in_two_passes(model: VLM, chunks: Chunks, k: float) -> Iterator[Part]:
    """Score all frames, select over the whole video, then start again with what is kept."""
    scores = [own for _, own in scored(model, chunks())]
    if not scores:
        return
    scores = torch.cat(scores)  # (T, C)
    keep = select(spread(scores[None], model.config.spread), k)[0]
    pruned, start = num_removed(k, scores.shape[1], len(scores)) > 0, 0
    for frames in chunks():
        now = slice(start, start := start + len(frames))
        frames = frames.to(keep.device)[keep[now].any(1)]
        yield model.stem(frames), scores[now], keep[now], pruned


def in_one_pass(model: VLM, chunks: Chunks, k: float) -> Iterator[Part]:
    """Score a chunk and select within it."""
    start = 0
    for x, own in scored(model, chunks()):
        keep = within_budget(spread(own, model.config.spread, start), k, start)
        start += len(x)
        yield x[keep.any(1)], own, keep, num_removed(k, model.config.cells, start) > 0  # no bias before a cell is gone


def scored(model: VLM, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each chunk its tokens after block l, (n, N, D), and its scores, (n, C). The last frame of a chunk is compared
    with the first of the next."""
    before = None
    for frames in chunks:
        x = model.stem(frames.to(model.vit.position_embedding.device))
        seen = x if before is None else torch.cat([before, x])
        own = model.scorer(seen[None], torch.tensor([len(seen)]))
        bounded = must_be_bounded(model.scorer, model.config.spread)
        check_scores(own, (1, len(seen), model.config.cells), bounded=bounded)
        yield x, own[0, -len(x) :]
        before = x[-1:]


def within_budget(scores: Tensor, k: float, start: int) -> Tensor:
    """What to keep of frames start, start + 1, …: (n, C) → bool (n, C). After each chunk, floor(k·C·T so far) cells are
    gone, or as many as possible. Frame 0 loses none.

    >>> within_budget(torch.tensor([[0.1, 0.2], [0.9, 0.3]]), 0.5, start=0).int().tolist()
    [[1, 1], [0, 0]]
    >>> within_budget(torch.tensor([[0.1, 0.2], [0.9, 0.3]]), 0.5, start=6).int().tolist()
    [[0, 0], [1, 1]]
    """
    n, C = scores.shape
    remove = num_removed(k, C, start + n) - (num_removed(k, C, start) if start else 0)
    ranked = scores.float().clone()
    ranked[: int(start == 0)] = torch.inf
    keep = torch.ones(n * C, dtype=torch.bool, device=scores.device)
    keep[ranked.flatten().argsort(stable=True)[:remove]] = False
    return keep.view(n, C)


# ------------------------------------------------------------------------------------- what it takes

CPU = torch.device("cpu")
WAYS = ("two passes", "one pass", "whole")
FRAMES = (8, 64, 512, 2048, 14_400)  # of the curve. The last is two hours at two frames a second.
WHOLE_UP_TO = 512  # frames that are encoded in one piece


def file_chunks(path: Path, chunk: int, fps: float, size: int) -> Iterator[Tensor]:
    """The frames of a file, ready for the model."""
    for video in read_chunks(path, chunk, fps, size):
        yield torch.from_numpy(video.frames).permute(0, 3, 1, 2)


def drawn_chunks(frames: int, chunk: int, size: int) -> Iterator[Tensor]:
    """Random frames, the same at each call."""
    draw = torch.Generator().manual_seed(0)
    for start in range(0, frames, chunk):
        yield torch.randint(256, (min(chunk, frames - start), 3, size, size), dtype=torch.uint8, generator=draw)


def taken(model: VLM, chunks: Chunks, k: float, way: str) -> dict:
    """Encode in one of the WAYS, and measure time and memory."""
    before, began = process_memory(), time.perf_counter()
    if way == "whole":
        with torch.no_grad():
            encoded = model.encode_video(torch.cat(list(chunks()))[None], None, k)
    else:
        encoded = encode_long(model, chunks, k, way == "one pass")
    seconds = time.perf_counter() - began
    T = encoded.keep.shape[1]
    return dict(way=way, frames=T, kept=len(encoded.tokens), seconds=seconds, bytes=process_memory() - before)


def taken_by_drawn(way: str, frames: int, k: float, chunk: int) -> dict:
    """`taken` for random frames and the benchmark's narrow model, after two frames of warm-up."""
    model = build(SHAPES["narrow"], CPU)
    size = model.config.vit.image_size
    taken(model, partial(drawn_chunks, 2, 1, size), k, way)
    return taken(model, partial(drawn_chunks, frames, chunk, size), k, way)


def curve(frames: Sequence[int], k: float, chunk: int) -> dict:
    """Each way at each number of frames. Time is measured here, memory in a process of its own."""
    runs = []
    for way, n in itertools.product(WAYS, frames):
        if way != "whole" or n <= WHOLE_UP_TO:
            held = in_own_process(taken_by_drawn, way, n, k, chunk)["bytes"]
            runs.append({**taken_by_drawn(way, n, k, chunk), "bytes": held})
            print(f"{way}, {n} frames: {runs[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    return dict(k=k, chunk=chunk, **machine(CPU), encoded=runs)


def page(report: dict) -> str:
    """The curve as Markdown. LLM tokens are kept cells, plus a stamp and two markers for each frame."""
    ran = {
        (run["way"], run["frames"]): f"{run['seconds']:.2f} s, {run['bytes'] / 1e6:.0f} MB" for run in report["encoded"]
    }
    kept = {run["frames"]: run["kept"] for run in report["encoded"]}
    rows = [[n, *(ran.get((way, n), "") for way in WAYS), kept[n] + 3 * n] for n in kept]
    head = ("k = {k}, chunks of {chunk} frames, " + MACHINE).format(**report)
    return f"{head}\n\n" + markdown(["frames", *WAYS, "LLM tokens"], rows)


def encode_file(args: argparse.Namespace) -> str:
    """Encode your file, and say what it took."""
    model, state, _ = checkpoint.load_trained(args.checkpoint, scorer=args.scorer)
    k = state["train_config"]["k"] if args.k is None else args.k
    chunks = partial(file_chunks, args.video, args.chunk, args.fps, model.config.vit.image_size)
    took = taken(model.float(), chunks, k, WAYS[args.one_pass])
    return (
        f"{took['frames']} frames, {took['kept']} of {took['frames'] * model.config.cells} cells kept, in"
        f" {took['way']} of {args.chunk} frames at a time, k = {k}: {took['seconds']:.1f} s, decoding"
        f" included, {took['bytes'] / 1e6:.0f} MB beyond the weights"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.long", __doc__)
    parser.add_argument("video", nargs="?", type=Path, help="any video file")
    parser.add_argument("--checkpoint", default="runs/cpu/checkpoint.pt", help="the model")
    parser.add_argument(
        "--k", type=parse_k, help="share of cells to remove, as in training if not given (--curve: 0.5)"
    )
    parser.add_argument("--scorer", help="a scorer instead of the trained one, such as my_file.py:MyScorer")
    parser.add_argument("--fps", type=float, default=2.0, help="frames to look at per second")
    parser.add_argument("--chunk", type=int, default=64, help="frames in memory at a time")
    parser.add_argument("--one-pass", action="store_true", help="decide chunk by chunk")
    parser.add_argument("--curve", type=Path, help="measure cost and memory against frames, into this JSON")
    parser.add_argument("--frames", type=several(int, "8,64"), default=FRAMES, metavar="T,T", help="with --curve")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        for name, least in (("chunk", args.chunk), ("frames", min(args.frames)), ("threads", args.threads)):
            require(least > 0, "--{} {}: give 1 or more", name, least)
        require(0 < args.fps < math.inf, "--fps {}: give more than 0", args.fps)
        torch.set_num_threads(args.threads)
        require(args.curve or args.video, "give a video, or --curve out.json")
        alone = ("video", "checkpoint", "scorer", "fps", "one_pass") if args.curve else ("frames",)
        idle = [name for name in alone if getattr(args, name) != parser.get_default(name)]
        what = "--curve, which measures a model of its own" if args.curve else "a video"
        require(not idle, f"{', '.join(idle)} has no effect with {what}: leave it out".replace("_", "-"))
        if args.curve:
            writable(args.curve)  # before the work
            report = curve(args.frames, 0.5 if args.k is None else args.k, args.chunk)
            write_json(args.curve, report)
            print(page(report))
        else:
            print(encode_file(args))


if __name__ == "__main__":
    main()
