"""Is it really faster? Pruned against unpruned, beside the counted limit, and where the time goes.

    python -m stts_mini.lab.speed                           sized for a few minutes on two cores; prints tables
    python -m stts_mini.lab.speed -o bench.json --plot bench.png
    python -m stts_mini.lab.speed --shape toy               the model of `python -m stts_mini.train`
    python -m stts_mini.lab.speed --shape so400m            real geometry in bfloat16, where CUDA is

In one process, every k takes its turn in every round, forwards and backwards; the speed-up is the median over
rounds of time(unpruned) / time(k) within a round, after a warm-up (on a CPU of the unpruned pass alone). A training
step is forward and backward, without the optimiser; inference is encoding and prefill (`VLM.generate` up to the
first new token). The limit is the ratio of the multiply-adds that had to be done (`flops.py`), for the very cells
that were kept; *reached* is speed-up / limit. Memory is measured in a process of its own for every k.

Weights and frames are random, which changes no time; scores are drawn such that frames differ from one another
as much as cells within a frame do, for untrained scores would spread the kept cells evenly, and that is easy
to pack. The model's own scorer runs and gets its gradient all the same.

What this file does not do: judge answers (`eval.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stts_mini.data.batches import TOKENIZER, Reader, Sampler
from stts_mini.data.clips import load_clips, prepare
from stts_mini.data.tokenizer import END
from stts_mini.data.video import _Pass, read_video, sample_times, write_video
from stts_mini.lab.paper.reproduce import commit, write_json
from stts_mini.lab.speed import flops
from stts_mini.lab.speed.page import STAGES, draw, page
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, Encoded, VLMConfig
from stts_mini.packing import check_k, check_varlen
from stts_mini.sequence import Batch
from stts_mini.train import build_model, build_optimizers, peak_memory, pick_device
from stts_mini.training.config import TrainConfig
from stts_mini.training.step import autocast, forward_backward, recompute
from stts_mini.vit import ViTConfig

KS = (0.0, 0.3, 0.4, 0.5, 0.8)
PROMPT, ANSWER, NEW_TOKENS = 14, 2, 8  # tokens of the one question that is asked of a video, and of its answer
OVERHEAD = ("score", "select", "pack", "unpack")  # what an unpruned model would not do


@dataclass(frozen=True)
class Shape:
    """A model to time, tokens of a time stamp; whether it runs on CUDA alone, and recomputes its blocks in the backward
    pass, for what they would keep does not fit."""

    config: VLMConfig
    stamp: int = 1
    cuda_only: bool = False
    recompute: bool = False


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
LOADS = ((2, 64), (1, 256))  # (videos, frames): the paper's two shapes
LADDER = (8, 32)  # frames of one video; 512 take another two minutes


# ------------------------------------------------------------------------------------- what is run


class Uneven(nn.Module):
    """The model's own scorer, with its cost and its gradient, but with drawn scores in the place of its own."""

    injects_bias = True

    def __init__(self, scorer: nn.Module, videos: int, frames: int, cells: int):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        level = torch.randn(videos, frames, 1, generator=draw) + torch.randn(videos, frames, cells, generator=draw)
        self.scorer, self.drawn = scorer, level.sigmoid()

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        own = self.scorer(x, num_frames)
        return own + (self.drawn.to(own) - own).detach()


@dataclass
class Job:
    """A model, a batch, and an encoder with uneven scores: what is timed."""

    model: VLM
    batch: Batch
    encode: Callable[..., Encoded]
    device: torch.device

    def train(self, k: float) -> None:
        """Gradients of one batch, anew."""
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
        """What the encoder keeps."""
        with autocast(self.device), torch.no_grad():
            return self.encode(self.batch.frames, self.batch.num_frames, k)


def build(shape: Shape, device: torch.device, varlen: bool = False) -> VLM:
    """A model that never says END, so that every answer is as long as it may be."""
    torch.manual_seed(0)
    with torch.device(device):
        model = VLM(shape.config)
    model.llm.embed_tokens.weight.data[END] = 0
    model.varlen = varlen
    if shape.recompute:
        recompute(model)
    return model


