"""Clips on disk: the toy world written as real MP4 files, and anybody's videos and pictures, as lines of JSON.

    {"video": path, "qa": [{"question", "answer", "options"?}], "start"?, "end"?}
    {"image": path, "qa": …}     {"images": [path, …], "qa": …}

Paths are relative to the file. `start` and `end` are seconds, and cut a part out of a longer video. A question without
options is judged by what the model says. One with options is judged by which of them the model finds most likely.
The world's own lines also name their scene ("kind", "split", "seed") and each question's task.

    prepare   writes clips of the world, with a JSON line for each
    load_clips   reads such a file, of the world or of your own
    normalised   says which texts are the same answer

What this file does not do: draw (`toy/drawing.py`), decode (`video.py`), make batches (`batches.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import reprlib
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from stts_mini.data.files import printable, require, utf8, write_text
from stts_mini.data.progress import Progress
from stts_mini.data.video import write_video
from stts_mini.toy import world
from stts_mini.toy.drawing import render

# names the world and its words, so that no checkpoint of another world is used by mistake
WORLD_ID = f"world {world.WORLD_VERSION}, words {hashlib.sha256(' '.join(world.words()).encode()).hexdigest()[:8]}"
SHOWN_OPTIONS = 4  # a question shows at most so many options
OPTION_SEED = 20  # decides what is asked about a test clip, and the order of the options
OWN = "own"  # the kind of a clip that is not of the world
FREE = "free"  # the task of its questions that have no options
LOG_COLUMNS = (  # of log.csv (training/logging.py), which has one for each task, too
    "step", "task_loss", "sim_loss", "accuracy", "grad_norm", "tokens", "seconds", "score_mean", "score_spread",
    "saturated", "correlation", "ties", "sim_gradient", "lm_gradient",
)  # fmt: skip


def normalised(text: str, lenient: bool = False) -> str:
    """A text in the form in which answers are compared. Letters are composed as in Unicode's NFC, so é is always one
    character. White space of any length becomes one space, and there is none at the ends. `lenient`: capitals and a
    full stop at the end do not count either.

    >>> normalised(" The  cafe\\u0301. "), normalised("The café.", lenient=True)
    ('The café.', 'the café')
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", re.sub(r" ?[.。]$", "", text.casefold())) if lenient else text


@dataclass(frozen=True)
class QA:
    """A question, its answer, and every answer that its wording allows. Without options, any text is allowed."""

    task: str
    question: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """A video file and what is asked about it. `kind`, `split` and `seed` name its scene in the world. A clip of your
    own has kind "own" and its line's number as seed. `start`, `end`: the part of the video, in seconds. None stands
    for the beginning and the end. `images`: one or several pictures instead of a video."""

    video: Path
    kind: str
    split: str
    seed: int
    qa: tuple[QA, ...]
    start: float | None = None
    end: float | None = None
    images: tuple[Path, ...] = ()

    @property
    def source(self) -> tuple:
        """What its pixels depend on."""
        return self.images or (self.video, self.start, self.end)


# --------------------------------------------------------------------------------------- the world


def _file_name(split: str, kind: str, seed: int) -> str:
    return f"{split}-{kind}-{seed:06d}.mp4"


def _make_clip(job: tuple[str, str, int], folder: Path, size: int, panels: int) -> dict:
    """Write one clip's MP4 unless it is there, and return its JSON line. Runs in worker processes."""
    split, kind, seed = job
    scene, path = world.make_scene(split, kind, seed, panels), folder / _file_name(*job)
    if not path.exists():
        write_video(path, render(scene, scene.times, size), fps=scene.fps)
    qa = [dict(task=q.task, question=q.text, answer=q.answer, options=q.options) for q in scene.questions]
    return dict(video=path.name, kind=kind, split=split, seed=seed, qa=qa)


def follow_the_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end when the parent ends, whatever ends it."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


