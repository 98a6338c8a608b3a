"""Tables of the results, with intervals: from the JSON files that `reproduce.py` writes to one Markdown page.

    python -m stts_mini.lab.paper.tables --readme README.md     writes tutorials/results/README.md and README's table
    python -m stts_mini.lab.paper.tables --readme README.md --check     exits 1 if what is on disk is another
    python -m stts_mini.lab.paper.tables --seeds 1              prints the page of these seeds alone (1: of base 1)

What scores, intervals and paired differences are is in `scores.py`; the table that sets the paper's findings beside
ours, in `beside.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from stts_mini.data.files import check_outputs, replacing, write_text
from stts_mini.lab.paper.beside import HEADLINES, beside
from stts_mini.lab.paper.reproduce import ASKED, parted
from stts_mini.lab.paper.scores import (
    AVERAGES,
    UNPRUNED,
    Results,
    against,
    averaged,
    kind_of,
    percent,
    seed_by_seed,
    table,
    value,
    with_interval,
)
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.packing import num_removed
from stts_mini.report.result import wrong_kinds
from stts_mini.toy import world

KINDS = ("unpruned", "pruned", "unused")  # of wrong answers: see `wrong_kinds`
CELLS = PaperConfig().model.cells  # of a frame, in all rows but those of smaller frames
NAMES = {
    "unpruned": "unpruned", "stts": "STTS", "random": "random",
    "saliency": "STTS trained with saliency, spread (ours)", "cosine": "cosine heuristic, trained",
    "no-aux": "STTS without the auxiliary loss", "no-bias": "STTS without the bias (no LM gradient)",
    "oracle": "oracle: the cells that answers depend on", "tome": "merging (ToMe), trained",
    "frames": "fewer frames, unpruned", "blind": "blind, trained",
    "resolution": "smaller frames, unpruned (44% of the cells at k = 50, 11% at 80)",
    "saliency-plain": "STTS trained with saliency, not spread (ours)",
    "cosine-spread": "cosine heuristic, trained, spread",
    "saliency-deeper": "trained with saliency, spread (ours), scored a block later",
    "deeper": "STTS, scored a block later",
    "saliency-deepest": "trained with saliency, spread (ours), scored two blocks later",
    "deepest": "STTS, scored two blocks later",
    "saliency-few": "trained with saliency, spread (ours), on half of the frames",
    "saliency-many": "trained with saliency, spread (ours), on twice the frames", "elastic": "elastic (ours)",
    "unpruned-range": "unpruned, trained on any number of frames",
    "saliency-range": "trained with saliency, spread (ours), on any number of frames",
    "evs": "EVS: pixels that change", "visionzip": "VisionZip: attention received in the ViT",
    "vidcom2": "VidCom²: unusual frames and cells", "divprune": "DivPrune: far from each other",
    "contrast": "contrast within a cell", "rlt": "RLT: runs dropped before the ViT",
    "dycoke": "merging over time (DyCoke)", "fastv": "FastV: attention of the question, in the LLM",
    "young-unpruned": "unpruned", "young-saliency": "trained with saliency, spread (ours)",
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


COLUMNS = "|k|effective k|short|long|average|against unpruned|evidence kept|seeds"


def facts(
    results: Results, row: tuple, name: str = "", only: Collection[int] | None = None, others: dict | None = None
) -> dict[str, object] | None:
    """What the tables say of a row, by the names of their columns, over all of its seeds or `only` these; None if there
    are none. `others` are rows to compare it with, by the columns' names. Effective k is by the vision tokens that are
    left. Time does not depend on the seed: the minutes are the mean over all that know theirs."""
    method, k, *way = row
    seeds = [s for s in results.seeds(*row) if only is None or s in only]
    if not seeds:
        return None
    scores, whole = results.scores(*row, seeds=seeds), results.scores(*UNPRUNED)
    tokens = scores.means["tokens"]  # None: what is pruned inside the LLM
    videos = {kind_of(t): x.shape[1] for t, x in scores.answers.items() if kind_of(t) != "image"}
    records = [results.records[method, k, s] for s in results.seeds(*row)]
    seconds = [r["cpu_seconds"] for r in records if r.get("threads") == 1 and "cpu_seconds" in r]
    cells = {
        "": name or named(method),
        "k": 100 if method == "blind" else round(100 * (scores.means["k"] if way else k)),
        "effective k": percent(1 - tokens / whole.means["tokens"] if whole and tokens is not None else None),
        **{group: with_interval(scores, group) for group in AVERAGES},
        **{column: against(results, row, other, seeds=seeds) for column, other in (others or {}).items()},
        "against unpruned": against(results, row, UNPRUNED, seeds=seeds),
        "evidence kept": percent(scores.means["evidence_kept"]),
        "steps": records[0]["config"]["steps"],
        "minutes of one core": f"{np.mean(seconds) / 60:.1f}" if seconds else "–",
        "frames": round(scores.means["max_frames"]),
        "tokens": "–" if tokens is None else round(tokens / sum(videos.values())),
        "seeds": ", ".join(map(str, seeds)),
    }
    if way == ["1 frames"]:
        cells |= {"k": "–", "effective k": "–"}  # the other frames were not pruned, they were never there
    return cells


def ladder(results: Results, ks: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)) -> str:
    """Tables 1 and 8 of the paper: accuracy against k."""
    pruned = [(m, k) for k in ks for m in ("stts", "saliency", "random", "cosine", *results.own)]
    rows = [facts(results, row) for row in (UNPRUNED, *pruned)]
    rows.append(facts(results, (*UNPRUNED, "1 frames"), "frame 0 only"))
    return table(COLUMNS, [*rows, facts(results, ("blind", 0.0))])


def methods(results: Results) -> str:
    """Tables 2 and 5: other ways to prune."""
    trained = ("stts", "saliency", "saliency-plain", "cosine", "cosine-spread", "random", "no-aux", "no-bias", "tome")
    trained += ("frames", "resolution", "oracle", "saliency-many", "saliency-many@800")
    rows = []
    for k in (0.5, 0.8, 0.9):
        rows += [facts(results, (method, k)) for method in trained]
        for way in ("cosine, inference only", "random, inference only", "tome, inference only"):
            rows.append(facts(results, (*UNPRUNED, f"{way}, k = {k}"), way))
    return table(COLUMNS, rows)


def pairs(results: Results) -> str:
    """STTS, as in the paper and as trained with saliency, against every other trained method, paired."""
    alone = ("unpruned", "blind", "elastic", "unpruned-range", "saliency-range")  # have tables of their own
    others = [m for m in (*NAMES, *results.own) if m not in alone and not m.startswith("young-")]
    rows = []
    for k, own, other in itertools.product((0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), ("stts", "saliency"), others):
        pair = (own, k), (other, k)
        both = results.shared(*pair)
        if both and own != other and (own, other) != ("stts", "saliency"):
            differences = [against(results, *pair, group) for group in AVERAGES]
            each = seed_by_seed(*(results.scores(*row, seeds=both) for row in pair))
            rows.append([round(100 * k), named(own), named(other), *differences, each])
    return table("k||minus|short|long|average|average, seed by seed", rows)


def tasks(results: Results) -> str:
    """Every task of the unpruned model, over numbers of frames, beside what chance, the question's text, a model
    trained without any video, and frame 0 alone are worth."""
    ways = {"32 frames": UNPRUNED, **{f"{n} frames": (*UNPRUNED, f"{n} frames") for n in (8, 16, 64)}}
    ways |= {"frame 0 only": (*UNPRUNED, "1 frames"), "blind": ("blind", 0.0)}
    there = {name: results.scores(*row) for name, row in ways.items() if results.seeds(*row)}
    if "32 frames" not in there:
        return ""
    whole, *others = there.values()
    record = results.records[(*UNPRUNED, whole.names[0])]
    rows = []
    for group in (*world.SHORT_TASKS, "short", *world.LONG_TASKS, "long", "average", "image/attribute", "image/count"):
        text = [averaged(x.get, x, group) for x in (record["asked"]["as trained"]["chance"], record["look_up"])]
        cells = [*map(percent, text), with_interval(whole, group), *(percent(value(s, group)) for s in others)]
        rows.append([f"**{group}**" if group in AVERAGES else group, *cells])
    return table("|".join(["|chance|look-up", *(f"{name} ({len(s.names)})" for name, s in there.items())]), rows)


TIMED = "|k|steps|minutes of one core|short|long|average"


def clock(results: Results) -> str:
    """Accuracy against the time that training takes: rows of other numbers of steps, and the recipe's own beside them,
    over the seeds that both have."""
    there = {(k, parted(m)[0], r["config"]["steps"], m) for (m, k, _), r in results.records.items()}
    rows = []
    for (k, kind), alike in itertools.groupby(sorted(there), key=lambda row: row[:2]):
        methods = [m for *_, m in alike if not m.startswith("young-")]
        for m in methods:
            beside = {s for o in methods if (o == kind) != (m == kind) for s in results.seeds(o, k)}
            minus = {"against the recipe's steps": (kind, k)}
            rows.append(facts(results, (m, k), NAMES.get(kind, ""), beside, minus))
    return table(f"{TIMED}|against the recipe's steps|against unpruned|seeds", rows)


def learning(results: Results) -> str:
    """From a base after the first of its runs: what is learned in about the same time, pruned and unpruned."""
    whole = ("young-unpruned", 0.0)
    seeds, minus = results.seeds(*whole), {"minus unpruned": whole}
    there = {(k, r["config"]["steps"], m) for (m, k, _), r in results.records.items() if m.startswith("young-")}
    rows = [facts(results, (m, k), NAMES[parted(m)[0]], seeds, minus) for k, _, m in sorted(there)]
    return table(f"{TIMED}|minus unpruned|seeds", rows)


def scaling(results: Results) -> str:
    """Table 3: more frames at test time, the same model, beside an unpruned model with about as many vision tokens (at
    k ≥ 0.8, with several times as many)."""
    rows = []
    for method, k, other in (
        *((m, k, UNPRUNED) for m in ("stts", "saliency") for k in (0.3, 0.4, 0.5)),
        *(("saliency", k, UNPRUNED) for k in (0.8, 0.9)),
        ("saliency-many", 0.9, UNPRUNED),
        ("saliency-few", 0.5, ("frames", 0.5)),
    ):
        trained = (method, k)
        last = trained if method == "saliency-many" else (method, k, "scaled")
        both = results.shared(last, other)
        for row in dict.fromkeys((trained, last)) if both else ():
            before, own, its = (facts(results, r, only=both) for r in (trained, row, other))
            minus = against(results, row, other, "long", both) if row == last else "–"
            cells = [f"{before['frames']}, {own['frames']}", own["tokens"], own["long"], minus]
            rows.append([own[""], own["k"], *cells, its["frames"], its["tokens"], its["seeds"]])
    return table("|k|frames trained, asked|tokens a video|long|minus an unpruned model's|frames|tokens|seeds", rows)


def in_range(results: Results) -> str:
    """Table 3 once more, for models that were trained on half of the frames to twice the frames: more of them, pruned,
    beside fewer, unpruned, in about as many vision tokens (of a long video, which has as many frames as are asked)."""
    rows = []
    for fewer, more, fixed in (
        ("half the frames", "other rows' frames", ("frames", 0.5)),
        ("other rows' frames", "as trained", UNPRUNED),
    ):
        whole, pruned = ("unpruned-range", 0.0, fewer), ("saliency-range", 0.5, more)
        if both := results.shared(whole, pruned):
            few, many = (facts(results, row, only=both) for row in (whole, pruned))
            tokens = [CELLS * few["frames"], CELLS * many["frames"] - num_removed(0.5, CELLS, many["frames"])]
            cells = [few["frames"], tokens[0], few["long"], many["frames"], tokens[1], many["long"]]
            its = against(results, pruned, fixed, "long", both) if set(both) <= set(results.seeds(*fixed)) else "–"
            rows.append([*cells, against(results, pruned, whole, "long", both), its, many["seeds"]])
    head = "frames, unpruned|vision tokens|long|frames, at k = 0.5|vision tokens|long|minus"
    return table(f"{head}|minus an unpruned model that was trained at just as many as it is asked|seeds", rows)


def depth(results: Results) -> str:
    """Figure 6: scored deeper (of six blocks: one or two more of them dense), over the seeds that all have."""
    rows = []
    for method, prefix in (("stts", ""), ("saliency", "saliency-")):
        depths = [(m, 0.5) for m in (method, f"{prefix}deeper", f"{prefix}deepest") if results.seeds(m, 0.5)]
        rows += [facts(results, row, only=results.shared(*depths)) for row in depths if len(depths) > 1]
    rows.append(facts(results, ("deepest", 0.0), "unpruned, connected as they are two blocks later"))
    return table(COLUMNS, rows)


def elastic(results: Results) -> str:
    """One model asked at every k up to its own, beside a model for each, of the same seeds."""
    rows = []
    for most in sorted({k for method, k, _ in results.records if method == "elastic"}):
        own = ("elastic", most)
        for k in (k for k in (0.0, 0.3, 0.5, 0.8, 0.9) if k <= most):
            rows.append(facts(results, own if k == most else (*own, f"k = {k}"), f"elastic, asked at k = {k}"))
            rows.append(facts(results, ("saliency", k) if k else UNPRUNED, only=results.seeds(*own)))
    return table(COLUMNS, rows)


def images(results: Results) -> str:
    """Table 4: single images lose no cell at any k; what training with pruned videos does to them."""
    rows = []
    for row in (UNPRUNED, *((method, k) for k in (0.5, 0.8, 0.9) for method in ("stts", "saliency"))):
        if both := results.shared(row, UNPRUNED):
            own, scores = facts(results, row, only=both), results.scores(*row, seeds=both)
            attribute, count = (
                (with_interval(scores, task), against(results, row, UNPRUNED, task))
                for task in ("image/attribute", "image/count")
            )
            rows.append([own[""], own["k"], *attribute, *count, own["seeds"]])
    return table("|k|attribute|against unpruned|count|against unpruned|seeds", rows)


def rivals(results: Results) -> str:
    """Published ways to prune, asked with the unpruned row's model, and trained; nothing before any was asked."""
    if not any(way.startswith("inference only") for record in results.records.values() for way in record["asked"]):
        return ""
    rows = []
    for k, method in itertools.product((0.5, 0.8), (*ASKED, *results.own, "stts", "saliency")):
        asked, trained = (facts(results, row) for row in ((method, 0.0, f"inference only, k = {k}"), (method, k)))
        if not asked and not trained:
            continue
        way = (0.0, f"inference only, k = {k}") if asked else (k, "as trained")
        kinds = causes(results, method, *way).values()
        kinds = [percent(float(np.mean([of[kind] for of in kinds]))) if kinds else "–" for kind in KINDS]
        times = ["–", "–"]
        if asked:
            record = results.records[method, 0.0, results.seeds(method, 0.0, way[1])[0]]["asked"][way[1]]
            times = [f"{record['speedup']:.2f}", f"{record['limit']:.2f}"]
        scores = [of[c] if of else "–" for of in (asked, trained) for c in ("seeds", "average", "against unpruned")]
        name = named(method).removesuffix(", trained")
        rows.append([name, round(100 * k), *scores, (asked or trained)["evidence kept"], *kinds, *times])
    head = "|k|seeds|inference only|against unpruned|seeds|trained|against unpruned|evidence kept"
    text = table(f"{head}|unpruned wrong, too|evidence pruned|kept, not used|times as fast|limit", rows)
    how = "Asked with the unpruned row's model (*inference only*), and trained. Evidence and kinds of wrong answers are"
    how += " those of inference only, if it was asked. *Times as fast*: an inference pass on four long clips, in turns"
    how += " with the same model's unpruned, by processor time."
    return f"{how} *Limit*: by count, without what it costs to choose.\n\n{text}"


