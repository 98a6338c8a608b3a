"""What was scored, and what is printed of it: means, intervals, tables.

Accuracies are means over questions, with a 95% interval from resampling clips. "short" is the mean over
the short tasks, "long" over the long ones. "evidence" is the share of the pixels that answers depend on
(frame 0 excluded) that lie in kept cells, task by task, and then the mean over tasks.

What this file does not do: ask a model anything (`eval.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stts_mini.data.clips import FREE
from stts_mini.toy import world
from stts_mini.training.health import NUM_SUMS

GENERATED = (*world.GENERATED, FREE)  # tasks that are judged by what the model says


@dataclass
class Result:
    """Scores of one model on one set of clips.

    correct    {scoring: {task: [(clip number, 0 or 1)]}} for the scorings "choice" and "generated"
    chance     {task: [1 / shown options]}, 0 for a task that is judged by generation (`GENERATED`)
    kept, cells  vision tokens kept and before pruning, summed over the videos (an image loses none)
    rows         packed rows, and ⌈Σ/N⌉, the fewest that could hold the kept tokens, summed over batches
    evidence   {task: (pixels in kept cells, all pixels) that its answers depend on}
    health     sums over the cells that a scorer scored which learns (`training/health.py`)
    """

    correct: dict[str, dict[str, list[tuple[int, int]]]] = field(
        default_factory=lambda: {"choice": defaultdict(list), "generated": defaultdict(list)}
    )
    chance: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kept: int = 0
    cells: int = 0
    rows: tuple[int, int] = (0, 0)
    evidence: dict[str, tuple[int, int]] = field(default_factory=dict)
    health: np.ndarray = field(default_factory=lambda: np.zeros(NUM_SUMS))

    def evidence_kept(self, tasks: Sequence[str] | None = None) -> float:
        """The share of the pixels that answers depend on (frame 0 excluded) that lie in kept cells: mean over tasks
        that depend on any; NaN if none does."""
        parts = [self.evidence.get(t, (0, 0)) for t in (self.evidence if tasks is None else tasks)]
        shares = [kept / every for kept, every in parts if every]
        return float(np.mean(shares)) if shares else float("nan")

    def answers(self, task: str, scoring: str | None = None) -> list[tuple[int, int]]:
        """The task's (clip number, 0 or 1), by its own scoring if none is named."""
        return self.correct[scoring or ("generated" if task in GENERATED else "choice")][task]

    def accuracy(self, task: str, scoring: str | None = None) -> float:
        """Mean over the task's questions."""
        return float(np.mean([right for _, right in self.answers(task, scoring)]))

    def mean(self, tasks: Sequence[str], scoring: str | None = None) -> float:
        """Mean over tasks, each counting the same."""
        return float(np.mean([self.accuracy(task, scoring) for task in tasks]))

    def interval(self, tasks: Sequence[str], draws: int = 1000) -> tuple[float, float]:
        """95% interval of `mean`: percentile bootstrap over clips, fixed seed."""
        rows = {t: np.array(self.answers(t)) for t in tasks}
        numbers = np.unique(np.concatenate([r[:, 0] for r in rows.values()]))
        picks = np.random.default_rng(0).integers(len(numbers), size=(draws, len(numbers)))
        weight = np.stack([np.bincount(p, minlength=len(numbers)) for p in picks])  # (draws, clips)
        per_task = []
        for r in rows.values():
            w = weight[:, np.searchsorted(numbers, r[:, 0])]  # (draws, answers)
            per_task.append((w @ r[:, 1]) / w.sum(1).clip(min=1))
        low, high = np.percentile(np.stack(per_task, axis=1).mean(1), (2.5, 97.5))
        return float(low), float(high)


def merged(results: Sequence[Result]) -> Result:
    """The results of several processes as one, in the order of the clips."""
    whole = Result()
    for result in results:
        for scoring, tasks in result.correct.items():
            for task, answers in tasks.items():
                whole.correct[scoring][task] = sorted(whole.correct[scoring][task] + answers)
        for task, chances in result.chance.items():
            whole.chance[task] += chances
        whole.kept, whole.cells = whole.kept + result.kept, whole.cells + result.cells
        whole.rows = (whole.rows[0] + result.rows[0], whole.rows[1] + result.rows[1])
        whole.health += result.health
        for task, (kept, every) in result.evidence.items():
            before = whole.evidence.get(task, (0, 0))
            whole.evidence[task] = before[0] + kept, before[1] + every
    return whole