def on_all_cores(function: Callable, jobs: Sequence) -> Iterator:
    """function(job) for every job, in order, by a process for each core. Few jobs run right here, because a process
    takes seconds to start. Raises RuntimeError if the processes cannot start or are killed."""
    if len(jobs) < 64:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ProcessPoolExecutor(min(cores, 32), context, follow_the_parent)
    try:
        yield from pool.map(function, jobs, chunksize=16)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died: out of memory, or it could not import the main script. A script that prepares"
            " or decodes clips must be a file, and do so under `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def index_file(
    root: str | os.PathLike, split: str, counts: dict[str, int], size: int, panels: int = world.MOST_PANELS
) -> Path:
    """Where the JSON lines of these clips are, or will be. The folder's name is part of their `fingerprint`."""
    fewer = f"-{panels}panels" * (panels < world.MOST_PANELS)
    name = "-".join(f"{kind}{count}" for kind, count in counts.items())
    return Path(root) / f"world-v{world.WORLD_VERSION}-{size}px{fewer}" / f"{split}-{name}.jsonl"


WORLD_FOLDER = (
    "--data {}: give a folder of the toy world's clips, an empty one, or your own list of videos, which ends in .jsonl"
)


def holds_worlds(root: str | os.PathLike) -> bool:
    """Whether a folder is for the toy world's clips: it is "data", has some, or has no files of yours."""
    names = [name for name in os.listdir(root) if not name.startswith(".") and name != "lost+found"]
    return Path(root).name == "data" or not names or any(name.startswith("world-v") for name in names)


def prepare(
    root: str | os.PathLike, split: str, counts: dict[str, int], size: int, panels: int = world.MOST_PANELS
) -> Path:
    """Make sure that a split of the toy world is on disk. Returns its JSON-lines file.

    counts: clips of each kind, e.g. {"short": 3000, "image": 400}. A clip is a pure function of
    (split, kind, seed, size, panels). So clips of an interrupted or smaller run are used again, and deleted ones are
    written anew. Raises ValueError for a folder of other files, unless it is "data".
    """
    index = index_file(root, split, counts, size, panels)
    folder = index.parent
    jobs = [(split, kind, seed) for kind, count in counts.items() for seed in range(count)]
    if index.exists() and {_file_name(*job) for job in jobs} <= set(os.listdir(folder)):
        return index
    require(not Path(root).is_dir() or holds_worlds(root), WORLD_FOLDER, root)
    folder.mkdir(parents=True, exist_ok=True)
    progress, lines = Progress(f"{split} clips → {folder}", len(jobs)), []
    for line in on_all_cores(functools.partial(_make_clip, folder=folder, size=size, panels=panels), jobs):
        lines.append(json.dumps(line))
        progress.update(len(lines))
    progress.close()
    write_text(index, "\n".join(lines) + "\n")
    return index


# ---------------------------------------------------------------------------------- lines of JSON