def why_wrong(row: dict, reference: dict) -> dict[str, dict[str, float]]:
    """Why a row's answers were wrong, beside an unpruned row's (each: what its file says of a way of asking), as shares
    of each task's questions: {task: {kind: share}}; the kinds are those of `wrong_kinds`.

    >>> why_wrong(dict(answers={"count": "1000"}, kept_deciles={"count": "3-49"}), dict(answers={"count": "1110"}))
    {'count': {'unpruned': 0.25, 'pruned': 0.25, 'unused': 0.25}}
    """
    kinds = {}
    for task, deciles in row["kept_deciles"].items():
        ours, theirs = ([int(bit) for bit in asked["answers"][task]] for asked in (row, reference))
        counts = wrong_kinds(ours, theirs, [None if d == "-" else int(d) / 10 for d in deciles])
        kinds[task] = {kind: n / len(deciles) for kind, n in counts.items()}
    return kinds


def causes(results: Results, method: str, k: float, way: str = "as trained") -> dict[int, dict[str, float]]:
    """Why a row's answers were wrong: {seed: {kind: share of the questions, on average}} of the seeds whose files say
    what was kept, each beside the unpruned row of the same seed. The kinds are those of `wrong_kinds`."""
    found = {}
    for seed in results.shared((method, k, way), UNPRUNED):
        asked = results.records[method, k, seed]["asked"][way]
        if asked["k"] and asked.get("kept_deciles"):
            kinds = why_wrong(asked, results.records[(*UNPRUNED, seed)]["asked"]["as trained"])
            of = lambda kind, kinds=kinds: float(averaged(lambda t: kinds[t][kind], kinds, "average"))
            found[seed] = {kind: of(kind) for kind in KINDS}
    return found


