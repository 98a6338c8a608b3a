"""Training, from nothing to a checkpoint, a table and a picture: the main command.

    L = L_task + λ · L_sim                                                          (paper §3.2)

    python -m stts_mini.train                         the whole job in minutes on a CPU
    python -m stts_mini.train --preset smoke          everything end to end in under a minute
    python -m stts_mini.train --preset paper          the paper's recipe: fine-tune a shipped, unpruned model, pruned
    python -m stts_mini.train --preset gpu --dry-run  what a preset would take
    python -m stts_mini.train --resume                continue after Ctrl-C or SIGTERM
    python -m stts_mini.train --data mine.jsonl --val judged.jsonl      clips of your own (see data/clips.py)
    torchrun --nproc-per-node 2 -m stts_mini.train    several processes, one batch (see training/distributed.py)

Muon optimises the hidden matrices. AdamW optimises the rest: embeddings, positions, norms, biases, the first and the
last layer. You can choose the ratio of the scorer's learning rates to the others. Step i draws its clips and questions
from (seed, i) alone, so a resumed run sees the same as an uninterrupted one.

Where we differ from the paper
    - It fine-tunes pretrained backbones with AdamW, as `lab/pretrained.py` does. Our default trains from nothing, in
      the stages of `training/config.py`.
    - Its scorer learns at ten times the LLM's rate. Ours learns at the same rate.
    - Its λ is 1, and it prunes from the first step on. Our λ is 30, and before pruning begins the scorer learns from
      L_sim alone (`warm_up` in `training/step.py`). The reasons are in tutorials/results/TRIED.md.

What this file does not do: define settings (`training/config.py`), make batches (`data/batches.py`), compute
gradients (`training/step.py`) or evaluate (`eval.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

from stts_mini.data.batches import TOKENIZER, Annotate, AnyTokenizer, Reader, Sampler, try_read
from stts_mini.data.clips import Clip, fingerprint, held_out, is_own, load_clips, prepare
from stts_mini.data.files import printable, require, write_json
from stts_mini.data.progress import Progress, clock, in_turns
from stts_mini.data.video import VideoError
from stts_mini.eval import judge, share_losses
from stts_mini.model import VLM, Encoded, NotFinite, Output, check_scores, must_be_bounded
from stts_mini.packing import check_varlen
from stts_mini.report.picture import draw_clips, draw_curve
from stts_mini.report.result import broken_clips
from stts_mini.scorer import Scorer
from stts_mini.sequence import Batch
from stts_mini.training import checkpoint, distributed
from stts_mini.training.config import PRESETS, SHIPPED, TrainConfig, as_text, describe, parse_flags
from stts_mini.training.logging import Interrupt, Log, sigterm_as_ctrl_c
from stts_mini.training.optim import build_optimizers, rate_at, update
from stts_mini.training.step import (
    CLIP_NORM,
    Seen,
    eagerly,
    forward_backward,
    learns,
    now,
    warm_up,
    wrap,
)


class TrainError(RuntimeError):
    """Training cannot continue. The message names the step, the data, and what was saved."""


def pick_device(name: str, counted: bool = False) -> torch.device:
    """ "auto" takes CUDA, then MPS, then the CPU. Raises ValueError for a device that is not there. With `counted` (a
    dry run) it only needs a known name."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [kind for kind, ok in kinds.items() if ok]
    if name not in ("auto", *(kinds if counted else there)):
        raise ValueError(f"device {name!r} is not there: give auto or one of {there}")
    return torch.device(there[0] if name == "auto" else name)


