"""Tables of the results, with intervals: from the JSON files that `reproduce.py` writes to one Markdown page.

    python -m stts_mini.lab.paper.tables --readme README.md     writes tutorials/results/README.md and README's table
    python -m stts_mini.lab.paper.tables --readme README.md --check     exits 1 if what is on disk is another
    python -m stts_mini.lab.paper.tables --seeds 1              prints the page of these seeds alone (1: of base 1)

A score is a mean over tasks (short, long), and the average is the mean of the two, as in the paper. The 95%
interval is a hierarchical bootstrap: seeds are drawn with replacement, and within each kind of clip the clips,
the same ones for all seeds, tasks and rows. A difference is paired: the same draw for both rows. Of three seeds,
the seeds' part of such an interval is hardly more than their range (all three draws are of the lowest with
probability 1/27, more than 2.5%), so where seeds differ more than clips do it covers less than 95%: differences
are printed seed by seed, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stts_mini.lab.paper.reproduce import parted
from stts_mini.packing import num_removed
from stts_mini.report.result import grouped
from stts_mini.toy import world
from stts_mini.training.config import TrainConfig

DRAWS = 2000


@dataclass(frozen=True)
class Scores:
    """One way of asking the models of one row: answers[task] is (seeds, clips), 0 or 1; which seeds they are."""

    answers: dict[str, np.ndarray]
    names: tuple[int, ...] = ()

    def mean(self, tasks: Sequence[str]) -> float:
        """Mean over tasks of the mean over seeds and clips."""
        return float(np.mean([self.answers[t].mean() for t in tasks]))

    @property
    def seeds(self) -> int:
        """How many models there are."""
        return len(next(iter(self.answers.values())))


def kind_of(task: str) -> str:
    """The kind of clip that a task is asked about: tasks of a kind share their clips."""
    return "image" if task.startswith("image/") else next(k for k, tasks in world.TASKS.items() if task in tasks)


def of_group(scores: Scores, group: str) -> list[list[str]]:
    """The tasks of "short", "long", "average" (both, each counting half) or of one task, as groups."""
    groups = grouped(list(scores.answers))
    return list(groups.values()) if group == "average" else [groups.get(group, [group])]


def value(scores: Scores, group: str) -> float:
    """A row's score: see `of_group`."""
    return float(np.mean([scores.mean(tasks) for tasks in of_group(scores, group)]))


def drawn(scores: Scores, group: str, draws: int = DRAWS) -> np.ndarray:
    """The score under each draw of seeds and clips: (draws,). The draws depend on the numbers of seeds and clips
    alone, so two rows that have the same are drawn alike."""
    groups = of_group(scores, group)
    kinds = sorted({kind_of(t) for tasks in groups for t in tasks})
    rng = np.random.default_rng(0)
    seeds = rng.integers(scores.seeds, size=(draws, scores.seeds))
    means = {}
    for kind in kinds:
        own = [t for tasks in groups for t in tasks if kind_of(t) == kind]
        n = scores.answers[own[0]].shape[1]
        picks = np.random.default_rng((1, list(world.TASKS).index(kind))).integers(n, size=(draws, n))
        weight = np.stack([np.bincount(p, minlength=n) for p in picks]) / n  # (draws, n)
        for t in own:
            per_seed = weight @ scores.answers[t].T  # (draws, seeds)
            means[t] = np.take_along_axis(per_seed, seeds, axis=1).mean(1)
    return np.mean([np.mean([means[t] for t in tasks], axis=0) for tasks in groups], axis=0)


def interval(scores: Scores, group: str) -> tuple[float, float]:
    """95% interval of a row's score."""
    low, high = np.percentile(drawn(scores, group), (2.5, 97.5))
    return float(low), float(high)