def wrong(results: Results) -> str:
    """Why answers were wrong, over the seeds whose files say what was kept; see `causes`."""
    ways = [(m, k, "as trained") for k, m in sorted({(k, m) for m, k, _ in results.records})]
    ways += [(*UNPRUNED, f"{m}, inference only, k = {k}") for k in (0.5, 0.8) for m in ("cosine", "random")]
    rows = []
    for m, k, way in ways:
        if not m.startswith("young-") and (each := causes(results, m, k, way)):  # those start elsewhere
            means = np.mean([list(kinds.values()) for kinds in each.values()], axis=0)
            name = named(m) if way == "as trained" else way.rpartition(",")[0]
            k = results.field(m, k, "k", way)
            rows.append([name, round(100 * k), *map(percent, (sum(means), *means)), ", ".join(map(str, each))])
    text = table("|k|wrong|unpruned, too|evidence pruned|kept, not used|seeds", rows)
    how = "Percent of all questions, on average. *Unpruned, too*: the unpruned row of this seed is wrong as well."
    how += " *Evidence pruned*: it is right, and of an object that the answer depends on no frame keeps half."
    return text and f"{how}\n\n{text}"


def of_bases(results: Results) -> str:
    """How good the bases are, unpruned, seed by seed; and what follows."""
    bases = len({r["base"] for r in results.records.values()})
    if bases == 1:
        return "All rows start from one unpruned base: they say little of another."
    each = {s: value(results.scores(*UNPRUNED, seeds=[s]), "average") for s in results.seeds(*UNPRUNED)}
    known = ", ".join(f"{percent(score)} with seed {s}" for s, score in each.items())
    return (
        f"Seed s starts from unpruned base s mod {bases}, or from what that base was after its first run where a table"
        f" says so. Bases differ (average, unpruned: {known}). So compare lines with other seeds by their paired"
        " differences, never by their averages. *Against unpruned* compares roughly: a worse base has less to lose."
    )


