"""One training step: the gradients of one batch.

    L = L_task + λ · L_sim                                                          (paper §3.2)

A batch may be cut into parts, to save memory, and shared by several processes. In any case, L_task is a mean over all
questions of the whole batch, and L_sim over all of its pruned videos. This file also decides how the model is called:
compiled, recomputing, in half precision, together with other processes.

What this file does not do: draw batches (`data/batches.py`), step optimisers, log, save (`train.py`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint as recomputed

from stts_mini.data.progress import Progress
from stts_mini.model import VLM, Encoded, NotFinite, Output, ragged
from stts_mini.packing import num_removed
from stts_mini.scorer import similarity_loss, temporal_target
from stts_mini.sequence import Batch, sent
from stts_mini.training import distributed
from stts_mini.training.config import TrainConfig
from stts_mini.training.health import Health, sums, watch
from stts_mini.training.optim import Muon
from stts_mini.training.saliency import saliency_loss, taught

CLIP_NORM = 1.0  # largest norm of the gradient
WARM_UP_RATE = 5.0  # of a scorer that learns L_sim alone, times the LLM's rate, for any scorer_lr_ratio


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into up to `count` parts along the videos."""
    if count == 1:
        return [batch]
    numbers = torch.arange(len(batch.num_frames)).tensor_split(count)
    cuts = [slice(int(n[0]), int(n[-1]) + 1) for n in numbers if len(n)]
    return [
        Batch(
            batch.frames[c, : (T := int(batch.num_frames[c].max()))],
            batch.num_frames[c],
            batch.stamps[c],
            batch.branches[c],
            None if batch.scores is None else batch.scores[c, :T],
            None if batch.still is None else batch.still[c],
        )
        for c in cuts
    ]


class Seen(NamedTuple):
    """What a step has seen. task, sim: means of L_task and of L_sim (or L_sal). health: None if no learning scorer
    pruned anything. skills: (right answers, all answers) of each task of the batch."""

    task: float
    sim: float
    right: int
    answers: int
    tokens: int
    health: Health | None
    skills: list[tuple[float, float]]


def counts_of(batch: Batch, k: float, cells: int) -> tuple[int, int]:
    """How many questions a part has, and how many videos that lose anything. The two losses are means over these."""
    still = [False] * len(batch.num_frames) if batch.still is None else batch.still.tolist()
    videos = zip(batch.num_frames.tolist(), still, strict=True)
    return sum(map(len, batch.branches)), sum(num_removed(k, cells, n) > 0 and not s for n, s in videos)


def forward_backward(
    model: VLM,
    batch: Batch,
    config: TrainConfig,
    device: torch.device,
    k: float | None = None,
    encode: Callable[..., Encoded] | None = None,
    run: Callable[..., Output] | None = None,
    saliency: bool = False,
) -> Seen:
    """Gradients of one batch, in `accumulate` parts and in all processes. The losses are means over all questions and
    all pruned videos of the whole batch. `run`: the model, wrapped for several processes. `saliency`: an unpruned step
    with L_sal instead of L_sim. Runs with saliency steps never use L_sim. All results leave the device together, at the
    end."""
    k, run = config.k if k is None else k, run or model
    encode = model.encode_blind if config.blind else encode
    if saliency:
        encode = functools.partial(model.encode_video, score_all=True)
    parts = parts_of(batch.to(device), config.accumulate)
    counts = [counts_of(part, k, model.config.cells) for part in parts]
    if saliency:
        counts = [(q, int(taught(p.num_frames, p.still).sum())) for (q, _), p in zip(counts, parts, strict=True)]
    questions, videos = distributed.total(*(sum(column) for column in zip(*counts, strict=True)))
    sim_weight = 1.0 if saliency else 0.0 if config.saliency_steps else config.sim_weight
    numbers, right, tokens = [], [], 0
    for i, (part, (own_questions, own_videos)) in enumerate(zip(parts, counts, strict=True)):
        shares = own_questions / questions, own_videos / max(videos, 1)
        last = i == len(parts) - 1
        together = nullcontext() if last or run is model else run.no_sync()  # gradients are averaged once a step
        # saliency goes backward twice through one graph, and compiled layers do the second wrong (torch 2.13)
        with together, eagerly(saliency and config.compile):
            with autocast(device):
                output = run(part, k, encode)
                sim_loss = saliency_loss(output, part.num_frames, part.still) if saliency else output.sim_loss
                loss = shares[0] * output.task_loss + sim_weight * shares[1] * sim_loss
                watch(output.encoded)
                if run is not model and output.encoded.scores is not None:
                    loss = loss + 0 * output.encoded.scores.sum()  # DDP waits for a gradient of all scores
            (loss * distributed.world_size()).backward()  # DDP averages, and we want a sum
        health = sums(output.encoded, sim_weight / max(videos, 1), distributed.world_size())
        task, sim = (
            x.detach().to(health, non_blocking=health.is_cuda) for x in (output.task_loss, torch.as_tensor(sim_loss))
        )
        numbers.append(torch.cat([torch.stack([shares[0] * task, shares[1] * sim]), health]))
        right.append(answers_right(output, own_questions).to(health))
        tokens += output.tokens
    numbers, right = torch.cat([sum(numbers), *right]).cpu().tensor_split([len(numbers[0])])
    of = torch.zeros(len(right), 0) if batch.tasks is None else batch.tasks
    skills = torch.stack([right, torch.ones_like(right)]) @ of.to(right)  # (2, tasks): right and asked
    own = numbers.tolist(), *skills.tolist(), [float(right.sum()), tokens]
    (task, sim, *health), *skills, (right, tokens) = distributed.totals(*own)
    skills = list(zip(*skills, strict=True))
    return Seen(task, sim, int(right), int(questions), int(tokens), Health.of(health), skills)


