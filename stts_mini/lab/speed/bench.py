"""Is it really faster? Pruned against unpruned, beside the counted limit, and where the time goes.

    python -m stts_mini.lab.speed                           two minutes on two cores; prints tables
    python -m stts_mini.lab.speed --thorough                five minutes: more rounds, and memory of the last load
    python -m stts_mini.lab.speed -o bench.json --plot bench.png
    python -m stts_mini.lab.speed --scorer my_file.py:MyScorer      with a scorer of your own, its cost included
    python -m stts_mini.lab.speed --shape toy               the model of `python -m stts_mini.train`
    python -m stts_mini.lab.speed --shape so400m            real geometry in bfloat16, where CUDA is
    python -m stts_mini.lab.speed --pays --frames 64        what binds, and from how many frames on it pays (pays.py)

In one process, every k takes its turn in every round, forwards and backwards; the speed-up is the median over
rounds of time(unpruned) / time(k) within a round, after a warm-up (on a CPU of one unpruned pass). A training
step is forward and backward, without the optimiser; inference is encoding and prefill (`VLM.generate` up to the
first new token). The limit is the ratio of the multiply-adds that had to be done (`flops.py`), for the very cells
that were kept; *reached* is speed-up / limit. Stages and memory are those of the first load. Memory is measured in a
process of its own for every k.

Weights and frames are random, which changes no time. Scores are drawn at random, such that frames differ from one
another as much as cells within a frame do: untrained scores would spread the kept cells evenly, and that is easy
to pack. The model's own scorer runs and gets its gradient all the same. The limit counts the products of STTS's
scorer, and nothing for any other.

What this file does not do: judge answers (`eval.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stts_mini.data.batches import TOKENIZER
from stts_mini.data.files import check_outputs, replacing, require, write_json
from stts_mini.data.tokenizer import END
from stts_mini.lab.speed import flops
from stts_mini.lab.speed.machine import in_own_process, in_turns, machine, process_memory
from stts_mini.lab.speed.page import STAGES, draw, page
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, Encoded, VLMConfig, check_scores
from stts_mini.packing import check_k, check_varlen
from stts_mini.scorer import find_scorer
from stts_mini.sequence import Batch
from stts_mini.train import pick_device
from stts_mini.training.config import TrainConfig
from stts_mini.training.logging import one_line_errors
from stts_mini.training.step import autocast, compile_blocks, recompute
from stts_mini.vit import ViTConfig

PASSES = ("training", "inference")
KS = (0.0, 0.3, 0.4, 0.5, 0.8)
PROMPT, ANSWER, NEW_TOKENS = 14, 2, 8  # tokens of the one question that is asked of a video, and of its answer


@dataclass(frozen=True)
class Shape:
    """A model to time, tokens of a time stamp; whether it runs on CUDA alone, and recomputes its blocks in the backward
    pass, for what they would keep does not fit; and the flags --varlen and --compile."""

    config: VLMConfig
    stamp: int = 1
    cuda_only: bool = False
    recompute: bool = False
    varlen: bool = False
    compile: bool = False


SHAPES = {
    # 25 blocks, 9×9 patches, w = 3, l = 3. ViT, LLM and the LLM's quadratic part have Molmo2-4B's shares of the cost of
    # 2 × 64 frames; attention has 18% of a ViT block's cost, there it has 10%
    "scaled": Shape(
        VLMConfig(
            ViTConfig(36, 4, 64, 25, 1, 240), LLMConfig(len(TOKENIZER), 256, 12, 4, 2, 64, 768),
            w=3, score_after=3, scorer_heads=1, scorer_mlp=240, connector_mlp=768, taps=(-7, -1),
        )
    ),
    # the same for a third of the time, but attention has 31% of a block's cost, and small operations take their toll
    "narrow": Shape(
        VLMConfig(
            ViTConfig(36, 4, 32, 25, 1, 120), LLMConfig(len(TOKENIZER), 160, 13, 2, 1, 32, 400),
            w=3, score_after=3, scorer_heads=1, scorer_mlp=120, connector_mlp=400, taps=(-7, -1),
        )
    ),
    "toy": Shape(TrainConfig().model),
    "so400m": Shape(
        dataclasses.replace(flops.PAPER, llm=LLMConfig(151936, 1024, 28, 16, 8, 128, 3072), connector_mlp=3072),
        stamp=4, cuda_only=True, recompute=True,  # 2 × 64 frames, unpruned, would keep 142 GB, 1 × 256 304 GB
    ),
}  # fmt: skip
LOADS = ((2, 64), (1, 8), (1, 32), (1, 256))  # (videos, frames): the paper's two shapes, and shorter videos between


# ------------------------------------------------------------------------------------- what is run


class Uneven(nn.Module):
    """The model's own scorer, with its cost and its gradient, but with drawn scores instead of its own."""

    def __init__(self, scorer: nn.Module, videos: int, frames: int, cells: int):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        level = torch.randn(videos, frames, 1, generator=draw) + torch.randn(videos, frames, cells, generator=draw)
        self.scorer, self.drawn = scorer, level.sigmoid()
        self.injects_bias = getattr(scorer, "injects_bias", False)

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        own = check_scores(self.scorer(x, num_frames), tuple(self.drawn.shape))
        return self.drawn.to(own) + (own - own.detach())