def sections(results: Results, without: Results | None = None, bench: Mapping | None = None) -> dict[str, str]:
    """The page's tables by their titles; empty where there are no rows."""
    with_panels = {
        "Accuracy against k (the paper's Tables 1 and 8)": ladder(results),
        "STTS against others, paired": pairs(results),
        "Other ways to prune (Tables 2 and 5)": methods(results),
        "More frames at test time (Table 3)": scaling(results),
        "The same, after training on any number of frames": in_range(results),
        "Scored deeper, of six blocks (Figure 6)": depth(results),
        "Shorter and longer training": clock(results),
        "Learning in the same time, from a base after its first run": learning(results),
        "One model for every k (ours)": elastic(results),
        "Rivals: other published ways to prune": rivals(results),
        "Single images, which lose no cell (Table 4)": images(results),
        "Why answers were wrong": wrong(results),
        "The tasks, unpruned": tasks(results),
    }
    if not without:
        return with_panels
    first = {
        "The paper beside ours": beside(without, results, bench),
        "Without panels: accuracy against k": ladder(without),
        "Without panels: STTS against others, paired": pairs(without),
        "Without panels: other ways to prune": methods(without),
        "Without panels: rivals": rivals(without),
        "Without panels: why answers were wrong": wrong(without),
    }
    return first | with_panels