def difference(a: Scores, b: Scores, group: str) -> tuple[float, float, float]:
    """a − b and its 95% interval, paired by clip, and by seed (seeds that both have). Raises ValueError for rows
    that were not asked the same."""
    shapes = [{t: x.shape for t, x in scores.answers.items()} for scores in (a, b)]
    if shapes[0] != shapes[1] or a.names != b.names:
        raise ValueError("two rows of different seeds, tasks or clips cannot be paired")
    low, high = np.percentile(drawn(a, group) - drawn(b, group), (2.5, 97.5))
    return value(a, group) - value(b, group), float(low), float(high)


ONE_METHODS_OWN = {
    "k",
    "seed",
    "scorer",
    "sim_weight",
    "bias",
    "blind",
    "max_frames",
    "image_size",
    "saliency_steps",
    "spread",
    "elastic",
    "score_after",
    "thinning",
    "steps",  # told by the method's name: see `reproduce.parted`
}


def base_of(record: dict) -> str:
    """Which one a row started from."""
    return f"{record['base']}{' after its first run' * record['row']['method'].startswith('young-')}"


class Results:
    """All finished rows: `scores(method, k, way)` over whatever seeds there are. Raises ValueError for rows that
    were not made alike: another test set, base, device, or recipe."""

    def __init__(self, folder: Path, only: Sequence[int] | None = None):
        self.records: dict[tuple[str, float, int], dict] = {}
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
            row = record["row"]
            if only is not None and row["seed"] not in only:
                continue
            if (own := parted(row["method"])[1]) not in (None, had := record["config"]["steps"]):
                raise ValueError(f"{path}: the row is named after {own} steps and had {had}; run it again")
            self.records[row["method"], row["k"], row["seed"]] = record
        usual = {f.name: f.default for f in dataclasses.fields(TrainConfig)}  # for a row that knew fewer settings
        recipe = lambda r: {name: x for name, x in {**usual, **r["config"]}.items() if name not in ONE_METHODS_OWN}
        whole = lambda r: {name: x for name, x in {**usual, **r["config"]}.items() if name not in ("seed", "scorer")}
        for what, of in (
            ("test sets", lambda r: r["fingerprint"]),
            ("devices", lambda r: r["device"]),
            ("recipes", lambda r: json.dumps(recipe(r), sort_keys=True)),
            *(
                (
                    f"settings of {m} at k = {k}",
                    lambda r, row=(m, k): (
                        json.dumps(whole(r), sort_keys=True) if (r["row"]["method"], r["row"]["k"]) == row else None
                    ),
                )
                for m, k, _ in self.records
            ),
            ("numbers of steps", lambda r: None if parted(r["row"]["method"])[1] else r["config"]["steps"]),
            *(
                (f"bases {base}", lambda r, base=base: r["base_sha256"] if base_of(r) == base else None)
                for base in sorted({base_of(r) for r in self.records.values()})
            ),
        ):
            if len(marks := {of(r) for r in self.records.values()} - {None}) > 1:
                raise ValueError(f"{folder} holds rows of different {what}: {sorted(marks)}; run some of them again")
        self.own = sorted({m for m, *_ in self.records if parted(m)[0] not in NAMES})  # scorers from somebody's file
        self.fingerprint = next(iter(r["fingerprint"] for r in self.records.values()), "")

    def seeds(self, method: str, k: float, way: str = "as trained") -> list[int]:
        """The seeds that are finished, and were asked this way."""
        rows = ((s, r) for (m, other, s), r in self.records.items() if (m, other) == (method, k))
        return sorted(s for s, r in rows if way in r["asked"])

    def asked(self, method: str, k: float, way: str = "as trained") -> dict | None:
        """All that is known of a way of asking, of the first seed."""
        seeds = self.seeds(method, k, way)
        return self.records[method, k, seeds[0]]["asked"][way] if seeds else None

    def scores(
        self, method: str, k: float, way: str = "as trained", seeds: Sequence[int] | None = None
    ) -> Scores | None:
        """Answers of a row, seed by seed; None if there is nothing."""
        seeds = self.seeds(method, k, way) if seeds is None else seeds
        asked = [self.records[method, k, s]["asked"][way]["answers"] for s in seeds]
        if not asked:
            return None
        return Scores({t: np.array([[int(c) for c in row[t]] for row in asked]) for t in asked[0]}, tuple(seeds))

    def field(
        self, method: str, k: float, name: str, way: str = "as trained", seeds: Sequence[int] | None = None
    ) -> float | None:
        """The mean over seeds (all there are, or these) of another number of a way of asking."""
        seeds = self.seeds(method, k, way) if seeds is None else seeds
        values = [self.records[method, k, s]["asked"][way][name] for s in seeds]
        return float(np.mean(values)) if values and None not in values else None


