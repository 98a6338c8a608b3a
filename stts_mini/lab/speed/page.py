"""What `bench.py` measured, as Markdown and as a picture.

    page(report) → text        draw(report, path) → a PNG (needs matplotlib)

A report is what `bench.measure` returns, and what its JSON file holds. This file measures nothing.
"""

from __future__ import annotations

from pathlib import Path

STAGES = ("stem", "score", "select", "pack", "packed", "unpack", "connector", "layout", "llm", "logits", "decode")


def page(report: dict) -> str:
    """All of a report as Markdown."""
    head = "{shape} on {device}, {threads} threads, torch {torch}, commit {commit}, {clock} time"
    head += ", --varlen" * report.get("varlen", False)
    lines = [head.format(**report) + f"; load of the machine when it began: {report['started_under_load']}"]
    lines += ["", *speed_table(report["speed"]), "", "Pruning pays, one video, from:"]
    for what, of in report["pays_from"].items():
        lines += [f"- {what}, k = {k}: {f'{n} frames' if n else 'nowhere measured'}" for k, n in of.items()]
    for plain, pruned in zip(report["stages"][::2], report["stages"][1::2], strict=True):
        lines += ["", *stage_table(plain, pruned)]
    lines += ["", *memory_table(report["memory"]), ""]
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report["reading"]["seconds"].items())
    clip = "Reading {frames} frames of a clip of {clip_seconds} s, {side}×{side} pixels: ".format(**report["reading"])
    outside = f"Of the default training step, {report['outside_operations']:.1%} pass outside of PyTorch's operations"
    return "\n".join([*lines, clip + took, "", outside])


def speed_table(rows: list[dict]) -> list[str]:
    """Speed-up, the limit, and the share of it that was reached, one line for each k."""
    lines = [
        "| | videos × frames | k | seconds | speed-up | rounds | limit | reached | rows (least) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        line = f"| {row['what']} | {row['videos']} × {row['frames']} | {row['k']:g} | "
        if row["seconds"] is None:
            lines.append(line + "out of memory |" + " |" * 5)
            continue
        lines.append(
            line + f"{row['seconds']:.3f} | {row['speedup']:.2f} | {row['lowest']:.2f}–{row['highest']:.2f}"
            f" ({row['rounds']}) | {row['limit']:.2f} | {row['reached']:.2f} | {row['rows']} ({row['least_rows']}) |"
        )  # fmt: skip
    return lines


def stage_table(plain: dict, pruned: dict) -> list[str]:
    """Milliseconds of each stage, and by how much they fell, beside how much there was less to count."""
    lines = [
        f"Stages of {plain['what']}, {plain['videos']} × {plain['frames']} frames, ms (decode: of a token)", "",
        f"| | unpruned | k = {pruned['k']:g} | ratio | counted ratio |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for stage in STAGES:
        times = [1e3 * row["seconds"].get(stage, 0) for row in (plain, pruned)]
        counts = [row["multiply_adds"].get(stage, 0) for row in (plain, pruned)]
        ratio, counted = (f"{a / b:.2f}" if a and b else "" for a, b in (times, counts))
        if any(times):
            lines.append(f"| {stage} | {times[0]:.2f} | {times[1]:.2f} | {ratio} | {counted} |")
    share = 100 * pruned["overhead"]
    return [*lines, "", f"score, select, pack and unpack take {share:.1f}% of the time of the unpruned pass"]


def memory_table(rows: list[dict]) -> list[str]:
    """Peak memory of a training step beyond the weights."""
    lines = ["| memory of a training step | k | MB | counted floor | × floor |", "|---|---|---|---|---|"]
    for row in rows:
        line = f"| {row['videos']} × {row['frames']} frames | {row['k']:g} | "
        took = f"{row['bytes'] / 1e6:.0f}" if row["bytes"] else "did not fit"
        floor = f"{row['floor'] / 1e6:.0f}" if row["floor"] else "–"  # not counted
        ratio = f" {row['bytes'] / row['floor']:.2f}" if row["bytes"] and row["floor"] else ""
        lines.append(f"{line}{took} | {floor} |{ratio} |")
    return lines


def draw(report: dict, path: Path) -> None:
    """Speed-up against k and against frames, each with its limit dotted; and the stages."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    by_k, by_frames, by_stage = figure.subplots(1, 3)
    speed = [row for row in report["speed"] if row["seconds"] is not None]
    loads = list(dict.fromkeys((r["videos"], r["frames"]) for r in speed if r["k"] not in (0.0, 0.3, 0.5)))
    for what, colour in (("training", "tab:blue"), ("inference", "tab:orange")):
        mine = [r for r in speed if r["what"] == what]
        for load, marker in zip(loads, "os^D", strict=False):
            rows = [r for r in mine if (r["videos"], r["frames"]) == load]
            curve(by_k, [100 * r["k"] for r in rows], rows, colour, marker, f"{what}, {load[0]} × {load[1]} frames")
        rows = sorted((r for r in mine if (r["videos"], r["k"]) == (1, 0.5)), key=lambda r: r["frames"])
        curve(by_frames, [r["frames"] for r in rows], rows, colour, "o", what)
    by_k.set(title="Speed-up (dotted: the counted limit)", xlabel="cells removed, %", ylabel="× unpruned")
    by_frames.set(title="One video, k = 0.5", xlabel="frames", ylabel="× unpruned", xscale="log")
    ticks = sorted({r["frames"] for r in speed if r["videos"] == 1})
    by_frames.set_xticks(ticks, [str(n) for n in ticks])
    by_frames.minorticks_off()
    by_frames.axhline(1, color="black", linewidth=0.8)
    stacks(by_stage, report["stages"])
    for axes in (by_k, by_frames, by_stage):
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def curve(axes, x: list[float], rows: list[dict], colour: str, marker: str, label: str) -> None:
    """What was measured, and the limit."""
    axes.plot(x, [r["speedup"] for r in rows], f"{marker}-", color=colour, label=label)
    axes.plot(x, [r["limit"] for r in rows], f"{marker}:", color=colour, alpha=0.5, markerfacecolor="none")


def stacks(axes, rows: list[dict]) -> None:
    """A bar for each pass, a piece for each stage; both passes share their unpruned time as 100%."""
    names = [row["what"] + ("\nk = {k:g}".format(**row) if row["k"] else "\nunpruned") for row in rows]
    bottom = [0.0] * len(rows)
    for i, stage in enumerate(STAGES[:-1]):  # decoding is by the token
        whole = [sum(t for s, t in r["seconds"].items() if s != "decode") for r in rows[::2] for _ in (0, 1)]
        height = [100 * row["seconds"].get(stage, 0) / w for row, w in zip(rows, whole, strict=True)]
        axes.bar(names, height, bottom=bottom, label=stage, color=f"C{i}", width=0.7)
        bottom = [a + b for a, b in zip(bottom, height, strict=True)]
    axes.tick_params(axis="x", labelsize=8)
    axes.set(title="Where the time goes", ylabel="% of the unpruned pass", xlim=(-0.5, len(rows) + 0.9))