@dataclass
class Job:
    """A model, a batch, and an encoder with uneven scores: what is timed.

    known   what the encoder keeps at each k, once it was asked for
    warm    whether a pass has run, so that a CPU's memory is there
    """

    model: VLM
    shape: Shape
    batch: Batch
    encode: Callable[..., Encoded]
    device: torch.device
    known: dict[float, Encoded] = field(default_factory=dict)
    warm: bool = False

    def train(self, k: float) -> None:
        """Fresh gradients of one batch."""
        with autocast(self.device):
            output = self.model(self.batch, k, self.encode)
            loss = output.task_loss + output.sim_loss
        loss.backward()
        self.model.zero_grad()

    def infer(self, k: float, new_tokens: int = 1) -> None:
        """From frames to the first new token, or beyond."""
        with autocast(self.device):
            self.model.generate(self.batch, k, new_tokens, self.encode)

    def encoded(self, k: float) -> Encoded:
        """What the encoder keeps. It is encoded once, for training and inference together."""
        if k not in self.known:
            with autocast(self.device), torch.no_grad():
                self.known[k] = self.encode(self.batch.frames, self.batch.num_frames, k)
        return self.known[k]

    def work(self, encoded: Encoded, k: float, what: str) -> flops.Work:
        """What had to be done."""
        pairs = zip(encoded.kept, encoded.shown, strict=True)
        kept = [cells[real].tolist() for cells, real in pairs]
        text = [[(PROMPT, ANSWER if what == "training" else 0)]] * len(kept)
        return flops.needed(self.shape.config, kept, k, text, self.shape.stamp)

    def counted(self, work: flops.Work, what: str) -> dict[str, int]:
        """Multiply-adds of each stage."""
        training = what == "training"
        return flops.multiply_adds(self.shape.config, work, training, training and self.shape.recompute)

    def turns(self, run: Callable[[float], None], ks: Sequence[float], rounds: int) -> dict | None:
        """Seconds of run(k) in every round, for each k; None if it does not fit. On CUDA every k is warmed up, for each
        may need kernels of its own; on a CPU what takes the most memory, once, so that all the others find it there."""
        warm = ks if self.device.type == "cuda" else () if self.warm else ks[:1]
        self.warm = True
        try:
            return in_turns(run, ks, rounds, self.now, warm)
        except torch.OutOfMemoryError:
            self.model.zero_grad()
            return None

    def now(self) -> float:
        """Seconds; on CUDA, of work that is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def build(shape: Shape, device: torch.device) -> VLM:
    """A model that never says END, so that every answer is as long as it may be."""
    find_scorer(shape.config.scored_by)  # one in a file of the user's own is not known yet in a fresh process
    torch.manual_seed(0)
    with torch.device(device):
        model = VLM(shape.config)
    model.llm.embed_tokens.weight.data[END] = 0
    model.varlen = shape.varlen
    if shape.compile:
        compile_blocks(model)
    if shape.recompute:
        recompute(model)
    return model


def job(model: VLM, shape: Shape, videos: int, frames: int, device: torch.device) -> Job:
    """Random frames, one question a video."""
    config, draw = shape.config, torch.Generator().manual_seed(1)
    size = config.vit.image_size
    pixels = torch.randint(256, (videos, frames, 3, size, size), dtype=torch.uint8, generator=draw)
    word = min(len(TOKENIZER), config.llm.vocab_size) - 1
    stamps = [[[word] * shape.stamp] * frames] * videos
    branches = [[([word] * PROMPT, [word] * ANSWER)]] * videos
    batch = Batch(pixels.to(device), torch.tensor([frames] * videos), stamps, branches)
    scorer = Uneven(model.scorer, videos, frames, config.cells)
    return Job(model, shape, batch, partial(model.encode_video, scorer=scorer), device)


# ------------------------------------------------------------------------------------ how it is timed


def rounds_of(rounds: int, frames: int) -> int:
    """Of 32 to 128 frames, `rounds`; of more half as many, of fewer more, at most 15: so each takes its share of the
    time.

    >>> [rounds_of(2, frames) for frames in (8, 32, 128, 256)], [rounds_of(6, frames) for frames in (8, 32, 128, 256)]
    ([8, 2, 2, 1], [15, 6, 6, 3])
    """
    if frames > 128:
        return max(rounds // 2, 1)
    return max(min(rounds * 32 // frames, 15), rounds)


def speedups(job: Job, what: str, ks: Sequence[float], rounds: int) -> list[dict]:
    """A row for every k: how much faster than unpruned, and how much of the limit that is."""
    load = dict(what=what, videos=len(job.batch.num_frames), frames=job.batch.frames.shape[1])
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

    `border` is called where a stage begins, with the tensor that the stage before it made. In the backward pass,
    that tensor's gradient is there when the stage before begins its own.
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
    """A row for every k: median seconds of each stage, and its multiply-adds; none if it does not fit. Decoding is by
    the token."""
    taken = {k: [] for k in ks}

    def run(k: float) -> None:
        """One pass at k, its stages timed."""
        with stopwatch(job.model, job.now) as seconds:
            job.train(k) if what == "training" else job.infer(k, 1 + NEW_TOKENS)
        seconds["decode"] /= NEW_TOKENS
        taken[k].append(seconds)

    if job.turns(run, ks, rounds) is None:
        return []
    rows, videos = [], len(job.batch.num_frames)
    for k in ks:
        work = job.work(job.encoded(k), k, what)
        counted = job.counted(work, what)
        if what == "inference":
            one_more = flops.decoded(job.shape.config, [work.tokens // videos] * videos)
            counted["decode"] = sum(job.counted(one_more, what).values())
        seconds = {stage: statistics.median(times[stage] for times in taken[k][-rounds:]) for stage in STAGES}
        load = dict(what=what, videos=videos, frames=job.batch.frames.shape[1])
        rows.append(dict(**load, k=k, seconds=seconds, multiply_adds=counted))
    return rows


def step_memory(shape: Shape, videos: int, frames: int, k: float, device: torch.device) -> int | None:
    """Bytes that one training step takes beyond the weights, None if they are not there. In a process of its own:
    another step's memory may still be held. (On a CPU the most that was held so far counts, setting up included: of
    steps that take less than that, some 40 MB, too much is said.)"""
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


# ------------------------------------------------------------------------------------- all of it


def measure(args: argparse.Namespace, shape: Shape, device: torch.device) -> dict:
    """Everything, as plain values."""
    tell = partial(print, file=sys.stderr, flush=True)
    report = dict(shape=args.shape, config=dataclasses.asdict(shape.config), **machine(device))
    report |= dict(varlen=shape.varlen, compile=shape.compile, speed=[], stages=[])
    two = (0.0, 0.5 if 0.5 in args.k else args.k[-1])
    tell("memory")  # first: other processes measure it, and need what this one would hold
    report["memory"] = memory(shape, *args.load[-1 if args.thorough else 0], two, device)
    model, base = build(shape, device), args.rounds * (3 if args.thorough else 1)
    for videos, frames in args.load:
        task, rounds = job(model, shape, videos, frames, device), rounds_of(base, videos * frames)
        for what in PASSES[:1] if shape.compile else PASSES:
            tell(f"{what}, {videos} × {frames} frames")
            report["speed"] += speedups(task, what, args.k, rounds)
            if (videos, frames) == args.load[0]:
                report["stages"] += stages(task, what, two, rounds)
    return report


def parser_of_flags() -> argparse.ArgumentParser:
    """The command's flags."""
    load = lambda text: tuple(int(n) for n in text.split("x"))
    numbers = lambda text: tuple(float(n) for n in text.split(","))
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.speed", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="scaled", help="the model's sizes")
    add("--scorer", default="stts", help="or my_file.py:MyScorer; its time counts, not its choice of cells")
    add("--load", type=load, nargs="+", default=LOADS, metavar="BxT", help="videos × frames")
    add("--k", type=numbers, default=KS, metavar="K,K", help="shares of cells to remove, 0 first")
    add("--rounds", type=int, default=2, help="times that every k is run on 32 to 128 frames; more often on fewer")
    add("--thorough", action="store_true", help="three times the rounds, and memory of the last load, not the first")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--varlen", action="store_true", help="packed rows by CUDA's kernel, not by masks")
    add("--compile", action="store_true", help="torch.compile the blocks; training alone, as `stts_mini.train` does")
    add("-o", "--out", type=Path, help="write everything measured to this JSON file")
    add("--plot", type=Path, help="draw it to this PNG (needs matplotlib)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of_flags()
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        check_outputs([path for path in (args.out, args.plot) if path])  # better known now than after the work
        if args.plot:
            import matplotlib.figure  # noqa: F401
        sizes = all(len(load) == 2 and min(load) > 0 for load in args.load) and args.rounds > 0
        require(sizes, "--load {}, --rounds {}: give numbers of 1 or more", args.load, args.rounds)
        shape, device = SHAPES[args.shape], pick_device(args.device)
        torch.set_num_threads(args.threads)
        if shape.cuda_only and device.type != "cuda":
            print(f"{args.shape} needs CUDA, for it would take hours here ({device}): skipped")
            return
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
        if args.k[0] != 0:
            raise ValueError(f"--k {args.k}: give 0 first, it is what the others are compared with")
        report = measure(args, shape, device)
        print(page(report))
        if args.out:
            write_json(args.out, report)
        if args.plot:
            with replacing(args.plot) as partial:
                draw(report, partial)
