"""What `bench.py` measured, as Markdown and as a picture.

    page(report) → text        draw(report, path) → a PNG (needs matplotlib)

A report is what `bench.measure` returns and its JSON file holds. This file measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from stts_mini.lab.speed.machine import MACHINE
from stts_mini.report.markdown import markdown

STAGES = ("stem", "score", "select", "pack", "packed", "unpack", "connector", "layout", "llm", "logits", "decode")
OVERHEAD = ("score", "select", "pack", "unpack")  # what an unpruned model would not do


def page(report: dict) -> str:
    """A report as Markdown."""
    head = "{shape} on " + MACHINE + ", --varlen" * report["varlen"] + ", --compile" * report.get("compile", False)
    head += ", scored by {config[scored_by]}" * (report["config"]["scored_by"] != "stts")
    parts = [head.format(**report), speed_table(report["speed"]), break_even(report["speed"])]
    parts += map(stage_table, report["stages"][::2], report["stages"][1::2])
    return "\n\n".join([*parts, memory_table(report["memory"])])


def speed_table(rows: list[dict]) -> str:
    """Speed-up, its limit, and the share of the limit that was reached, one line for each k."""
    head = ("", "videos × frames", "k", "seconds", "speed-up", "rounds", "limit", "reached", "rows (least)")
    lines = []
    for row in rows:
        line = [row["what"], f"{row['videos']} × {row['frames']}", f"{row['k']:g}"]
        if row["seconds"] is None:
            lines.append([*line, "out of memory", *[""] * 5])
            continue
        line += [f"{row['seconds']:.3f}", f"{row['speedup']:.2f}"]
        line += [f"{row['lowest']:.2f}–{row['highest']:.2f} ({row['rounds']})"]
        line += [f"{row['limit']:.2f}", f"{row['reached']:.2f}", f"{row['rows']} ({row['least_rows']})"]
        lines.append(line)
    return markdown(head, lines)


def break_even(rows: list[dict]) -> str:
    """The number of frames from which pruning pays, for each k that was measured on the shortest single video."""
    alone = [row for row in rows if row["videos"] == 1]
    fewest = min((row["frames"] for row in alone), default=0)
    lines = ["Pruning pays, one video:"]
    for what, k in [(row["what"], row["k"]) for row in alone if row["frames"] == fewest and row["k"] > 0]:
        own = [row for row in alone if (row["what"], row["k"]) == (what, k) and "speedup" in row]
        faster = {row["frames"]: row["speedup"] > 1 for row in own}
        lines.append(f"- {what}, k = {k:g}: {pays_from(faster.get, sorted(faster)) if own else 'nowhere measured'}")
    return "\n".join(lines)


def pays_from(gains: Callable[[int], bool], numbers: Sequence[int]) -> str:
    """From which number of frames on there is a gain at every one of these numbers.

    >>> pays_from(lambda frames: frames > 5, [2, 4, 8, 16]), pays_from(lambda frames: frames < 5, [2, 4, 8, 16])
    ('from 8 frames on', 'at none of 2, 4, 8, 16 frames')
    """
    last = max((i for i, frames in enumerate(numbers) if not gains(frames)), default=-1)
    paying = numbers[last + 1 :]
    return f"from {paying[0]} frames on" if paying else f"at none of {', '.join(map(str, numbers))} frames"


def stage_table(plain: dict, pruned: dict) -> str:
    """Milliseconds of each stage, their ratio, and the ratio of the counted multiply-adds."""
    lines = []
    for stage in STAGES:
        times = [1e3 * row["seconds"].get(stage, 0) for row in (plain, pruned)]
        counts = [row["multiply_adds"].get(stage, 0) for row in (plain, pruned)]
        ratio, counted = (f"{a / b:.2f}" if a and b else "" for a, b in (times, counts))
        if any(times):
            lines.append([stage, f"{times[0]:.2f}", f"{times[1]:.2f}", ratio, counted])
    share = 100 * sum(pruned["seconds"][stage] for stage in OVERHEAD) / whole(plain)
    return "\n\n".join(
        [
            f"Stages of {plain['what']}, {plain['videos']} × {plain['frames']} frames, ms (decode: of a token)",
            markdown(("", "unpruned", f"k = {pruned['k']:g}", "ratio", "counted ratio"), lines),
            f"score, select, pack and unpack take {share:.1f}% of the time of the unpruned pass",
        ]
    )


def whole(row: dict) -> float:
    """Seconds of a pass, all stages together. Decoding is not a part, because it is measured per token."""
    return sum(seconds for stage, seconds in row["seconds"].items() if stage != "decode")


def memory_table(rows: list[dict]) -> str:
    """Peak memory of a training step beyond the weights."""
    lines = []
    for row in rows:
        took, floor = row["bytes"], row["floor"]
        line = [f"{row['videos']} × {row['frames']} frames", f"{row['k']:g}"]
        line += [f"{took / 1e6:.0f}" if took else "did not fit", f"{floor / 1e6:.0f}" if floor else "–"]  # not counted
        lines.append([*line, f"{took / floor:.2f}" if took and floor else ""])
    return markdown(("memory of a training step", "k", "MB", "counted floor", "× floor"), lines)


def draw(report: dict, path: Path) -> None:
    """Draw speed-up against k and against frames, with dotted limits, and the stages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    by_k, by_frames, by_stage = figure.subplots(1, 3)
    speed = [row for row in report["speed"] if row["seconds"] is not None]
    loads = sorted({(row["videos"], row["frames"]) for row in speed}, key=math.prod)
    for what, colour in (("training", "tab:blue"), ("inference", "tab:orange")):
        mine = [row for row in speed if row["what"] == what]
        for (videos, frames), marker in zip(loads[-2:], "os", strict=False):  # the two largest
            rows = [row for row in mine if (row["videos"], row["frames"]) == (videos, frames)]
            curve(by_k, "k", rows, f"{what}, {videos} × {frames} frames", color=colour, marker=marker)
        rows = sorted((r for r in mine if (r["videos"], r["k"]) == (1, 0.5)), key=lambda row: row["frames"])
        curve(by_frames, "frames", rows, what, color=colour, marker="o")
    by_k.set(title="Speed-up (dotted: the counted limit)", xlabel="k, share of cells removed", ylabel="× unpruned")
    by_frames.set(title="One video, k = 0.5", xlabel="frames", ylabel="× unpruned", xscale="log")
    ticks = sorted({row["frames"] for row in speed if row["videos"] == 1})
    by_frames.set_xticks(ticks, ticks)
    by_frames.minorticks_off()
    by_frames.axhline(1, color="black", linewidth=0.8)
    stacks(by_stage, report["stages"])
    for axes in (by_k, by_frames, by_stage):
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, format="png")


