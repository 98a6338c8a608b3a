"""The paper's findings beside ours, without panels and with two: one table, made from the rows' files.

A finding is a difference between two rows. The paper's number is in points of its average over 13 benchmarks of a 4B
model, ours of 13 tasks of a toy world. So we do not compare sizes. We ask whether a claim holds:

    holds      the whole 95% interval is on the claim's side of its bar
    does not   the whole interval is on the other side
    unclear    the bar lies inside the interval

The bar of "loses little" is the paper's own loss. The bar of "is better" is zero. The bar of a speed-up is 0.95 of its
counted limit (`lab/speed`), because the paper's own throughputs reach 0.95 of theirs or more, and its interval is the
range of the benchmark's rounds. Speed depends on the number of cells and not on what they show, so it is the same
without panels and with two.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from stts_mini.lab.paper.scores import UNPRUNED, Results, difference, signed, table


@dataclass(frozen=True)
class Finding:
    """The claim that row `a` minus row `b` is at least `bar` points (`below`: at most), and the paper's number."""

    text: str
    a: tuple
    b: tuple
    paper: float
    bar: float = 0.0
    below: bool = False
    group: str = "average"


def loses_little(k: float, paper: float) -> Finding:
    """STTS against the unpruned model (the paper's Table 1)."""
    return Finding(f"STTS at k = {round(100 * k)} against unpruned", ("stts", k), UNPRUNED, paper, bar=paper)


FINDINGS = (
    loses_little(0.3, -0.2),
    loses_little(0.5, -0.7),
    Finding(
        "STTS at k = 50 against unpruned, both trained twice as long",
        ("stts@800", 0.5), ("unpruned@800", 0.0), -0.7, bar=-0.7,
    ),
    loses_little(0.7, -2.3),
    loses_little(0.8, -3.2),
    loses_little(0.9, -6.8),
    Finding("STTS against random, k = 50", ("stts", 0.5), ("random", 0.5), 0.9),
    Finding("STTS against random, k = 80", ("stts", 0.8), ("random", 0.8), 2.3),
    Finding("STTS against the cosine heuristic, both trained, k = 50", ("stts", 0.5), ("cosine", 0.5), 0.3),
    Finding(
        "STTS against the cosine heuristic at inference only, k = 50",
        ("stts", 0.5), (*UNPRUNED, "cosine, inference only, k = 0.5"), 3.2,
    ),
    Finding("without the auxiliary loss against random, k = 50", ("no-aux", 0.5), ("random", 0.5), -1.4, below=True),
    Finding("STTS against merging (ToMe), both trained, k = 50", ("stts", 0.5), ("tome", 0.5), 1.2),
    Finding("STTS scored a block later, k = 50", ("deeper", 0.5), ("stts", 0.5), 0.5),
    Finding(
        "STTS at k = 50 on twice the frames against unpruned, long tasks",
        ("stts", 0.5, "scaled"), UNPRUNED, 0.4, group="long",
    ),
    Finding(
        "single images (counting), trained at k = 50", ("stts", 0.5), UNPRUNED, -0.1, bar=-0.1, group="image/count",
    ),
)  # fmt: skip


HEADLINES = (  # the lines of the table that the front page shows
    "STTS at k = 50 against unpruned",
    "STTS at k = 80 against unpruned",
    "STTS against random, k = 50",
    "STTS against the cosine heuristic, both trained, k = 50",
    "without the auxiliary loss against random, k = 50",
    "training on 256 frames, k = 50: times as fast as unpruned",
)


def verdict(low: float, high: float, bar: float, below: bool = False) -> str:
    """Whether a finding holds whose interval is low to high: all of it at or above the bar (`below`: at or under it).

    >>> verdict(-0.5, 0.1, bar=-0.7), verdict(-2.0, -1.0, bar=-0.7), verdict(-1.0, 0.0, bar=-0.7)
    ('holds', 'does not', 'unclear')
    """
    sign = -1 if below else 1
    sides = [sign * x >= sign * bar for x in (low, high)]
    return "holds" if all(sides) else "unclear" if any(sides) else "does not"


def ours(results: Results, finding: Finding) -> list[str]:
    """Our difference with its interval and seeds, and the verdict. Dashes where rows are missing."""
    both = results.shared(finding.a, finding.b)
    if not both:
        return ["–", "–"]
    rows = (results.scores(*row, seeds=both) for row in (finding.a, finding.b))
    d, low, high = difference(*rows, finding.group)
    seeds = f"{len(both)} seed{'s' * (len(both) > 1)}"
    said = verdict(100 * low, 100 * high, finding.bar, finding.below)
    return [f"{signed(d)} ({signed(low)} to {signed(high)}; {seeds})", said]


PAPER_SPEED = {"training": (2.25, 2.14), "inference": (2.22, 2.16)}  # at 256 frames, each with its limit


def faster(bench: Mapping | None) -> list[list[str]]:
    """The lines about speed, from a bench.json: how many times as fast as unpruned, at k = 50 on 256 frames."""
    lines = []
    for row in (bench or {}).get("speed", ()):
        if (row["videos"], row["frames"], row["k"]) == (1, 256, 0.5) and "speedup" in row:
            low, high, limit = row["lowest"], row["highest"], row["limit"]
            found = f"{row['speedup']:.2f} ({low:.2f} to {high:.2f}; limit {limit:.2f})"
            speedup, at_most = PAPER_SPEED[row["what"]]
            text = f"{row['what']} on 256 frames, k = 50: times as fast as unpruned"
            known = verdict(low, high, 0.95 * limit)
            lines.append([text, f"{speedup} (limit {at_most})", found, known, "the same", known])
    return lines


def beside(without: Results, panels: Results, bench: Mapping | None = None, only: Container[str] | None = None) -> str:
    """The table: each finding with the paper's number, and ours without panels and with two. `bench` adds speed. `only`
    keeps the lines with these texts."""
    rows = [
        [f.text, f"{f.paper:+.1f}".replace("-", "−"), *ours(without, f), *ours(panels, f)]
        for f in FINDINGS
        if without.shared(f.a, f.b) or panels.shared(f.a, f.b)
    ]
    rows = [row for row in rows + faster(bench) if only is None or row[0] in only]
    return table("finding|paper|without panels|verdict|two panels|verdict", rows)
