"""Videos of any length: encoded in chunks, with memory that grows by the scores and the kept tokens alone.

    python -m stts_mini.lab.long talk.mp4 --k 0.8                     what it takes, with runs/cpu/checkpoint.pt
    python -m stts_mini.lab.long talk.mp4 --k 0.8 --one-pass          cheaper, and an approximation
    python -m stts_mini.lab.long --curve curve.json --plot curve.png  cost and memory from 8 frames to two hours

Two passes, for selection is over the whole video: the first runs blocks 0..l on every frame and keeps nothing but
scores; then `select` decides; the second runs blocks 0..l again, block l+1 with the bias, and all the rest on what was
kept. The tokens are those that `VLM.encode_video` would give, had memory room for it. One pass gives each chunk its
share of the budget as it comes: about half of the dense blocks' work is saved, and no frame competes with a frame of
another chunk, so other cells are kept.

The encoder's cost for a frame does not depend on how many there are. The LLM's does: every token attends to all
before it.

What this file does not do: train, or make the LLM's context shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stts_mini.data.video import read_chunks
from stts_mini.eval import parse_k
from stts_mini.lab.paper.reproduce import commit, write_json
from stts_mini.lab.speed.bench import SHAPES, build, device_name, load_average, process_memory
from stts_mini.model import VLM, Encoded, check_scores, check_values
from stts_mini.packing import check_k, num_removed, select
from stts_mini.scorer import attention_bias, find_scorer, spread
from stts_mini.training import checkpoint

Chunks = Callable[[], Iterable[Tensor]]  # each call gives the frames from the first on, (n, 3, H, W) at a time


@torch.no_grad()
def encode_long(model: VLM, chunks: Chunks, k: float, one_pass: bool = False) -> Encoded:
    """One video's kept cells as LLM tokens, as `VLM.encode_video` gives them, with bounded memory.

    chunks    called twice (once if `one_pass`): the frames, some at a time, (n, 3, H, W), uint8 or floats in [−1, 1]
    one_pass  decide chunk by chunk, each with its share of the budget: an approximation
    Raises ValueError for a k that cannot be. The scorer must look no further back than one frame.
    """
    check_k(k)
    cfg, l = model.config, model.config.score_after
    injects = getattr(model.scorer, "injects_bias", False) and cfg.bias != "none"
    tokens, keeps, scores, start = [], [], [], 0  # of each chunk
    for x, own, keep, pruned in (in_one_pass if one_pass else in_two_passes)(model, chunks, k):
        some, key_bias = keep.any(1), None  # frames of which nothing is kept cost no more
        if injects and pruned:
            one_before = F.pad(own[None], (0, 0, 1, 0), value=1.0)  # for the first frame given has no bias
            key_bias = attention_bias(one_before, cfg.w, rescale=cfg.bias == "rescaled")[0, 1:]  # (n, N)
            key_bias[: int(start == 0)] = 0
            key_bias = key_bias[some]
        x = model.vit.blocks[l + 1](x, key_bias=key_bias)
        tokens.append(model.encode_kept(x, keep[some], l + 2, pruned)[0])
        keeps.append(keep)
        scores.append(own)
        start += len(keep)
    if not keeps:
        raise ValueError("there are no frames: chunks() must give them anew at each call")
    keep = torch.cat(keeps)[None]  # (1, T, C)
    shown = torch.ones(keep.shape[:2], dtype=torch.bool)
    return Encoded(torch.cat(tokens), keep.sum(2).cpu(), shown, keep.nonzero(), keep, torch.cat(scores)[None])


# of a chunk: tokens (of frames with a kept cell), scores (n, C), keep (n, C), whether the video loses anything
Part = tuple[Tensor, Tensor, Tensor, bool]


def in_two_passes(model: VLM, chunks: Chunks, k: float) -> Iterator[Part]:
    """Score all frames, select over the whole video, then begin again with what is kept."""
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
        yield x[keep.any(1)], own, keep, num_removed(k, model.config.cells, start) > 0  # no bias before anything goes


def scored(model: VLM, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each chunk its tokens after block l, (n, N, D), and its scores, (n, C). A chunk's last frame is remembered:
    the first of the next is compared with it."""
    before = None
    for frames in chunks:
        x = model.stem(frames.to(model.vit.position_embedding.device))
        seen = x if before is None else torch.cat([before, x])
        own = model.scorer(seen[None], torch.tensor([len(seen)]))
        check_values(
            check_scores(own, (1, len(seen), model.config.cells)), getattr(model.scorer, "injects_bias", False)
        )
        yield x, own[0, -len(x) :]
        before = x[-1:]


