"""Is it really faster? Pruned against unpruned, beside the counted limit, and where the time goes.

    python -m stts_mini.lab.speed                           two minutes on two cores. Prints tables
    python -m stts_mini.lab.speed --thorough                five minutes: more rounds, and memory of the last load
    python -m stts_mini.lab.speed -o bench.json --plot bench.png
    python -m stts_mini.lab.speed --scorer my_file.py:MyScorer      with a scorer of your own, its cost included
    python -m stts_mini.lab.speed --shape toy               the model of `python -m stts_mini.train`
    python -m stts_mini.lab.speed --shape so400m            real geometry in bfloat16, where CUDA is
    python -m stts_mini.lab.speed --pays --frames 64        what binds, and from how many frames on it pays (pays.py)

In one process, every k takes its turn in every round. Every other round runs in reverse. The speed-up is the median
over rounds of time(unpruned) / time(k) within a round, after a warm-up. A training step is forward and backward,
without the optimiser. Inference is encoding and prefill: `VLM.generate` up to the first new token. `passes.py` has
both.

The limit is the ratio of the multiply-adds that had to be done (`flops.py`), for the very cells that were kept.
*Reached* is speed-up / limit. The limit counts the products of STTS's scorer, and nothing for any other. Stages and
memory are those of the first load. Memory is measured in its own process for every k.

What this file does not do: judge answers (`eval.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stts_mini.data.files import check_outputs, replacing, require, write_json
from stts_mini.lab.speed import flops
from stts_mini.lab.speed.machine import in_own_process, machine, process_memory
from stts_mini.lab.speed.page import STAGES, draw, page
from stts_mini.lab.speed.passes import ANSWER, PROMPT, SHAPES, Job, Shape, build, job
from stts_mini.model import VLM
from stts_mini.packing import check_k, check_varlen
from stts_mini.scorer import find_scorer
from stts_mini.train import pick_device
from stts_mini.training.logging import one_line_errors, parser_of, several

PASSES = ("training", "inference")
KS = (0.0, 0.3, 0.4, 0.5, 0.8)
LOADS = ((2, 64), (1, 8), (1, 32), (1, 256))  # (videos, frames): the paper's two shapes, and shorter videos between
NEW_TOKENS = 8  # decoded, where stages are timed


def rounds_of(rounds: int, frames: int) -> int:
    """Rounds for so many frames, so that each load takes its share of the time: `rounds` for 32 to 128 of them, half as
    many for more, more for fewer (at most 15).

    >>> [rounds_of(2, frames) for frames in (8, 32, 128, 256)], [rounds_of(6, frames) for frames in (8, 32, 128, 256)]
    ([8, 2, 2, 1], [15, 6, 6, 3])
    """
    if frames > 128:
        return max(rounds // 2, 1)
    return max(min(rounds * 32 // frames, 15), rounds)


def speedups(job: Job, what: str, ks: Sequence[float], rounds: int) -> list[dict]:
    """A row for every k: how much faster than unpruned, and how much of the limit that is."""
    load = dict(what=what, **job.load)
    seconds = job.turns(job.train if what == "training" else job.infer, ks, rounds)
    if seconds is None:
        return [dict(**load, k=k, seconds=None) for k in ks]
    encoded = {k: job.encoded(k) for k in ks}
    total = {k: sum(job.counted(job.work(encoded[k], k, what), what).values()) for k in ks}
    rows = []
    for k in ks:
        ratios = [a / b for a, b in zip(seconds[ks[0]], seconds[k], strict=True)]
        speedup, limit, packed = statistics.median(ratios), total[ks[0]] / total[k], encoded[k].packed
        rows.append(
            dict(
                **load, k=k, seconds=statistics.median(seconds[k]), speedup=speedup, lowest=min(ratios),
                highest=max(ratios), limit=limit, reached=speedup / limit, multiply_adds=total[k],
                rows=len(packed.frame), least_rows=packed.least_rows, rounds=rounds,
            )
        )  # fmt: skip
    return rows


@contextmanager
def stopwatch(model: VLM, now: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Seconds of each stage, forward and backward together, by hooks: the model knows nothing of it.

    `border` is called where a stage begins, with the tensor that the stage before it made. In the backward pass that
    tensor's gradient is there when the stage before begins its own.
    """
    seconds, stage, since = defaultdict(float), "stem", now()
    l, blocks = model.config.score_after, model.vit.blocks

    def enter(following: str) -> None:
        """Time from now on belongs to this stage."""
        nonlocal stage, since
        at = now()
        seconds[stage] += at - since
        stage, since = following, at

    def border(tensor: Tensor | None, following: str) -> None:
        """A stage begins, in a forward pass."""
        made_by = stage
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(lambda _: enter(made_by))
        enter(following)

    before = lambda module, stage: module.register_forward_pre_hook(
        lambda _, args, options: border(options.get("key_bias", args[0]), stage(args[0])), with_kwargs=True
    )
    after = lambda module, stage: module.register_forward_hook(lambda _, args, y: border(y, stage))
    hooks = [
        before(model.scorer, lambda _: "score"), after(model.scorer, "select"),
        before(blocks[l + 1], lambda _: "stem"), after(blocks[l + 1], "pack"),
        before(blocks[l + 2], lambda _: "packed"), after(blocks[-1], "unpack"),
        before(model.connector, lambda _: "connector"), after(model.connector, "layout"),
        before(model.llm, lambda x: "llm" if x.shape[1] > 1 else "decode"), after(model.llm, "logits"),
    ]  # fmt: skip
    try:
        yield seconds
    finally:
        enter("after")
        for hook in hooks:
            hook.remove()


