"""The pages of the results: from the rows' files to two pages of Markdown, and to the README's table.

    python -m stts_mini.lab.paper.tables --readme README.md     writes README.md and MORE.md in tutorials/results, and
                                                                README's table
    python -m stts_mini.lab.paper.tables --readme README.md --check     exits 1 if any of them is out of date
    python -m stts_mini.lab.paper.tables --seeds 1              prints the pages of these seeds alone (1: of base 1)

`sections.py` makes each table, and `beside.py` the one of the paper's findings.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stts_mini.data.files import check_outputs, replacing, require, write_text
from stts_mini.lab.paper.beside import HEADLINES, beside
from stts_mini.lab.paper.rows import ASKED
from stts_mini.lab.paper.scores import UNPRUNED, Results, percent, value
from stts_mini.lab.paper.sections import PAGES
from stts_mini.toy.world import MOST_PANELS
from stts_mini.training.logging import one_line_errors, parser_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTROS = {
    "README.md": """# Results

Here are the paper's findings beside ours, accuracy against k, rival methods, why answers were wrong, and the tasks.
[MORE.md](MORE.md) has all other tables. [FINDINGS.md](FINDINGS.md) says what the tables show.

This page and MORE.md are made by `python -m stts_mini.lab.paper.tables` from the files in [rows](rows), which
`python -m stts_mini.lab.paper --all` makes.

All numbers are percent, k, too. Long is the mean of seven tasks, short of six, *average* the mean of the two. Intervals
are 95%, from resampling seeds and clips. They are too narrow where seeds differ. One seed's interval knows only how
clips differ, and three seeds on two bases are few. So paired differences are also given seed by seed. *Seeds* says
which there are. A number in brackets after a column's name says how many. Seed s starts from unpruned base s mod 2, or
from what that base was after its first run where a table says so. Bases differ (average, unpruned: {bases}). So compare
lines with other seeds by their paired differences, never by their averages. *Against unpruned* compares roughly: a
worse base has less to lose.

*Effective k*: the share of the vision tokens that is really gone. Frame 0 stays, so at most C·(T−1) of C·T cells can
go. *Evidence kept*: of the pixels that answers depend on, the share in kept cells (without frame 0). *Inference only*:
the unpruned row's model, asked with this method. *Spread* is 0.3, see `scorer.spread`. The tasks are explained in
[world.py](../../stts_mini/toy/world.py).

""",
    "MORE.md": """# More results

Here are paired differences, other ways to prune, numbers of frames, depth, training time, and images.
[README.md](README.md) has the main tables, and explains the columns.

*Minutes of one core*: processor time of training without decoding, of the runs that had one thread.

