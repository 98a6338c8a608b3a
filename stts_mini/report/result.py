"""The result of an evaluation, and how it is printed: means, intervals, tables.

Accuracies are means over questions, with a 95% interval from resampling clips. "short" is the mean over the short
tasks, "long" over the long ones. For "evidence" we take the pixels that answers depend on, without frame 0, and count
the share that lies in kept cells. It is a mean over tasks. `wrong_kinds` says why answers were wrong.

What this file does not do: run a model (`eval.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stts_mini.data.clips import FREE, QA, Clip
from stts_mini.data.files import printable
from stts_mini.toy import world
from stts_mini.training.health import NUM_SUMS

GENERATED = (*world.GENERATED, FREE)  # tasks that are scored by generation
CUT = 0.5  # the share of each object that must be kept: see `wrong_kinds`


class Answer(NamedTuple):
    """What a model said to one question, in the scoring of its task."""

    clip: int  # the clip's number
    question: str
    said: str
    expected: str
    right: bool


@dataclass
class Result:
    """Scores of one model on one set of clips.

    correct    {scoring: {task: [(clip number, 0 or 1)]}} for the scorings "choice" and "generated"
    chance     {task: [1 / shown options]}, 0 for a task that is scored by generation (`GENERATED`)
    kept, cells  vision tokens kept and before pruning, summed over the videos (an image loses none)
    rows         packed rows, and ⌈Σ/N⌉, the fewest that could hold the kept tokens, summed over batches
    evidence   {task: (pixels in kept cells, all pixels) that its answers depend on}
    health     sums over the scored cells, if the scorer is trained (`training/health.py`)
    shares     {task: {clip number: how much is visible of what its question depends on}}: see `eval.kept_shares`
    said       every answer in words, by clip
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
    shares: dict[str, dict[int, float | None]] = field(default_factory=lambda: defaultdict(dict))
    said: list[Answer] = field(default_factory=list)

    def add(self, scoring: str, task: str, clip: int, qa: QA, said: str, right: bool) -> None:
        """Count an answer, and store its words if this is the scoring of its task."""
        self.correct[scoring][task].append((clip, int(right)))
        if (scoring == "generated") == (task in GENERATED):
            self.said.append(Answer(clip, qa.question, said, qa.answer, right))

    def evidence_kept(self) -> float:
        """The share of the answers' pixels, without frame 0, that lies in kept cells. Mean over the tasks that have any
        such pixels, NaN if none has."""
        shares = [kept / every for kept, every in self.evidence.values() if every]
        return float(np.mean(shares)) if shares else float("nan")

    def answers(self, task: str, scoring: str | None = None) -> list[tuple[int, int]]:
        """The task's (clip number, 0 or 1), in its own scoring by default."""
        return self.correct[scoring or ("generated" if task in GENERATED else "choice")][task]

    def accuracy(self, task: str, scoring: str | None = None) -> float:
        """Mean over the task's questions."""
        return float(np.mean([right for _, right in self.answers(task, scoring)]))

    def mean(self, tasks: Sequence[str], scoring: str | None = None) -> float:
        """Mean over tasks, each counting the same."""
        return float(np.mean([self.accuracy(task, scoring) for task in tasks]))

    def interval(self, tasks: Sequence[str], draws: int = 1000) -> tuple[float, float]:
        """95% interval of `mean`: percentile bootstrap over clips, fixed seed. A task without a clip in a draw is left
        out of that draw's mean. No draw is empty, because every clip has an answer."""
        rows = {t: np.array(self.answers(t)) for t in tasks}
        numbers = np.unique(np.concatenate([r[:, 0] for r in rows.values()]))
        picks = np.random.default_rng(0).integers(len(numbers), size=(draws, len(numbers)))
        weight = np.stack([np.bincount(p, minlength=len(numbers)) for p in picks])  # (draws, clips)
        per_task = []
        for r in rows.values():
            w = weight[:, np.searchsorted(numbers, r[:, 0])]  # (draws, answers)
            per_task.append(np.where(w.any(1), (w @ r[:, 1]) / w.sum(1).clip(min=1), np.nan))
        low, high = np.percentile(np.nanmean(np.stack(per_task, axis=1), axis=1), (2.5, 97.5))
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
        for task, shares in result.shares.items():
            whole.shares[task] |= shares
        whole.said = sorted(whole.said + result.said)
    return whole


