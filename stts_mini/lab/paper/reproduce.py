"""The paper's tables in miniature: train every row, judge it, and write each result as it comes.

    python -m stts_mini.lab.paper --base 0          the unpruned model that rows start from
    python -m stts_mini.lab.paper --table k         the rows of one table (and the bases, if need be)
    python -m stts_mini.lab.paper --all             everything that is still missing, in order
    python -m stts_mini.lab.paper --all --panels 0  the same in the world without distractors
    python -m stts_mini.lab.paper --table k --split val     on validation clips, into runs/val: to choose settings
    python -m stts_mini.lab.paper --scorer my_file.py:MyScorer --k 0.5      your own scorer, beside the others
    python -m stts_mini.lab.paper --table rivals            other ways to prune, inference only (rivals/)
    python -m stts_mini.lab.paper --rival my_file.py:Mine   your own beside them

Every row fine-tunes the same unpruned base, with the same clips and questions in the same order. It trains for the same
number of steps, unless its method's name ends in another one, as in `unpruned@100`. All rows are asked the same
questions about the same held-out clips, so they compare pairwise. `rows.py` says which rows there are.

A finished row is a JSON file in `tutorials/results/rows`. It holds the config, the seed, the commit, the fingerprint of
the test set and the torch version. For each way of asking it also holds every answer, right or wrong, in the order of
the clips. What is there is not run again. Several of these commands may run side by side. `tables.py` makes tables of
the files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from stts_mini.lab.paper.rows import BASES, SEEDS, TABLES, Asking, Row, askings, parted
from stts_mini.lab.paper.train import BASE, PaperConfig
from stts_mini.lab.speed.machine import commit
from stts_mini.model import VLM, Encoder
from stts_mini.report.result import Result
from stts_mini.scorer import find_scorer
from stts_mini.toy import world
from stts_mini.toy.world import MOST_PANELS
from stts_mini.train import pick_device, train
from stts_mini.training import checkpoint
from stts_mini.training.config import SHIPPED
from stts_mini.training.health import Health
from stts_mini.training.logging import one_line_errors, parser_of

RESULTS = Path("tutorials/results")
# A base is trained in three runs: on few frames, on any number of them, on many. Each begins where the one before
# stopped. Each has a rate of its own, because little is learned after the rate has died away.
AGAIN = dict(stages={}, coarse_steps=0, warmup=20, muon_lr=0.003, lr=1.5e-3)
BASE_RUNS = {
    "few": {},
    "wide": dict(AGAIN, steps=1000, thinning=5.0),  # 13 to 64 frames
    "many": dict(AGAIN, steps=900, thinning=2.5),  # 26 to 64
}
HEALTH = ("score_mean", "score_spread", "saturated", "correlation", "ties")  # of Health; the others are gradients


def oracle(clip: Clip, video: Video) -> np.ndarray:
    """A scorer that knows which cells hold something that an answer depends on: scores (T, C). It chooses at random
    among those, and among the others. A clip has the same scores at every step. Over all frames they are spread by
    chance, so this is not the best choice there could be."""
    some = sum(evidence_per_cell(clip, video, 3).values()) > 0  # (T, C)
    rng = np.random.default_rng((clip.seed, list(world.TASKS).index(clip.kind), len(some)))
    return 0.5 * some + 0.5 * rng.random(some.shape)


def given_to(method: str) -> dict:
    """What a method gives to `train` and `evaluate`, beside settings."""
    name = parted(method)[0]
    return dict(annotate=oracle) if name == "oracle" else dict(encoder=RIVALS[name]) if name in RIVALS else {}


class Lab:
    """What all rows with one number of panels share: training clips, held-out clips, and readers, which decode a clip
    once. `reader(frames, size)` is the one for so many frames. `look_up` is what the held-out questions are worth
    without any video."""

    def __init__(self, data: str, clips: int, device: torch.device, panels: int = MOST_PANELS, split: str = "test"):
        self.data, self.device = data, device
        self.config = Row("unpruned", 0.0, 0, panels).config(data, Path())
        size = self.config.video_size
        self.test = held_out(data, size, clips, split, panels=panels)
        self.reader = functools.cache(lambda frames, size: Reader(frames, size, self.config.fps, cache_gb=6.0))
        self.train = load_clips(prepare(data, "train", self.config.train_counts, size, panels))
        self.look_up = look_up(self.train, self.test)

    def ask(self, model: VLM, way: Asking, seed: int) -> Result:
        """Every test question, one way. `seed` is the random scorer's."""
        torch.manual_seed(seed)
        given, reader = given_to(way.method).get("annotate"), self.reader(way.max_frames, way.size)
        with asked_with(way.method, model) as (asked, encode):
            return evaluate(asked, self.test, reader, way.k, encode, generate=False, annotate=given)

    def timed(self, model: VLM, way: Asking) -> dict:
        """What this way saves on the first four long clips, one question each: see `rivals/clock.py`."""
        clips, reader = [clip for clip in self.test if clip.kind == "watch"][:4], self.reader(way.max_frames, way.size)
        batches = [collate([reader(c)], [[(TOKENIZER.prompt(c.qa[0].question), [])]]).to(self.device) for c in clips]
        with asked_with(way.method, model) as (asked, encode):
            return timed(model, asked, encode, way.k, batches)