def within_budget(scores: Tensor, k: float, start: int) -> Tensor:
    """What to keep of frames start, start + 1, …: after each chunk floor(k·C·T so far) cells are gone, or as many as
    can be, frame 0 being safe. (n, C) → bool (n, C).

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

WAYS = ("two passes", "one pass", "whole")
FRAMES, WHOLE_UP_TO = (8, 64, 512, 2048, 14_400), 512  # of the curve; and encoded in one piece
READ = (512, 2048, 6144)  # LLM tokens
TWO_HOURS = 14_400  # frames, at two a second


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
    """Encode in one of the WAYS, and say what it took."""
    before, began = process_memory(), time.perf_counter()
    if way == "whole":
        with torch.no_grad():
            encoded = model.encode_video(torch.cat(list(chunks()))[None], None, k)
    else:
        encoded = encode_long(model, chunks, k, way == "one pass")
    seconds = time.perf_counter() - began
    T = encoded.keep.shape[1]
    return dict(way=way, frames=T, kept=len(encoded.tokens), seconds=seconds, bytes=process_memory() - before)


def llm_seconds(model: VLM, tokens: int) -> float:
    """Of reading so many tokens at once: the median of three times, after one that does not count."""
    x, positions = torch.randn(1, tokens, model.config.llm.width), torch.arange(tokens)[None]
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    took = []
    with torch.no_grad():
        for _ in range(4):
            began = time.perf_counter()
            model.llm(x, positions, mask)
            took.append(time.perf_counter() - began)
    return float(np.median(took[1:]))


def cost_model(encoded: Sequence[dict], read: Sequence[dict]) -> dict[str, float]:
    """Seconds = a · frames (encoder) + b · tokens + c · tokens² (LLM), the best fit in relative error: a, b, c.

    >>> cost = cost_model([dict(frames=10, seconds=2.0)], [dict(tokens=n, seconds=n + 3 * n**2) for n in (1, 2, 9)])
    >>> {name: round(x, 6) for name, x in cost.items()}
    {'frame': 0.2, 'token': 1.0, 'pair': 3.0}
    """
    tokens, seconds = (np.array([r[name] for r in read], float) for name in ("tokens", "seconds"))
    powers = np.stack([tokens, tokens**2], axis=1) / seconds[:, None]
    token, pair = np.linalg.lstsq(powers, np.ones(len(read)), rcond=None)[0]
    frame = np.median([r["seconds"] / r["frames"] for r in encoded])
    return dict(frame=float(frame), token=float(token), pair=float(pair))


def curve(args: argparse.Namespace) -> dict:
    """Each way at each number of frames, in two processes: one for its time, and one for its memory, slower, in which
    glibc gives back what is freed, so that what tensors hold is counted. Then the LLM, and the cost model."""
    runs, giving_back = [], {"MALLOC_MMAP_THRESHOLD_": "131072", **os.environ}
    for way in WAYS:
        for frames in (n for n in args.frames if way != "whole" or n <= WHOLE_UP_TO):
            words = ["--k", args.k, "--chunk", args.chunk, "--threads", args.threads, "--one", way, frames]
            command = [sys.executable, "-m", "stts_mini.lab.long", *map(str, words)]
            results = []
            for env in (None, giving_back):
                done = subprocess.run(command, capture_output=True, text=True, env=env)
                if done.returncode:
                    raise RuntimeError(f"{way}, {frames} frames: {done.stderr.strip()[-500:]}")
                results.append(json.loads(done.stdout))
            runs.append({**results[0], "bytes": results[1]["bytes"]})
            print(f"{way}, {frames} frames: {runs[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    model = build(SHAPES["narrow"], torch.device("cpu"))
    read = [dict(tokens=n, seconds=llm_seconds(model, n)) for n in READ]
    return dict(
        k=args.k, chunk=args.chunk, threads=args.threads, commit=commit(), torch=torch.__version__,
        device=device_name(torch.device("cpu")), started_under_load=load_average(), cells=model.config.cells,
        encoded=runs, read=read, cost=cost_model([r for r in runs if r["way"] == "two passes"], read),
    )  # fmt: skip


def tokens_of(frames: int, k: float, cells: int) -> int:
    """LLM tokens of a video: kept cells, and a stamp and two markers for each frame."""
    return cells * frames - num_removed(k, cells, frames) + 3 * frames


def takes_over(cost: dict[str, float], k: float, cells: int) -> int | None:
    """Frames from which on the LLM's quadratic part costs more than all the rest; None if none was measured."""
    if cost["pair"] <= 0:
        return None
    each = tokens_of(1000, k, cells) / 1000  # tokens a frame
    return round((cost["frame"] + cost["token"] * each) / (cost["pair"] * each**2))


