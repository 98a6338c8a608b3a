"""The numbers and the table of results that are filled in by hand."""

from pathlib import Path

import pytest

from stts_mini.data.clips import OWN, Clip
from stts_mini.report.result import Answer, Result, against, broken_clips, examples, merged, summarise, table


def filled(choice, generated=None, chance=0.25) -> Result:
    result = Result()
    result.correct["choice"].update(choice)
    result.correct["generated"].update(generated or {})
    result.chance.update({task: [chance] * len(answers) for task, answers in choice.items()})
    return result


@pytest.fixture
def seen():
    choice = {"attribute": [(0, 1), (1, 0)], "count": [(0, 1)], "needle": [(2, 1)], "open": [(2, 0)]}
    result = filled(
        {**choice, "image/count": [(3, 1)]}, {"attribute": [(0, 1), (1, 1)], "count": [(0, 0)], "open": [(2, 1)]}
    )
    result.chance |= {"count": [0.25, 0.75], "open": [0]}
    result.kept, result.cells, result.rows, result.evidence = 4, 10, (3, 2), {"needle": (1, 2)}
    return result


BLIND = filled(
    {t: [(0, int(t == "count"))] for t in ("attribute", "count", "needle", "image/count")}, {"open": [(2, 0)]}
)
LOOKUP = {"attribute": 0.1, "count": 0.3, "needle": 0.2, "open": 0.0, "image/count": 0.5}


TABLE = """
attribute        50.0%   0.0 – 100.0  100.0%  25.0%  10.0%    0.0%  2
count           100.0% 100.0 – 100.0    0.0%  50.0%  30.0%  100.0%  1
short (mean)     75.0%   0.0 – 100.0   50.0%  37.5%  20.0%   50.0%  3
needle          100.0% 100.0 – 100.0    nan%  25.0%  20.0%    0.0%  1
open            100.0% 100.0 – 100.0  100.0%   0.0%   0.0%    0.0%  1
long (mean)     100.0% 100.0 – 100.0    nan%  12.5%  10.0%    0.0%  2
average          87.5%
image/count     100.0% 100.0 – 100.0    nan%  25.0%  50.0%    0.0%  1
vision tokens of videos kept: 4 of 10 (40.0%), evidence kept (mean over tasks): 50.0%, packed rows: 3 (at least 2)
"""


def test_the_table_by_hand(seen):
    """Of two clips, one right and one wrong, any share can be drawn; "open" is judged by what is generated."""
    lines = table(seen, BLIND, LOOKUP).splitlines()
    assert [line.split() for line in lines[1:]] == [line.split() for line in TABLE.strip().splitlines()]
    assert len({len(line) for line in lines[:4]}) == 1  # columns stand below their heads


def test_a_table_of_one_kind_has_no_average_and_dashes_for_what_it_is_not_compared_with():
    result = filled({"count": [(0, 1)]})
    text = table(result, None, None)
    assert text.count("nan%   25.0%        –      –     1") == 2 and "average" not in text
    result.kept, result.cells, result.rows = 1, 2, (1, 1)
    assert table(result, None, None).endswith("kept: 1 of 2 (50.0%), packed rows: 1 (at least 1)")  # no evidence


def test_the_summary_by_hand(seen):
    summary = summarise(seen, BLIND, LOOKUP)
    assert summary["choice"] == {"attribute": 0.5, "count": 1, "needle": 1, "open": 0, "image/count": 1}
    assert summary["generated"] == {"attribute": 1, "count": 0, "open": 1}
    assert summary["interval"]["attribute"] == (0, 1) and summary["interval"]["open"] == (1, 1)
    assert (summary["short"], summary["long"]) == (0.75, 1) and summary["long_interval"] == (1, 1)
    assert summary["short_interval"] == (0, 1) and summary["look_up"] == LOOKUP
    assert summary["chance"] == {"attribute": 0.25, "count": 0.5, "needle": 0.25, "open": 0, "image/count": 0.25}
    assert summary["blind"] == {"attribute": 0, "count": 1, "needle": 0, "open": 0, "image/count": 0}
    counts = {name: summary[name] for name in ("kept", "cells", "rows", "evidence")}
    assert counts == dict(kept=4, cells=10, rows=[3, 2], evidence={"needle": (1, 2)})
    assert summarise(seen)["blind"] is None and summarise(seen)["look_up"] is None


def test_questions_without_options_have_no_share_of_choices():
    """With one option, the likeliest is always right."""
    result = filled({"question": [(0, 1)], "free": [(0, 1)]}, {"free": [(0, 0)]})
    summary = summarise(result)
    assert summary["choice"] == {"question": 1} and summary["generated"] == {"free": 0}
    assert table(result, None, None).splitlines()[-1].split()[:2] == ["free", "0.0%"]


