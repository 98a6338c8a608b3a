"""From clips on disk to batches for the model.

    Reader    decodes a clip through `video.py`, and keeps decoded clips up to a budget
    Sampler   which clips and questions make up training step i: a pure function of (seed, i)
    collate   clips and questions → a `Batch`

Prompt of a question:  <question> what colour is the circle ? <option> red <option> blue <answer>

What this file does not do: write or list clips (`clips.py`), decode (`video.py`).
"""

from __future__ import annotations

import copy
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from stts_mini.data.clips import OPTION_SEED, OWN, QA, SHOWN_OPTIONS, Clip, follow_the_parent, on_all_cores
from stts_mini.data.progress import Progress
from stts_mini.data.tokenizer import PretrainedTokenizer, Tokenizer
from stts_mini.data.video import Video, VideoError, read_video, thinned
from stts_mini.sequence import Batch
from stts_mini.toy import world

TOKENIZER = Tokenizer(world.words())
AnyTokenizer = Tokenizer | PretrainedTokenizer


def try_read(clip: Clip, max_frames: int, fps: float, size: int, thorough: bool = False) -> Video | VideoError:
    """Decode a clip's video, or its pictures, with frames of size × size pixels. `thorough`: see `read_video`. An error
    is returned and not raised, so that a worker process can send it back."""
    try:
        if not clip.images:
            return read_video(clip.video, max_frames, fps, size, clip.start, clip.end, thorough)
        read = [read_video(path, 1, fps, size) for path in clip.images]
        frames, skipped = np.stack([picture.frames[0] for picture in read]), sum(picture.skipped for picture in read)
        return Video(frames, [0.0] * len(read), 0.0, skipped, still=len(read) > 1)
    except VideoError as error:
        return error


class Reader:
    """Decoded clips: `reader(clip)` → Video, with frames of size × size pixels.

    Decoded clips stay in memory until `cache_gb` are full. Later ones are decoded at each call. `broken` says which
    clips could not be read, and why. Asking for one raises that VideoError again. `skipped` says which clips could be
    read only in part, and how many packets or frames they lost.
    """

    def __init__(self, max_frames: int, size: int, fps: float = 2.0, cache_gb: float = 2.0):
        self.max_frames, self.size, self.fps = max_frames, size, fps
        self.room, self.full = cache_gb * 1e9, False  # bytes left; whether the last decoded clip did not fit
        self.cache: dict[tuple, Video] = {}
        self.broken: dict[tuple, str] = {}
        self.skipped: dict[tuple, int] = {}

    def __call__(self, clip: Clip) -> Video:
        video = self.cache.get(clip.source)
        if video is None and clip.source not in self.broken:
            video = self._keep(clip, try_read(clip, self.max_frames, self.fps, self.size))
        if clip.source in self.broken:
            raise VideoError(self.broken[clip.source])
        return video

    def preload(self, clips: Sequence[Clip]) -> None:
        """Decode these clips now, on all cores, until the memory is full."""
        once = list({clip.source: clip for clip in clips if clip.source not in self.cache}.values())
        progress = Progress("decoding clips", len(once))
        read = functools.partial(try_read, max_frames=self.max_frames, fps=self.fps, size=self.size)
        for done, (clip, video) in enumerate(zip(once, on_all_cores(read, once), strict=True)):
            self._keep(clip, video)
            progress.update(done + 1)
            if self.full:
                break
        progress.close()

    def _keep(self, clip: Clip, video: Video | VideoError) -> Video | VideoError:
        if isinstance(video, VideoError):
            self.broken[clip.source] = str(video)
        else:
            self.skipped |= {clip.source: video.skipped} if video.skipped else {}
            self.full = video.frames.nbytes > self.room
            if not self.full:
                self.room -= video.frames.nbytes
                self.cache[clip.source] = video
        return video


def _shuffled(items: Sequence, rng: np.random.Generator) -> list:
    return [items[i] for i in rng.permutation(len(items))]


def shown_options(qa: QA, rng: np.random.Generator) -> list[str]:
    """The answer and up to SHOWN_OPTIONS − 1 others, shuffled."""
    others = [option for option in qa.options if option != qa.answer]
    return _shuffled([qa.answer, *_shuffled(others, rng)[: SHOWN_OPTIONS - 1]], rng)