def page(report: dict) -> str:
    """The curve as text."""
    k, cells, cost = report["k"], report["cells"], report["cost"]
    lines = [
        f"k = {k}, chunks of {report['chunk']} frames, {report['threads']} threads, {report['device']}, torch"
        f" {report['torch']}, commit {report['commit']}, load {report['started_under_load']} at the start",
        f"{'frames':>8}" + "".join(f"{way:>22}" for way in WAYS) + f"{'LLM tokens':>12}{'LLM':>12}",
    ]
    by_way = {(r["way"], r["frames"]): r for r in report["encoded"]}
    llm = lambda n: cost["token"] * n + cost["pair"] * n * n
    for frames in sorted({r["frames"] for r in report["encoded"]} | {TWO_HOURS}):
        cells_of = []
        for way in WAYS:
            run = by_way.get((way, frames))
            cells_of.append(f"{run['seconds']:.2f} s {run['bytes'] / 1e6:.0f} MB" if run else "")
        if frames == TWO_HOURS and not cells_of[0]:
            cells_of[0] = f"≈ {cost['frame'] * frames:.0f} s"
        n = tokens_of(frames, k, cells)
        lines.append(f"{frames:>8}" + "".join(f"{text:>22}" for text in cells_of) + f"{n:>12}{f'≈ {llm(n):.1f} s':>12}")
    lines.append(
        "LLM, read at once: " + ", ".join(f"{r['tokens']} tokens {r['seconds']:.2f} s" for r in report["read"])
    )
    lines.append(
        f"cost model: {1e3 * cost['frame']:.2f} ms a frame (two passes), {1e6 * cost['token']:.1f} µs a token,"
        f" {1e9 * cost['pair']:.2f} ns a pair; the pairs cost more than all the rest from"
        f" {takes_over(cost, k, cells) or '?'} frames on"
    )
    return "\n".join(lines)


