"""Rows of the tables at a size of seconds: each method trains, is asked, and leaves a file; nothing is run twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stts_mini import checkpoint
from stts_mini.config import TrainConfig
from stts_mini.data import Reader
from stts_mini.eval import evidence_per_cell
from stts_mini.lab import reproduce
from stts_mini.lab.reproduce import Lab, Row, askings, claimed, oracle, rows_of, run_row
from stts_mini.lab.tables import NAMES, Results, page
from tests.tiny import TINY

TINY_ROW = dict(image_steps=0, brief_steps=0, steps=1, max_frames=4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A tiny base, tiny rows, three test clips of each kind."""
    folder = tmp_path_factory.mktemp("lab")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setitem(reproduce.PRESETS, "base", {**TINY, "k": 0.0, "train_parade": 2})
    patch.setattr(reproduce, "RECIPE", TINY_ROW)
    patch.setattr(reproduce, "FRAMES", 4)
    device = torch.device("cpu")
    for seed in (0, 1):
        reproduce.train_base(folder / "results", "data", seed, device)
    yield Lab("data", 3, device), folder / "results"
    patch.undo()


def test_bases_are_in_half_precision_and_are_not_trained_again(lab):
    state = checkpoint.load(lab[1] / "base1.pt")
    assert {w.dtype for w in state["model"].values()} == {torch.float16} and state["train_config"]["seed"] == 1
    before = (lab[1] / "base1.pt").stat().st_mtime_ns
    reproduce.train_base(lab[1], "data", 1, torch.device("cpu"))
    assert (lab[1] / "base1.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("method", reproduce.METHODS)
def test_every_method_makes_a_row(method, lab):
    row = Row(method, 0.0 if method == "unpruned" else 0.5, 1)
    record = run_row(row, *lab)
    assert set(record["asked"]) == set(askings(row)) and record["base"] == 1 and record["config"]["seed"] == 1
    for asked in record["asked"].values():
        assert {len(bits) for bits in asked["answers"].values()} == {3}
        assert all(set(bits) <= {"0", "1"} for bits in asked["answers"].values()) and len(asked["answers"]) == 15
        for task, bits in asked["answers"].items():
            assert asked["accuracy"][task] == round(bits.count("1") / 3, 4)
    trained = record["asked"]["as trained"]
    if method in ("stts", "random", "cosine", "no-aux", "no-bias", "oracle", "tome"):
        assert trained["effective_k"] == 0.5  # 18 of 36 cells
    elif method == "frames":
        assert trained["max_frames"] == 2 and trained["effective_k"] == 0
    elif method == "resolution":
        assert trained["size"] == 32
    json.dumps(record)
    reproduce.write_json(lab[1] / "rows" / f"{row.name}.json", record)
    assert f"| {NAMES[method]} |" in page(Results(lab[1] / "rows"))


def test_the_oracle_ranks_cells_by_evidence(lab):
    clip = next(c for c in lab[0].test if c.kind == "short")
    video = Reader(4, 48, 10.0)(clip.video)
    scores, pixels = oracle(clip, video), evidence_per_cell(clip, video, 3)
    assert scores.shape == (4, 9) and not pixels[0].any() and pixels[1:].any()
    assert scores[pixels > 5].min() > scores[pixels == 0].max()
    assert len(np.unique(scores[pixels == 0])) == (pixels == 0).sum()  # no ties: chance decides


def test_the_random_scorer_is_seeded_by_the_row(lab):
    model = checkpoint.load_model(lab[1] / "base0.pt")[0].float()
    way = reproduce.Asking(0.5, "random", 4)
    a, b, c = (lab[0].ask(model, way, seed).evidence for seed in (0, 0, 1))
    assert a == b != c


def test_a_finished_row_is_not_run_again_and_a_claimed_one_is_left_alone(lab, monkeypatch, capsys):
    run = []
    monkeypatch.setattr(reproduce, "run_row", lambda row, *_: run.append(row.name) or {})
    monkeypatch.setattr(reproduce, "rows_of", lambda _: [Row("stts", k, 7) for k in (0.1, 0.2, 0.3)])
    there = lab[1] / "rows" / "stts-k10-seed7.json"
    there.write_text("{}")
    with claimed(Path("runs/rows/stts-k20-seed7.lock")) as mine:
        assert mine
        reproduce.main(["--table", "k", "--results", str(lab[1]), "--clips", "3"])
    assert run == ["stts-k30-seed7"] and (lab[1] / "rows" / "stts-k30-seed7.json").exists()
    reproduce.main(["--table", "k", "--results", str(lab[1]), "--clips", "3"])
    assert run == ["stts-k30-seed7", "stts-k20-seed7"]
    for path in (lab[1] / "rows").glob("*seed7.json"):
        path.unlink()


def test_the_rows_of_the_tables():
    k, methods = rows_of("k"), rows_of("methods")
    assert len(set(k)) == len(k) == 3 + 18 + 8 and len(set(methods)) == len(methods)
    assert {(r.method, r.k) for r in k if r.seed == 2} == {
        ("unpruned", 0.0), *((m, x) for m in ("stts", "random") for x in (0.5, 0.8, 0.9))
    }  # fmt: skip
    for row in k + methods:
        config = row.config("data", Path("base.pt"))
        assert isinstance(config, TrainConfig) and config.k == (
            0.0 if row.method in ("frames", "resolution") else row.k
        )
    a, b = (replace(row.config("data", Path("b")), out="", k=0, scorer="stts") for row in (k[0], k[3]))
    assert a == b  # the same but for k