def table(result: Result, blind: Result | None, lookup: dict[str, float] | None) -> str:
    """The result as text: a row per task, the means, tokens and evidence. The first column is multiple choice
    (generation for `GENERATED`)."""
    tasks = list(result.correct["choice"])
    groups = grouped(tasks)
    rows = [f"{'':17}{'score':>8} {'95% interval':>16}{'generated':>11}{'chance':>8}{'look-up':>9}{'blind':>7}{'n':>6}"]

    def row(name: str, of: list[str]) -> str:
        """One line: the means over the tasks `of`."""
        low, high = result.interval(of)
        generated = [result.mean(of, "generated")] if all(result.correct["generated"].get(t) for t in of) else []
        chance = np.mean([np.mean(result.chance[t]) for t in of])
        others = [
            *(f"{100 * g:10.1f}%" for g in generated or [float("nan")]),
            f"{100 * chance:7.1f}%",
            f"{100 * np.mean([lookup[t] for t in of]):8.1f}%" if lookup else f"{'–':>9}",
            f"{100 * blind.mean(of):6.1f}%" if blind else f"{'–':>7}",
        ]
        n = sum(len(result.correct["choice"][t]) for t in of)
        return (
            f"{name:17}{100 * result.mean(of):7.1f}% {f'{100 * low:.1f} – {100 * high:.1f}':>16}{''.join(others)}{n:6}"
        )

    for name, of in groups.items():
        rows += [row(t, [t]) for t in of]
        rows.append(row(f"{name} (mean)", of))
    if len(groups) == 2:
        rows.append(f"{'average':17}{100 * np.mean([result.mean(of) for of in groups.values()]):7.1f}%")
    rows += [row(t, [t]) for t in tasks if not any(t in of for of in groups.values())]
    if result.cells:
        kept = (
            f"vision tokens of videos kept: {result.kept} of {result.cells} ({100 * result.kept / result.cells:.1f}%)"
        )
        evidence = f"evidence kept (mean over tasks): {100 * result.evidence_kept():.1f}%"
        packed = f"packed rows: {result.rows[0]} (at least {result.rows[1]})"
        rows.append(", ".join([kept, evidence, packed] if result.evidence else [kept, packed]))
    return "\n".join(rows)


def grouped(tasks: Sequence[str]) -> dict[str, list[str]]:
    """The short and the long ones among the tasks; a group without any is left out."""
    groups = {"short": world.SHORT_TASKS, "long": world.LONG_TASKS}
    there = {name: [t for t in of if t in tasks] for name, of in groups.items()}
    return {name: of for name, of in there.items() if of}


def summarise(result: Result, blind: Result | None = None, lookup: dict[str, float] | None = None) -> dict:
    """The numbers of a result, and of what it is compared with, as plain values."""
    tasks = list(result.correct["choice"])
    summary = {scoring: {t: result.accuracy(t, scoring) for t in of} for scoring, of in result.correct.items()}
    summary["interval"] = {t: result.interval([t]) for t in tasks}
    for name, of in grouped(tasks).items():
        summary[name], summary[f"{name}_interval"] = result.mean(of), result.interval(of)
    summary["chance"] = {t: float(np.mean(result.chance[t])) for t in tasks}
    summary["blind"] = {t: blind.accuracy(t) for t in tasks} if blind else None
    rest = dict(kept=result.kept, cells=result.cells, rows=list(result.rows), evidence=result.evidence)
    return dict(**summary, look_up=lookup, **rest)


def broken_clips(broken: dict[tuple, str], skipped: dict[tuple, int]) -> str:
    """A line for each clip that could not be read, under one that counts them; nothing if all could. And one line
    about those that could be read only in part, if there are any."""
    lines = [f"  {error}\n" for error in broken.values()]
    worst = max(skipped, key=skipped.get, default=None)
    parts = worst and (
        f"broken or missing, and left out: {sum(skipped.values())} packets or frames of {len(skipped)} clips,"
        f" {skipped[worst]} of them of {worst[0]} (`stts_mini.lab.check` lists all)\n"
    )
    return f"could not be read, and left out: {len(lines)}\n" * bool(lines) + "".join(lines) + (parts or "")
