"""The paper beside ours: each verdict by its definition, each dial by its own rows."""

import json
from pathlib import Path

import pytest

from stts_mini.lab.paper.beside import FINDINGS, HEADLINES, beside, loses_little, verdict
from stts_mini.lab.paper.rows import METHODS, Row, askings, parted
from stts_mini.lab.paper.scores import Results
from stts_mini.lab.paper.tables import pages
from tests.lab.paper.test_tables import write


def at(folder, method, k, panels, p, seed=0, ways=("as trained",)):
    """A made-up row of one dial, right with probability p."""
    write(folder, method, k, seed, p=p, ways=ways)
    path = folder / "rows" / f"{method}{k}-{seed}.json"
    record = json.loads(path.read_text())
    record["row"]["panels"], record["fingerprint"] = panels, f"dial{panels}"
    path.unlink()
    path.with_name(f"{method}{k}-{seed}-{panels}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "low, high, bar, below, said",
    [
        (0.1, 2.0, 0.0, False, "holds"),
        (-0.1, 2.0, 0.0, False, "unclear"),
        (-2.0, -0.1, 0.0, False, "does not"),
        (-2.0, -0.1, 0.0, True, "holds"),
        (0.1, 2.0, 0.0, True, "does not"),
        (-1.0, 0.0, -0.7, False, "unclear"),
        (-0.6, 0.0, -0.7, False, "holds"),
    ],
)
def test_a_verdict_says_on_which_side_of_its_bar_the_interval_lies(low, high, bar, below, said):
    assert verdict(low, high, bar, below) == said


def test_each_dial_is_judged_by_its_own_rows(tmp_path):
    for panels, p in ((0, 0.9), (2, 0.5)):
        at(tmp_path, "unpruned", 0.0, panels, 0.9)
        at(tmp_path, "stts", 0.5, panels, p)
        at(tmp_path, "random", 0.5, panels, 0.7)
    dials = [Results(tmp_path / "rows", None, panels) for panels in (0, 2)]
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in beside(*dials).splitlines()[2:]}
    cells = lines["STTS at k = 50 against unpruned"]
    assert cells[1] == "−0.7" and cells[2] == "+0.0 (+0.0 to +0.0; 1 seed)" and cells[3] == "holds"
    assert cells[4].startswith("−") and cells[5] == "does not |"
    cells = lines["STTS against random, k = 50"]
    assert cells[3] == "holds" and cells[5] == "does not |"
    assert "STTS against random, k = 80" not in lines  # nothing to say
    text = pages(dials[1], dials[0])["README.md"]
    assert "## The paper beside ours" in text and "## Without panels: accuracy against k" in text
    assert "Test set dial2, without panels dial0;" in text and "## The paper" not in pages(dials[1])["README.md"]


def test_every_finding_names_rows_that_there_are():
    for finding in (*FINDINGS, loses_little(0.4, -0.9)):
        for method, k, *way in (finding.a, finding.b):
            assert parted(method)[0] in METHODS and set(way) <= set(askings(Row(method, k, 0))), finding.text


def test_the_headlines_are_lines_of_the_table():
    """Six at most, in the table's order, word for word."""
    folder = Path(__file__).parents[3] / "tutorials" / "results"
    dials = [Results(folder / "rows", None, panels) for panels in (0, 2)]
    bench = json.loads((folder / "bench.json").read_text())
    whole, few = beside(*dials, bench).splitlines(), beside(*dials, bench, HEADLINES).splitlines()
    assert [line for line in whole if line in few] == few and whole[:2] == few[:2]
    assert len(few) - 2 == len(HEADLINES) <= 6


def test_speed_is_judged_by_the_share_of_its_limit():
    line = lambda what, low, high, frames=256: dict(
        what=what, videos=1, frames=frames, k=0.5, speedup=2.0, lowest=low, highest=high, limit=2.0
    )
    runs = [line("training", 1.901, 2.1), line("inference", 1.8, 1.899), line("training", 1, 1, frames=64)]
    runs += [line("inference", 1.8, 1.901)]
    runs += [dict(what="training", videos=1, frames=256, k=0.5, seconds=None)]  # was out of memory
    nothing = Results(Path("no rows"), None, 0)
    cells = [row.strip("| ").split(" | ") for row in beside(nothing, nothing, dict(speed=runs)).splitlines()[2:]]
    assert [c[1:] for c in cells] == [
        ["2.25 (limit 2.14)", "2.00 (1.90 to 2.10; limit 2.00)", "holds", "the same", "holds"],
        ["2.22 (limit 2.16)", "2.00 (1.80 to 1.90; limit 2.00)", "does not", "the same", "does not"],
        ["2.22 (limit 2.16)", "2.00 (1.80 to 1.90; limit 2.00)", "unclear", "the same", "unclear"],
    ]