@contextmanager
def asked_with(method: str, model: VLM) -> Iterator[tuple[VLM, Encoder | None]]:
    """The model and the encoder that answer by this method. A scorer without weights takes the place of the model's own
    until the block ends."""
    own, method = model.scorer, parted(method)[0]
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
    """Where the unpruned model with this seed is, or will be. `young`: after the first of its runs."""
    path = folder / (f"base{seed}-{next(iter(BASE_RUNS))}.pt" if young else f"base{seed}.pt")
    shipped = SHIPPED / path.name  # with the package, for the main command starts from it, too
    return shipped if folder == RESULTS and shipped.exists() else path


def train_base(folder: Path, data: str, seed: int, device: torch.device, young: bool = False) -> Path:
    """Train an unpruned model from nothing, in the runs of BASE_RUNS, or only the first of them if `young`. A run that
    was begun is resumed. Returns the file of its weights."""
    path = base_checkpoint(folder, seed, young)
    if path.exists():
        return path
    with claimed(Path("runs") / f"base{seed}.lock", wait=True):
        if path.exists():  # another process has made it meanwhile
            return path
        init = ""
        for name in list(BASE_RUNS)[: 1 if young else None]:
            out = Path("runs") / f"base{seed}-{name}"
            order = seed + 100 * (name == "many")  # the clips of "wide" once more, in another order
            own = dict(data=data, out=str(out), init=init, seed=order)
            init = str(out / "checkpoint.pt")
            train(PaperConfig(**{**BASE, **BASE_RUNS[name], **own}), Path(init).exists(), device)
        ship(Path(init), path)
    return path


def ship(run: Path, path: Path) -> None:
    """Write a finished run's weights alone, in half precision: small enough for a repository. Raises ValueError for a
    run that has not ended."""
    model, state = checkpoint.load_model(run)
    rest = {name: state[name] for name in ("step", "train_config", "world", "scorer_file") if name in state}
    require(
        rest["step"] >= (steps := rest["train_config"]["steps"]),
        f"{run} is at step {rest['step']} of {steps}: let it end first",
    )
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
        row=dataclasses.asdict(row), own_file=own_file(row), base=row.seed % BASES,
        base_sha256=checkpoint.digest_of(base, 16), device=lab.device.type, look_up=lab.look_up,
        config=settings_of(dataclasses.asdict(config)), commit=commit(), torch=torch.__version__,
        threads=torch.get_num_threads(), fingerprint=fingerprint(lab.test), **took, asked=ask_all(row, model, lab),
    )  # fmt: skip