def curve(axes, x: str, rows: list[dict], label: str, **style) -> None:
    """Draw what was measured, and the limit."""
    at = [row[x] for row in rows]
    axes.plot(at, [row["speedup"] for row in rows], "-", label=label, **style)
    axes.plot(at, [row["limit"] for row in rows], ":", alpha=0.5, markerfacecolor="none", **style)


def stacks(axes, rows: list[dict]) -> None:
    """Draw a bar for each pass, with a piece for each stage. 100% is the time of the unpruned pass."""
    names = [row["what"] + ("\nk = {k:g}".format(**row) if row["k"] else "\nunpruned") for row in rows]
    unpruned = [whole(row) for row in rows[::2] for _ in range(2)]
    bottom = [0.0] * len(rows)
    for stage in STAGES[:-1]:  # without decoding, which is measured per token
        height = [100 * row["seconds"].get(stage, 0) / of for row, of in zip(rows, unpruned, strict=True)]
        axes.bar(names, height, bottom=bottom, label=stage, width=0.7)
        bottom = [a + b for a, b in zip(bottom, height, strict=True)]
    axes.tick_params(axis="x", labelsize=8)
    load = "{videos} × {frames} frames".format(**rows[0]) if rows else ""
    axes.set(title=f"Where the time goes, {load}", ylabel="% of the unpruned pass", xlim=(-0.5, len(rows) + 0.9))
