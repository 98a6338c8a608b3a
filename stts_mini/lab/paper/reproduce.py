"""The paper's tables in miniature: train every row, judge it, and write each result as it comes.

    python -m stts_mini.lab.paper --base 0          the unpruned model that rows start from
    python -m stts_mini.lab.paper --table k         the rows of one table (and the bases, if need be)
    python -m stts_mini.lab.paper --all             everything that is still missing, in order
    python -m stts_mini.lab.paper --all --panels 0  the same in the world without distractors
    python -m stts_mini.lab.paper --table k --split val     on validation clips, into runs/val: to choose settings
    python -m stts_mini.lab.paper --scorer my_file.py:MyScorer --k 0.5      a scorer of yours, beside the others
    python -m stts_mini.lab.paper --table rivals            other published ways to prune, inference only (rivals/)
    python -m stts_mini.lab.paper --rival my_file.py:Mine   one of yours beside them

Every row fine-tunes the same unpruned base with the same clips and questions in the same order for the same
number of steps (another one if its method's name ends in it, as in `unpruned@100`), and is asked the same questions
about the same held-out clips: so rows compare pairwise. A
finished row is a JSON file in `tutorials/results/rows`: config, seed, commit, fingerprint of the test set, torch
version, and for each way of asking (at test time) every answer, right or wrong, in the order of the clips.
What is there is not run again; several of these commands may run side by side.

`tables.py` makes tables of the files.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stts_mini.data.batches import TOKENIZER, Reader, collate
from stts_mini.data.clips import WORLD_ID, Clip, fingerprint, held_out, load_clips, prepare
from stts_mini.data.files import require, writable, write_json
from stts_mini.data.video import Video
from stts_mini.eval import evaluate, evidence_per_cell, look_up, parse_k
from stts_mini.lab.paper.rivals.clock import timed
from stts_mini.lab.paper.rivals.known import RIVALS, applied, find_rival
from stts_mini.lab.paper.train import BASE, PaperConfig
from stts_mini.lab.speed.machine import commit
from stts_mini.model import VLM, Encoder
from stts_mini.packing import scaled_frames
from stts_mini.report.result import Result
from stts_mini.scorer import find_scorer
from stts_mini.toy import world
from stts_mini.toy.world import MOST_PANELS
from stts_mini.train import pick_device, train
from stts_mini.training import checkpoint
from stts_mini.training.config import PRESETS, SHIPPED
from stts_mini.training.health import Health

FRAMES = 32  # of a clip, in every row; its test-time scaled ceil(32 / (1 − k))
SEEDS = (0, 1, 2)
RESULTS = Path("tutorials/results")
BASES = 2  # row seed s starts from base s mod 2
# A base is trained in three runs: on few frames, on any number of them, on many; each at a rate of its own, for what is
# learned after the rate has died away is little. Each begins where the one before stopped.
AGAIN = dict(stages={}, coarse_steps=0, warmup=20, muon_lr=0.003, lr=1.5e-3)
BASE_RUNS = {
    "few": {},
    "wide": dict(AGAIN, steps=1000, thinning=5.0),  # 13 to 64 frames
    "many": dict(AGAIN, steps=900, thinning=2.5),  # 26 to 64
}
# Of all rows, and of the main command's preset: one recipe.
RECIPE = {**PRESETS["paper"], "thinning": 1.0, "coarse_steps": 0, "save_every": 1000}
HEALTH = ("score_mean", "score_spread", "saturated", "correlation", "ties")  # of Health; the others are gradients


@dataclass(frozen=True)
class Row:
    """One trained model: by this method (a key of METHODS, or a scorer's name), at this k, from base `seed` mod
    BASES, in the world with so many panels. A key may end in @ and a number of steps, instead of the recipe's.
    A rival at k = 0 is not trained: the unpruned row's model is asked with it (`asked`)."""

    method: str
    k: float
    seed: int
    panels: int = MOST_PANELS

    @property
    def name(self) -> str:
        """The result's file name, without its end; a scorer of yours is known by its class."""
        fewer = f"-panels{self.panels}" * (self.panels < MOST_PANELS)
        return f"{self.method.rpartition(':')[2]}-k{round(100 * self.k)}-seed{self.seed}{fewer}"

    @property
    def young(self) -> bool:
        """Whether it starts from a base as it is after its first run."""
        return self.method.startswith("young-")

    @property
    def asked(self) -> bool:
        """Whether the method only asks, and the model is the unpruned row's."""
        return self.k == 0 and (self.method in ASKED or self.method in RIVALS)

    def config(self, data: str, init: Path) -> PaperConfig:
        """All settings of the run. Raises ValueError for a method that cannot be trained."""
        if self.asked:
            return dataclasses.replace(self, method="unpruned").config(data, init)
        method, steps = parted(self.method)
        inside = getattr(RIVALS.get(method), "gone_from", "packed") == "llm"
        require(not inside, f"{method} prunes inside the LLM: it is asked, at k = 0, and not trained")
        k, settings = self.k, {**METHODS.get(method, {**STTS, "scorer": method}), **({"steps": steps} if steps else {})}
        if method in ("frames", "young-frames"):  # the budget as fewer frames
            k, settings["max_frames"] = 0.0, math.ceil(round(FRAMES * (1 - self.k), 6))
        if method == "saliency-few":
            settings["max_frames"] = FRAMES // 2
        if method in ("saliency-many", "unpruned-range", "saliency-range"):
            settings["max_frames"] = 2 * FRAMES
        if method == "resolution":  # the budget as fewer cells in a frame: 4 of 9, or 1
            k, settings["image_size"] = 0.0, 32 if self.k <= 0.6 else 16
        own = dict(data=data, init=str(init), out=str(Path("runs") / "rows" / self.name), k=k, seed=self.seed)
        own["panels"] = self.panels
        return PaperConfig(**{**BASE, **RECIPE, **settings, **own})


STTS = dict(scorer="stts")  # the paper's two teachers
SALIENCY = dict(scorer="stts", sim_weight=0.0, scorer_lr_ratio=5.0, saliency_steps=60)  # the third: see saliency.py
METHODS = {  # what a row's method means, as settings of the training run
    "unpruned": dict(scorer="stts"),
    "stts": dict(STTS),
    "saliency": dict(SALIENCY, spread=0.3),
    "saliency-plain": dict(SALIENCY),
    "saliency-deeper": dict(SALIENCY, spread=0.3, score_after=1),
    "saliency-deepest": dict(SALIENCY, spread=0.3, score_after=2),
    "saliency-few": dict(SALIENCY, spread=0.3),  # on half of the frames
    "saliency-many": dict(SALIENCY, spread=0.3),  # on twice the frames
    "unpruned-range": dict(scorer="stts", thinning=4.0),  # on half of the frames to twice the frames, so that no
    "saliency-range": dict(SALIENCY, spread=0.3, thinning=4.0),  # number of them is new when it is asked
    "elastic": dict(SALIENCY, spread=0.3, elastic=True),
    "cosine-spread": dict(scorer="cosine", spread=0.3),
    "deeper": dict(STTS, score_after=1),
    "deepest": dict(STTS, score_after=2),  # two packed blocks are left: the connector must read another one
    "random": dict(scorer="random"),
    "cosine": dict(scorer="cosine"),
    "no-aux": dict(STTS, sim_weight=0.0),
    "no-bias": dict(STTS, bias="none"),
    "oracle": dict(scorer="random"),  # `oracle` below takes its place
    **{name: dict(scorer="random") for name in RIVALS},  # as do these encoders
    "frames": dict(scorer="stts"),
    "resolution": dict(scorer="stts"),
    "blind": dict(scorer="stts", blind=True),
    "young-unpruned": dict(scorer="stts"),  # from a base after its first run, so that there is much to learn yet
    "young-saliency": dict(SALIENCY, spread=0.3),
    "young-cosine": dict(scorer="cosine"),
    "young-random": dict(scorer="random"),
    "young-frames": dict(scorer="stts"),
}


ASKED = (*RIVALS, "cosine", "random")  # these, at inference only, are the rows of the table of rivals
TRAINED = ("evs", "visionzip", "vidcom2", "divprune", "rlt", "dycoke")  # and these are trained, too


def parted(method: str) -> tuple[str, int | None]:
    """A row's method, and its own number of steps.

    >>> parted("unpruned@100"), parted("stts"), parted("stts@1.py:Mine")
    (('unpruned', 100), ('stts', None), ('stts@1.py:Mine', None))
    """
    name, _, steps = method.rpartition("@")
    return (name, int(steps)) if name in METHODS and steps.isdecimal() and int(steps) else (method, None)


def oracle(clip: Clip, video: Video) -> np.ndarray:
    """A scorer that knows which cells hold something that an answer depends on; among those, and among the others,
    chance decides (the same for a clip at every step: a spread over all frames, not a best choice)."""
    some = sum(evidence_per_cell(clip, video, 3).values()) > 0  # (T, C)
    luck = np.random.default_rng((clip.seed, list(world.TASKS).index(clip.kind), len(some))).random(some.shape)
    return 0.5 * some + 0.5 * luck


def taught_by(method: str) -> dict:
    """What a method gives to `train` and `evaluate`, beside settings."""
    name = parted(method)[0]
    return dict(annotate=oracle) if name == "oracle" else dict(encoder=RIVALS[name]) if name in RIVALS else {}


TABLES = ("k", "methods", "frames", "elastic", "depth", "clock", "rivals", "rivals-trained")


def rows_of(table: str) -> list[Row]:
    """The rows that a table needs, the most important first."""
    ladder = [Row("unpruned", 0.0, s) for s in SEEDS]
    three = ("saliency", "stts", "random")
    ladder += [Row(m, k, s) for k in (0.8, 0.5, 0.9) for m in three for s in SEEDS]
    if table == "k":
        return ladder + [Row(m, k, 0) for k in (0.3, 0.4, 0.6, 0.7) for m in three]
    if table == "methods":
        bold = [Row("cosine", k, s) for k in (0.8, 0.5) for s in SEEDS]
        others = ("cosine-spread", "saliency-plain", "no-aux", "no-bias", "oracle", "tome", "frames", "resolution")
        others = [Row(m, k, 0) for k in (0.8, 0.5) for m in others] + [Row(m, 0.9, 0) for m in ("oracle", "cosine")]
        pruned = [row for row in ladder if row.k in (0.0, 0.5, 0.8)]
        return [*pruned, *bold, *others, Row("blind", 0.0, 0)]
    if table == "frames":  # more of them at test time
        scaled = [Row(m, 0.5, s) for m in ("saliency-few", "frames") for s in SEEDS]
        many = [Row("saliency-many", 0.9, 0)]
        many += [Row(m, k, s) for s in SEEDS for m, k in (("unpruned-range", 0.0), ("saliency-range", 0.5))]
        return [*ladder[:3], *(row for row in ladder if row.k == 0.5 and row.method != "random"), *scaled, *many]
    if table == "depth":  # the paper's Figure 6
        depths = [f"{m}{deep}" for m in ("", "saliency-") for deep in ("deeper", "deepest")]
        plain = Row("deepest", 0.0, 0)  # what the other connector alone does
        return [ladder[0], plain, *(Row(m, 0.5, 0) for m in ("stts", "saliency", *depths))]
    if table == "elastic":
        return [ladder[0], Row("elastic", 0.9, 0), *(Row("saliency", k, 0) for k in (0.3, 0.5, 0.8, 0.9))]
    if table == "rivals":
        return [Row(m, 0.0, 0) for m in ASKED]
    if table == "rivals-trained":
        return [Row(m, k, 0) for k in (0.5, 0.8) for m in TRAINED]
    if table == "clock":  # shorter and longer runs: against the time they take
        plain = [ladder[0], *(Row(m, k, 0) for k in (0.8, 0.9) for m in ("saliency", "cosine"))]
        longer = [Row(f"{m}@800", k, 0) for k, m in ((0.8, "saliency"), (0.9, "saliency"), (0.8, "cosine"))]
        longer += [Row("saliency@800", 0.8, 1), Row("saliency@800", 0.8, 2)]
        longer += [Row("saliency-many", 0.9, 0), *(Row("saliency-many@800", 0.9, s) for s in (0, 1))]
        shorter = [Row("unpruned@100", 0.0, 0), Row("unpruned@200", 0.0, 0), Row("saliency@200", 0.8, 0)]
        young = [Row(m, k, s) for s in (0, 2, 1) for m, k in (("young-unpruned", 0.0), ("young-saliency@500", 0.5))]
        same = (
            ("young-cosine@600", 0.5),
            ("young-random@600", 0.5),
            ("young-frames@750", 0.5),
            ("young-saliency@800", 0.8),
        )
        young += [Row(m, k, 0) for m, k in same]  # each for about the same time
        young += [Row("young-unpruned@500", 0.0, 0)]  # but this one, which has as many steps as a pruned one
        return [*plain, *longer, *shorter, *young]
    raise ValueError(f"table {table!r}: know {', '.join(TABLES)}")


@dataclass(frozen=True)
class Asking:
    """A way to ask a trained model: at this k, of this many frames of this size, the cells chosen by this method."""

    k: float
    method: str
    max_frames: int
    size: int = 48


def askings(row: Row) -> dict[str, Asking]:
    """How a row's model is asked at test time: as trained; with more frames; an unpruned one in many ways."""
    if row.asked:
        return {f"inference only, k = {k}": Asking(k, row.method, FRAMES) for k in (0.5, 0.8)}
    config = row.config("", Path())
    ways = {"as trained": Asking(config.k, row.method, config.max_frames, config.image_size)}
    if row.method == "unpruned":  # not its shorter runs: they are there for one comparison
        if row.panels == MOST_PANELS:
            ways |= {f"{n} frames": Asking(0.0, "unpruned", n) for n in (1, 8, 16, 64)}
        for k, name in itertools.product((0.5, 0.8), ("cosine", "random", "tome")):
            ways[f"{name}, inference only, k = {k}"] = Asking(k, name, FRAMES)
    elif row.method == "stts" and row.k <= 0.5:
        ways["scaled"] = Asking(row.k, "stts", scaled_frames(FRAMES, row.k))
    elif row.method in ("saliency", "saliency-few") and row.k <= 0.5:
        ways["scaled"] = Asking(row.k, row.method, scaled_frames(config.max_frames, row.k))
    elif row.method == "saliency" and row.k >= 0.8:  # twice the frames are still few tokens
        ways["scaled"] = Asking(row.k, "saliency", 2 * FRAMES)
    elif row.method.endswith("-range"):
        fewer = {"half the frames": FRAMES // 2, "other rows' frames": FRAMES}
        ways |= {name: Asking(row.k, row.method, n) for name, n in fewer.items()}
    elif row.method == "elastic":
        ways |= {f"k = {k}": Asking(k, "elastic", FRAMES) for k in (0.0, 0.3, 0.5, 0.8)}
    return ways


class Lab:
    """Data that all rows of one dial share, decoded once: training clips and held-out clips, at each number of frames;
    and what the held-out questions are worth without any video."""

    def __init__(self, data: str, clips: int, device: torch.device, panels: int = MOST_PANELS, split: str = "test"):
        self.data, self.device = data, device
        self.config = PaperConfig(**{**BASE, **RECIPE, "data": data, "panels": panels})
        size = self.config.video_size
        self.test = held_out(data, size, clips, split, panels=panels)
        self.readers: dict[tuple[int, int], Reader] = {}
        self.train = load_clips(prepare(data, "train", self.config.train_counts, size, panels))
        self.look_up = look_up(self.train, self.test)

    def reader(self, max_frames: int, size: int) -> Reader:
        """One for each number of frames and size."""
        if (max_frames, size) not in self.readers:
            self.readers[max_frames, size] = Reader(max_frames, size, self.config.fps, cache_gb=6.0)
        return self.readers[max_frames, size]

    def ask(self, model: VLM, way: Asking, seed: int) -> Result:
        """Every test question, one way; `seed`: of the random scorer."""
        torch.manual_seed(seed)
        given = taught_by(way.method).get("annotate")
        with asked_with(parted(way.method)[0], model) as (asked, encode):
            reader = self.reader(way.max_frames, way.size)
            return evaluate(asked, self.test, reader, way.k, encode, generate=False, annotate=given)

    def timed(self, model: VLM, way: Asking) -> dict:
        """What this way saves on the first four long clips, one question each: see `rivals/clock.py`."""
        clips, reader = [clip for clip in self.test if clip.kind == "watch"][:4], self.reader(way.max_frames, way.size)
        batches = [collate([reader(c)], [[(TOKENIZER.prompt(c.qa[0].question), [])]]).to(self.device) for c in clips]
        with asked_with(way.method, model) as (asked, encode):
            return timed(model, asked, encode, way.k, batches)


@contextmanager
def asked_with(method: str, model: VLM) -> Iterator[tuple[VLM, Encoder | None]]:
    """The model and the encoder that answer by this method; a scorer without weights stands in until the block ends."""
    own = model.scorer
    if method in RIVALS:
        yield applied(method, model)
        return
    if method in ("cosine", "random"):
        model.scorer = find_scorer(method)(model.config.scorer).to(next(model.parameters()).device)
    try:
        yield model, model.encode_blind if method == "blind" else None
    finally:
        model.scorer = own


def base_checkpoint(folder: Path, seed: int, young: bool = False) -> Path:
    """Where the unpruned model with this seed is, or will be; `young`: as it is after the first of its runs."""
    path = folder / (f"base{seed}-{next(iter(BASE_RUNS))}.pt" if young else f"base{seed}.pt")
    shipped = SHIPPED / path.name  # with the package, for the main command starts from it, too
    return shipped if folder == RESULTS and shipped.exists() else path


def train_base(folder: Path, data: str, seed: int, device: torch.device, young: bool = False) -> Path:
    """Train an unpruned model from nothing, in the runs of BASE_RUNS, or the first of them (what was begun is resumed);
    keep its weights in half precision, small enough for a repository."""
    path = base_checkpoint(folder, seed, young)
    if path.exists():
        return path
    with claimed(Path("runs") / f"base{seed}.lock", wait=True):
        if path.exists():  # another process has made it meanwhile
            return path
        init = ""
        for name in list(BASE_RUNS)[: 1 if young else None]:
            init = str(base_run(name, init, data, seed, device))
        ship(Path(init), path)
    return path


def base_run(name: str, init: str, data: str, seed: int, device: torch.device) -> Path:
    """One run of BASE_RUNS, from the checkpoint `init`; returns its own."""
    out = Path("runs") / f"base{seed}-{name}"
    order = seed + 100 * (name == "many")  # the clips of "wide" once more, in another order
    own = dict(data=data, out=str(out), init=init, seed=order)
    config = PaperConfig(**{**BASE, **BASE_RUNS[name], **own})
    train(config, (out / "checkpoint.pt").exists(), device)
    return out / "checkpoint.pt"


def ship(run: Path, path: Path) -> None:
    """A finished run's weights alone, in half precision: small enough for a repository. Raises ValueError for a run
    that has not ended."""
    model, state = checkpoint.load_model(run)
    rest = {name: state[name] for name in ("step", "train_config", "world", "scorer_file") if name in state}
    if rest["step"] < (steps := rest["train_config"]["steps"]):
        raise ValueError(f"{run} is at step {rest['step']} of {steps}: let it end first")
    short = {name: "/".join(Path(rest["train_config"][name]).parts[-2:]) for name in ("data", "out", "init")}
    rest["train_config"] = {**rest["train_config"], **short}  # without the machine's folders
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, model.half(), **rest)


def run_row(row: Row, lab: Lab, folder: Path) -> dict:
    """Fine-tune from the row's base, ask, and return what the JSON file holds."""
    base = base_checkpoint(folder, row.seed % BASES, row.young)
    config = row.config(lab.data, base)
    with claimed(Path(f"{config.out}.lock"), wait=True) if row.asked else nullcontext():
        model, took = trained_model(row, lab, config)
    return dict(
        row=dataclasses.asdict(row), base=row.seed % BASES,
        base_sha256=sha256(base), device=lab.device.type, look_up=lab.look_up,
        config=settings_of(dataclasses.asdict(config)), commit=commit(), torch=torch.__version__,
        threads=torch.get_num_threads(), fingerprint=fingerprint(lab.test), **took, asked=ask_all(row, model, lab),
    )  # fmt: skip


def trained_model(row: Row, lab: Lab, config: PaperConfig) -> tuple[VLM, dict]:
    """The row's model, and how long it was trained. A row that only asks takes the unpruned row's as it is in `runs`,
    if it is finished, and of this base, world, clips and settings. Any other run there is moved aside by `train`."""
    path = Path(config.out) / "checkpoint.pt"
    if row.asked and path.exists():
        model, state = checkpoint.load_model(path, lab.device)
        had, now = (settings_of(of) for of in (state["train_config"], dataclasses.asdict(config)))
        init, end = Path(state["train_config"]["init"]), (config.steps, WORLD_ID, fingerprint(lab.train))
        same = end == tuple(map(state.get, ("step", "world", "clips"))) and all(now.get(n) == x for n, x in had.items())
        if same and init.is_file() and sha256(init) == sha256(Path(config.init)):
            return model, {}
    reader = lab.reader(config.max_frames, config.image_size)
    if undecoded := [clip for clip in lab.train if clip.source not in reader.cache and reader.room > 0]:
        reader.preload(undecoded)  # first: what is timed is training
    began, cpu = time.monotonic(), time.process_time()
    model = train(config, False, lab.device, reader, **({} if row.asked else taught_by(row.method)))
    seconds = dict(train_seconds=time.monotonic() - began, cpu_seconds=time.process_time() - cpu)
    return model, {name: round(x, 1) for name, x in seconds.items() if not row.asked}


def ask_all(row: Row, model: VLM, lab: Lab) -> dict[str, dict]:
    """Scores of a row's model, for each way of asking it; and what the way saves, of a row that only asks."""
    times = lambda way: lab.timed(model, way) if row.asked else {}
    return {name: scores_of(lab.ask(model, way, row.seed), way) | times(way) for name, way in askings(row).items()}


def sha256(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def settings_of(config: Mapping) -> dict:
    """A run's settings, without the machine's folders, which are not the row's; as JSON has them."""
    return json.loads(json.dumps({name: x for name, x in config.items() if name not in ("data", "init", "out")}))


def scores_of(result: Result, way: Asking) -> dict:
    """A result as plain values: the accuracies, and each answer of each task as 0 or 1, in the order of the clips;
    vision tokens kept, of all videos together (None: pruned inside the LLM); the share of evidence kept, where cells
    are kept or not (nothing merged) and all frames are there: of all, and of each question of a video as one digit, 3
    for 30% to below 40% (9: to 100%), or - where it has no evidence; and the health of a learned scorer on these
    clips, as in log.csv."""
    tasks = list(result.correct["choice"])
    health, method = Health.of(result.health), parted(way.method)[0]
    merges = getattr(RIVALS.get(method), "merges", False)
    judged = not merges and (way.max_frames, way.size) == (FRAMES, 48) and result.evidence
    return dict(
        **dataclasses.asdict(way),
        accuracy={t: round(result.accuracy(t), 4) for t in tasks},
        answers={t: "".join(str(right) for _, right in result.answers(t)) for t in tasks},
        chance={t: round(float(np.mean(result.chance[t])), 4) for t in tasks},
        tokens=result.kept if result.kept or method == "blind" else None,
        evidence_kept=round(result.evidence_kept(), 4) if judged else None,
        kept_deciles={
            t: "".join("-" if (x := shares[n]) is None else str(min(int(10 * x), 9)) for n, _ in result.answers(t))
            for t, shares in (result.shares.items() if judged else ())
        },
        health=health and {n: None if math.isnan(x := getattr(health, n)) else round(x, 4) for n in HEALTH},
    )


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether nobody else is at work on this file (`wait`: until nobody is); the claim ends with the process that
    holds it."""
    import fcntl  # not on Windows: there, run one command at a time

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.paper", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--base", type=int, metavar="SEED", help="train the unpruned model with this seed")
    what.add_argument("--table", choices=TABLES, help="train what is missing of one table")
    what.add_argument("--all", action="store_true", help="train whatever is missing")
    what.add_argument("--rival", metavar="NAME", help="ask with one of rivals/, or with FILE.py:CLASS of yours")
    what.add_argument("--scorer", metavar="FILE.py:CLASS", help="train a scorer of yours, with three seeds")
    parser.add_argument("--ship", metavar="ROW", help="keep a finished row's weights beside the bases")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="only rows of these seeds")
    parser.add_argument("--k", type=parse_k, default=0.5, help="with --scorer: the share of cells to remove")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of bases and rows")
    parser.add_argument("--data", default="data", help="folder of the prepared clips")
    parser.add_argument("--panels", type=int, choices=range(MOST_PANELS + 1), default=MOST_PANELS, help="the dial")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips of each kind")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which; val writes to runs/val")
    args = parser.parse_args(argv)
    if args.base is None and not (args.table or args.all or args.scorer or args.rival or args.ship):
        parser.error("give --base, --table, --all, --scorer, --rival or --ship")
    if args.k != 0.5 and not args.scorer:
        parser.error("--k goes with --scorer alone: rivals are asked at k = 0.5 and 0.8, tables have their own")
    device = pick_device("auto")
    try:
        if args.scorer:
            find_scorer(args.scorer)
        if args.rival:
            find_rival(args.rival)
        if args.ship:
            return ship(Path("runs") / "rows" / args.ship / "checkpoint.pt", args.results / f"{args.ship}.pt")
        for seed in sorted({seed % BASES for seed in args.seeds}) if args.base is None else [args.base]:
            base = train_base(args.results, args.data, seed, device)
        if args.base is not None:
            return print(f"{base} is there")
        if args.scorer or args.rival:
            rows = [Row(args.scorer or args.rival, 0.0 if args.rival else args.k, s, args.panels) for s in args.seeds]
        else:
            tables = [args.table] if args.table else TABLES
            rows = dict.fromkeys(row for table in tables for row in rows_of(table) if row.seed in args.seeds)
            rows = [dataclasses.replace(row, panels=args.panels) for row in rows]
        lab = Lab(args.data, args.clips, device, args.panels, args.split)
        for row in rows:
            path = (args.results / "rows" if args.split == "test" else Path("runs/val")) / f"{row.name}.json"
            with claimed(Path("runs") / "rows" / f"{row.name}.lock") as mine:
                if path.exists():
                    other = json.loads(path.read_text()).get("row", {}).get("method", row.method)
                    if other != row.method:  # two files with a class of one name
                        raise ValueError(f"{path} is the row of {other}: move it, or rename your class")
                if path.exists() or not mine:
                    continue
                print(f"row {row.name}", flush=True)
                train_base(args.results, args.data, row.seed % BASES, device, row.young)
                writable(path)  # better known now than after the work
                write_json(path, run_row(row, lab, args.results))
        print(f"{len(rows)} rows: all there, but for what another process is making")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