def own_file(row: Row) -> str | None:
    """A digest of the file that holds your own scorer or rival. None for ours."""
    return checkpoint.contents(row.method) if ":" in row.method else None


def trained_model(row: Row, lab: Lab, config: PaperConfig) -> tuple[VLM, dict]:
    """The row's model, and how long it was trained. A row that only asks takes the unpruned row's model from `runs`, if
    it is finished, and of this base, world, clips and settings. `train` moves any other run there aside."""
    path = Path(config.out) / "checkpoint.pt"
    if row.asked and path.exists():
        model, state = checkpoint.load_model(path, lab.device)
        had, now = (settings_of(of) for of in (state["train_config"], dataclasses.asdict(config)))
        init, end = Path(state["train_config"]["init"]), (config.steps, WORLD_ID, fingerprint(lab.train))
        same = end == tuple(map(state.get, ("step", "world", "clips"))) and all(now.get(n) == x for n, x in had.items())
        if same and init.is_file() and checkpoint.digest_of(init) == checkpoint.digest_of(Path(config.init)):
            return model, {}
    reader = lab.reader(config.max_frames, config.image_size)
    if undecoded := [clip for clip in lab.train if clip.source not in reader.cache and not reader.full]:
        reader.preload(undecoded)  # first: what is timed is training
    began, cpu = time.monotonic(), time.process_time()
    model = train(config, False, lab.device, reader, **({} if row.asked else given_to(row.method)))
    took = round(time.monotonic() - began, 1), round(time.process_time() - cpu, 1)
    return model, {} if row.asked else dict(zip(("train_seconds", "cpu_seconds"), took, strict=True))


def ask_all(row: Row, model: VLM, lab: Lab) -> dict[str, dict]:
    """Scores of a row's model, for each way of asking it. Of a row that only asks, also what each way saves."""
    times = lambda way: lab.timed(model, way) if row.asked else {}
    return {name: scores_of(lab.ask(model, way, row.seed), way) | times(way) for name, way in askings(row).items()}


def settings_of(config: Mapping) -> dict:
    """A run's settings as JSON has them, without the machine's folders."""
    return json.loads(json.dumps({name: x for name, x in config.items() if name not in ("data", "init", "out")}))


def scores_of(result: Result, way: Asking) -> dict:
    """A result as plain values.

    accuracy, chance   {task: share}
    answers        {task: a digit for each clip, 1 if the answer is right, else 0}
    tokens         vision tokens kept, of all videos together. None if they are pruned inside the LLM
    evidence_kept  the share of the evidence in kept cells. None unless `Asking.judged`
    kept_deciles   {task: a digit for each question of a video}. 3 is 30% to below 40% of its evidence, 9 is 90% or
                   more, and - is a question without evidence
    health         of a learned scorer on these clips, as in log.csv
    """
    tasks, health = list(result.correct["choice"]), Health.of(result.health)
    judged = way.judged and result.evidence
    digit = lambda share: "-" if share is None else str(min(int(10 * share), 9))
    return dict(
        **dataclasses.asdict(way),
        accuracy={t: round(result.accuracy(t), 4) for t in tasks},
        answers={t: "".join(str(right) for _, right in result.answers(t)) for t in tasks},
        chance={t: round(float(np.mean(result.chance[t])), 4) for t in tasks},
        tokens=result.kept if result.kept or parted(way.method)[0] == "blind" else None,
        evidence_kept=round(result.evidence_kept(), 4) if judged else None,
        kept_deciles={
            t: "".join(digit(shares[n]) for n, _ in result.answers(t))
            for t, shares in (result.shares.items() if judged else ())
        },
        health=health and {n: None if math.isnan(x := getattr(health, n)) else round(x, 4) for n in HEALTH},
    )


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether nobody else is at work on this file. With `wait`, wait until nobody is. The claim ends with the process
    that holds it. (On Windows there are no locks: run one command at a time.)"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        yield checkpoint.locked(file, wait)