""",
}

RULES = """Points of the average, ours with 95% intervals. Each finding has a *bar*. Against unpruned, and for images,
it is the paper's own loss. Elsewhere it is zero, and the paper claims the side that its number lies on. A finding
*holds* if our whole interval is on the paper's side of the bar, *does not* if it is on the other side, and is *unclear*
if the bar lies inside. Where the bar is zero, that is about the sign alone. The paper's own loss is a rough yardstick,
because it has 13 benchmarks and a model of 4 billion parameters. For speed the bar is 0.95 of a limit that counts
multiply-adds, and the interval is the range over the rounds of one run. [Runs
differ](../../stts_mini/lab/speed/SPEED.md) more than that. Time can beat the limit, perhaps because the count leaves
out memory traffic."""
LAST = "Test set {sets}; torch {torch}; commits {commit}."


def anchor(title: str) -> str:
    """Where a link to a heading leads, as GitHub names it.

    >>> anchor("Scored deeper, of six blocks (Figure 6)")
    'scored-deeper-of-six-blocks-figure-6'
    """
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def pages(results: Results, without: Results | None = None, bench: Mapping | None = None) -> dict[str, str]:
    """The text of each page, by its name. The rows are of the world with two panels, and of that `without` any. `bench`
    is what a bench.json says."""
    dials = {MOST_PANELS: results, **({0: without} if without and without.records else {})}
    records = [record for dial in dials.values() for record in dial.records.values()]
    each = {s: value(results.scores(*UNPRUNED, seeds=[s]), "average") for s in results.seeds(*UNPRUNED)}
    words = {name: ", ".join(sorted({record[name] for record in records})) for name in ("torch", "commit")}
    words["sets"] = ", without panels ".join(dial.fingerprint for dial in dials.values())
    words["bases"] = ", ".join(f"{percent(score)} with seed {s}" for s, score in each.items())
    made = {}
    for name, sections in PAGES.items():
        there = {title: of(dials[panels]) for title, of, panels in sections if panels in dials}
        if name == "README.md" and 0 in dials:
            there = {"The paper beside ours": f"{RULES}\n\n{beside(without, results, bench)}", **there}
        there = {title: text for title, text in there.items() if text}
        contents = "\n".join(f"- [{title}](#{anchor(title)})" for title in there)
        parts = [INTROS[name].format(**words) + contents, *(f"## {title}\n\n{text}" for title, text in there.items())]
        last = [LAST.format(**words)] if name == "README.md" else []
        made[name] = "\n\n".join([*parts, *last]) + "\n"
    return made


def draw(dials: Mapping[str, Results], path: Path) -> Figure:
    """The rivals' accuracy against measured time, a point a method, for each dial by its title (needs matplotlib)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, (title, results) in zip(figure.subplots(1, 2, sharex=True, sharey=True), dials.items(), strict=True):
        seeds = set()
        for k, marker in ((0.5, "o"), (0.8, "s")):
            for i, method in enumerate((*ASKED, *results.own)):
                row = (method, 0.0, f"inference only, k = {k}")
                if asked := results.scores(*row):
                    time, colour = 100 / asked.means["speedup"], colormaps["tab20"](i % 20)
                    trained = results.scores(method, k, seeds=results.shared(row, (method, k)))
                    for scores, fill in ((trained, "none"), (asked, colour)):
                        if scores:
                            at = time, 100 * value(scores, "average")
                            axes.plot(*at, marker, color=colour, markerfacecolor=fill)
                    name = method.rpartition(":")[2]
                    axes.annotate(name, at, xytext=(4, 3), textcoords="offset points", fontsize=7)
                    seeds |= {*asked.names}
        if both := sorted(seeds & {*results.seeds(*UNPRUNED)}):
            line = 100 * value(results.scores(*UNPRUNED, seeds=both), "average")
            axes.axhline(line, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="processor time of an inference pass, % of unpruned")
        axes.margins(x=0.12)
    figure.axes[0].set_ylabel("average accuracy, %")
    how = "filled: inference only, hollow: trained, at the time of inference only · line: unpruned"
    figure.suptitle(f"circles: k = 0.5, squares: 0.8 · {how}", fontsize=11)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    return figure


BEGIN, END = "<!-- made by stts_mini.lab.paper.tables: begin -->\n", "<!-- end -->"


def inserted(readme: str, table: str) -> str:
    """The text of a README with the table between its two marks. Raises ValueError if they are not there.

    >>> inserted(f"a {BEGIN}old{END} b", "new").splitlines()[1:]
    ['new', '<!-- end --> b']
    """
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    require(mark and end, f"the README has no place for the table, between {BEGIN.strip()} and {END}")
    return f"{before}{BEGIN}{table}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.paper.tables", __doc__)
    parser.add_argument("--results", type=Path, default=Path("tutorials/results"), help="where the rows are")
    parser.add_argument("--readme", type=Path, default=None, help="a README that shows the first table's main lines")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plot", type=Path, help="draw the rivals to this PNG and write nothing else (needs matplotlib)")
    how.add_argument("--check", action="store_true", help="write nothing, but exit 1 if anything is out of date")
    how.add_argument("--seeds", type=int, nargs="+", help="print the pages of these alone, and write nothing")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        try:
            run(args)
        except KeyError as error:
            raise ValueError(f"a row in {args.results / 'rows'} lacks {error}: make it again") from error


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    if args.plot:
        check_outputs([args.plot])
    elif not args.check and not args.seeds:
        check_outputs([*(args.results / name for name in PAGES), *[args.readme] * bool(args.readme)])
    results, without = (Results(args.results / "rows", args.seeds, panels) for panels in (MOST_PANELS, 0))
    require(results.records, f"no rows in {args.results / 'rows'}: python -m stts_mini.lab.paper makes them")
    if args.plot:
        draw({"without panels": without, "two panels": results}, args.plot)
        return
    bench = args.results / "bench.json"
    bench = json.loads(bench.read_text()) if bench.exists() else {}
    made = pages(results, without, bench)
    if args.seeds:
        return print(*made.values(), sep="\n")
    made = {args.results / name: text for name, text in made.items()}
    if args.readme:
        made[args.readme] = inserted(
            args.readme.read_text(encoding="utf-8"), beside(without, results, bench, HEADLINES)
        )
    for path, text in made.items():
        if not args.check:
            write_text(path, text)
            continue
        same = path.exists() and path.read_text(encoding="utf-8") == text
        require(same, f"{path} is not what the rows say: run python -m stts_mini.lab.paper.tables --readme README.md")
    print("the pages are what the rows say" if args.check else "\n".join(made.values()))


if __name__ == "__main__":
    main()
