"""Rows' files as scores: accuracies, intervals, paired differences.

A score is a mean over tasks (short, long). The average is the mean of these two, as in the paper. The 95% interval is a
hierarchical bootstrap. Seeds are drawn with replacement. So are the clips of each kind, the same for all seeds, tasks
and rows. A difference is paired: both rows use the same draws.

With three seeds, the interval is too narrow where seeds differ more than clips do. All three draws are of the lowest
seed with probability 1/27, more than 2.5%, so the seeds' part of the interval is about their range. Therefore we
also give differences seed by seed (`seed_by_seed`).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np

from stts_mini.lab.paper.rows import METHODS, parted
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.report.markdown import markdown
from stts_mini.report.result import grouped, wrong_kinds
from stts_mini.toy import world
from stts_mini.toy.world import MOST_PANELS
from stts_mini.training.config import upgraded

DRAWS = 2000
AVERAGES = ("short", "long", "average")
MEANS = ("k", "max_frames", "tokens", "evidence_kept", "speedup", "limit")  # of a row's other numbers
KINDS = ("unpruned", "pruned", "unused")  # of wrong answers: see `wrong_kinds`
UNPRUNED = ("unpruned", 0.0)  # a row: method, k, and the way of asking if that is not "as trained"


@dataclass(frozen=True)
class Scores:
    """One way of asking the models of one row.

    answers  {task: (seeds, clips), 0 or 1}
    names    the seeds
    means    other numbers, as means over the seeds. None if not known
    """

    answers: dict[str, np.ndarray]
    names: tuple[int, ...] = ()
    means: dict[str, float | None] = field(default_factory=dict)


def kind_of(task: str) -> str:
    """The kind of clip that a task is asked about. Tasks of a kind share their clips."""
    return "image" if task.startswith("image/") else next(k for k, tasks in world.TASKS.items() if task in tasks)


def averaged(of: Callable[[str], float | np.ndarray], tasks: Iterable[str], group: str) -> float | np.ndarray:
    """The mean of `of` over the tasks of a group: "short", "long", "average" (half of each) or one task.

    >>> score = {"count": 1.0, "speed": 0.5, "needle": 0.0}
    >>> float(averaged(score.get, score, "average"))
    0.375
    """
    groups = grouped(list(tasks))
    parts = groups.values() if group == "average" else [groups.get(group, [group])]
    return np.mean([np.mean([of(t) for t in part], axis=0) for part in parts], axis=0)


def value(scores: Scores, group: str) -> float:
    """A row's score: see `averaged`."""
    return float(averaged(lambda t: scores.answers[t].mean(), scores.answers, group))


@functools.cache
def weights(n: int, kind: str | None = None) -> np.ndarray:
    """How much each of n seeds, or of the n clips of a kind, counts in each draw: (draws, n). The draws depend only on
    n and the kind, so two rows with the same n have the same draws."""
    rng = np.random.default_rng(0 if kind is None else (1, list(world.TASKS).index(kind)))
    return np.stack([np.bincount(picks, minlength=n) for picks in rng.integers(n, size=(DRAWS, n))]) / n


def drawn(scores: Scores, group: str) -> np.ndarray:
    """The score under each draw of seeds and clips: (draws,)."""

    def of(task: str) -> np.ndarray:
        right = scores.answers[task]  # (seeds, clips)
        return ((weights(right.shape[1], kind_of(task)) @ right.T) * weights(len(right))).sum(1)

    return averaged(of, scores.answers, group)


def interval(scores: Scores, group: str) -> tuple[float, float]:
    """95% interval of a row's score."""
    low, high = np.percentile(drawn(scores, group), (2.5, 97.5))
    return float(low), float(high)


def difference(a: Scores, b: Scores, group: str) -> tuple[float, float, float]:
    """a − b and its 95% interval, paired by clip and by seed. Raises ValueError for rows of different seeds, tasks or
    clips."""
    shapes = [{t: x.shape for t, x in scores.answers.items()} for scores in (a, b)]
    if shapes[0] != shapes[1] or a.names != b.names:
        raise ValueError("two rows of different seeds, tasks or clips cannot be paired")
    low, high = np.percentile(drawn(a, group) - drawn(b, group), (2.5, 97.5))
    return value(a, group) - value(b, group), float(low), float(high)


ONE_METHODS_OWN = {  # settings that may differ between rows (the steps are in the method's name)
    *("k", "seed", "steps", "max_frames", "image_size"),
    *itertools.chain(*(settings for _, settings in METHODS.values())),
}


def idle(config: Mapping) -> tuple[str, ...]:
    """Settings of a run that change nothing, because no scorer learns."""
    learns = config["k"] and config["scorer"] not in ("random", "cosine")
    return () if learns else ("sim_weight", "scorer_lr_ratio")


def in_common(record: dict) -> dict[str, object]:
    """What a row must have in common with others, by name. All rows that have a name must agree on its value."""
    config = {**asdict(PaperConfig()), **upgraded(record["config"])}  # a setting that a row lacks had its default
    config["train_clips"] = {kind: n for kind, n in config["train_clips"].items() if world.TASKS[kind]}  # what it saw
    method, k = record["row"]["method"], record["row"]["k"]
    own = ("seed", "scorer", *idle(config))
    return {
        "test sets": record["fingerprint"],
        "devices": record["device"],
        "recipes": {name: x for name, x in config.items() if name not in ONE_METHODS_OWN},
        f"settings of {method} at k = {k}": {name: x for name, x in config.items() if name not in own},
        f"bases {record['base']}{' after its first run' * method.startswith('young-')}": record["base_sha256"],
        **({} if parted(method)[1] else {"numbers of steps": config["steps"]}),
    }