def stages(job: Job, what: str, ks: Sequence[float], rounds: int) -> list[dict]:
    """A row for every k: median seconds of each stage, and its multiply-adds. No rows if it does not fit. Decoding is
    per token."""
    taken = {k: [] for k in ks}

    def run(k: float) -> None:
        """One pass at k, its stages timed."""
        with stopwatch(job.model, job.now) as seconds:
            job.train(k) if what == "training" else job.infer(k, 1 + NEW_TOKENS)
        seconds["decode"] /= NEW_TOKENS
        taken[k].append(seconds)

    if job.turns(run, ks, rounds) is None:
        return []
    rows, videos = [], job.load["videos"]
    for k in ks:
        work = job.work(job.encoded(k), k, what)
        counted = job.counted(work, what)
        if what == "inference":
            one_more = flops.decoded(job.shape.config, [work.tokens // videos] * videos)
            counted["decode"] = sum(job.counted(one_more, what).values())
        seconds = {stage: statistics.median(times[stage] for times in taken[k][-rounds:]) for stage in STAGES}
        rows.append(dict(what=what, **job.load, k=k, seconds=seconds, multiply_adds=counted))
    return rows


def step_memory(shape: Shape, videos: int, frames: int, k: float, device: torch.device) -> int | None:
    """Bytes that one training step takes beyond the weights. None if they are not there. Call it in its own process,
    because another step's memory may still be held. On a CPU the peak includes setting up, some 40 MB, so it is too
    high for steps that take less."""
    model = build(shape, device)
    job(model, shape, 1, 2, device).train(k)  # whatever is set up once
    task = job(model, shape, videos, frames, device)
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            task.train(k)
            return torch.cuda.max_memory_allocated() - before
        before = process_memory("VmRSS")
        task.train(k)
        return process_memory() - before
    except torch.OutOfMemoryError:
        return None


def memory(shape: Shape, videos: int, frames: int, ks: Sequence[float], device: torch.device) -> list[dict]:
    """A row for every k: peak memory of a training step, each in a fresh process, and the counted floor (None for a
    shape that recomputes)."""
    rows = []
    with torch.device("meta"):
        weights = sum(p.numel() for p in VLM(shape.config).parameters())
    for k in ks:
        kept = [flops.evenly_kept(k, shape.config.cells, frames)] * videos
        work = flops.needed(shape.config, kept, k, [[(PROMPT, ANSWER)]] * videos, shape.stamp)
        number = 2 if device.type == "cuda" else 4
        floor = None if shape.recompute else number * flops.saved_floats(shape.config, work) + 4 * weights
        took = in_own_process(step_memory, shape, videos, frames, k, device)
        rows.append(dict(k=k, videos=videos, frames=frames, bytes=took, floor=floor))
    return rows


def measure(args: argparse.Namespace, shape: Shape, device: torch.device) -> dict:
    """Everything, as plain values."""
    say = partial(print, file=sys.stderr, flush=True)
    report = dict(shape=args.shape, config=dataclasses.asdict(shape.config), **machine(device))
    report |= dict(varlen=shape.varlen, compile=shape.compile, speed=[], stages=[])
    two = (0.0, 0.5 if 0.5 in args.k else args.k[-1])
    say("memory")  # first: other processes measure it, and need what this one would hold
    report["memory"] = memory(shape, *args.load[-1 if args.thorough else 0], two, device)
    model, base = build(shape, device), args.rounds * (3 if args.thorough else 1)
    for videos, frames in args.load:
        task, rounds = job(model, shape, videos, frames, device), rounds_of(base, videos * frames)
        for what in PASSES[:1] if shape.compile else PASSES:
            say(f"{what}, {videos} × {frames} frames")
            report["speed"] += speedups(task, what, args.k, rounds)
            if (videos, frames) == args.load[0]:
                report["stages"] += stages(task, what, two, rounds)
    return report


def parser_of_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = parser_of("lab.speed", __doc__)
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="scaled", help="the model's sizes")
    add("--scorer", default="stts", help="or my_file.py:MyScorer. Its time counts, not its choice of cells")
    add("--load", type=several(int, "2x64", "x"), nargs="+", default=LOADS, metavar="BxT", help="videos × frames")
    add("--k", type=several(float, "0,0.5"), default=KS, metavar="K,K", help="shares of cells to remove, 0 first")
    add("--rounds", type=int, default=2, help="times that every k is run on 32 to 128 frames. More on fewer")
    add("--thorough", action="store_true", help="three times the rounds, and memory of the last load, not the first")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--varlen", action="store_true", help="packed rows by CUDA's kernel, not by masks")
    add("--compile", action="store_true", help="torch.compile the blocks. Times training alone")
    add("-o", "--out", type=Path, help="write everything measured to this JSON file")
    add("--plot", type=Path, help="draw it to this PNG (needs matplotlib)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of_flags()
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        outputs, source = [path for path in (args.out, args.plot) if path], args.scorer.rpartition(":")[0]
        check_outputs(outputs, [source] * bool(source))  # better known now than after the work
        if args.plot:
            import matplotlib.figure  # noqa: F401
        sizes = all(len(load) == 2 and min(load) > 0 for load in args.load) and args.rounds > 0
        require(sizes, "--load {}, --rounds {}: give numbers of 1 or more", args.load, args.rounds)
        require(args.threads > 0, "--threads {}: give 1 or more", args.threads)
        shape, device = SHAPES[args.shape], pick_device(args.device)
        torch.set_num_threads(args.threads)
        if shape.cuda_only and device.type != "cuda":
            return print(f"{args.shape} needs CUDA, for it would take hours here ({device}): skipped")
        find_scorer(args.scorer)  # before a config names it
        config = dataclasses.replace(shape.config, scored_by=args.scorer)
        shape = dataclasses.replace(shape, config=config, varlen=args.varlen, compile=args.compile)
        require(
            not (args.varlen and args.compile), "--varlen and --compile do not go together yet: give one of the two"
        )
        if args.varlen:
            check_varlen(device, shape.config.vit.head_dim)
        for k in args.k:
            check_k(k)
        require(args.k[0] == 0, f"--k {args.k}: give 0 first, it is what the others are compared with")
        others = {*args.k} - {0.0}
        require(others and len(others) == len(args.k) - 1, f"--k {args.k}: give each once, and one above 0")
        report = measure(args, shape, device)
        print(page(report))
        if args.out:
            write_json(args.out, report)
        if args.plot:
            with replacing(args.plot) as partial:
                draw(report, partial)
