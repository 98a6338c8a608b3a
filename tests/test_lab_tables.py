"""Means, intervals and paired differences that can be worked out by hand."""

import json

import numpy as np
import pytest

from stts_mini import world
from stts_mini.lab.tables import Results, Scores, difference, interval, kind_of, main, value

TASKS = (*world.SHORT_TASKS, *world.LONG_TASKS, "image/attribute", "image/count")


def scores(p, seeds=3, clips=200, seed=0, tasks=TASKS):
    """Answers right with probability p(task)."""
    rng = np.random.default_rng(seed)
    return Scores({t: (rng.random((seeds, clips)) < (p(t) if callable(p) else p)).astype(int) for t in tasks})


def test_the_average_is_the_mean_of_short_and_long():
    some = scores(lambda t: float(t in world.SHORT_TASKS))
    assert value(some, "short") == 1 and value(some, "long") == 0 and value(some, "average") == 0.5
    assert value(some, "needle") == 0 and value(scores(1.0), "image/count") == 1
    assert interval(some, "average") == pytest.approx((0.5, 0.5))


def test_an_interval_is_as_wide_as_luck():
    """One task, one seed: ± 1.96 √(p(1−p)/n)."""
    one = scores(0.7, seeds=1, clips=400)
    low, high = interval(one, "needle")
    p = value(one, "needle")
    wide = 1.96 * (p * (1 - p) / 400) ** 0.5
    assert p - low == pytest.approx(wide, rel=0.12) and high - p == pytest.approx(wide, rel=0.12)


def test_seeds_count_in_the_interval():
    answers = np.repeat([[0], [1]], 500, axis=1)  # a seed knows everything, another nothing
    two = Scores(dict.fromkeys(TASKS, answers))
    assert interval(two, "short") == pytest.approx((0, 1)) and value(two, "short") == 0.5


def test_tasks_of_a_kind_share_their_clips():
    """Ten tasks with the same answers say no more than one; of different kinds, they would."""
    right = (np.random.default_rng(0).random((1, 300)) < 0.5).astype(int)
    same = Scores(dict.fromkeys(TASKS, right))
    assert interval(same, "short") == pytest.approx(interval(same, "order"))
    width = lambda group: np.ptp(interval(same, group))
    assert width("long") < 0.8 * width("needle")  # long clips come in two kinds
    assert kind_of("needle") == kind_of("event-count") != kind_of("open") and kind_of("image/count") == "image"


def test_differences_are_paired():
    a = scores(0.6, clips=300)
    better = Scores({t: np.where(np.arange(300) < 6, 1, x) for t, x in a.answers.items()})
    d, low, high = difference(better, a, "average")
    assert 0 < low <= d <= high < 0.03  # far less than the width of either's own interval
    assert difference(a, a, "long") == (0, 0, 0)
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(a, scores(0.6, clips=200), "short")


def write(folder, method, k, seed, fingerprint="abc", p=0.8, way="as trained"):
    asked = {
        "k": k, "max_frames": 32, "effective_k": k, "evidence_kept": 0.5,
        "answers": {t: "".join(map(str, x[0])) for t, x in scores(p, 1, 50, seed).answers.items()},
    }  # fmt: skip
    record = dict(row=dict(method=method, k=k, seed=seed), fingerprint=fingerprint, asked={way: asked})
    (folder / "rows").mkdir(exist_ok=True, parents=True)
    record |= dict(commit="c0ffee", torch="2.13.0")
    (folder / "rows" / f"{method}{k}-{seed}.json").write_text(json.dumps(record))


def test_the_page_says_what_the_files_say(tmp_path, capsys):
    for seed in (0, 1):
        write(tmp_path, "unpruned", 0.0, seed, p=1.0)
        write(tmp_path, "stts", 0.8, seed, p=lambda t: 1.0 if t in world.SHORT_TASKS else 0.0)
    write(tmp_path, "random", 0.8, 0, p=0.0)
    main(["--results", str(tmp_path)])
    text = (tmp_path / "README.md").read_text()
    scored = "100.0 (100.0–100.0) | 0.0 (0.0–0.0) | 50.0 (50.0–50.0) | −50.0 (−50.0 to −50.0)"
    assert f"| STTS | 80 | 80.0 | {scored} | 50.0 | 2 |" in text
    assert "| 80 | random | +100.0 (+100.0 to +100.0) | +0.0 (+0.0 to +0.0) | +50.0 (+50.0 to +50.0) | 1 |" in text
    main(["--results", str(tmp_path), "--check"])
    write(tmp_path, "random", 0.8, 1, p=0.0)
    with pytest.raises(SystemExit, match="not what the rows say"):
        main(["--results", str(tmp_path), "--check"])
    write(tmp_path, "random", 0.5, 1, fingerprint="other")
    with pytest.raises(SystemExit, match="different test sets"):
        main(["--results", str(tmp_path)])


def test_no_results_yet(tmp_path):
    assert Results(tmp_path / "rows").scores("stts", 0.5) is None