def percent(x: float) -> str:
    """
    >>> percent(0.9751)
    '97.5'
    """
    return f"{100 * x:.1f}"


def with_interval(scores: Scores, group: str) -> str:
    """Like 97.5 (96.7–98.3)."""
    low, high = interval(scores, group)
    return f"{percent(value(scores, group))} ({percent(low)}–{percent(high)})"


def against(a: Scores, b: Scores, group: str = "average") -> str:
    """Like −0.4 (−1.1 to +0.3)."""
    d, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in difference(a, b, group))
    return f"{d} ({low} to {high})"


def seed_by_seed(a: Scores, b: Scores) -> str:
    """Differences of the averages, each after its seed's number. Raises ValueError for rows of different seeds.

    >>> a, b = (Scores({"count": np.array([[1, 1], [right, 0]])}, (0, 2)) for right in (1, 0))
    >>> seed_by_seed(a, b)
    '0: +0.0, 2: +50.0'
    """
    if a.names != b.names:
        raise ValueError(f"seeds {a.names} cannot be paired with {b.names}")
    alone = lambda scores, i: value(Scores({t: x[i : i + 1] for t, x in scores.answers.items()}), "average")
    minus = (100 * (alone(a, i) - alone(b, i)) for i in range(a.seeds))
    return ", ".join(f"{name}: {d:+.1f}".replace("-", "−") for name, d in zip(a.names, minus, strict=True))


CELLS = TrainConfig().model.cells  # of a frame, in all rows but those of smaller frames
NAMES = {
    "unpruned": "unpruned", "stts": "STTS", "random": "random",
    "saliency": "STTS, taught by saliency, spread (ours)", "cosine": "cosine heuristic, trained",
    "no-aux": "STTS without the auxiliary loss", "no-bias": "STTS without the bias (no LM gradient)",
    "oracle": "oracle: the cells that answers depend on", "tome": "merging (ToMe), trained",
    "frames": "fewer frames, unpruned", "blind": "blind, trained",
    "resolution": "smaller frames, unpruned (44% of the cells at k = 50, 11% at 80)",
    "saliency-plain": "STTS, taught by saliency, not spread (ours)",
    "cosine-spread": "cosine heuristic, trained, spread",
    "saliency-deeper": "taught by saliency, spread (ours), scored a block later",
    "deeper": "STTS, scored a block later",
    "saliency-deepest": "taught by saliency, spread (ours), scored two blocks later",
    "deepest": "STTS, scored two blocks later",
    "saliency-few": "taught by saliency, spread (ours), trained on half of the frames",
    "saliency-many": "taught by saliency, spread (ours), trained on twice the frames", "elastic": "elastic (ours)",
    "unpruned-range": "unpruned, trained on any number of frames",
    "saliency-range": "taught by saliency, spread (ours), trained on any number of frames",
    "young-unpruned": "unpruned", "young-saliency": "taught by saliency, spread (ours)",
    "young-cosine": "cosine heuristic", "young-random": "random", "young-frames": "fewer frames, unpruned",
}  # fmt: skip


def named(method: str) -> str:
    """What a method is called in the tables.

    >>> named("unpruned@100"), named("my_file.py:MyScorer")
    ('unpruned, 100 steps', 'MyScorer')
    """
    kind, steps = parted(method)
    name = NAMES.get(kind, kind.rpartition(":")[2])
    return f"{name}, {steps} steps" if steps else name