def anchor(title: str) -> str:
    """Where a link to a heading leads, as GitHub names it.

    >>> anchor("Scored deeper, of six blocks (Figure 6)")
    'scored-deeper-of-six-blocks-figure-6'
    """
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def page(results: Results, without: Results | None = None, bench: Mapping | None = None) -> str:
    """The whole page: of the world with two panels, and of that `without` any; `bench`: what a bench.json says."""
    dials = [results, without] if without and without.records else [results]
    records = [record for dial in dials for record in dial.records.values()]
    torch, commits = (", ".join(sorted({r[of] for r in records})) for of in ("torch", "commit"))
    sets = ", without panels ".join(dial.fingerprint for dial in dials)
    intro = [
        "# Results",
        "Made by `python -m stts_mini.lab.paper.tables` from the files in [rows](rows), which `python -m"
        f" stts_mini.lab.paper --all` makes. Test set {sets}; torch {torch}; commits {commits}.",
        "Percent. Long is the mean of seven tasks, short of six, *average* the mean of the two. Intervals are 95%, from"
        " resampling seeds and clips. They are too narrow where seeds differ. One seed's interval knows only how clips"
        " differ, and three seeds on two bases are few. So paired differences are also given seed by seed. *Seeds* says"
        f" which there are. A number in brackets after a column's name says how many. {of_bases(results)}",
        "*Effective k*: the share of the vision tokens that is really gone. Frame 0 stays, so at most C·(T−1) of C·T"
        " cells can go. *Evidence kept*: of the pixels that answers depend on, the share in kept cells (without frame"
        " 0). *Inference only*: the unpruned row's model, asked with this method. *Spread* is 0.3, see `scorer.spread`."
        " *Minutes of one core*: processor time of training without decoding, of the runs that had one thread. The"
        " tasks are explained in [world.py](../../stts_mini/toy/world.py). What the tables say in words:"
        " [FINDINGS.md](FINDINGS.md).",
    ]
    there = {title: table for title, table in sections(*dials, bench=bench).items() if table}
    contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in there)
    parts = [*intro, contents, *(f"## {title}\n\n{table}" for title, table in there.items())]
    return "\n\n".join(parts) + "\n"