def make(row: Row, path: Path, lab: Lab, folder: Path) -> None:
    """Write the row's file, unless it is there or another process is making it. Raises ValueError if the file is the
    row of another class of the same name."""
    with claimed(Path("runs") / "rows" / f"{row.name}.lock") as mine:
        if path.exists():
            record = json.loads(path.read_text())
            other, now = record.get("row", {}).get("method", row.method), own_file(row)
            require(other == row.method, f"{path} is the row of {other}: move it, or rename your class")
            require(record.get("own_file", now) == now, f"{path} was made before {row.method} changed: move it")
        elif mine:
            print(f"row {row.name}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            writable(path)  # better known now than after the work
            train_base(folder, lab.data, row.seed % BASES, lab.device, row.young)
            write_json(path, run_row(row, lab, folder))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.paper", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base", type=int, metavar="SEED", help="train the unpruned model with this seed")
    what.add_argument("--table", choices=TABLES, help="train what is missing of one table")
    what.add_argument("--all", action="store_true", help="train whatever is missing")
    what.add_argument("--rival", metavar="NAME", help="ask with one of rivals/, or with your own FILE.py:CLASS")
    what.add_argument("--scorer", metavar="FILE.py:CLASS", help="train your own scorer, with three seeds")
    what.add_argument("--ship", metavar="ROW", help="keep a finished row's weights beside the bases")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="only rows of these seeds")
    parser.add_argument("--k", type=parse_k, default=0.5, help="with --scorer: the share of cells to remove")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of bases and rows")
    parser.add_argument("--data", default="data", help="folder of the prepared clips")
    parser.add_argument("--panels", type=int, choices=range(MOST_PANELS + 1), default=MOST_PANELS, help="distractors")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips of each kind")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val writes to runs/val")
    args = parser.parse_args(argv)
    if args.k != 0.5 and not args.scorer:
        parser.error("--k goes with --scorer alone: rivals are asked at k = 0.5 and 0.8, tables have their own")
    if round(100 * args.k, 9) % 1:
        parser.error(f"--k {args.k}: rows are named by whole percents, such as 0.5 or 0.55")
    rows_alone = ("panels", "seeds", "clips", "split") if args.base is not None or args.ship else ()
    if idle := [f"--{name}" for name in rows_alone if getattr(args, name) != parser.get_default(name)]:
        parser.error(f"{' '.join(idle)} has no effect beside --base and --ship: leave it out")
    device = pick_device("auto")
    with one_line_errors(parser.prog):
        if args.base is not None:
            return print(f"{train_base(args.results, args.data, args.base, device)} is there")
        if args.ship:
            return ship(Path("runs") / "rows" / args.ship / "checkpoint.pt", args.results / f"{args.ship}.pt")
        rows = [row for table in ([args.table] if args.table else TABLES) for row in TABLES[table]]
        if args.scorer:
            find_scorer(args.scorer)
            rows = [Row(args.scorer, args.k, seed) for seed in args.seeds]
        if args.rival:
            find_rival(args.rival)
            rows = [Row(args.rival, 0.0, seed) for seed in args.seeds]
        rows = [dataclasses.replace(r, panels=args.panels) for r in dict.fromkeys(rows) if r.seed in args.seeds]
        require(rows, f"no row of this table has a seed of {args.seeds}: give others")
        lab = Lab(args.data, args.clips, device, args.panels, args.split)
        folder = args.results / "rows" if args.split == "test" else Path("runs/val")
        for row in rows:
            make(row, folder / f"{row.name}.json", lab, args.results)
        missing = sum(not (folder / f"{row.name}.json").exists() for row in rows)
        rest = "; other processes are making the rest" * bool(missing)
        print(f"{len(rows) - missing} of {len(rows)} rows are there{rest}")
