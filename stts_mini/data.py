"""Clips and questions on disk, and batches for the model.

    prepare   writes the toy world as real MP4 files, with a JSON line per clip beside them
    Reader    decodes a clip through `video.py`, and keeps what it decoded, up to a budget
    Sampler   which clips and questions make up training step i: a pure function of (seed, i)
    collate   clips and questions → a `Batch`

A JSON line reads {"video": path, "kind": …, "split": …, "seed": …, "qa": [{"task", "question",
"answer", "options"}]}, the path relative to the file.

Prompt of a question:  <question> what colour is the circle ? <option> red <option> blue <answer>

What this file does not do: draw (`world.py`), decode (`video.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stts_mini import world
from stts_mini.drawing import render
from stts_mini.progress import Progress
from stts_mini.sequence import Batch
from stts_mini.tokenizer import ANSWER, OPTION, QUESTION, Tokenizer
from stts_mini.video import Video, read_video, thinned, write_video

TOKENIZER = Tokenizer(world.words())
# names the world and its words: a checkpoint of another world must not be used by mistake
WORLD_ID = f"world {world.WORLD_VERSION}, words {hashlib.sha256(' '.join(world.words()).encode()).hexdigest()[:8]}"
SHOWN_OPTIONS = 4  # at most so many options are shown with a question
OPTION_SEED = 20  # of what is asked about a test clip, and in which order its options are shown


@dataclass(frozen=True)
class QA:
    """A question, its answer, and every answer that its wording allows."""

    task: str
    question: str
    answer: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Clip:
    """A video file and what is asked about it. `kind`, `split` and `seed` name its scene in the world."""

    video: Path
    kind: str
    split: str
    seed: int
    qa: tuple[QA, ...]


# --------------------------------------------------------------------------------------- on disk


def _file_name(split: str, kind: str, seed: int) -> str:
    return f"{split}-{kind}-{seed:06d}.mp4"


def _make_clip(job: tuple[str, str, str, int, int]) -> dict:
    """Write one clip's MP4 unless it is there, and return its JSON line. Runs in worker processes."""
    folder, split, kind, seed, size = job
    scene = world.make_scene(split, kind, seed)
    name = _file_name(split, kind, seed)
    path = Path(folder) / name
    if not path.exists():
        write_video(path, render(scene, scene.times, size), fps=scene.fps)
    qa = [dict(task=q.task, question=q.text, answer=q.answer, options=q.options) for q in scene.questions]
    return dict(video=name, kind=kind, split=split, seed=seed, qa=qa)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def on_all_cores(function: Callable, jobs: Sequence) -> Iterator:
    """function(job) for every job, in order: by a process for each core, or right here if they are few (a
    process takes seconds to start). Raises RuntimeError if the processes cannot start or are killed."""
    if len(jobs) < 64:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ProcessPoolExecutor(min(cores, 32), mp_context=context, initializer=_ignore_interrupt)
    try:
        yield from pool.map(function, jobs, chunksize=16)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died: out of memory, or it could not import the main script. A script that prepares"
            " or decodes clips must be a file, and do so under `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def index_file(root: str | os.PathLike, split: str, counts: dict[str, int], size: int) -> Path:
    """Where the JSON lines of these clips are, or will be."""
    name = "-".join(f"{kind}{count}" for kind, count in counts.items())
    return Path(root) / f"world-v{world.WORLD_VERSION}-{size}px" / f"{split}-{name}.jsonl"