def learns(scorer: torch.nn.Module) -> bool:
    """Whether L_sim and the LM's gradient can teach this scorer anything."""
    return getattr(scorer, "injects_bias", False) and any(p.requires_grad for p in scorer.parameters())


def warm_up(
    model: VLM,
    optimizers: list,
    batches: Iterable[Batch],
    config: TrainConfig,
    device: torch.device,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    """Train the scorer on L_sim alone, through blocks 0..l, one step for each batch. Nothing else changes.

    This is ours. The paper prunes with a fresh scorer, and has thousands of steps to repair what that does. The rate is
    WARM_UP_RATE times the LLM's, and falls to zero. Every process needs the same whole batches, so that all stay equal.
    Stops between two lessons if it is `asked` to. Raises NotFinite for a gradient that is not finite.
    """
    progress, cfg = Progress("scorer", config.lessons), model.config
    weights = [p for p in model.scorer.parameters() if p.requires_grad]
    for i, batch in enumerate(batches):
        if asked():
            break
        parts = parts_of(batch.to(device), config.accumulate)
        videos = [counts_of(part, config.k, cfg.cells)[1] for part in parts]
        for part, own in zip(parts, videos, strict=True):
            counts, real, prunable = ragged(part.frames, part.num_frames, config.k, cfg.cells, part.still)
            own_frame, counts = sent(real.nonzero(), device).unbind(1), torch.where(prunable, counts, 1)
            with torch.no_grad(), autocast(device), eagerly(config.compile):  # not worth compiling without gradients
                x = model.stem(part.frames[own_frame])  # (F, N, D)
                grid = x.new_zeros(*real.shape, *x.shape[1:]).index_put(own_frame, x)  # (B, T, N, D)
            loss = similarity_loss(model.scorer(grid, counts), temporal_target(grid, cfg.w), counts)
            loss = loss * own / max(sum(videos), 1)
            # not `backward`, which DDP would take for a part of its next step, where a batch may have no scores
            for p, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad + gradient
        norm = float(torch.nn.utils.clip_grad_norm_(model.scorer.parameters(), CLIP_NORM))
        if not math.isfinite(norm):
            raise NotFinite(f"lesson {i + 1} of the scorer: gradient norm {norm:.4g}", batch=config.steps + i)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                rate = config.muon_lr if isinstance(optimizer, Muon) else config.lr
                group["lr"] = WARM_UP_RATE * rate * min((i + 1) / 10, 1 - i / config.lessons)
            optimizer.step()
            optimizer.zero_grad()
        progress.update(i + 1)
    progress.close()


def answers_right(output: Output, answers: int) -> torch.Tensor:
    """Whether all tokens of an answer were predicted, for each of so many answers: (answers,) bool."""
    wrong = (output.logits.argmax(-1) != output.targets).long()
    return wrong.new_zeros(answers).index_add(0, output.branch, wrong) == 0


def now(device: torch.device) -> float:
    """Seconds of a clock. What a GPU was asked is done by then."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast(device: torch.device):
    """bfloat16 where it pays: on CUDA."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def eagerly(compiled: bool):
    """A context in which compiled blocks run uncompiled."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def compile_blocks(model: VLM) -> None:
    """From now on, compile each block's forward. Call `recompute` after this, because it wraps the compiled blocks."""
    for block in (*model.vit.blocks, *model.llm.layers):
        block.forward = torch.compile(block.forward, dynamic=True)


def recompute(model: VLM) -> None:
    """From now on, keep only each block's input for the backward pass, and compute the rest twice."""
    for block in (*model.vit.blocks, *model.llm.layers):
        block.forward = functools.partial(recomputed, block.forward, use_reentrant=False)


def wrap(model: VLM, config: TrainConfig, device: torch.device) -> Callable[..., Output]:
    """The model as the loop calls it: compiled, recomputing, together with other processes, as the settings say."""
    model.varlen = config.varlen
    if config.compile:
        compile_blocks(model)
    if config.recompute:
        recompute(model)
    if distributed.world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, ids, find_unused_parameters=True)