def row(
    results: Results,
    method: str,
    k: float,
    way: str = "as trained",
    name: str | None = None,
    only: Sequence[int] | None = None,
) -> str | None:
    """A line of a table: name, k, effective k (by the vision tokens that are left), short, long, average, against
    unpruned, evidence kept, seeds. `only`: of these seeds."""
    seeds = [s for s in results.seeds(method, k, way) if only is None or s in only]
    scores, asked = results.scores(method, k, way, seeds), results.asked(method, k, way)
    if scores is None:
        return None
    both = [s for s in seeds if s in results.seeds("unpruned", 0.0)]
    paired, effective, kept = "–", "–", results.field(method, k, "evidence_kept", way, seeds)
    if both and (method, way) != ("unpruned", "as trained"):
        paired = against(results.scores(method, k, way, both), results.scores("unpruned", 0.0, seeds=both))
    if results.asked("unpruned", 0.0):
        tokens = results.field(method, k, "tokens", way, seeds) / results.field("unpruned", 0.0, "tokens")
        effective = percent(1 - tokens)
    budget = k if method in ("frames", "resolution") else asked["k"]  # what an unpruned model spends, by other means
    nominal = "100" if method == "blind" else str(round(100 * budget))
    if way == "1 frames":
        nominal = effective = "–"  # the other frames were not pruned, they were never there
    groups = [with_interval(scores, group) for group in ("short", "long", "average")]
    kept = "–" if kept is None else percent(kept)
    name = name or named(method)
    return "| " + " | ".join([name, nominal, effective, *groups, paired, kept, ", ".join(map(str, seeds))]) + " |"


HEAD = """| | k | effective k | short | long | average | against unpruned | evidence kept | seeds |
|---|---|---|---|---|---|---|---|---|"""


def ladder(results: Results, ks: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)) -> str:
    """Tables 1 and 8 of the paper: accuracy against k."""
    lines = [row(results, "unpruned", 0.0)]
    for k in ks:
        lines += [row(results, method, k) for method in ("stts", "saliency", "random", "cosine", *results.own)]
    lines.append(row(results, "unpruned", 0.0, "1 frames", "frame 0 only"))
    lines.append(row(results, "blind", 0.0))
    return "\n".join([HEAD, *filter(None, lines)])


def methods(results: Results) -> str:
    """Tables 2 and 5: other ways to prune."""
    lines = []
    for k in (0.5, 0.8, 0.9):
        others = ("cosine-spread", "random", "no-aux", "no-bias", "tome", "frames", "resolution", "oracle")
        others += ("saliency-many", "saliency-many@800")
        lines += [row(results, m, k) for m in ("stts", "saliency", "saliency-plain", "cosine", *others)]
        for m in ("cosine", "random", "tome"):
            lines.append(row(results, "unpruned", 0.0, f"{m}, inference only, k = {k}", f"{m}, inference only"))
    return "\n".join([HEAD, *filter(None, lines)])


def pairs(results: Results) -> str:
    """STTS, as in the paper and as taught by saliency, against every other trained method, paired."""
    lines = ["| k | | minus | short | long | average | average, seed by seed |", "|---" * 7 + "|"]
    alone = ("unpruned", "blind", "elastic", "unpruned-range", "saliency-range")  # have tables of their own
    others = [m for m in (*NAMES, *results.own) if m not in alone and not m.startswith("young-")]
    for k, own, other in itertools.product((0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), ("stts", "saliency"), others):
        both = [s for s in results.seeds(own, k) if s in results.seeds(other, k)]
        if both and own != other and (own, other) != ("stts", "saliency"):
            a, b = (results.scores(m, k, seeds=both) for m in (own, other))
            differences = [against(a, b, group) for group in ("short", "long", "average")]
            line = [round(100 * k), named(own), named(other), *differences, seed_by_seed(a, b)]
            lines.append(f"| {' | '.join(map(str, line))} |")
    return "\n".join(lines)