def parse_clip(line: str, number: int, folder: Path) -> Clip:
    """One line of JSON → a Clip. A clip of your own gets the line's number as its seed. Raises ValueError that says
    what is missing, unknown or of the wrong type.

    >>> line = '{"video": "a.mp4", "end": 9, "qa": [{"question": "who ?", "answer": "she", "options": ["he", "she"]}]}'
    >>> clip = parse_clip(line, 7, Path("films"))
    >>> clip.video.as_posix(), clip.seed, clip.end, clip.qa[0].task, clip.qa[0].options
    ('films/a.mp4', 7, 9.0, 'question', ('he', 'she'))
    """
    require(not line.startswith("\ufeff"), "a byte order mark (U+FEFF) begins this line: remove it")
    try:
        row = json.loads(utf8(line), object_pairs_hook=_object, parse_int=_int)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    except RecursionError:
        raise ValueError("not JSON of a clip: brackets within brackets without end") from None
    require(isinstance(row, dict), "a {}: give an object in curly brackets", type(row).__name__)
    unknown = sorted(set(row) - {"video", "image", "images", "qa", "start", "end", "kind", "split", "seed"})
    require(not unknown, "unknown: {}. A clip has video, image, images, qa, start, end", _listed(unknown))
    named = [name for name in ("video", "image", "images") if name in row]
    require(len(named) == 1, '{} of "video", "image" and "images": give one', len(named))
    paths = row["images"] if "images" in row else [row[named[0]]]
    good = isinstance(paths, list) and paths and all(isinstance(p, str) and p for p in paths)
    require(good, "{} = {}: give a path" + " or more, in square brackets" * ("images" in row), named[0], brief(paths))
    times = {name: row[name] for name in ("start", "end") if row.get(name) is not None}
    for name, value in times.items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
        require(good, "{} = {}: give seconds, 0 or more", name, brief(value))
        times[name] = float(value)
    require(not times or "video" in row, "start and end are for videos")
    start, end = times.get("start", 0.0), times.get("end", math.inf)
    require(start <= end, "start {} comes after end {}", start, end)
    split, kind, seed = scene = row.get("split", OWN), row.get("kind", OWN), row.get("seed", number)
    known = kind == split == OWN or (kind in tuple(world.TASKS) and split in world.SPLITS)
    known = known and type(seed) is int and seed >= 0
    due = "kind {1}, split {0}, seed {2} name no scene of the world: leave them out"
    require(known, due, *map(brief, scene))
    whole = "video" in row and not times and Path(paths[0]).name == _file_name(*scene)
    due = "kind, split and seed are for the whole of the world's {}: leave them out"
    require(kind == OWN or whole, due, _file_name(*scene))
    require(isinstance(row.get("qa"), list) and row["qa"], "no qa: give a list of at least one question and answer")
    qa, paths = tuple(_parse_qa(q, kind) for q in row["qa"]), tuple(folder / p for p in paths)
    judged = world.TASKS.get(kind, ())
    require(not judged or any(q.task in judged for q in qa), "no question of the tasks that {} is judged by", kind)
    return Clip(paths[0], kind, split, seed, qa, **times, images=() if "video" in row else paths)


def _object(pairs: list[tuple]) -> dict:
    """An object of JSON. Raises ValueError if a key comes twice."""
    row = dict(pairs)
    require(len(row) == len(pairs), "a name comes twice among {}: give each once", _listed(sorted(k for k, _ in pairs)))
    return row


def _int(digits: str) -> int:
    """A whole number of JSON. Raises ValueError for one that no clip needs, at which Python may stop."""
    require(len(digits) < 1000, "a number of {} digits: give a smaller one", len(digits))
    return int(digits)


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names))[:200]


class brief:
    """A value for an error message. It is cut short only when the message is written, because few lines have errors."""

    def __init__(self, value: object):
        self.value = value

    def __str__(self) -> str:
        return reprlib.repr(self.value)


def _parse_qa(q: dict, kind: str) -> QA:
    """One question of a line. ValueError as in `parse_clip`."""
    require(isinstance(q, dict), "a question is {}: give an object with question and answer", brief(q))
    unknown = sorted(set(q) - {"question", "answer", "options", "task"})
    require(not unknown, "unknown in a question: {}. It has question, answer, options", _listed(unknown))
    for name in ("question", "answer"):
        text = q.get(name, "")
        require(isinstance(text, str), "{} = {}: give a text, in quotation marks", name, brief(text))
        if not text.strip():
            raise ValueError(f"a question without {name}: {json.dumps(q)[:100]}")
    options = [] if q.get("options") is None else q["options"]
    good = isinstance(options, list) and all(isinstance(o, str) and o.strip() for o in options)
    require(good, "options = {}: give a list of texts", brief(options))
    question, answer, *options = (utf8(text).strip() for text in (q["question"], q["answer"], *options))
    same = [option for option in options if normalised(option) == normalised(answer)]
    require(not options or same, "the answer {} is not among its options {}", brief(answer), brief(options))
    require(len(set(map(normalised, options))) == len(options), "options = {}: an option comes twice", brief(options))
    task = q.get("task", "question")
    require(task not in LOG_COLUMNS, "task = {}: log.csv has a column of that name, so give another", task)
    good = isinstance(task, str) and task.strip() and task.isprintable()
    good = good and (kind != OWN or task not in (FREE, *world.GENERATED))  # these are judged without options
    require(good, "task = {}: give another name, or leave it out", brief(task))
    turns = kind != "brief" or task != "direction" or answer in world.OPPOSITES
    require(turns, "the direction {} in a brief clip: give one of {}", brief(answer), ", ".join(world.OPPOSITES))
    return QA(task if kind != OWN or len(options) > 1 else FREE, question, (same or [answer])[0], tuple(options))