def job(model: VLM, shape: Shape, videos: int, frames: int, device: torch.device) -> Job:
    """Random frames, one question a video."""
    config, draw = shape.config, torch.Generator().manual_seed(1)
    size = config.vit.image_size
    pixels = torch.randint(256, (videos, frames, 3, size, size), dtype=torch.uint8, generator=draw)
    word = len(TOKENIZER) - 1 if config.llm.vocab_size >= len(TOKENIZER) else config.llm.vocab_size - 1
    stamps = [[[word] * shape.stamp] * frames] * videos
    branches = [[([word] * PROMPT, [word] * ANSWER)]] * videos
    batch = Batch(pixels.to(device), torch.tensor([frames] * videos), stamps, branches)
    scorer = Uneven(model.scorer, videos, frames, config.cells)
    return Job(model, batch, partial(model.encode_video, scorer=scorer), device)


def work(shape: Shape, encoded: Encoded, k: float, training: bool) -> flops.Work:
    """What had to be done."""
    pairs = zip(encoded.kept, encoded.shown, strict=True)
    kept = [cells[real].tolist() for cells, real in pairs]
    text = [[(PROMPT, ANSWER if training else 0)]] * len(kept)
    return flops.needed(shape.config, kept, k, text, shape.stamp)


# ------------------------------------------------------------------------------------ how it is timed