def tasks(results: Results) -> str:
    """Every task of the unpruned model, over numbers of frames, beside what luck, the question's text, a model
    trained without any video, and frame 0 alone are worth."""
    ways = ["as trained", "8 frames", "16 frames", "64 frames", "1 frames"]
    there = {way: results.scores("unpruned", 0.0, way) for way in ways}
    there = {way: scores for way, scores in there.items() if scores is not None}
    if "as trained" not in there:
        return ""
    if (blind := results.scores("blind", 0.0)) is not None:
        there["blind"] = blind
    names = {"as trained": "32 frames", "1 frames": "frame 0 only"}
    seeds = lambda way: f"{names.get(way, way)} ({there[way].seeds})"
    lines = [f"| | chance | look-up | {' | '.join(map(seeds, there))} |", "|---" * (len(there) + 3) + "|"]
    record = results.records["unpruned", 0.0, results.seeds("unpruned", 0.0)[0]]
    text = {"chance": record["asked"]["as trained"]["chance"], "look-up": record["look_up"]}
    groups = grouped(list(there["as trained"].answers))
    for group in (*groups["short"], "short", *groups["long"], "long", "average", "image/attribute", "image/count"):
        bold = "**" if group in ("short", "long", "average") else ""
        of = of_group(there["as trained"], group)
        cells = [percent(float(np.mean([np.mean([x[t] for t in tasks]) for tasks in of]))) for x in text.values()]
        cells += [with_interval(there["as trained"], group)]
        cells += [percent(value(s, group)) for way, s in there.items() if way != "as trained"]
        lines.append(f"| {bold}{group}{bold} | {' | '.join(cells)} |")
    return "\n".join(lines)


