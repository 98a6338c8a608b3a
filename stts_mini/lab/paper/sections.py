"""Each table of the two pages of results, as Markdown, and which page it is on. `tables.py` makes the pages.

A table is a function of `Results`. It is empty if there are no rows for it. `scores.py` says what scores, intervals and
paired differences are.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np

from stts_mini.lab.paper.rows import ASKED, METHODS, named, parted
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
from stts_mini.toy.world import LONG_TASKS, MOST_PANELS, SHORT_TASKS

CELLS = PaperConfig().model.cells  # of a frame, in all rows but those of smaller frames
CAUSES = ("unpruned, too", "evidence pruned", "kept, not used")  # of wrong answers: see `Results.causes`
COLUMNS = "|k|effective k|short|long|average|against unpruned|evidence kept|seeds"
IMAGE_TASKS = ("image/attribute", "image/count")
GROUPS = (*SHORT_TASKS, "short", *LONG_TASKS, "long", "average", *IMAGE_TASKS)
TIMED = "|k|steps|minutes of one core|short|long|average"


def facts(
    results: Results, row: tuple, name: str = "", only: Collection[int] | None = None, others: Mapping | None = None
) -> dict[str, object] | None:
    """What the tables say of a row, by the names of their columns. None if there are no seeds.

    name    what the row is called, if not as its method
    only    the seeds to use. If not given, all
    others  rows to compare it with, by the columns' names
    Effective k is by the vision tokens that are left. The minutes are the mean over all seeds' runs that measured them,
    because time does not depend on the seed.
    """
    method, k, *way = row
    seeds = [s for s in results.seeds(*row) if only is None or s in only]
    if not seeds:
        return None
    scores, whole = results.scores(*row, seeds=seeds), results.scores(*UNPRUNED)
    means, tokens = scores.means, scores.means["tokens"]  # None: what is pruned inside the LLM
    videos = {kind_of(t): x.shape[1] for t, x in scores.answers.items() if kind_of(t) != "image"}
    records = [results.records[method, k, s] for s in results.seeds(*row)]
    seconds = [r["cpu_seconds"] for r in records if r.get("threads") == 1 and "cpu_seconds" in r]
    causes = [[*kinds.values()] for seed, kinds in results.causes(*row).items() if seed in seeds]
    causes = np.mean(causes, axis=0) if causes else [None] * len(CAUSES)
    return {
        "": name or named(method),
        "k": 100 if method == "blind" else round(100 * (means["k"] if way else k)),
        "effective k": percent(1 - tokens / whole.means["tokens"] if whole and tokens is not None else None),
        **{group: with_interval(scores, group) for group in AVERAGES},
        "against unpruned": against(results, row, UNPRUNED, seeds=seeds),
        **{column: against(results, row, other, seeds=seeds) for column, other in (others or {}).items()},
        "evidence kept": percent(means["evidence_kept"]),
        "wrong": percent(None if causes[0] is None else sum(causes)),
        **{column: percent(share) for column, share in zip(CAUSES, causes, strict=True)},
        "steps": records[0]["config"]["steps"],
        "minutes of one core": f"{np.mean(seconds) / 60:.1f}" if seconds else "–",
        "frames": round(means["max_frames"]),
        "tokens": "–" if tokens is None else round(tokens / sum(videos.values())),
        **{name: "–" if means[name] is None else f"{means[name]:.2f}" for name in ("speedup", "limit")},
        "seeds": ", ".join(map(str, seeds)),
    }


def ladder(results: Results) -> str:
    """Tables 1 and 8 of the paper: accuracy against k."""
    ks, methods = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), ("stts", "saliency", "random", "cosine", *results.own)
    rows = [facts(results, row) for row in (UNPRUNED, *((m, k) for k in ks for m in methods))]
    if alone := facts(results, (*UNPRUNED, "1 frames"), "frame 0 only"):
        rows.append({**alone, "k": "–", "effective k": "–"})  # the other frames were not pruned, they were never there
    return table(COLUMNS, [*rows, facts(results, ("blind", 0.0))])


def methods(results: Results) -> str:
    """Tables 2 and 5: other ways to prune."""
    trained = ("stts", "stts-spread", "saliency", "saliency-plain", "cosine", "cosine-spread", "random", "no-aux")
    trained += ("no-bias", "tome", "frames", "resolution", "oracle", "saliency-many", "saliency-many@800")
    rows = []
    for k in (0.5, 0.8, 0.9):
        rows += [facts(results, (method, k)) for method in trained]
        for way in ("cosine, inference only", "random, inference only", "tome, inference only"):
            rows.append(facts(results, (*UNPRUNED, f"{way}, k = {k}"), way))
    return table(COLUMNS, rows)


def pairs(results: Results) -> str:
    """STTS, as in the paper and as trained with saliency, against every other trained method, paired."""
    alone = ("unpruned", "blind", "unpruned-range", "saliency-range")  # have tables of their own
    others = [m for m in (*METHODS, *results.own) if m not in alone and not m.startswith("young-")]
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
    for group in GROUPS:
        text = [averaged(x.get, x, group) for x in (record["asked"]["as trained"]["chance"], record["look_up"])]
        cells = [*map(percent, text), with_interval(whole, group), *(percent(value(s, group)) for s in others)]
        rows.append([f"**{group}**" if group in AVERAGES else group, *cells])
    return table("|".join(["|chance|look-up", *(f"{name} ({len(s.names)})" for name, s in there.items())]), rows)


def tasks_pruned(results: Results) -> str:
    """Every task of unpruned and pruned models, all of seed 0, so that columns compare."""
    ways = {"unpruned": UNPRUNED, "STTS, k = 0.5": ("stts", 0.5), "spread": ("stts-spread", 0.5)}
    ways |= {"800 steps": ("stts@800", 0.5), "heuristic, k = 0.5": ("cosine", 0.5), "STTS, k = 0.8": ("stts", 0.8)}
    ways |= {"heuristic, k = 0.8": ("cosine", 0.8), "saliency, k = 0.8": ("saliency", 0.8)}
    there = {name: results.scores(*row, seeds=[0]) for name, row in ways.items() if 0 in results.seeds(*row)}
    if len(there) < 2:
        return ""
    mark = lambda group: f"**{group}**" if group in AVERAGES else group
    rows = [[mark(group), *(percent(value(s, group)) for s in there.values())] for group in GROUPS]
    how = "Seed 0, percent. *Spread* and *800 steps* are STTS at k = 0.5, spread over time, and trained twice as long."
    return f"{how}\n\n" + table("|".join(["", *there]), rows)


def clock(results: Results) -> str:
    """Accuracy against the time that training takes: rows with other numbers of steps, and the recipe's own beside
    them, over the seeds that both have."""
    there = {(k, parted(m)[0], r["config"]["steps"], m) for (m, k, _), r in results.records.items()}
    rows = []
    for (k, kind), alike in itertools.groupby(sorted(there), key=lambda row: row[:2]):
        methods = [m for *_, m in alike if not m.startswith("young-")]
        for m in methods:
            beside = {s for o in methods if (o == kind) != (m == kind) for s in results.seeds(o, k)}
            minus = {"against the recipe's steps": (kind, k)}
            rows.append(facts(results, (m, k), named(kind), beside, minus))
    return table(f"{TIMED}|against the recipe's steps|against unpruned|seeds", rows)


def learning(results: Results) -> str:
    """From a base after the first of its runs: what is learned in about the same time, pruned and unpruned."""
    whole = ("young-unpruned", 0.0)
    seeds, minus = results.seeds(*whole), {"minus unpruned": whole}
    there = {(k, r["config"]["steps"], m) for (m, k, _), r in results.records.items() if m.startswith("young-")}
    rows = [facts(results, (m, k), named(parted(m)[0]), seeds, minus) for k, _, m in sorted(there)]
    return table(f"{TIMED}|minus unpruned|seeds", rows)


def scaling(results: Results) -> str:
    """Table 3: more frames at test time, with the same model. Beside it stands an unpruned model with about as many
    vision tokens, or at k ≥ 0.8 with several times as many."""
    rows = []
    for method, k, other in (
        *((m, k, UNPRUNED) for m in ("stts", "saliency") for k in (0.3, 0.4, 0.5)),
        *(("saliency", k, UNPRUNED) for k in (0.8, 0.9)),
        ("saliency-many", 0.9, UNPRUNED),
        ("saliency-few", 0.5, ("frames", 0.5)),
    ):
        last = (method, k) if method == "saliency-many" else (method, k, "scaled")
        both = results.shared(last, other)
        for row in dict.fromkeys(((method, k), last)) if both else ():
            before, own, its = (facts(results, r, only=both) for r in ((method, k), row, other))
            minus = against(results, row, other, "long", both) if row == last else "–"
            cells = [f"{before['frames']}, {own['frames']}", own["tokens"], own["long"], minus]
            rows.append([own[""], own["k"], *cells, its["frames"], its["tokens"], its["seeds"]])
    return table("|k|frames trained, asked|tokens a video|long|minus an unpruned model's|frames|tokens|seeds", rows)


def in_range(results: Results) -> str:
    """Table 3 once more, for models that were trained on half of the frames to twice the frames. More of them, pruned,
    stand beside fewer, unpruned, with about as many vision tokens. Tokens are those of a long video, which has as many
    frames as are asked."""
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
    return table(f"{head}|minus unpruned, trained and asked at the same frames|seeds", rows)


def depth(results: Results) -> str:
    """Figure 6: scored deeper (of six blocks: one or two more of them dense), over the seeds that all have."""
    rows = []
    for method, prefix in (("stts", ""), ("saliency", "saliency-")):
        depths = [(m, 0.5) for m in (method, f"{prefix}deeper", f"{prefix}deepest") if results.seeds(m, 0.5)]
        rows += [facts(results, row, only=results.shared(*depths)) for row in depths if len(depths) > 1]
    rows.append(facts(results, ("deepest", 0.0), "unpruned, connected as they are two blocks later"))
    return table(COLUMNS, rows)


def images(results: Results) -> str:
    """Table 4: single images lose no cell at any k. What does training with pruned videos do to them?"""
    rows = []
    for row in (UNPRUNED, *((method, k) for k in (0.5, 0.8, 0.9) for method in ("stts", "saliency"))):
        if both := results.shared(row, UNPRUNED):
            own, scores = facts(results, row, only=both), results.scores(*row, seeds=both)
            cells = [(with_interval(scores, task), against(results, row, UNPRUNED, task)) for task in IMAGE_TASKS]
            rows.append([own[""], own["k"], *itertools.chain(*cells), own["seeds"]])
    return table("|k|attribute|against unpruned|count|against unpruned|seeds", rows)


def rivals(results: Results) -> str:
    """Published ways to prune, asked with the unpruned row's model, and trained. There is no table before one of them
    was asked."""
    if not any(way.startswith("inference only") for record in results.records.values() for way in record["asked"]):
        return ""
    rows = []
    for k, method in itertools.product((0.5, 0.8), (*ASKED, *results.own, "stts", "saliency")):
        asked = facts(results, (method, 0.0, f"inference only, k = {k}"))
        trained = facts(results, (method, k))
        if known := asked or trained:
            its = ("seeds", "average", "against unpruned")
            rest = (*its, "evidence kept", *CAUSES, "speedup", "limit")
            cells = [of[c] if of else "–" for of, columns in ((asked, rest), (trained, its)) for c in columns]
            rows.append([named(method).removesuffix(", trained"), known["k"], *cells])
    head = "|k|seeds|inference only|against unpruned|evidence kept|unpruned wrong, too|evidence pruned|kept, not used"
    text = table(f"{head}|times as fast|limit|seeds|trained|against unpruned", rows)
    how = "First asked with the unpruned row's model (*inference only*), then trained. *Times as fast*: an inference"
    how += " pass on four long clips, in turns with the same model's unpruned, by processor time."
    return f"{how} *Limit*: by count, without what it costs to choose.\n\n{text}"


def wrong(results: Results) -> str:
    """Why answers were wrong, over the seeds whose files say what was kept. See `Results.causes`."""
    ways = [(named(m), (m, k)) for k, m in sorted({(k, m) for m, k, _ in results.records})]
    for k, name in itertools.product((0.5, 0.8), ("cosine, inference only", "random, inference only")):
        ways.append((name, (*UNPRUNED, f"{name}, k = {k}")))
    rows = []
    for name, row in ways:
        if not row[0].startswith("young-") and (seeds := results.causes(*row)):  # those start elsewhere
            rows.append(facts(results, row, name, seeds))
    text = table("|".join(["|k|wrong", *CAUSES, "seeds"]), rows)
    how = "Percent of all questions, on average. *Unpruned, too*: the unpruned row of this seed is wrong as well."
    how += " *Evidence pruned*: it is right, but some object that the answer needs is not half kept in any frame. Rows"
    how += " that were judged before the files said what was kept are not here."
    return text and f"{how}\n\n{text}"


PAGES = {  # the tables of each page: the title, the table, and the number of panels of its rows
    "README.md": (
        ("Without panels: accuracy against k", ladder, 0),
        ("Accuracy against k (the paper's Tables 1 and 8)", ladder, MOST_PANELS),
        ("Without panels: rivals", rivals, 0),
        ("Rivals", rivals, MOST_PANELS),
        ("Without panels: why answers were wrong", wrong, 0),
        ("Why answers were wrong", wrong, MOST_PANELS),
        ("The tasks, unpruned", tasks, MOST_PANELS),
        ("Without panels: the tasks, pruned", tasks_pruned, 0),
        ("The tasks, pruned", tasks_pruned, MOST_PANELS),
    ),
    "MORE.md": (
        ("Without panels: STTS against others, paired", pairs, 0),
        ("STTS against others, paired", pairs, MOST_PANELS),
        ("Without panels: other ways to prune", methods, 0),
        ("Other ways to prune (Tables 2 and 5)", methods, MOST_PANELS),
        ("More frames at test time (Table 3)", scaling, MOST_PANELS),
        ("The same, after training on any number of frames", in_range, MOST_PANELS),
        ("Scored deeper, of six blocks (Figure 6)", depth, MOST_PANELS),
        ("Without panels: shorter and longer training", clock, 0),
        ("Shorter and longer training", clock, MOST_PANELS),
        ("Learning in the same time, from a base after its first run", learning, MOST_PANELS),
        ("Single images, which lose no cell (Table 4)", images, MOST_PANELS),
    ),
}