def prepare(root: str | os.PathLike, split: str, counts: dict[str, int], size: int) -> Path:
    """Make sure that a split of the toy world is on disk; returns its JSON-lines file.

    counts: clips of each kind, e.g. {"short": 3000, "image": 400}. A clip is a pure function of
    (split, kind, seed, size), so what an interrupted or smaller run has written is used again, and what was
    deleted is written anew.
    """
    index = index_file(root, split, counts, size)
    folder = index.parent
    if index.exists():
        there = set(os.listdir(folder))
        if all(_file_name(split, kind, seed) in there for kind, count in counts.items() for seed in range(count)):
            return index
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(str(folder), split, kind, seed, size) for kind, count in counts.items() for seed in range(count)]
    progress, lines = Progress(f"{split} clips → {folder}", len(jobs)), []
    for line in on_all_cores(_make_clip, jobs):
        lines.append(json.dumps(line))
        progress.update(len(lines))
    progress.close()
    partial = index.with_name(f"{index.name}.{os.getpid()}.partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, index)
    return index


def load_clips(index: str | os.PathLike) -> list[Clip]:
    """The clips of a JSON-lines file. Raises ValueError that names a bad line's number."""
    index, clips = Path(index), []
    for number, line in enumerate(index.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            qa = tuple(QA(q["task"], q["question"], q["answer"], tuple(q["options"])) for q in row["qa"])
            clips.append(Clip(index.parent / row["video"], row["kind"], row["split"], row["seed"], qa))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index}, line {number} is not a clip ({type(error).__name__}: {error})") from error
    return clips


def fingerprint(clips: Sequence[Clip]) -> str:
    """12 hex digits that change with any clip, question or answer; printed beside every result."""
    folders = sorted({c.video.parent.name for c in clips})  # world version and size
    text = repr([(c.split, c.kind, c.seed, c.qa) for c in clips])
    text += f" {WORLD_ID} {folders} {OPTION_SEED} {SHOWN_OPTIONS}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------- in memory


class Reader:
    """Decoded clips: `reader(path)` → Video, with frames of size × size pixels.

    What is decoded stays in memory until `cache_gb` are full; what comes later is decoded at each call.
    """

    def __init__(self, max_frames: int, size: int, fps: float = 2.0, cache_gb: float = 2.0):
        self.max_frames, self.size, self.fps = max_frames, size, fps
        self.room = cache_gb * 1e9
        self.cache: dict[Path, Video] = {}

    def __call__(self, path: Path) -> Video:
        video = self.cache.get(path)
        if video is None:
            video = read_video(path, self.max_frames, self.fps, self.size)
            self._keep(path, video)
        return video

    def preload(self, paths: Sequence[Path]) -> None:
        """Decode these clips now, on all cores, until the memory is full."""
        progress = Progress("decoding clips", len(paths))
        read = functools.partial(read_video, max_frames=self.max_frames, fps=self.fps, size=self.size)
        for done, video in enumerate(on_all_cores(read, paths)):
            self._keep(paths[done], video)
            progress.update(done + 1)
            if self.room < 0:
                break
        progress.close()

    def _keep(self, path: Path, video: Video) -> None:
        self.room -= video.frames.nbytes
        if self.room >= 0:
            self.cache[path] = video


def prompt_ids(question: str, options: Sequence[str] = ()) -> list[int]:
    """<question> … <option> … <option> … <answer>; without options, none are shown."""
    ids = [QUESTION, *TOKENIZER.encode(question)]
    for option in options:
        ids += [OPTION, *TOKENIZER.encode(option)]
    return [*ids, ANSWER]


def shown_options(qa: QA, rng: np.random.Generator) -> list[str]:
    """The answer and up to SHOWN_OPTIONS − 1 others, shuffled."""
    others = [option for option in qa.options if option != qa.answer]
    chosen = [others[i] for i in rng.permutation(len(others))[: SHOWN_OPTIONS - 1]]
    shown = [qa.answer, *chosen]
    return [shown[i] for i in rng.permutation(len(shown))]


Annotate = Callable[[Clip, Video], np.ndarray]  # → a score for every cell, (T, C)


def collate(
    videos: Sequence[Video],
    branches: list[list[tuple[list[int], list[int]]]],
    scores: Sequence[np.ndarray] | None = None,
) -> Batch:
    """Decoded clips, their (prompt ids, answer ids) and, if given, a score (T, C) of each one's cells → a Batch,
    padded to the longest clip."""
    T, size = max(len(v.frames) for v in videos), videos[0].frames.shape[1:3]
    frames = torch.zeros(len(videos), T, 3, *size, dtype=torch.uint8)
    for b, video in enumerate(videos):
        frames[b, : len(video.frames)] = torch.from_numpy(video.frames).permute(0, 3, 1, 2)
    num_frames = torch.tensor([len(v.frames) for v in videos])
    stamps = [[TOKENIZER.encode(stamp) for stamp in video.stamps] for video in videos]
    if scores is not None:
        scores = torch.from_numpy(np.stack([np.pad(s, ((0, T - len(s)), (0, 0))) for s in scores])).float()
    return Batch(frames, num_frames, stamps, branches, scores)


class Sampler:
    """Training batches: step i of seed s is always the same, whatever ran before.

    A curriculum comes first: each of `stages`, (kind, steps), shows clips of one kind only; then come all kinds,
    but for those that `world.TASKS` does not judge. A batch holds clips of one kind, so that little is padding.
    Every epoch is a new order; what does not fill a batch waits for another.

    A clip brings `questions` of its questions: first one of each task, then others (of a brief clip, all of its
    "when does … enter", beyond that number: with fewer, some seeds never learn time); one in three, by lot,
    shows its options. With `thinning`, each step divides the reader's max_frames and fps by a factor from 1 to
    `thinning` (log-uniform; the largest until step `coarse_steps`), so that the model learns to live with any
    number of frames. `annotate` gives the batch's `scores`. Raises KeyError for a stage whose kind has no clip.
    """

    def __init__(
        self,
        clips: list[Clip],
        reader: Reader,
        batch_size: int,
        questions: int,
        seed: int,
        stages: Sequence[tuple[str, int]] = (),
        thinning: float = 1.0,
        coarse_steps: int = 0,
        annotate: Annotate | None = None,
    ):
        self.clips, self.reader, self.seed = clips, reader, seed
        self.batch_size, self.questions, self.annotate = batch_size, questions, annotate
        self.thinning, self.coarse_steps = thinning, coarse_steps
        pools: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            pools.setdefault(clip.kind, []).append(i)
        self.stages: list[tuple[int, list[list[int]]]] = []  # (its first step, the pools it draws from)
        first = 0
        for kind, steps in stages:
            if steps:
                self.stages.append((first, [pools[kind]]))
            first += steps
        judged = [pool for kind, pool in pools.items() if world.TASKS.get(kind, True)]
        self.stages.append((first, judged or list(pools.values())))

    def clip_numbers(self, step: int) -> list[int]:
        """Which clips make up a step."""
        stage = max(i for i, (first, _) in enumerate(self.stages) if step >= first)
        first, pools = self.stages[stage]
        per_epoch = sum(max(len(pool) // self.batch_size, 1) for pool in pools)
        epoch, place = divmod(step - first, per_epoch)
        rng = np.random.default_rng((self.seed, 2, stage, epoch))
        batches = []
        for pool in pools:
            order = rng.permutation(np.resize(pool, max(len(pool), self.batch_size)))
            full = len(order) // self.batch_size * self.batch_size
            batches += list(order[:full].reshape(-1, self.batch_size))
        return batches[rng.permutation(per_epoch)[place]].tolist()

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, 1, step))
        thin = self.thinning if step < self.coarse_steps else self.thinning ** rng.random()
        videos, branches, scores = [], [], []
        for number in self.clip_numbers(step):
            clip = self.clips[number]
            video = self.reader(clip.video)
            most = max(round(self.reader.max_frames / thin), 1)
            videos.append(video if thin == 1 else thinned(video, most, self.reader.fps / thin))
            scores.append(self.annotate(clip, videos[-1]) if self.annotate else None)
            own = []
            for qa in self._choose(clip, rng):
                options = shown_options(qa, rng) if len(qa.options) > 1 and rng.random() < 1 / 3 else ()
                own.append((prompt_ids(qa.question, options), TOKENIZER.encode(qa.answer)))
            branches.append(own)
        return collate(videos, branches, scores if self.annotate else None)

    def _choose(self, clip: Clip, rng: np.random.Generator) -> list[QA]:
        shuffled = [clip.qa[i] for i in rng.permutation(len(clip.qa))]
        first = list({q.task: q for q in shuffled}.values())
        rest = [q for q in shuffled if q not in first]
        chosen = (first + rest)[: self.questions]
        beyond = [q for q in rest if q.task == "enter" and q not in chosen]
        return chosen + (beyond if clip.kind == "brief" else [])