def is_own(data: str) -> bool:
    """Whether --data names a list of your own clips (or the folder of the toy world's)."""
    return data.endswith(".jsonl")


def lines_of(index: Path) -> list[str]:
    """The lines of a file. As in all JSON lines, they end at a line feed and nowhere else, so not at U+2028. Bytes that
    are not UTF-8 stay as lone surrogates, and `parse_clip` refuses them. Raises ValueError for another kind of file."""
    require(is_own(index.name), "{}: a list of clips of your own ends in .jsonl: rename it", index)
    require(index.is_file() or not index.exists(), "{} is no regular file: give a file of JSON lines", index)
    raw = index.read_bytes()
    require(b"\0" not in raw, "{} is no UTF-8 text: save it as UTF-8", index)
    return raw.decode("utf-8-sig", "surrogateescape").split("\n")


def load_clips(index: str | os.PathLike, judged: bool = False) -> list[Clip]:
    """The clips of a JSON-lines file. Empty lines are counted and skipped. `judged`: the clips will judge a model.
    Raises ValueError that names a bad line's number, and for a file without any clip."""
    index, clips = Path(index), []
    for number, line in enumerate(lines_of(index), start=1):
        if line.strip():
            try:
                clips.append(parse_clip(line, number, index.parent))
            except ValueError as error:
                check = f"`python -m stts_mini.lab.check {index}` lists all such lines"
                raise ValueError(f"{index}, line {number} is not a clip: {error}; {check}") from error
            asked = not judged or world.TASKS.get(clips[-1].kind, True)
            require(asked, "{}, line {}: a {} clip judges nothing: leave it out", index, number, clips[-1].kind)
    require(clips, "{} holds no clip: give a line of JSON for each", index)
    return clips


def fingerprint(clips: Sequence[Clip]) -> str:
    """12 hex digits that change with any clip, question or answer. They are printed beside every result. Files of your
    own are named from the folder that holds them all, so that you may move it."""
    folders = sorted({c.video.parent.name for c in clips})  # world version, size and panels
    full = lambda path: os.path.splitdrive(os.path.abspath(path))[1]  # on Windows, drives have no common folder
    around = [os.path.dirname(full(path)) for c in clips if c.kind == OWN for path in (c.video, *c.images)]
    root = os.path.commonpath(around or ["."])
    place = lambda path: Path(os.path.relpath(full(path), root)).as_posix()
    own = [(place(c.video), c.start, c.end, [place(p) for p in c.images]) for c in clips if c.kind == OWN]
    text = f"{[(c.split, c.kind, c.seed, c.qa) for c in clips]} {WORLD_ID} {folders} {OPTION_SEED} {SHOWN_OPTIONS}"
    return hashlib.sha256((text + repr(own) * bool(own)).encode()).hexdigest()[:12]


def held_out(
    data: str | Path,
    size: int,
    clips: int,
    split: str = "test",
    kinds: Sequence[str] = tuple(world.TASKS),
    panels: int = world.MOST_PANELS,
) -> list[Clip]:
    """So many held-out clips of each kind that is judged. Missing ones are written first."""
    return load_clips(prepare(data, split, {kind: clips for kind in kinds if world.TASKS[kind]}, size, panels))