def build_model(config: TrainConfig, device: torch.device) -> VLM:
    """A fresh model from the config's seed. Its time stamps start as sines of their times, with wavelengths from
    about 1 to 300 s. So near times look alike, and the model can use a time that it was not trained on."""
    torch.manual_seed(config.seed)
    model = VLM(config.model)
    if config.saliency_steps and isinstance(model.scorer, Scorer):
        torch.nn.init.zeros_(model.scorer.mlp[-1].bias)  # the targets are ranks, whose mean is 0.5: start there
    stamps = model.llm.embed_tokens.weight[TOKENIZER.first_stamp :][: TOKENIZER.num_stamps]
    frequency = 2 * math.pi * torch.logspace(-2.5, 0, -(-stamps.shape[1] // 2))
    angle = torch.arange(len(stamps))[:, None] / 10 * frequency
    with torch.no_grad():
        stamps.copy_(0.1 * torch.cat([angle.sin(), angle.cos()], dim=1)[:, : stamps.shape[1]])
    return model.to(device)


def training_clips(config: TrainConfig) -> tuple[list[Clip], Path]:
    """The training clips, and the file that lists them: your own, or the toy world's, which are made if missing."""
    if is_own(config.data):
        return load_clips(config.data), Path(config.data)
    index = distributed.in_turn(
        lambda: prepare(config.data, "train", config.train_counts, config.video_size, config.panels)
    )
    return load_clips(index), index


def judged_clips(config: TrainConfig, split: str = "test") -> list[Clip]:
    """The clips to evaluate on: your own, or held-out ones of the kinds trained on, which are made if missing."""
    if is_own(config.data):
        return load_clips(config.val, judged=True)
    kinds = [kind for kind, count in config.train_counts.items() if count]
    size, clips = config.video_size, config.test_clips
    return distributed.in_turn(lambda: held_out(config.data, size, clips, split, kinds, config.panels))


def check_settings(config: TrainConfig, device: torch.device, model: VLM | None, resume: bool) -> None:
    """Raise ValueError for settings that would fail later, before the training clips are decoded. To `resume`, the file
    of `init` is not needed."""
    if (parts := config.accumulate * distributed.world_size()) > config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} cannot be cut into {parts} parts: give a larger --batch-size")
    if config.val:  # refuse a bad line, and wrong paths, now and not after the training
        judged = load_clips(config.val, judged=True)
        read = (try_read(clip, config.max_frames, config.fps, config.image_size) for clip in judged)
        first = next(read)
        require(
            not isinstance(first, VideoError) or any(not isinstance(video, VideoError) for video in read),
            "none of {} clips of {} can be read: {}", len(judged), config.val, first,
        )  # fmt: skip
        if both := {clip.source for clip in judged} & {clip.source for clip in load_clips(config.data)}:
            print(f"note: {len(both)} clips are in --data and in --val: the result is partly of what was learned")
    if config.init and not resume:
        checkpoint.check_world(checkpoint.load(config.init), config.init)
    if config.varlen:
        check_varlen(device, (config.model if model is None else model.config).vit.head_dim)


def try_scorer(model: VLM, config: TrainConfig, own: bool) -> None:
    """Score random tokens before the training. Raises ValueError for scores that pruning would refuse, and for numbers
    that a checkpoint cannot hold, perhaps hours later, and for scores without a gradient that should have one. Prints a
    warning if nothing trains the scorer's weights. `own`: the run prunes with the model's scorer."""
    cfg, scorer, T = model.config, model.scorer.eval(), 4
    wrong = next(checkpoint.no_numbers(model.state_dict()), None)
    cure = "a checkpoint cannot hold that. If it is a buffer, register it with persistent=False"
    require(not wrong, "the model's {} is not a finite number everywhere: {}", wrong, cure)
    weights = any(p.requires_grad for p in scorer.parameters())
    if config.saliency_steps and not (own and weights):
        why = f"scorer {config.scorer} has no weights" if own else "annotate or encoder chooses, and has no weights"
        raise ValueError(f"{why} that saliency could train: give --saliency-steps 0")
    if not own or not config.k or config.blind:
        return
    injects, like = getattr(scorer, "injects_bias", False), model.vit.position_embedding
    with torch.random.fork_rng([like.device] * like.is_cuda):  # so that the run's random numbers stay the same
        x = torch.randn(1, T, cfg.vit.num_patches, cfg.vit.width).to(like)
        scores = scorer(given := x.clone(), torch.tensor([T]))
    require(torch.equal(given, x), "scorer {} changes its input: let it work on a copy", config.scorer)
    check_scores(scores.detach(), (1, T, cfg.cells), bounded=must_be_bounded(scorer, cfg.spread))
    signals = config.saliency_steps or (injects and (config.sim_weight or cfg.bias != "none"))
    nothing = f"nothing trains the weights of scorer {config.scorer}"
    if weights and signals and not scores.requires_grad:
        raise ValueError(f"{nothing}: give scores with a gradient, or freeze them with requires_grad_(False)")
    if weights and not signals:
        cure = "set injects_bias = True in its class, and give scores in (0, 1)"
        print(f"warning: {nothing}: {'give --sim-weight or --bias log' if injects else cure}")


def train(
    config: TrainConfig,
    resume: bool,
    device: torch.device,
    reader: Reader | None = None,
    annotate: Annotate | None = None,
    encoder: Callable[[VLM], Callable[..., Encoded]] | None = None,
    model: VLM | None = None,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> VLM:
    """The training loop. Writes checkpoint.pt, config.json, log.csv and curve.png into config.out. No other run can
    use this folder meanwhile. Raises ValueError for refused settings, TrainError for features, losses or gradients that
    are not finite.

    reader     one that several runs share, so that each clip is decoded once
    annotate   gives scores instead of the scorer's (see `Sampler`)
    encoder    the model → an encoder to use instead of `encode_video` (one that merges tokens, for example)
    model      to start from, instead of a fresh one
    tokenizer  the one that goes with the model
    """
    with checkpoint.alone(config.out):
        check_settings(config, device, model, resume)
        clips, index = training_clips(config)
        began = checkpoint.origin(config, fingerprint(clips), tokenizer, model)
        model = build_model(config, device) if model is None else model.to(device)
        try_scorer(model, config, own=not (annotate or encoder))
        optimizers = build_optimizers(model, config)
        path = Path(config.out) / "checkpoint.pt"
        start = checkpoint.restore(path, model, optimizers, config, began) if resume else 0
        if config.init and not resume:
            checkpoint.start_from(model, checkpoint.load(config.init), config.init)
        reader = own_reader(config, clips) if reader is None else reader
        sampler = Sampler(
            clips, reader, config.batch_size, config.questions, config.seed, config.curriculum.items(), config.thinning,
            config.coarse_steps, annotate, tokenizer, (distributed.rank(), distributed.world_size()),
            config.late,
        )  # fmt: skip
        run, encode = wrap(model, config, device), encoder(model) if encoder else None
        ahead = config.workers, device.type == "cuda"  # worker processes; whether to pin memory
        fresh = config.lessons and not (annotate or encoder) and learns(model.scorer)

        def lessons(asked: Callable[[], bool]) -> None:
            """Warm up the scorer, until all is done or a stop is asked for."""
            with closing(sampler.beyond(config.steps, config.lessons, *ahead)) as batches_beyond:
                warm_up(model, optimizers, batches_beyond, config, device, asked)

        step_of = lambda step: one_step(model, optimizers, next(batches), step, config, device, encode, run)
        save = lambda done, rng: checkpoint.save_run(path, done, model, optimizers, config, began, rng)
        where = lambda step: f"clips {sampler.clip_numbers(step)} of {index} (seed {config.seed})"
        log = None if distributed.rank() else open_run(config, resume, start, sampler.tasks)  # after all checks
        model.train()
        with closing(sampler.of(range(start, config.steps), *ahead)) as batches:
            all_steps(config, start, step_of, save, log, where, lessons if fresh else None)
        share_losses(reader)
        if log:
            draw_curve(path.with_name("log.csv"), path.with_name("curve.png"))
        print(broken_clips(reader.broken, reader.skipped), end="")
    return model.eval()


def all_steps(
    config: TrainConfig,
    start: int,
    step_of: Callable[[int], tuple[Seen, float]],
    save: Callable[[int, list], None],
    log: Log | None,
    where: Callable[[int], str],
    lessons: Callable[[Callable[[], bool]], None] | None = None,
) -> None:
    """Every step from `start` on. Ctrl-C or SIGTERM saves a checkpoint and ends the process. Raises TrainError for
    numbers that are not finite.

    step_of  makes a step (see `one_step`)
    save     writes the checkpoint, given the number of steps and each process's random state
    log      the log in process 0, None in the others
    where    names the clips of a step, for an error message
    lessons  what to do before the first pruned step, given a function that says whether to stop
    """
    progress, began, saved = Progress("train", config.steps, start), time.monotonic(), start > 0

    def keep(done: int) -> None:
        """Write the log and the checkpoint of so many steps."""
        nonlocal saved
        rng, saved = distributed.gather(torch.get_rng_state()), True
        if log:
            log.flush()  # before the checkpoint: when resumed, rows after its step are dropped
            save(done, rng)

    with Interrupt() as interrupt:
        asked = lambda: distributed.total(interrupt.asked)[0] > 0
        for step in range(start, config.steps):
            try:
                if lessons and step == config.unpruned_steps:
                    keep(step)  # whoever stops amid the lessons has them anew, with the scorer of before
                    lessons(asked)
                    if asked():
                        stop(step, progress)
                seen, norm = step_of(step)
            except NotFinite as error:
                clips = where(step if error.batch is None else error.batch)
                good = f"the last good checkpoint is {Path(config.out) / 'checkpoint.pt'}"
                last = good if saved else "nothing was saved yet"
                raise TrainError(f"step {step}: {error}, on {clips}; {last}. Try a lower --lr and --muon-lr") from error
            if log:
                right, passed = seen.right / seen.answers, time.monotonic() - began
                log.add(step, seen.task, seen.sim, norm, right, seen.tokens, seen.health, seen.skills, seconds=passed)
                progress.update(step + 1, log.text())
                told = [f"warning: step {step}: {warning}"] if (warning := log.warning()) else []
                if (step + 1) % max(config.steps // 8, 1) == 0:
                    told.append(log.skills(step + 1))
                interrupt.asked |= not heard(told, progress)
            ends = asked()
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps or ends:
                keep(step + 1)
            if ends:
                stop(step + 1, progress)
    progress.close()


def heard(lines: Sequence[str], progress: Progress) -> bool:
    """Print lines below the progress. False if nobody reads on, as after `| head`: then it is time to save and end."""
    if lines:
        progress.close()
        try:
            print(*lines, sep="\n", flush=True)
        except BrokenPipeError:
            return False
    return True


def stop(done: int, progress: Progress) -> None:
    """End all processes after so many steps, whose checkpoint is being written."""
    with distributed.first():  # no process ends before that
        progress.close()
    print(f"Stopped after step {done}. Go on with the same command and --resume.")
    sys.exit(130)


def own_reader(config: TrainConfig, clips: Sequence[Clip]) -> Reader:
    """A reader of these clips. It decodes them at once if this process or its workers need all of them."""
    reader = Reader(config.max_frames, config.image_size, config.fps, config.cache_gb)
    if distributed.world_size() == 1 or config.workers:
        reader.preload(clips)
    if lost := len(reader.broken):  # known now, not only after the training
        first = next(iter(reader.broken.values()))
        print(printable(f"note: clips that cannot be read are left out: {lost}. The first: {first}"))
    return reader


def open_run(config: TrainConfig, resume: bool, start: int, tasks: Sequence[str]) -> Log:
    """Make a run's folder with its config.json, or reuse it to resume. Returns the log from step `start` on."""
    out = Path(config.out)
    if not resume:
        checkpoint.keep_old_run(out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", dataclasses.asdict(config))
    return Log(out / "log.csv", start, tasks)


def one_step(
    model: VLM,
    optimizers: list[torch.optim.Optimizer],
    batch: Batch,
    step: int,
    config: TrainConfig,
    device: torch.device,
    encode: Callable[..., Encoded] | None,
    run: Callable[..., Output],
) -> tuple[Seen, float]:
    """Compute and clip the gradients of a batch, and step the optimisers. Returns what was seen and the gradient's
    norm. Raises NotFinite, and changes no weight, if a loss or the norm is not finite. `encode`, `run`: see
    `forward_backward`."""
    saliency = config.learns_saliency(step)
    seen = forward_backward(model, batch, config, device, config.k_at(step), encode, run, saliency)
    if config.saliency_steps and not saliency:
        for p in model.scorer.parameters():
            p.grad = None  # the scorer is frozen now
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM))
    if not math.isfinite(seen.task + seen.sim + norm):
        raise NotFinite(f"loss {seen.task:.4g}, L_sim {seen.sim:.4g}, gradient norm {norm:.4g}")
    update(optimizers, rate_at(step, config))
    return seen, norm


def step_time_ratio(model: VLM, sampler: Sampler, config: TrainConfig, device: torch.device, pairs: int = 5) -> float:
    """Time of forward and backward at k > 0, divided by that at 0: the median over pairs, after one pair of warm-up.
    The two of a pair run on the same batch and take turns in being first."""
    batches = [sampler(i) for i in range(pairs + 1)]  # drawn before, so that this is not timed
    left = {k: iter(batches) for k in (0.0, config.k)}
    run = lambda k: forward_backward(model, next(left[k]), config, device, k)
    unpruned, pruned = in_turns(run, [*left], pairs, lambda: now(device), warm=[*left]).values()
    model.zero_grad()
    return statistics.median(b / a for a, b in zip(unpruned, pruned, strict=True))


def step_time(
    model: VLM,
    train_clips: list[Clip],
    reader: Reader,
    config: TrainConfig,
    device: torch.device,
    tokenizer: AnyTokenizer,
) -> dict[str, float]:
    """Time a training step against an unpruned one, on videos, and print the ratio. Returns {} if memory runs out."""
    videos = [clip for clip in train_clips if clip.kind != "image" and not clip.images]  # pictures are never pruned
    sampler = Sampler(
        videos or train_clips, reader, config.batch_size, config.questions, config.seed, tokenizer=tokenizer
    )
    what = f"forward and backward on videos, time at k = {config.k} over the unpruned:"
    try:
        ratio = step_time_ratio(model, sampler, config, device)
        print(f"{what} {ratio:.2f} (median of 5 pairs)")
        return dict(step_time_ratio=ratio)
    except torch.OutOfMemoryError:
        model.zero_grad()
        print(f"{what} not measured, because the unpruned step does not fit into memory")
    return {}


def finish(
    config: TrainConfig, model: VLM, device: torch.device, tokenizer: AnyTokenizer = TOKENIZER, split: str = "test"
) -> dict:
    """Evaluate on held-out clips of a split, time a step against the unpruned model, draw. Prints and saves it all."""
    out = Path(config.out)
    if is_own(config.data) and not config.val:
        print("no --val, so there are no held-out clips to evaluate on")
        return {}
    train_clips, clips = training_clips(config)[0], judged_clips(config, split)
    reader = own_reader(config, clips)
    named = dict(fingerprint=fingerprint(clips), k=config.k, max_frames=config.max_frames, seed=config.seed)
    frames = f"up to {config.max_frames} frames, 1 seed ({config.seed})"
    print(f"\n{split} set {named['fingerprint']}, k = {config.k}, {frames}")
    shipped = json.loads((SHIPPED / "unpruned.json").read_text()) if config.init == PRESETS["paper"]["init"] else None
    with eagerly(config.compile):  # lengths vary too much here to be worth compiling
        text, numbers = judge(model, clips, reader, config.k, train_clips, config.blind, tokenizer, shipped=shipped)
    if distributed.rank():
        return {}
    summary = dict(**named, split=split, torch=torch.__version__, **numbers)
    result = out / checkpoint.RESULTS[split != "test"]
    write_json(result, summary)  # now, because the next steps may fail
    print(text)
    if config.k > 0 and not config.blind and distributed.world_size() == 1:
        summary |= step_time(model, train_clips, reader, config, device, tokenizer)
        write_json(result, summary)
    if not config.blind:
        with eagerly(config.compile):
            picture = draw_clips(model, clips, reader, config.k, out, tokenizer=tokenizer)
        print(printable(f"pruned clips to look at: {picture}"))
    return summary


def peak_memory() -> float:
    """The most memory that this process has held so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    job("python -m stts_mini.train", *parse_flags(argv))


def job(name: str, config: TrainConfig, args: argparse.Namespace, model: VLM | None = None, tokenizer=TOKENIZER):
    """What the command `name` does, from the settings to the picture. An error ends the process with one line."""
    try:
        both = is_own(config.data) and args.split != "test"
        require(not both, f"--split {args.split} is for the toy world: leave it out, and give your clips as --val")
        with sigterm_as_ctrl_c(), distributed.processes(pick_device(config.device, args.dry_run)) as device:
            settings = " ".join(f"{name}={as_text(value)}" for name, value in dataclasses.asdict(config).items())
            print(printable(f"preset {args.preset}: {settings}"))
            print(f"{device} ({platform.machine()}, {torch.get_num_threads()} threads), torch {torch.__version__}")
            print(describe(config, device, model))
            if args.idle:
                print(f"note: without effect here: {', '.join(args.idle)}")
            if args.dry_run:
                return
            began = time.monotonic()
            with checkpoint.alone(config.out):
                model = train(config, args.resume, device, model=model, tokenizer=tokenizer)
                finish(config, model, device, tokenizer, args.split)
            peak = "" if resource is None else f", peak memory {peak_memory():.1f} GB"
            if device.type == "cuda":
                peak += f", of the GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
            done = f"all done in {clock(time.monotonic() - began)}{peak}"
            print(printable(f"{done}; checkpoint: {Path(config.out) / 'checkpoint.pt'}"))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
        cure = "out of memory: give --recompute, or --accumulate 2 or more ({})" if full else "{}"
        sys.exit(printable(f"{name}: error: {cure.format(error)}"))
    except KeyboardInterrupt:
        print("\nInterrupted; finished clips and checkpoints are kept.", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)


if __name__ == "__main__":
    main()