def examples(said: Sequence[Answer], clips: Sequence[Clip], count: int = 3) -> str:
    """Some answers as text: one wrong answer if there is one, the rest right as far as possible. They are taken at
    equal distances, so that they come from several kinds of clips."""
    right, wrong = [a for a in said if a.right], [a for a in said if not a.right]
    mistakes = min(len(wrong), max(1, count - len(right)))
    chosen = [(answers, n) for answers, n in ((right, count - mistakes), (wrong, mistakes)) if n]
    lines = ["examples, scored as in the first column:"]
    for a in (a for answers, n in chosen for a in answers[:: max(len(answers) // n, 1)][:n]):
        lines += [f"{clips[a.clip].source[0]}", f"  question:     {a.question}", f"  model says:   {a.said}"]
        lines += [f"  right answer: {a.expected}" + ", so this is wrong" * (not a.right)]
    return "\n".join(map(printable, lines))


def wrong_kinds(answers: Sequence[int], reference: Sequence[int], shares: Sequence[float | None]) -> dict[str, int]:
    """Why was it wrong? Count a task's wrong answers by the first reason that holds:

    unpruned   the unpruned model is wrong, too
    pruned     the evidence was pruned: an object that the answer depends on has less than `CUT` of its pixels in kept
               cells, in every frame after frame 0
    unused     the evidence was kept, or there is none after frame 0

    answers    0 or 1 for each question; reference: the same for the unpruned model
    shares     see `eval.kept_shares`
    Raises ValueError for sequences of different lengths.

    One visible frame is enough here, because accuracy falls if an object is never visible but hardly depends on how
    often it is. We measured it on what the unpruned model gets right (200 clips a kind, k = 0.8). The cosine heuristic
    on base 0 is right on 26% with pruned evidence and on 69% of the others, the model trained with saliency on 52% and
    97%. Cuts from 0.001 to 0.6 give nearly the same. But direction and speed need two frames and event-count more, so
    some of their pruned evidence counts as unused.

    >>> wrong_kinds([1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0.1, 0.1, 0.9, None, 0.1])
    {'unpruned': 1, 'pruned': 1, 'unused': 2}
    """
    wrong = [(known, share) for right, known, share in zip(answers, reference, shares, strict=True) if not right]
    unpruned = sum(not known for known, _ in wrong)
    pruned = sum(1 for known, share in wrong if known and share is not None and share < CUT)
    return dict(unpruned=unpruned, pruned=pruned, unused=len(wrong) - unpruned - pruned)


def why_wrong(result: Result, unpruned: Result) -> dict[str, dict[str, int]]:
    """For each task of the toy world's videos, `wrong_kinds` of a result and an unpruned one on the same clips."""
    kinds = {}
    for task, shares in result.shares.items():
        ours, theirs = ([right for n, right in r.answers(task) if n in shares] for r in (result, unpruned))
        kinds[task] = wrong_kinds(ours, theirs, [shares[n] for n, _ in result.answers(task) if n in shares])
    return kinds


def table(result: Result, blind: Result | None, lookup: dict[str, float] | None) -> str:
    """The result as text: a row per task, the means, tokens and evidence. The first column is multiple choice, but
    generation for the tasks in `GENERATED`."""
    tasks = list(result.correct["choice"])
    groups = grouped(tasks)
    rows = [f"{'':17}{'score':>8} {'95% interval':>16}{'generated':>11}{'chance':>8}{'look-up':>9}{'blind':>7}{'n':>6}"]

    def row(name: str, of: list[str]) -> str:
        """One line: means over the tasks `of`."""
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


def wrong_table(result: Result, kinds: dict[str, dict[str, int]]) -> str:
    """The counts of `why_wrong` as text, in percent of a task's questions: a row per task, and the means."""
    rows = [f"{'why wrong':17}{'wrong':>8}{'unpruned, too':>16}{'evidence pruned':>17}{'kept, not used':>16}{'n':>6}"]
    for group, of in grouped(list(kinds)).items():
        shares = np.array([[n / len(result.shares[t]) for n in kinds[t].values()] for t in of])  # (tasks, kinds)
        numbers = [len(result.shares[t]) for t in of]
        for name, x, n in zip(
            [*of, f"{group} (mean)"], [*shares, shares.mean(0)], [*numbers, sum(numbers)], strict=True
        ):
            cells = zip((100 * x.sum(), *(100 * x)), (7, 15, 16, 15), strict=True)
            rows.append(f"{name:17}{''.join(f'{y:{width}.1f}%' for y, width in cells)}{n:6}")
    return "\n".join(rows)


def against(result: Result, answers: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Compare a result with another model's answers to the same questions.

    answers  {task: its 0s and 1s, in the order of the clips}
    returns  a text with a row per task and mean, and the differences alone
    Differences are paired clip by clip, and the text has their 95% intervals.
    Raises ValueError for other tasks or numbers of answers."""
    other, less = Result(), Result()
    tasks = list(result.correct["choice"])
    if {t: len(result.answers(t)) for t in tasks} != {t: len(bits) for t, bits in answers.items()}:
        raise ValueError("these answers are to other questions: compare models on the same clips")
    for task in tasks:
        scoring, ours = "generated" if task in GENERATED else "choice", result.answers(task)
        other.correct[scoring][task] = [(n, int(bit)) for (n, _), bit in zip(ours, answers[task], strict=True)]
        less.correct[scoring][task] = [(n, a - int(bit)) for (n, a), bit in zip(ours, answers[task], strict=True)]
    groups = grouped(tasks)
    lines = {t: [t] for of in groups.values() for t in of}
    lines |= {f"{name} (mean)": of for name, of in groups.items()} | {t: [t] for t in tasks if t not in lines}
    rows = [f"{'':17}{'score':>8}{'unpruned':>10}{'against unpruned':>18}{'95% interval':>18}"]
    for name, of in lines.items():
        low, high = (100 * x for x in less.interval(of))
        scores = f"{100 * result.mean(of):7.1f}%{100 * other.mean(of):9.1f}%{100 * less.mean(of):+18.1f}"
        rows.append(f"{name:17}{scores}{f'{low:+.1f} to {high:+.1f}':>18}")
    differences = {name: less.mean(of) for name, of in lines.items()}
    if len(groups) == 2:
        average = [np.mean([r.mean(of) for of in groups.values()]) for r in (result, other, less)]
        rows.append(f"{'average':17}{100 * average[0]:7.1f}%{100 * average[1]:9.1f}%{100 * average[2]:+18.1f}")
        differences["average"] = float(average[2])
    return "\n".join(rows), differences


def grouped(tasks: Sequence[str]) -> dict[str, list[str]]:
    """The tasks in two groups, short and long. An empty group is left out."""
    groups = {"short": world.SHORT_TASKS, "long": world.LONG_TASKS}
    there = {name: [t for t in of if t in tasks] for name, of in groups.items()}
    return {name: of for name, of in there.items() if of}


def summarise(result: Result, blind: Result | None = None, lookup: dict[str, float] | None = None) -> dict:
    """The numbers of a result and of its baselines, as plain values. "choice" lacks `FREE`, whose one option is always
    the likeliest."""
    tasks = list(result.correct["choice"])
    summary = {scoring: {t: result.accuracy(t, scoring) for t in of} for scoring, of in result.correct.items()}
    summary["choice"].pop(FREE, None)
    summary["interval"] = {t: result.interval([t]) for t in tasks}
    for name, of in grouped(tasks).items():
        summary[name], summary[f"{name}_interval"] = result.mean(of), result.interval(of)
    summary["chance"] = {t: float(np.mean(result.chance[t])) for t in tasks}
    summary["blind"] = {t: blind.accuracy(t) for t in tasks} if blind else None
    rest = dict(kept=result.kept, cells=result.cells, rows=list(result.rows), evidence=result.evidence)
    return dict(**summary, look_up=lookup, **rest)


def broken_clips(broken: dict[tuple, str], skipped: dict[tuple, int]) -> str:
    """A line that counts the clips that could not be read, a line for each of them, and one about clips that were only
    partly read. Empty if all were read."""
    lines = [f"  {error}\n" for error in broken.values()]
    worst = max(skipped, key=skipped.get, default=None)
    parts = worst and (
        f"broken or missing, and left out: {sum(skipped.values())} packets or frames of {len(skipped)} clips,"
        f" {skipped[worst]} of them of {worst[0]} (`stts_mini.lab.check` lists all)\n"
    )
    return f"could not be read, and left out: {len(lines)}\n" * bool(lines) + "".join(lines) + (parts or "")