def test_a_draw_without_a_tasks_clips_leaves_the_task_out():
    """Tasks on different clips: where all is right, every draw is; where one of two is, none to all."""
    clips = lambda bits: {"count": [(0, bits[0]), (1, bits[0])], "speed": [(2, bits[1]), (3, bits[1])]}
    assert filled(clips((1, 1))).interval(["count", "speed"]) == (1, 1)
    assert filled(clips((1, 0))).interval(["count", "speed"]) == (0, 1)
    text, _ = against(filled(clips((1, 1))), {"count": "00", "speed": "00"})
    assert text.splitlines()[-1].endswith("+100.0 to +100.0")


def test_results_are_joined_in_the_order_of_the_clips():
    first, second = filled({"count": [(0, 1), (2, 1)]}), filled({"count": [(1, 0)], "open": [(3, 1)]}, chance=0.5)
    first.kept, first.cells, first.rows, first.evidence = 1, 2, (3, 4), {"count": (5, 6)}
    first.said, second.said = [Answer(2, "a", "b", "c", False)], [Answer(1, "d", "e", "f", True)]
    second.kept, second.cells, second.rows, second.evidence = 10, 20, (30, 40), {"count": (50, 60), "open": (7, 8)}
    whole = merged([first, second])
    assert whole.correct["choice"] == {"count": [(0, 1), (1, 0), (2, 1)], "open": [(3, 1)]}
    assert whole.chance == {"count": [0.25, 0.25, 0.5], "open": [0.5]}
    assert (whole.kept, whole.cells, whole.rows) == (11, 22, (33, 44))
    assert whole.evidence == {"count": (55, 66), "open": (7, 8)} and [answer.clip for answer in whole.said] == [1, 2]


CLIPS = [Clip(Path(f"{n}.mp4"), OWN, OWN, n, ()) for n in range(5)] + [
    Clip(Path("x"), OWN, OWN, 5, (), None, None, (Path("a\n.png"),))
]


EXAMPLES = """examples, scored as in the first column:
0.mp4
  question:     0 ?
  model says:   red
  right answer: red
a\\n.png
  question:     5 ?
  model says:   red
  right answer: red
1.mp4
  question:     1 ?
  model says:   blue
  right answer: red, so this is wrong"""


@pytest.mark.parametrize(
    "right, shown",
    [
        ([1, 0, 0, 0, 0, 1], [0, 5, 1]),
        ([1, 1, 1, 1, 1, 1], [0, 2, 4]),
        ([1, 1, 1, 1, 1, 0], [0, 2, 5]),
        ([0, 1, 0, 0, 0, 0], [1, 0, 3]),
        ([0, 0, 0, 0, 0, 0], [0, 2, 4]),
        ([0, 1], [1, 0]),
        ([], []),
    ],
)
def test_examples_are_right_ones_and_a_wrong_one(right, shown):
    said = [Answer(n, f"{n} ?", "red" if r else "blue", "red", bool(r)) for n, r in enumerate(right)]
    text = examples(said, CLIPS)
    assert [int(line.split()[1]) for line in text.splitlines() if "question:" in line] == shown
    assert text.count("so this is wrong") == sum(not right[n] for n in shown)
    assert shown != [0, 5, 1] or text == EXAMPLES


def test_what_could_not_be_read_is_counted():
    assert broken_clips({}, {}) == ""
    said = broken_clips({("a",): "a.mp4: gone", ("b",): "b.mp4: cut"}, {("c", None): 2, ("d", None): 5, ("e", None): 1})
    assert said.splitlines()[:3] == ["could not be read, and left out: 2", "  a.mp4: gone", "  b.mp4: cut"]
    assert "left out: 8 packets or frames of 3 clips, 5 of them of d (" in said and said.count("\n") == 4


def test_against_another_models_answers_by_hand(seen):
    """Of clips 0 and 1, this model has the attribute of 0 and the other that of 1: level, and either could be ahead."""
    others = {"attribute": "01", "count": "0", "needle": "1", "open": "0", "image/count": "1"}
    text, differences = against(seen, others)
    assert [line.split() for line in text.splitlines()[1:]] == [
        line.split()
        for line in """
attribute 50.0% 50.0% +0.0 -100.0 to +100.0
count 100.0% 0.0% +100.0 +100.0 to +100.0
needle 100.0% 100.0% +0.0 +0.0 to +0.0
open 100.0% 0.0% +100.0 +100.0 to +100.0
short (mean) 75.0% 25.0% +50.0 -100.0 to +100.0
long (mean) 100.0% 50.0% +50.0 +50.0 to +50.0
image/count 100.0% 100.0% +0.0 +0.0 to +0.0
average 87.5% 37.5% +50.0
""".strip().splitlines()
    ]
    assert differences["average"] == 0.5 and differences["count"] == 1 and len(differences) == 8
    for wrong in ({**others, "count": "00"}, {**others, "speed": "1"}, {"count": "1"}):
        with pytest.raises(ValueError, match="other questions"):
            against(seen, wrong)