def draw(report: dict, path: str) -> None:
    """Seconds and memory against frames, on logarithmic axes. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time_axis, memory_axis) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for way in WAYS:
        runs = [r for r in report["encoded"] if r["way"] == way]
        frames = [r["frames"] for r in runs]
        time_axis.plot(frames, [r["seconds"] for r in runs], "o-", label=f"encoder, {way}")
        memory_axis.plot(frames, [r["bytes"] / 1e6 for r in runs], "o-", label=way)
    cost, k, cells = report["cost"], report["k"], report["cells"]
    beyond = np.geomspace(min(r["frames"] for r in report["encoded"]), TWO_HOURS)
    tokens = np.array([tokens_of(round(n), k, cells) for n in beyond])
    time_axis.plot(beyond, cost["frame"] * beyond, "C0:", lw=1, label=f"{1e3 * cost['frame']:.2f} ms a frame")
    llm, most = cost["token"] * tokens + cost["pair"] * tokens**2, max(r["tokens"] for r in report["read"])
    for some, style, label in ((tokens <= most, "k-", "LLM"), (tokens >= most, "k--", "LLM, beyond what was measured")):
        time_axis.plot(beyond[some], llm[some], style, lw=1, label=label)
    titles = f"time, k = {k}, {report['threads']} threads", f"peak memory, chunks of {report['chunk']} frames"
    for axis, unit, title in zip((time_axis, memory_axis), ("seconds", "MB beyond the weights"), titles, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="frames", ylabel=unit, title=title)
    for axis in (time_axis, memory_axis):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.long", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    numbers = lambda text: tuple(int(n) for n in text.split(","))
    parser.add_argument("video", nargs="?", type=Path, help="any video file")
    parser.add_argument("--checkpoint", default="runs/cpu/checkpoint.pt", help="the model")
    parser.add_argument(
        "--k", type=parse_k, help="share of cells to remove; as in training if not given (--curve: 0.5)"
    )
    parser.add_argument("--scorer", help="another scorer than in training, or my_file.py:MyScorer")
    parser.add_argument("--fps", type=float, default=2.0, help="frames to look at per second")
    parser.add_argument("--chunk", type=int, default=64, help="frames in memory at a time")
    parser.add_argument("--one-pass", action="store_true", help="decide chunk by chunk")
    parser.add_argument("--curve", type=Path, help="measure cost and memory against frames; write them to this JSON")
    parser.add_argument("--plot", help="with --curve: draw them to this PNG (needs matplotlib)")
    parser.add_argument("--frames", type=numbers, default=FRAMES, metavar="T,T", help="with --curve")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FRAMES"), help=argparse.SUPPRESS)  # for `curve`
    args = parser.parse_args(argv)
    try:
        torch.set_num_threads(args.threads)
        for name, least in (("--chunk", args.chunk), ("--frames", min(args.frames))):
            if least < 1:
                raise ValueError(f"{name} {least}: give at least 1 frame")
        own, k = find_scorer(args.scorer) if args.scorer else None, args.k  # before the checkpoint, which may name it
        args.k = 0.5 if k is None else k
        if args.one:
            model, (way, frames) = build(SHAPES["narrow"], torch.device("cpu")), args.one
            size = model.config.vit.image_size
            taken(model, partial(drawn_chunks, 2, 1, size), args.k, way)  # whatever is set up once
            print(json.dumps(taken(model, partial(drawn_chunks, int(frames), args.chunk, size), args.k, way)))
        elif args.curve:
            if args.plot:
                import matplotlib  # noqa: F401  (better missed now than after the measuring)
            report = curve(args)
            print(page(report))
            write_json(args.curve, report)
            if args.plot:
                draw(report, args.plot)
        elif args.video is None:
            raise ValueError("give a video, or --curve out.json")
        else:
            model, state = checkpoint.load_model(args.checkpoint)
            args.k = state["train_config"]["k"] if k is None else k
            if own and args.scorer != model.config.scored_by:
                model.scorer = own(model.config.scorer)
            chunks = partial(file_chunks, args.video, args.chunk, args.fps, model.config.vit.image_size)
            took = taken(model.float(), chunks, args.k, WAYS[args.one_pass])
            print(
                f"{took['frames']} frames, {took['kept']} of {took['frames'] * model.config.cells} cells kept, in"
                f" {took['way']} of {args.chunk} frames at a time, k = {args.k}: {took['seconds']:.1f} s, decoding"
                f" included, {took['bytes'] / 1e6:.0f} MB beyond the weights"
            )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    main()