def stop_clock(device: torch.device, cpu_time: bool) -> Callable[[], float]:
    """Seconds; on CUDA, of work that is done. cpu_time: the processor's, for a machine that is busy with other
    things (with one thread)."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if cpu_time else time.perf_counter()

    return now


def in_turns(
    run: Callable[[float], None], ks: Sequence[float], rounds: int, now: Callable, warm: Sequence[float]
) -> dict[float, list[float]]:
    """Seconds of run(k), for every k, in every round; every other round in reverse. Before it, run(k) for each k in
    `warm`, untimed."""
    seconds: dict[float, list[float]] = {k: [] for k in ks}
    for k in warm:
        run(k)
    for i in range(rounds):
        for k in ks[:: -1 if i % 2 else 1]:
            began = now()
            run(k)
            seconds[k].append(now() - began)
    return seconds


def to_warm(ks: Sequence[float], device: torch.device) -> Sequence[float]:
    """What is run once before it is timed: on CUDA every k, for each may need kernels of its own; on a CPU what takes
    the most memory, so that all the others find it there."""
    return ks if device.type == "cuda" else ks[:1]


def rounds_of(rounds: int, frames: int) -> int:
    """Of 64 to 128 frames, `rounds`; of more fewer, at least two, of less more, at most 15: so each takes its share of
    the time.

    >>> [rounds_of(3, frames) for frames in (8, 32, 64, 128, 256, 512)], rounds_of(20, 128), rounds_of(1, 128)
    ([15, 6, 3, 3, 2, 2], 20, 1)
    """
    if frames > 128:
        return min(rounds, 2)
    return max(min(rounds * 64 // frames, 15), rounds)


def speedups(job: Job, shape: Shape, what: str, ks: Sequence[float], rounds: int, now: Callable) -> list[dict]:
    """A row for every k: how much faster than unpruned, and how much of the limit that is."""
    training = what == "training"
    load = dict(what=what, videos=len(job.batch.num_frames), frames=job.batch.frames.shape[1])
    try:
        run = job.train if training else job.infer
        seconds = in_turns(run, ks, rounds, now, to_warm(ks, job.device))
        packs = {k: job.encoded(k) for k in ks}
    except torch.OutOfMemoryError:
        job.model.zero_grad()
        return [dict(**load, k=k, seconds=None) for k in ks]
    again = training and shape.recompute
    counted = lambda k: flops.multiply_adds(shape.config, work(shape, packs[k], k, training), training, again)
    total, rows = lambda k: sum(counted(k).values()), []
    for k in ks:
        ratios = [a / b for a, b in zip(seconds[ks[0]], seconds[k], strict=True)]
        limit, packed = total(ks[0]) / total(k), packs[k].packed
        rows.append(
            dict(
                **load, k=k, seconds=statistics.median(seconds[k]), speedup=statistics.median(ratios),
                lowest=min(ratios), highest=max(ratios), limit=limit, reached=statistics.median(ratios) / limit,
                multiply_adds=total(k), rows=len(packed.frame), least_rows=packed.least_rows, rounds=rounds,
            )
        )  # fmt: skip
    return rows


def pays_from(rows: Sequence[dict], what: str, k: float) -> int | None:
    """The number of frames of one video from which on pruning is faster, wherever it was measured.

    >>> row = lambda frames, speedup: dict(what="training", videos=1, k=0.5, frames=frames, speedup=speedup)
    >>> pays_from([row(8, 0.9), row(16, 1.1), row(32, 1.4)], "training", 0.5)
    16
    """
    own = {
        r["frames"]: r["speedup"] for r in rows if (r["what"], r["videos"], r["k"]) == (what, 1, k) and "speedup" in r
    }
    paying = [n for n in own if all(own[more] > 1 for more in own if more >= n)]
    return min(paying, default=None)


class Stopwatch:
    """Seconds of each stage, forward and backward together, by hooks: the model knows nothing of it.

    `border` is called where a stage begins, with the tensor that the stage before it made. In the backward pass,
    that tensor's gradient is there when the stage before begins its own.
    """

    def __init__(self, model: VLM, now: Callable[[], float]):
        self.now, self.stage, self.seconds = now, None, defaultdict(float)
        l, blocks = model.config.score_after, model.vit.blocks
        before = lambda module, stage: module.register_forward_pre_hook(
            lambda _, args, options: self.border(options.get("key_bias", args[0]), stage(args[0])), with_kwargs=True
        )
        after = lambda module, stage: module.register_forward_hook(lambda _, args, y: self.border(y, stage))
        self.hooks = [
            before(model.scorer, lambda _: "score"), after(model.scorer, "select"),
            before(blocks[l + 1], lambda _: "stem"), after(blocks[l + 1], "pack"),
            before(blocks[l + 2], lambda _: "packed"), after(blocks[-1], "unpack"),
            before(model.connector, lambda _: "connector"), after(model.connector, "layout"),
            before(model.llm, lambda x: "llm" if x.shape[1] > 1 else "decode"), after(model.llm, "logits"),
        ]  # fmt: skip

    def enter(self, stage: str | None) -> None:
        """Time from now on belongs to this stage."""
        now = self.now()
        if self.stage is not None:
            self.seconds[self.stage] += now - self.since
        self.stage, self.since = stage, now

    def border(self, tensor: Tensor | None, stage: str) -> None:
        """A stage begins, in a forward pass."""
        made_by = self.stage
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(lambda _: self.enter(made_by))
        self.enter(stage)

    def __enter__(self) -> Stopwatch:
        self.enter("stem")
        return self

    def __exit__(self, *_) -> None:
        self.enter(None)
        for hook in self.hooks:
            hook.remove()


def stages(job: Job, shape: Shape, what: str, ks: Sequence[float], rounds: int, now: Callable) -> list[dict]:
    """A row for every k: median seconds of each stage, and its multiply-adds; none if it does not fit. Decoding is by
    the token."""
    training, taken = what == "training", {k: defaultdict(list) for k in ks}

    def run(k: float) -> None:
        """One pass at k, its stages timed."""
        with Stopwatch(job.model, now) as watch:
            job.train(k) if training else job.infer(k, 1 + NEW_TOKENS)
        watch.seconds["decode"] /= NEW_TOKENS
        for stage in STAGES:
            taken[k][stage].append(watch.seconds[stage])

    try:
        in_turns(run, ks, rounds, now, to_warm(ks, job.device))
    except torch.OutOfMemoryError:
        job.model.zero_grad()
        return []
    rows, load = [], dict(what=what, videos=len(job.batch.num_frames), frames=job.batch.frames.shape[1])
    for k in ks:
        todo = work(shape, job.encoded(k), k, training)
        counted = flops.multiply_adds(shape.config, todo, training, training and shape.recompute)
        if not training:
            cached = [todo.tokens // len(job.batch.num_frames)] * len(job.batch.num_frames)
            counted["decode"] = sum(flops.multiply_adds(shape.config, flops.decoded(shape.config, cached)).values())
        seconds = {stage: statistics.median(times[-rounds:]) for stage, times in taken[k].items()}
        rows.append(dict(**load, k=k, seconds=seconds, multiply_adds=counted))
    for row in rows:
        whole = sum(seconds for stage, seconds in rows[0]["seconds"].items() if stage != "decode")
        row["overhead"] = sum(row["seconds"][stage] for stage in OVERHEAD) / whole
    return rows


def process_memory(field: str = "VmHWM") -> int:
    """Bytes that this process holds, VmRSS, or the most that it has held, VmHWM, where /proc says so. (What `getrusage`
    says may be the parent's: it outlives exec.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return round(peak_memory() * 1e9)
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def step_memory(
    shape: Shape, videos: int, frames: int, k: float, device: torch.device, varlen: bool = False
) -> int | None:
    """Bytes that one training step takes beyond the weights, None if they are not there. In a process of its own:
    another step's memory may still be held. (On a CPU the most that was held so far counts, setting up included: of
    steps that take less than that, some 40 MB, too much is said.)"""
    model = build(shape, device, varlen)
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


def memory(
    name: str, videos: int, frames: int, ks: Sequence[float], device: torch.device, varlen: bool = False
) -> list[dict]:
    """A row for every k: peak memory of a training step, each in a fresh process, and the counted floor (None for a
    shape that recomputes).

    What is counted is what tensors hold, as on CUDA: glibc is told to give back what is freed. Left to itself, it keeps
    some; what a process takes then is what `--memory-of 0.5 --load 1x256` prints.
    """
    env = {"MALLOC_MMAP_THRESHOLD_": "131072", **os.environ}  # in bytes; what is larger goes back when it is freed
    shape, rows = SHAPES[name], []
    with torch.device("meta"):
        weights = sum(p.numel() for p in VLM(shape.config).parameters())
    for k in ks:
        words = ["--shape", name, "--threads", torch.get_num_threads(), "--device", device.type]
        words += ["--load", f"{videos}x{frames}", "--memory-of", k, *["--varlen"] * varlen]
        command = [sys.executable, "-m", "stts_mini.lab.speed", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            raise RuntimeError(f"no memory measured at k = {k}: {done.stderr.strip()[-500:]}")
        kept = [flops.evenly_kept(k, shape.config.cells, frames)] * videos
        todo = flops.needed(shape.config, kept, k, [[(PROMPT, ANSWER)]] * videos, shape.stamp)
        number = 2 if device.type == "cuda" else 4
        floor = None if shape.recompute else number * flops.saved_floats(shape.config, todo) + 4 * weights
        rows.append(dict(k=k, videos=videos, frames=frames, bytes=json.loads(done.stdout), floor=floor))
    return rows


def reading(size: int, now: Callable, frames: int = 64, seconds: int = 300, side: int = 120, rounds: int = 3) -> dict:
    """Seconds to sample so many frames of an H.264 clip, a slow pan of 16 pictures a second with a keyframe every 250:
    by `read_video`; by it, without jumps; and by OpenCV, jumping to each time, if it is installed. Medians."""
    texture = np.random.default_rng(0).integers(256, size=(side // 8, 2 * side // 8, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    pictures = np.stack([texture[:, i % side : i % side + side] for i in range(16 * seconds)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, pictures, fps=16.0)
        times = sample_times((len(pictures) - 1) / 16, frames)
        ways = {
            "read_video": lambda: len(read_video(path, frames, size=size).frames),
            "read_video, without jumps": lambda: len(list(_Pass(path, times, size, []))),
        }
        with suppress(ImportError):
            import cv2

            def with_opencv() -> int:
                """Jump, decode, resize."""
                clip, shown = cv2.VideoCapture(str(path)), []
                for time in times:
                    clip.set(cv2.CAP_PROP_POS_MSEC, 1000 * float(time))
                    there, picture = clip.read()
                    if there:
                        shown.append(cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)[..., ::-1])
                return len(shown)

            ways["OpenCV, jumping"] = with_opencv
        taken = defaultdict(list)
        for _, (name, read) in itertools.product(range(rounds), ways.items()):
            began = now()
            shown = read()
            taken[name].append(now() - began)
            if shown != frames and (name, shown) != ("OpenCV, jumping", frames - 1):  # which may miss the last
                raise RuntimeError(f"{name} gave {shown} frames of {frames}")
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return dict(frames=frames, clip_seconds=seconds, side=side, seconds=medians)


def outside_operations(steps: int = 4) -> float:
    """The share of `python -m stts_mini.train`'s default step, drawing its batch included, that passes outside of
    PyTorch's operations: data, Python, waiting. By the profiler, which itself adds to that."""
    few = dict(train_short=24, train_watch=12, train_image=12, train_brief=12)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(data=folder, **few)
        clips = load_clips(prepare(folder, "train", config.train_counts, config.video_size))
        reader = Reader(config.max_frames, config.image_size, config.fps)
        reader.preload(clips)
    sampler = Sampler(clips, reader, config.batch_size, config.questions, config.seed)
    cpu = torch.device("cpu")
    model = build_model(config, cpu)
    optimizers = build_optimizers(model, config)

    def step(i: int) -> None:
        """As `train` takes it."""
        forward_backward(model, sampler(i), config, cpu)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for i in range(1, steps + 1):
            step(i)
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events() if e.cpu_parent is None)
    busy, until = 0.0, spans[0][0]
    for start, end in spans:  # in whatever thread
        busy, until = busy + max(end - max(start, until), 0), max(until, end)
    return 1 - busy / (until - spans[0][0])


# ------------------------------------------------------------------------------------- all of it


def measure(name: str, args: argparse.Namespace, device: torch.device) -> dict:
    """Everything, as plain values."""
    shape, now = SHAPES[name], stop_clock(device, args.cpu_time)
    model, ladder_ks = build(shape, device, args.varlen), [0.0, *(k for k in args.k if k in (0.3, 0.5))]
    report = dict(
        shape=name, config=dataclasses.asdict(shape.config), device=device_name(device), torch=torch.__version__,
        threads=torch.get_num_threads(), clock="CPU" if args.cpu_time else "wall", commit=commit(), varlen=args.varlen,
        started_under_load=load_average(), speed=[], stages=[],
    )  # fmt: skip
    tell = partial(print, file=sys.stderr, flush=True)
    for videos, frames in args.load:
        task = job(model, shape, videos, frames, device)
        for what in ("training", "inference"):
            tell(f"{what}, {videos} × {frames} frames")
            report["speed"] += speedups(task, shape, what, args.k, rounds_of(args.rounds, videos * frames), now)
    for frames in (n for n in args.ladder if (1, n) not in args.load):
        task, rounds = job(model, shape, 1, frames, device), rounds_of(args.rounds, frames)
        for what in ("training", "inference"):
            tell(f"{what}, {frames} frames")
            report["speed"] += speedups(task, shape, what, ladder_ks, rounds, now)
    task, pruned = job(model, shape, *args.load[0], device), 0.5 if 0.5 in args.k else args.k[-1]
    for what in ("training", "inference"):
        tell(f"stages of {what}")
        rounds = rounds_of(args.rounds, math.prod(args.load[0]))
        report["stages"] += stages(task, shape, what, (0.0, pruned), rounds, now)
    report["pays_from"] = {
        what: {k: pays_from(report["speed"], what, k) for k in ladder_ks[1:]} for what in ("training", "inference")
    }
    tell("memory, reading")
    del task, model
    if device.type == "cuda":  # other processes measure now: they need what this one holds
        torch.cuda.empty_cache()
    report["memory"] = memory(name, *args.load[-1], (0.0, pruned), device, args.varlen)
    report["reading"] = reading(shape.config.vit.image_size, now)
    report["outside_operations"] = outside_operations()
    return report


def device_name(device: torch.device) -> str:
    """What the figures are of."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{device} ({platform.machine()})"


def load_average() -> float | None:
    """Processes that wanted to run in the last minute: more than ours, and the figures are those of a busy machine."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    load = lambda text: tuple(int(n) for n in text.split("x"))
    numbers = lambda kind: lambda text: tuple(kind(n) for n in text.split(","))
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.speed", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--shape", choices=tuple(SHAPES), default="scaled", help="the model's sizes")
    parser.add_argument(
        "--load", type=load, nargs="+", default=LOADS, metavar="BxT", help="videos × frames, at every k"
    )
    parser.add_argument(
        "--ladder", type=numbers(int), default=LADDER, metavar="T,T", help="frames of one video, at k = 0.3, 0.5"
    )
    parser.add_argument(
        "--k", type=numbers(float), default=KS, metavar="K,K", help="shares of cells to remove, 0 first"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="times that every k is run on 64 to 128 frames, after a warm-up; more often on fewer, less on more",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's time, for busy machines (with --threads 1)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--varlen", action="store_true", help="packed rows by CUDA's kernel, not by masks")
    parser.add_argument("-o", "--out", type=Path, help="write everything measured to this JSON file")
    parser.add_argument("--plot", help="draw it to this PNG (needs matplotlib)")
    parser.add_argument("--memory-of", type=float, metavar="K", help=argparse.SUPPRESS)  # for the processes of `memory`
    args = parser.parse_args(argv)
    try:
        device = pick_device(args.device)
        torch.set_num_threads(args.threads)
        if SHAPES[args.shape].cuda_only and device.type != "cuda":
            print(f"{args.shape} needs CUDA, for it would take hours here ({device}): skipped")
            return
        if args.varlen:
            check_varlen(device, SHAPES[args.shape].config.vit.head_dim)
        if args.memory_of is not None:
            print(json.dumps(step_memory(SHAPES[args.shape], *args.load[0], args.memory_of, device, args.varlen)))
            return
        for k in args.k:
            check_k(k)
        if args.k[0] != 0:
            raise ValueError(f"--k {args.k}: give 0 first, it is what the others are compared with")
        report = measure(args.shape, args, device)
        print(page(report))
        if args.out:
            write_json(args.out, report)
        if args.plot:
            draw(report, args.plot)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