def pick_questions(clip: Clip) -> list[tuple]:
    """The questions that judge a clip, each with its shown options. There is one for each task that the clip's kind is
    judged by, and every question of a clip of your own. The choice is the same for every model."""
    rng = np.random.default_rng((OPTION_SEED, [*world.TASKS, OWN].index(clip.kind), clip.seed))
    if clip.kind == OWN:
        return [(qa, shown_options(qa, rng)) for qa in clip.qa]
    picked: dict[str, QA] = {}
    for qa in _shuffled(clip.qa, rng):
        if qa.task in world.TASKS[clip.kind]:
            picked.setdefault(qa.task, qa)
    return [(qa, shown_options(qa, rng)) for qa in picked.values()]


Annotate = Callable[[Clip, Video], np.ndarray]  # → a score for every cell, (T, C)


def collate(
    videos: Sequence[Video],
    branches: list[list[tuple[list[int], list[int]]]],
    scores: Sequence[np.ndarray] | None = None,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> Batch:
    """Decoded clips and their (prompt ids, answer ids) → a Batch, padded to the longest clip. `scores`: (T, C) of each
    clip, a score for every cell. The tokenizer writes the time stamps."""
    frames = pad_sequence([torch.from_numpy(v.frames).permute(0, 3, 1, 2) for v in videos], batch_first=True)
    num_frames = torch.tensor([len(v.frames) for v in videos])
    stamps = [[tokenizer.encode(stamp) for stamp in video.stamps] for video in videos]
    if scores is not None:
        scores = pad_sequence([torch.from_numpy(s) for s in scores], batch_first=True).float()
    still = torch.tensor([v.still for v in videos])
    return Batch(frames, num_frames, stamps, branches, scores, still if still.any() else None)


class Sampler:
    """Training batches: step i of seed s is always the same, whatever ran before.

    A curriculum comes first: each of `stages`, (kind, steps), shows clips of one kind only. Then come all kinds that
    `world.TASKS` judges. A batch holds clips of one kind, so that little is padding. Every epoch has a new order.
    Clips that do not fill a batch wait for another epoch.

    `questions` are asked about a clip. First come all questions of the tasks in `late`, which are learned last, and one
    of each other task. Then come others. One in three, at random, shows its options. A brief clip also asks every
    "when does … enter" beyond that number: with fewer, some seeds never learn time. If direction is among `late`,
    brief clips always ask for it with two options, the answer and its opposite. What is left to learn is which place
    came first. Without this, some runs learned only along which line things move, which needs no order.

    `thinning` > 1 teaches the model to work with any number of frames. Each step divides the reader's max_frames and
    fps by a factor from 1 to `thinning`, log-uniform, and by `thinning` itself until step `coarse_steps`. `annotate`
    gives the batch's `scores`. `shard` (i, n): make only clips i, i + n, … of each batch, for one of n processes. A
    clip that cannot be read is replaced by another of its kind, and the reader lists it. Raises KeyError for a stage
    whose kind has no clip, VideoError if no clip at all can be read.
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
        tokenizer: AnyTokenizer = TOKENIZER,
        shard: tuple[int, int] = (0, 1),
        late: Sequence[str] = (),
    ):
        self.tokenizer, self.shard, self.late = tokenizer, shard, late
        self.clips, self.reader, self.seed = clips, reader, seed
        self.batch_size, self.questions, self.annotate = batch_size, questions, annotate
        self.thinning, self.coarse_steps = thinning, coarse_steps
        pools: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            pools.setdefault(clip.kind, []).append(i)
        self.tasks = list(dict.fromkeys(qa.task for clip in clips for qa in clip.qa))  # columns of a batch's `tasks`
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
            batches += order[:full].reshape(-1, self.batch_size).tolist()
        return batches[rng.permutation(per_epoch)[place]]

    def beyond(self, steps: int, count: int, workers: int = 0, pin: bool = False) -> Iterator[Batch]:
        """The batches of `count` steps after a run of `steps`, each of them whole, also for a shard."""
        whole = copy.copy(self)
        whole.shard = (0, 1)
        return whole.of(range(steps, steps + count), workers, pin)

    def of(self, steps: range, workers: int = 0, pin: bool = False) -> Iterator[Batch]:
        """The batches of these steps. `workers`: so many processes draw batches ahead. `pin`: into pinned memory. The
        workers are forks and share what is decoded already. They exist on Linux only, ignore Ctrl-C and SIGTERM, and
        end when the iterator is closed. Raises VideoError as `sampler(step)` does."""

        def draw(step: int) -> tuple:
            """In a worker: a batch or an error, and what the worker's reader could not read."""
            try:
                batch = self(step)
            except VideoError as error:
                batch = error
            return batch, self.reader.broken, self.reader.skipped

        if not workers or sys.platform != "linux":
            yield from map(self, steps)
            return
        # The data are the numbers of the steps. To collate one is to draw its batch. DataLoader draws a seed that is
        # never used. It has its own generator, because otherwise the scorer "random" would continue with other scores.
        for batch, broken, skipped in DataLoader(
            steps, batch_size=None, collate_fn=draw, num_workers=workers, pin_memory=pin, generator=torch.Generator(),
            multiprocessing_context="fork",
            worker_init_fn=lambda _: (follow_the_parent(), signal.signal(signal.SIGTERM, signal.SIG_IGN)),
        ):  # fmt: skip
            self.reader.broken |= broken
            self.reader.skipped |= skipped
            if isinstance(batch, VideoError):
                raise batch
            yield batch

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, 1, step))
        thin = self.thinning if step < self.coarse_steps else self.thinning ** rng.random()
        most = max(round(self.reader.max_frames / thin), 1)
        videos, branches, scores, tasks = [], [], [], []
        for place, number in enumerate(self.clip_numbers(step)):
            own = self._asked(self.clips[number], rng)  # of every clip, so that all shards draw alike
            if place % self.shard[1] == self.shard[0]:
                clip, video = self._readable(number, step, place)
                if clip is not self.clips[number]:
                    own = self._asked(clip, np.random.default_rng((self.seed, 4, step, place)))
                videos.append(video if thin == 1 else thinned(video, most, self.reader.fps / thin))
                scores.append(self.annotate(clip, videos[-1]) if self.annotate else None)
                branches.append([branch for branch, _ in own])
                tasks += [task for _, task in own]
        batch = collate(videos, branches, scores if self.annotate else None, self.tokenizer)
        return replace(batch, tasks=one_hot(torch.tensor(tasks, dtype=torch.long), len(self.tasks)).bool())

    def _asked(self, clip: Clip, rng: np.random.Generator) -> list[tuple[tuple[list[int], list[int]], int]]:
        """Questions about a clip, as ((prompt ids, answer ids), the number of the task)."""
        own = []
        for qa in self._choose(clip, rng):
            branch = self.tokenizer.prompt(qa.question, self._shown(clip, qa, rng)), self.tokenizer.encode(qa.answer)
            own.append((branch, self.tasks.index(qa.task)))
        return own

    def _shown(self, clip: Clip, qa: QA, rng: np.random.Generator) -> Sequence[str]:
        """The options that a question shows. Most show none."""
        if clip.kind == "brief" and qa.task == "direction" and qa.task in self.late:
            return _shuffled([qa.answer, world.OPPOSITES[qa.answer]], rng)
        return shown_options(qa, rng) if len(qa.options) > 1 and rng.random() < 1 / 3 else ()

    def _readable(self, number: int, step: int, place: int) -> tuple[Clip, Video]:
        """The clip with this number and its video. If that is broken: another clip of its kind, at random."""
        try:
            return self.clips[number], self.reader(self.clips[number])
        except VideoError as error:
            last = error
        alike = [n for n, clip in enumerate(self.clips) if clip.kind == self.clips[number].kind]
        for n in np.random.default_rng((self.seed, 3, step, place)).permutation(alike):
            try:
                return self.clips[n], self.reader(self.clips[n])
            except VideoError as error:
                last = error
        raise VideoError(f"none of the {len(alike)} training clips can be read. The last error: {last}")

    def _choose(self, clip: Clip, rng: np.random.Generator) -> list[QA]:
        shuffled = _shuffled(clip.qa, rng)
        first = list({q if q.task in self.late else q.task: q for q in shuffled}.values())
        rest = [q for q in shuffled if q not in first]
        chosen = (first + rest)[: self.questions]
        beyond = [q for q in rest if q.task == "enter" and q not in chosen]
        return chosen + (beyond if clip.kind == "brief" else [])