class Results:
    """All finished rows with one number of panels: `scores(method, k, way)` over the seeds that exist. Raises
    ValueError for rows that were made differently: another test set, base, device, or recipe."""

    def __init__(self, folder: Path, only: Sequence[int] | None = None, panels: int = MOST_PANELS):
        key = itemgetter("method", "k", "seed")
        every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        every = [r for r in every if r["row"].get("panels", MOST_PANELS) == panels]
        self.records = {key(r["row"]): r for r in every if only is None or r["row"]["seed"] in only}
        common: dict[str, object] = {}
        for row, record in self.records.items():
            if (own := parted(row[0])[1]) not in (None, had := record["config"]["steps"]):
                raise ValueError(f"{folder}: {row} is named after {own} steps but had {had}: run it again")
            for what, mark in in_common(record).items():
                other = common.setdefault(what, mark)
                if mark != other:
                    raise ValueError(
                        f"{folder} holds rows of different {what}: {other}, but {row} has {mark}: run one again"
                    )
        self.own = sorted({m for m, *_ in self.records if parted(m)[0] not in METHODS})  # scorers in a user's file
        self.fingerprint = common.get("test sets", "")

    def seeds(self, method: str, k: float, way: str = "as trained") -> list[int]:
        """The seeds that are finished, and were asked this way."""
        return sorted(s for (*row, s), r in self.records.items() if row == [method, k] and way in r["asked"])

    def shared(self, *rows: tuple) -> list[int]:
        """The seeds that all of these rows have."""
        return sorted(set.intersection(*(set(self.seeds(*row)) for row in rows)))

    def scores(
        self, method: str, k: float, way: str = "as trained", seeds: Sequence[int] | None = None
    ) -> Scores | None:
        """A row's answers and other numbers, of these seeds or of all. None if there are none."""
        seeds = self.seeds(method, k, way) if seeds is None else seeds
        asked = [self.records[method, k, s]["asked"][way] for s in seeds]
        if not asked:
            return None
        answers = {t: np.array([[int(c) for c in a["answers"][t]] for a in asked]) for t in asked[0]["answers"]}
        means = {name: [a.get(name) for a in asked] for name in MEANS}
        means = {name: None if None in x else float(np.mean(x)) for name, x in means.items()}
        return Scores(answers, tuple(seeds), means)

    def causes(self, method: str, k: float, way: str = "as trained") -> dict[int, dict[str, float]]:
        """Why answers were wrong: {seed: {kind: share of the questions, on average}}. The kinds are those of
        `wrong_kinds`. Seeds are those whose files say what was kept, each beside the unpruned row of the same seed."""
        found, row = {}, (method, k, way)
        for seed in self.shared(row, UNPRUNED):
            asked = self.records[method, k, seed]["asked"][way]
            if asked["k"] and (deciles := asked.get("kept_deciles")):
                ours, theirs = (self.scores(*of, seeds=[seed]).answers for of in (row, UNPRUNED))
                kept = {t: [None if d == "-" else int(d) / 10 for d in digits] for t, digits in deciles.items()}
                counts = {t: wrong_kinds(ours[t][0], theirs[t][0], shares) for t, shares in kept.items()}
                shares = {kind: {t: n[kind] / len(kept[t]) for t, n in counts.items()} for kind in KINDS}
                found[seed] = {kind: float(averaged(of.get, of, "average")) for kind, of in shares.items()}
        return found


def percent(x: float | None) -> str:
    """
    >>> percent(0.9751), percent(None)
    ('97.5', '–')
    """
    return "–" if x is None else f"{100 * x:.1f}"


def signed(x: float) -> str:
    """
    >>> signed(-0.9751)
    '−97.5'
    """
    return f"{100 * x:+.1f}".replace("-", "−")


def with_interval(scores: Scores, group: str) -> str:
    """Like 97.5 (96.7–98.3)."""
    low, high = interval(scores, group)
    return f"{percent(value(scores, group))} ({percent(low)}–{percent(high)})"


def against(
    results: Results, row: tuple, other: tuple, group: str = "average", seeds: Collection[int] | None = None
) -> str:
    """row − other, like −0.4 (−1.1 to +0.3), over the seeds that both have (only among `seeds`, if given). "–" if there
    are none, or if both are the same row."""
    both = [s for s in results.shared(row, other) if seeds is None or s in seeds]
    if not both or row == other:
        return "–"
    d, low, high = difference(results.scores(*row, seeds=both), results.scores(*other, seeds=both), group)
    return f"{signed(d)} ({signed(low)} to {signed(high)})"


def seed_by_seed(a: Scores, b: Scores) -> str:
    """The difference of two rows' averages for each seed, after the seed's number. Both rows have the same seeds.

    >>> a, b = (Scores({"count": np.array([[1, 1], [right, 0]])}, (0, 2)) for right in (1, 0))
    >>> seed_by_seed(a, b)
    '0: +0.0, 2: +50.0'
    """
    alone = lambda scores, i: value(Scores({t: x[i : i + 1] for t, x in scores.answers.items()}), "average")
    return ", ".join(f"{name}: {signed(alone(a, i) - alone(b, i))}" for i, name in enumerate(a.names))


def table(head: str, rows: Iterable[dict[str, object] | list | None]) -> str:
    """Rows under the column names of `head`. A dict names the column of each cell, a list has the cells in order, and
    None is left out. Without rows there is no table.

    >>> table("|k", []), table("|k", [None, ["random", 50], {"k": 80, "seeds": "0", "": "STTS"}])
    ('', '| | k |\\n|---|---|\\n| random | 50 |\\n| STTS | 80 |')
    """
    columns = head.split("|")
    cells = [[row[c] for c in columns] if isinstance(row, dict) else row for row in rows if row]
    return markdown(columns, cells) if cells else ""