def clock(results: Results) -> str:
    """Accuracy against the time that training takes: rows of other numbers of steps, and the recipe's own beside them,
    over the seeds that both have."""
    lines = [
        "| | k | steps | minutes of one core | short | long | average | against the recipe's steps | against unpruned"
        " | seeds |",
        "|---" * 10 + "|",
    ]
    there = {(m, k): r["config"]["steps"] for (m, k, _), r in results.records.items()}
    for k, kind in sorted({(k, parted(m)[0]) for m, k in there if parted(m)[1] and not m.startswith("young-")}):
        alike = [(steps, m) for (m, of), steps in there.items() if (parted(m)[0], of) == (kind, k)]
        others = {s for _, m in alike if m != kind for s in results.seeds(m, k)}
        for own, method in sorted(alike):
            both = [s for s in results.seeds(method, k) if s in (others if method == kind else results.seeds(kind, k))]
            if not both:
                continue
            records = [results.records[method, k, s] for s in results.seeds(method, k)]  # time is not the seed's
            seconds = [r["cpu_seconds"] for r in records if r.get("threads") == 1 and "cpu_seconds" in r]
            scores = results.scores(method, k, seeds=both)
            took = f"{np.mean(seconds) / 60:.1f}" if seconds else "–"
            groups = [with_interval(scores, group) for group in ("short", "long", "average")]
            minus = "–" if method == kind else against(scores, results.scores(kind, k, seeds=both))
            shared = [s for s in both if s in results.seeds("unpruned", 0.0)]
            own_of, whole = results.scores(method, k, seeds=shared), results.scores("unpruned", 0.0, seeds=shared)
            lost = against(own_of, whole) if shared and method != "unpruned" else "–"
            line = [NAMES[kind], round(100 * k), own, took, *groups, minus, lost, ", ".join(map(str, both))]
            lines.append(f"| {' | '.join(map(str, line))} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def learning(results: Results) -> str:
    """From a base after the first of its runs: what is learned in about the same time, pruned and unpruned."""
    head = "| | k | steps | minutes of one core | short | long | average | minus unpruned | seeds |"
    lines, whole = [head, "|---" * 9 + "|"], ("young-unpruned", 0.0)
    steps_of = {(m, k): r["config"]["steps"] for (m, k, _), r in results.records.items() if m.startswith("young-")}
    for (method, k), steps in sorted(steps_of.items(), key=lambda item: (item[0][1], item[1], item[0][0])):
        both = [s for s in results.seeds(method, k) if s in results.seeds(*whole)]
        if not both:
            continue
        scores, records = results.scores(method, k, seeds=both), [results.records[method, k, s] for s in both]
        seconds = [r["cpu_seconds"] for r in records if r.get("threads") == 1 and "cpu_seconds" in r]
        took = f"{np.mean(seconds) / 60:.1f}" if seconds else "–"
        groups = [with_interval(scores, group) for group in ("short", "long", "average")]
        minus = "–" if (method, k) == whole else against(scores, results.scores(*whole, seeds=both))
        line = [NAMES[parted(method)[0]], round(100 * k), steps, took, *groups, minus, ", ".join(map(str, both))]
        lines.append(f"| {' | '.join(map(str, line))} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def scaling(results: Results) -> str:
    """Table 3: more frames at test time, the same model, beside an unpruned model with about as many vision tokens (at
    k ≥ 0.8, with several times as many)."""
    head = (
        "| | k | frames trained, asked | tokens a video | long | minus an unpruned model's | frames | tokens | seeds |"
    )
    lines = [head, "|---" * 9 + "|"]
    for method, k, other in (
        *((m, k, ("unpruned", 0.0)) for m in ("stts", "saliency") for k in (0.3, 0.4, 0.5)),
        *(("saliency", k, ("unpruned", 0.0)) for k in (0.8, 0.9)),
        ("saliency-many", 0.9, ("unpruned", 0.0)),
        ("saliency-few", 0.5, ("frames", 0.5)),
    ):
        last = "as trained" if method == "saliency-many" else "scaled"
        both = [s for s in results.seeds(method, k, last) if s in results.seeds(*other)]
        for way in dict.fromkeys(("as trained", last)) if both else ():
            scores, unpruned = results.scores(method, k, way, both), results.scores(*other, seeds=both)
            trained, asked = (results.asked(method, k, w)["max_frames"] for w in ("as trained", way))
            minus = against(scores, unpruned, "long") if way == last else "–"
            own, its = (
                results.field(*of, "tokens", w, both) / num_videos(scores)
                for of, w in (((method, k), way), (other, "as trained"))
            )
            long, frames = with_interval(scores, "long"), results.asked(*other)["max_frames"]
            line = [named(method), round(100 * k), f"{trained}, {asked}", round(own), long, minus, frames, round(its)]
            lines.append(f"| {' | '.join(map(str, line))} | {', '.join(map(str, both))} |")
    return "\n".join(lines)


def in_range(results: Results) -> str:
    """Table 3 once more, for models that were trained on half of the frames to twice the frames: more of them, pruned,
    beside fewer, unpruned, in about as many vision tokens (of a long video, which has as many frames as are asked)."""
    head = "| frames, unpruned | vision tokens | long | frames, at k = 0.5 | vision tokens | long | minus"
    head += " | minus an unpruned model that was trained at just as many as it is asked | seeds |"
    lines, whole, pruned = [head, "|---" * 9 + "|"], ("unpruned-range", 0.0), ("saliency-range", 0.5)
    tokens = lambda k, T: CELLS * T - num_removed(k, CELLS, T)
    for fewer, more, fixed in (
        ("half the frames", "other rows' frames", ("frames", 0.5)),
        ("other rows' frames", "as trained", ("unpruned", 0.0)),
    ):
        both = [s for s in results.seeds(*whole, fewer) if s in results.seeds(*pruned, more)]
        if not both:
            continue
        few, many = results.scores(*whole, fewer, both), results.scores(*pruned, more, both)
        line = []
        for (method, k), way, scores in ((whole, fewer, few), (pruned, more, many)):
            T = results.asked(method, k, way)["max_frames"]
            line += [str(T), str(tokens(k, T)), with_interval(scores, "long")]
        its = results.scores(*fixed, seeds=both) if set(both) <= set(results.seeds(*fixed)) else None
        line += [against(many, few, "long"), against(many, its, "long") if its else "–", ", ".join(map(str, both))]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def num_videos(scores: Scores) -> int:
    """How many videos were asked about: clips of each kind, pictures left out."""
    clips = {kind_of(t): x.shape[1] for t, x in scores.answers.items()}
    return sum(n for kind, n in clips.items() if kind != "image")


def depth(results: Results) -> str:
    """Figure 6: scored deeper (of six blocks: one or two more of them dense), over the seeds that all have."""
    lines = []
    for method, later in (("stts", ("deeper", "deepest")), ("saliency", ("saliency-deeper", "saliency-deepest"))):
        there = [m for m in (method, *later) if results.seeds(m, 0.5)]
        shared = [s for s in results.seeds(method, 0.5) if all(s in results.seeds(m, 0.5) for m in there)]
        lines += [row(results, m, 0.5, only=shared) for m in there] if len(there) > 1 else []
    lines.append(row(results, "deepest", 0.0, name="unpruned, connected as they are two blocks later"))
    return "\n".join([HEAD, *filter(None, lines)]) if any(lines) else ""


def elastic(results: Results) -> str:
    """One model asked at every k up to its own, beside a model for each, of the same seeds."""
    lines = []
    for own in sorted({k for method, k, _ in results.records if method == "elastic"}):
        seeds = results.seeds("elastic", own)
        for k in (k for k in (0.0, 0.3, 0.5, 0.8, 0.9) if k <= own):
            way = "as trained" if k == own else f"k = {k}"
            lines.append(row(results, "elastic", own, way, f"elastic, asked at k = {k}"))
            lines.append(row(results, "saliency" if k else "unpruned", k, only=seeds))
    return "\n".join([HEAD, *filter(None, lines)]) if lines else ""


def images(results: Results) -> str:
    """Table 4: single images lose no cell at any k; what training with pruned videos does to them."""
    lines = ["| | k | attribute | against unpruned | count | against unpruned | seeds |", "|---" * 7 + "|"]
    for k, method in ((0.0, "unpruned"), *itertools.product((0.5, 0.8, 0.9), ("stts", "saliency"))):
        if both := [s for s in results.seeds(method, k) if s in results.seeds("unpruned", 0.0)]:
            own, whole = results.scores(method, k, seeds=both), results.scores("unpruned", 0.0, seeds=both)
            line = [named(method), str(round(100 * k))]
            for group in ("image/attribute", "image/count"):
                line += [with_interval(own, group), against(own, whole, group) if k else "–"]
            lines.append(f"| {' | '.join(line)} | {', '.join(map(str, both))} |")
    return "\n".join(lines) if len(lines) > 3 else ""


def of_bases(results: Results) -> str:
    """How good the bases are, unpruned, seed by seed; and what follows."""
    bases = len({r["base"] for r in results.records.values()})
    if bases == 1:
        return "All rows start from one unpruned base: they say little of another."
    seeds = results.seeds("unpruned", 0.0)
    each = [percent(value(results.scores("unpruned", 0.0, seeds=[s]), "average")) for s in seeds]
    known = ", ".join(f"{score} with seed {s}" for s, score in zip(seeds, each, strict=True))
    return (
        f"Seed s starts from unpruned base s mod {bases} (where a table says so, from what it was after its first run),"
        f" and bases differ (average, unpruned: {known}): lines of other seeds are never compared by their"
        " averages, but by the paired differences; by *against unpruned* roughly, for a worse base has less to lose."
    )


def page(results: Results) -> str:
    """The whole page."""
    torch = sorted({r["torch"] for r in results.records.values()})
    commits = sorted({r["commit"] for r in results.records.values()})
    intro = [
        "# Results",
        "Made by `python -m stts_mini.lab.paper.tables` from the files in [rows](rows), which `python -m"
        f" stts_mini.lab.paper --all` makes. Test set {results.fingerprint}; torch {', '.join(torch)}; commits"
        f" {', '.join(commits)}.",
        "Percent. Long is the mean of seven tasks, short of six, *average* the mean of the two. Intervals are 95%, from"
        " resampling seeds and clips. They are too narrow as far as seeds differ: one seed's are of clips alone, and of"
        " three seeds on two bases the seeds' part is hardly more than their range. So paired differences are given"
        " seed by seed, too. *Seeds* says which there are; a number in brackets after a column's name, how many."
        f" {of_bases(results)}",
        "*Effective k*: the share of the vision tokens that is really gone; frame 0 stays, so no more than C·(T−1) of"
        " C·T cells can go. *Evidence kept*: of the pixels that answers depend on (frame 0 left out), the share in kept"
        " cells. *Inference only*: the unpruned row's model, asked with this method. *Spread* is 0.3 (see"
        " `scorer.spread`). *Minutes of one core*: processor time of training, decoding left out, of the runs that had"
        " one thread. The tasks are explained in [world.py](../../stts_mini/toy/world.py).",
    ]
    sections = {
        "Accuracy against k (the paper's Tables 1 and 8)": ladder(results),
        "STTS against others, paired": pairs(results),
        "Other ways to prune (Tables 2 and 5)": methods(results),
        "More frames at test time (Table 3)": scaling(results),
        "The same, after training on any number of frames": in_range(results),
        "Scored deeper, of six blocks (Figure 6)": depth(results),
        "Shorter and longer training": clock(results),
        "Learning in the same time, from a base after its first run": learning(results),
        "One model for every k (ours)": elastic(results),
        "Single images, which lose nothing (Table 4)": images(results),
        "The tasks, unpruned": tasks(results),
    }
    parts = intro + [f"## {title}\n\n{table}" for title, table in sections.items() if table]
    return "\n\n".join(parts) + "\n"


IN_README = (0.5, 0.8, 0.9)  # at the others, most rows have one seed
BEGIN, END = "<!-- made by stts_mini.lab.paper.tables: begin -->\n", "<!-- end -->"


def inserted(readme: str, table: str) -> str:
    """The text of a README with the table between its two marks. Raises ValueError if they are not there.

    >>> inserted(f"a {BEGIN}old{END} b", "new").splitlines()[1:]
    ['new', '<!-- end --> b']
    """
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the README has no place for the table, between {BEGIN.strip()} and {END}")
    return f"{before}{BEGIN}{table}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser("python -m stts_mini.lab.paper.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("tutorials/results"), help="where the rows are")
    parser.add_argument("--readme", type=Path, default=None, help="a README that shows the first table, in short")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    parser.add_argument("--seeds", type=int, nargs="+", help="print the page of these alone; write nothing")
    args = parser.parse_args(argv)
    if args.seeds and (args.readme or args.check):
        parser.error("--seeds only prints: give it without --readme and --check")
    try:
        results = Results(args.results / "rows", args.seeds)
        if not results.records:
            raise ValueError(f"no rows in {args.results / 'rows'}: python -m stts_mini.lab.paper makes them")
        made = {args.results / "README.md": page(results)}
        if args.readme:
            made[args.readme] = inserted(args.readme.read_text(), ladder(results, IN_README))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    for path, text in made.items() if not args.seeds else ():
        if args.check and (not path.exists() or path.read_text() != text):
            sys.exit(f"{path} is not what the rows say: run python -m stts_mini.lab.paper.tables --readme README.md")
        if not args.check:
            path.write_text(text)
    print(made[args.results / "README.md"] if not args.check else "the pages are what the rows say")


if __name__ == "__main__":
    main()
