"""Does pruning pay here, what binds, and from how many frames on?

    python -m stts_mini.lab.speed --pays --frames 64 --k 0.5 --question 30 --answer 5

One video, one question of so many tokens, an answer of so many. The toy's passes are counted (`flops.py`) and timed on
this machine, the decoding of a file of the toy world included. So400m + Qwen3-0.6B is by count alone: nothing of it is
run. A count knows no memory traffic, which binds where tokens are decoded one by one, and no file.

What this file does not do: judge answers, or time a training step (`bench.py`).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stts_mini.data.files import require
from stts_mini.data.progress import in_turns
from stts_mini.data.video import read_video, write_video
from stts_mini.lab.speed import passes
from stts_mini.lab.speed.bench import stopwatch
from stts_mini.lab.speed.flops import decoded, evenly_kept, multiply_adds, needed
from stts_mini.lab.speed.machine import MACHINE, machine
from stts_mini.lab.speed.page import pays_from
from stts_mini.packing import check_k
from stts_mini.report.markdown import markdown
from stts_mini.toy import drawing, world
from stts_mini.training.logging import one_line_errors, parser_of

PARTS = {  # what `multiply_adds` and `stopwatch` call them
    "ViT, scorer, packing": ("stem", "score", "select", "pack", "packed", "unpack", "connector"),
    "prefill": ("layout", "llm"),
    "decoding tokens": ("decode", "logits"),
}


def counted(shape: passes.Shape, frames: int, k: float, question: int, answer: int) -> dict[str, float]:
    """Multiply-adds of each part: the answer's first token comes out of the prefill, each other one costs a pass, and
    so does the end."""
    config = shape.config
    work = needed(config, [evenly_kept(k, config.cells, frames)], k, [[(question, 0)]], shape.stamp)
    later = (multiply_adds(config, decoded(config, [work.tokens + i]))["llm"] for i in range(answer))
    count = {**multiply_adds(config, work), "decode": sum(later)}
    return {part: sum(count.get(name, 0) for name in names) for part, names in PARTS.items()}


def measured(shape: passes.Shape, frames: int, k: float, question: int, answer: int, rounds: int = 5) -> list[dict]:
    """Seconds of each part, unpruned and at k, in turns on the CPU: medians over rounds."""
    device, taken = torch.device("cpu"), {0.0: [], k: []}
    task = passes.job(passes.build(shape, device), shape, 1, frames, device)
    (prompt, _) = task.batch.branches[0][0]
    task.batch = replace(task.batch, branches=[[([prompt[0]] * question, [])]])

    def run(k: float) -> None:
        with stopwatch(task.model, task.now) as seconds:
            task.infer(k, answer + 1)
        taken[k].append(seconds)

    in_turns(run, (0.0, k), rounds, task.now, (0.0, k))
    middle = lambda of, names: statistics.median(sum(seconds[name] for name in names) for seconds in of[-rounds:])
    return [{part: middle(of, names) for part, names in PARTS.items()} for of in taken.values()]


def file_seconds(frames: int, size: int, rounds: int = 3) -> float:
    """Seconds to read so many frames of a long clip of the toy world from its file, which has as many at least."""
    scene, seconds = world.make_scene("test", "watch", 0), []
    finer = -(-frames // (gaps := len(scene.times) - 1))
    times = np.linspace(0, scene.times[-1], finer * gaps + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, drawing.render(scene, times, size), finer * scene.fps)
        for _ in range(rounds):
            began = time.perf_counter()
            read_video(path, frames, float(frames), size)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def parts_table(name: str, unit: str, whole: dict[str, float], pruned: dict[str, float], k: float, scale: float) -> str:
    """A table of the parts, what binds, and what is saved."""
    total = sum(whole.values()), sum(pruned.values())
    rows = [[p, f"{scale * whole[p]:.2f}", f"{scale * pruned[p]:.2f}", f"{whole[p] / total[0]:.0%}"] for p in whole]
    rows.append(["all", f"{scale * total[0]:.2f}", f"{scale * total[1]:.2f}", "100%"])
    text = markdown([name, f"{unit}, unpruned", f"k = {k:g}", "of the unpruned"], rows)
    binds = f"What binds: {max(whole, key=whole.get)}. To be saved: {1 - total[1] / total[0]:.0%}"
    return f"{text}\n\n{binds}, {total[0] / total[1]:.2f} times as fast."


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.speed --pays", __doc__)
    parser.add_argument("--pays", action="store_true", help="this command, instead of the benchmark")
    parser.add_argument("--frames", type=int, default=64, help="of the video")
    parser.add_argument("--k", type=float, default=0.5, help="share of cells to remove")
    parser.add_argument("--question", type=int, default=30, help="its tokens")
    parser.add_argument("--answer", type=int, default=5, help="its tokens")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        check_k(args.k)
        require(args.k > 0, "--k 0 removes nothing, and saves nothing: give more")
        require(args.frames > 1 and args.question > 0 and args.answer > 0, "give 2 frames or more, and 1 token or more")
        text, toy, real = (args.question, args.answer), passes.SHAPES["toy"], passes.SHAPES["so400m"]
        numbers = sorted({n for n in (2, 4, 8, 16, 32, 64, 128, 256) if n < args.frames} | {args.frames})
        seconds = {n: measured(toy, n, args.k, *text) for n in numbers}
        file = {"decoding the file": file_seconds(args.frames, toy.config.vit.image_size)}
        print(f"{args.frames} frames on " + MACHINE.format(**machine(torch.device("cpu"))), end="\n\n")
        print(parts_table("toy, measured", "ms", *({**file, **of} for of in seconds[args.frames]), args.k, 1e3))
        faster = lambda n: sum(seconds[n][1].values()) < sum(seconds[n][0].values())
        print(f"Measured, without the file, it pays {pays_from(faster, numbers)}.\n")
        for name, shape in (("toy, counted", toy), ("So400m + Qwen3-0.6B, by count alone", real)):
            count = lambda n, k, shape=shape: counted(shape, n, k, *text)
            scale = 1e-6 if shape is toy else 1e-12
            unit = "million multiply-adds" if shape is toy else "10¹² multiply-adds"
            print(parts_table(name, unit, count(args.frames, 0.0), count(args.frames, args.k), args.k, scale))
            less = lambda n, count=count: sum(count(n, args.k).values()) < sum(count(n, 0.0).values())
            print(f"Counted, it pays {pays_from(less, numbers)}.\n")