def draw(dials: Mapping[str, Results], path: Path) -> None:
    """Accuracy against measured time, a point a method (needs matplotlib)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (title, results) in zip(figure.subplots(1, 2), dials.items(), strict=True):
        for k, marker in ((0.5, "o"), (0.8, "s")):
            way = f"inference only, k = {k}"
            there = {m: seeds for m in (*ASKED, *results.own) if (seeds := results.seeds(m, 0.0, way))}
            for i, (method, seeds) in enumerate(there.items()):
                asked = results.records[method, 0.0, seeds[0]]["asked"][way]
                at = 100 / asked["speedup"], 100 * value(results.scores(method, 0.0, way), "average")
                axes.plot(*at, marker, color=colormaps["tab20"](i % 20))
                name = method.rpartition(":")[2]
                axes.annotate(name, at, xytext=(4, 3), textcoords="offset points", fontsize=7)
            if seeds := sorted({*itertools.chain(*there.values())} & {*results.seeds(*UNPRUNED)}):
                line = 100 * value(results.scores(*UNPRUNED, seeds=seeds), "average")
                axes.axhline(line, color="black", linewidth=0.8)
        axes.set(title=f"{title}: circles k = 50, squares 80; line: unpruned, these seeds")
        axes.set(xlabel="processor time of an inference pass, % of unpruned", ylabel="average accuracy, %")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


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
    parser.add_argument("--readme", type=Path, default=None, help="a README that shows the first table's main lines")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plot", type=Path, help="draw the rivals to this PNG; write nothing else (needs matplotlib)")
    how.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    how.add_argument("--seeds", type=int, nargs="+", help="print the page of these alone; write nothing")
    args = parser.parse_args(argv)
    try:
        if not args.check and not args.seeds:
            check_outputs([args.results / "README.md", *[args.readme] * bool(args.readme)])
        readme = args.readme and args.readme.read_text(encoding="utf-8")
        inserted(readme, "") if readme else None  # whether there is a place: better known now than after the work
        results, without = (Results(args.results / "rows", args.seeds, panels) for panels in (world.MOST_PANELS, 0))
        if not results.records:
            raise ValueError(f"no rows in {args.results / 'rows'}: python -m stts_mini.lab.paper makes them")
        if args.plot:
            return draw({"two panels": results, "without panels": without}, args.plot)
        bench = args.results / "bench.json"
        bench = json.loads(bench.read_text()) if bench.exists() else {}
        made = {args.results / "README.md": page(results, without, bench)}
        if args.readme:
            made[args.readme] = inserted(readme, beside(without, results, bench, HEADLINES))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    for path, text in made.items() if not args.seeds else ():
        if args.check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            sys.exit(f"{path} is not what the rows say: run python -m stts_mini.lab.paper.tables --readme README.md")
        if not args.check:
            write_text(path, text)
    print(made[args.results / "README.md"] if not args.check else "the pages are what the rows say")


if __name__ == "__main__":
    main()
