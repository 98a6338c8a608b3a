"""Rows of the tables at a size of seconds: each method trains, is asked, and leaves a file; nothing is run twice."""

import functools
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from stts_mini.data.batches import Reader
from stts_mini.eval import evidence_per_cell
from stts_mini.lab.paper import reproduce, rows, scores
from stts_mini.lab.paper.reproduce import Lab, claimed, oracle, run_row
from stts_mini.lab.paper.rivals.known import RIVALS
from stts_mini.lab.paper.rows import ASKED, METHODS, TABLES, Asking, Row, named, parted
from stts_mini.lab.paper.scores import Results
from stts_mini.lab.paper.tables import pages
from stts_mini.lab.paper.train import BASE, PaperConfig
from stts_mini.lab.speed import machine
from stts_mini.toy import world
from stts_mini.training import checkpoint
from tests.tiny import TINY, slow_but

TINY_ROW = dict(stages={}, steps=2, max_frames=4)
TINIER = dict(saliency_steps=lambda _: 1, max_frames=lambda n: n // 8)
TINY_METHODS = {
    name: (text, {key: TINIER.get(key, lambda x: x)(x) for key, x in settings.items()})
    for name, (text, settings) in METHODS.items()
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A tiny base, tiny rows, three test clips of each kind."""
    folder = tmp_path_factory.mktemp("lab")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    clips = {**TINY["train_clips"], "parade": 2}
    base = {**TINY, "video_size": 48, "k": 0.0, "train_clips": clips, "llm_depth": 3, "vit_depth": 5}
    patch.setattr(reproduce, "BASE", base)
    patch.setattr(reproduce, "BASE_RUNS", {"few": {}, "many": dict(stages={}, steps=1, warmup=1)})
    for name, value in dict(BASE=base, RECIPE=TINY_ROW, METHODS=TINY_METHODS, FRAMES=4).items():
        patch.setattr(rows, name, value)
    patch.setattr(reproduce, "commit", functools.cache(reproduce.commit))  # git takes its time
    patch.setattr(reproduce, "timed", functools.partial(reproduce.timed, rounds=1))
    device = torch.device("cpu")
    (folder / "results" / "rows").mkdir(parents=True)
    for seed in (0, 1):
        reproduce.train_base(folder / "results", "data", seed, device)
    reproduce.train_base(folder / "results", "data", 1, device, young=True)
    yield Lab("data", 3, device), folder / "results"
    patch.undo()


def test_bases_are_in_half_precision_and_are_not_trained_again(lab):
    state = checkpoint.load(lab[1] / "base1.pt")
    assert {w.dtype for w in state["model"].values()} == {torch.float16}
    assert state["train_config"]["seed"] == 101 and state["train_config"]["init"].endswith("base1-few/checkpoint.pt")
    young, first = checkpoint.load(lab[1] / "base1-few.pt"), checkpoint.load(Path("runs/base1-few/checkpoint.pt"))
    assert all(torch.equal(w, first["model"][name].half()) for name, w in young["model"].items())
    before = (lab[1] / "base1.pt").stat().st_mtime_ns
    with claimed(Path("runs/base1.lock")):  # another process is training the young one: this one is there
        reproduce.train_base(lab[1], "data", 1, torch.device("cpu"))
    assert (lab[1] / "base1.pt").stat().st_mtime_ns == before


def made(method, lab):
    """The method's row: made once, and left for the page."""
    row = Row(method, 0.0 if "unpruned" in method or method == "blind" else 0.5, 1)
    path = lab[1] / "rows" / f"{row.name}.json"
    if not path.exists():
        reproduce.write_json(path, run_row(row, *lab))
    return json.loads(path.read_text())


TWINS = {  # trained as another method is, but for one number: their records are copies of the other's
    "cosine-spread": "cosine", "stts-spread": "stts", "saliency-plain": "saliency", "saliency-deeper": "saliency",
    "saliency-deepest": "saliency", "deeper": "stts", "young-saliency": "young-cosine", "young-random": "young-cosine",
}  # fmt: skip
TRAINED = [m for m in METHODS if (m not in RIVALS or m in ("tome", "rlt")) and m not in TWINS]  # all are asked below


@pytest.mark.parametrize("method", slow_but(TRAINED, "unpruned", "saliency", "frames"))
def test_every_method_makes_a_row(method, lab):
    record = made(method, lab)
    assert record["base"] == 1 and record["config"]["seed"] == 1 and record["device"] == "cpu"
    for asked in record["asked"].values():
        assert {len(bits) for bits in asked["answers"].values()} == {3}
        assert all(set(bits) <= {"0", "1"} for bits in asked["answers"].values()) and len(asked["answers"]) == 15
        for task, bits in asked["answers"].items():
            assert asked["accuracy"][task] == round(bits.count("1") / 3, 4)
    trained = record["asked"]["as trained"]
    every = 3 * 3 * 4 * 9  # kinds of video · clips · frames · cells
    part = {"frames": 2, "young-frames": 2, "resolution": 9 / 4, "blind": np.inf, "saliency-few": 4, "saliency-many": 1}
    part |= {"unpruned-range": 1 / 2, "saliency-range": 1}
    part = part.get(method, 1 if "unpruned" in method else 2)
    assert trained["tokens"] == every / part
    other = ("tome", "frames", "resolution", "blind", "saliency-few", "saliency-many")
    other += ("unpruned-range", "saliency-range", "young-frames")
    assert (trained["evidence_kept"] is None) == (method in other)
    digits = trained["kept_deciles"]
    assert set(digits) == (set() if method in other else {*world.SHORT_TASKS, *world.LONG_TASKS})
    assert all(len(x) == 3 and set(x) <= {*"0123456789-"} for x in digits.values())
    learned = all(
        x not in method for x in ("unpruned", "oracle", "tome", "rlt", "random", "cosine", "frames", "resolution")
    )
    assert (trained["health"] is not None) == (learned and method != "blind")
    assert not learned or method == "blind" or (0 <= trained["health"]["ties"] <= 1 and len(trained["health"]) == 5)
    if method == "unpruned":
        ways = {way.split(",")[0] for way in record["asked"] if "inference" in way}
        assert ways == {"cosine", "random", "tome"} and "64 frames" in record["asked"]
        assert all(a["tokens"] == every / 2 for w, a in record["asked"].items() if w.endswith("k = 0.5"))
    assert not {"data", "init", "out"} & set(record["config"])  # nothing of the machine


@pytest.mark.parametrize("method", slow_but(ASKED, "fastv", "cosine"))
def test_a_rival_is_asked_with_the_unpruned_rows_model(method, lab, monkeypatch):
    """Which is trained once; and it is timed beside itself, unpruned."""
    unpruned = made("unpruned", lab)
    monkeypatch.setattr(reproduce, "train", lambda *_, **__: pytest.fail("the row is in runs/ already"))
    row = Row(method, 0.0, 1)
    record = run_row(row, *lab)
    reproduce.write_json(lab[1] / "rows" / f"{row.name}.json", record)
    assert record["config"] == unpruned["config"] and "cpu_seconds" not in record
    assert set(record["asked"]) == {"inference only, k = 0.5", "inference only, k = 0.8"}
    for way, asked in record["asked"].items():
        assert asked["method"] == method and asked["speedup"] > 0 and asked["limit"] > 1 and len(asked["seconds"]) == 2
        assert (asked["evidence_kept"] is None) == (method in ("tome", "dycoke", "fastv"))
        if method in ("cosine", "random", "tome"):
            assert asked["answers"] == unpruned["asked"][f"{method}, {way}"]["answers"]
    tokens = [asked["tokens"] for asked in record["asked"].values()]
    assert tokens == [None, None] if method == "fastv" else tokens[0] == 3 * 3 * 4 * 9 / 2 > tokens[1]


@pytest.mark.slow
def test_without_the_unpruned_rows_model_it_is_trained_first(lab, monkeypatch):
    seen, real = [], reproduce.train
    monkeypatch.setattr(reproduce, "train", lambda *a, **o: seen.append((a[0], o)) or real(*a, **o))
    monkeypatch.setattr(reproduce, "ask_all", lambda *_: {})
    run_row(Row("evs", 0.0, 2), *lab)
    assert seen[0][0] == Row("unpruned", 0.0, 2).config("data", seen[0][0].init) and not seen[0][1]
    run_row(Row("fastv", 0.0, 2), *lab)
    assert len(seen) == 1
    path = Path(seen[0][0].out) / "checkpoint.pt"
    base1 = {"train_config": {**checkpoint.load(path)["train_config"], "init": str(lab[1] / "base1.pt")}}
    for n, other in enumerate((dict(clips="others"), dict(world="another"), base1), 1):  # not this row's model
        torch.save({**checkpoint.load(path), **other}, path)
        run_row(Row("evs", 0.0, 2), *lab)
        assert len(seen) == 1 + n and path.parent.with_name(f"{path.parent.name}.{n}").exists()  # nothing is lost


@pytest.mark.slow
def test_every_row_is_on_the_page(lab):
    for method in TRAINED:
        made(method, lab)
    for method, other in TWINS.items():
        row = Row(method, 0.5, 1)
        record = {**made(other, lab), "row": asdict(row)}
        reproduce.write_json(lab[1] / "rows" / f"{row.name}.json", record)
    text = "\n".join(pages(Results(lab[1] / "rows")).values())
    assert "| 2 | 18 | " in text and "| 4 | 36 | " in text  # the two of frames in a range share a table
    for method in {*TRAINED, *TWINS} - {"unpruned-range", "saliency-range"}:
        name = {"saliency-few": "unpruned"}.get(method, named(method))
        title = "## Learning in the same time" if method.startswith("young-") else "# Results"
        assert f"| {name} |" in text.split(title)[1], method


def test_methods_are_what_they_are_called(lab, monkeypatch):
    """What reaches `train` and `evaluate`: the settings, the oracle's scores, the merging encoder."""
    seen = []
    real_train, real_evaluate = reproduce.train, reproduce.evaluate

    def spied_train(*args, **options):
        seen.append(("train", options))
        return real_train(*args, **options)

    def spied_evaluate(model, clips, reader, k, encode, **options):
        seen.append((type(model.scorer).__name__, encode, options))
        return real_evaluate(model, clips, reader, k, encode, **options)

    monkeypatch.setattr(reproduce, "train", spied_train)
    monkeypatch.setattr(reproduce, "evaluate", spied_evaluate)
    kept = {}
    for method in ("oracle", "tome", "random", "blind"):
        seen.clear()
        record = run_row(Row(method, 0.0 if method == "blind" else 0.5, 0), *lab)
        kept[method] = record["asked"]["as trained"]["evidence_kept"]
        (_, given), (_, encode, asked) = seen
        assert given.get("annotate") == asked["annotate"] == (oracle if method == "oracle" else None)
        assert given.get("encoder") == (RIVALS["tome"] if method == "tome" else None)
        assert (encode is None) == (method in ("oracle", "random"))
    assert kept["oracle"] > kept["random"] + 0.1
    seen.clear()
    lab[0].ask(checkpoint.load_model(lab[1] / "base0.pt")[0].float(), Asking(0.5, "cosine", 4), 0)
    assert seen[0][0] == "CosineScorer"
    config = lambda method: Row(method, 0.5, 0).config("data", Path("b"))
    assert config("no-aux").sim_weight == 0 and config("no-bias").bias == "none" and config("blind").blind
    assert config("stts").sim_weight == 30 and config("stts").bias == "log" and not config("stts").blind


def test_the_oracle_ranks_cells_with_evidence_first(lab):
    clip = next(c for c in lab[0].test if c.kind == "short")
    video = Reader(4, 48, 10.0)(clip)
    scores, some = oracle(clip, video), sum(evidence_per_cell(clip, video, 3).values()) > 0
    assert scores.shape == (4, 9) and not some[0].any() and some[1:].any()
    assert scores[some].min() > scores[~some].max()
    assert len(np.unique(scores)) == scores.size  # no ties: chance decides


def test_the_random_scorer_is_seeded_by_the_row(lab):
    model = checkpoint.load_model(lab[1] / "base0.pt")[0].float()
    way = Asking(0.5, "random", 4)
    a, b, c = (lab[0].ask(model, way, seed).evidence for seed in (0, 0, 1))
    assert a == b != c
    with pytest.raises(ZeroDivisionError), reproduce.asked_with("random", model):
        _ = 1 / 0
    assert type(model.scorer).__name__ == "Scorer"  # its own again, whatever went wrong


def test_a_finished_row_is_not_run_again_and_a_claimed_one_is_left_alone(lab, monkeypatch, capsys):
    run, bases, real = [], [], reproduce.train_base
    monkeypatch.setattr(reproduce, "run_row", lambda row, *_: run.append(row.name) or {})
    monkeypatch.setattr(reproduce, "train_base", lambda *given: bases.append(given[2]) or real(*given))
    monkeypatch.setitem(TABLES, "k", [Row("stts", k, 2) for k in (0.1, 0.2, 0.3)])
    there = lab[1] / "rows" / "stts-k10-seed2.json"
    there.write_text("{}")
    with claimed(Path("runs/rows/stts-k20-seed2.lock")) as mine:
        assert mine
        reproduce.main(["--table", "k", "--results", str(lab[1]), "--clips", "3"])
    assert run == ["stts-k30-seed2"] and (lab[1] / "rows" / "stts-k30-seed2.json").exists()
    reproduce.main(["--table", "k", "--results", str(lab[1]), "--clips", "3"])
    assert run == ["stts-k30-seed2", "stts-k20-seed2"] and "2 of 3 rows are there; other" in capsys.readouterr().out
    assert bases == [0, 0]  # a base for each row that was run, and for no other
    reproduce.main(["--base", "0", "--results", str(lab[1])])
    assert capsys.readouterr().out.endswith("base0.pt is there\n")
    for path in (lab[1] / "rows").glob("stts-k[123]0-seed2.json"):
        path.unlink()


def test_a_rows_folder_is_made_and_looked_at_before_the_work(lab, tmp_path, monkeypatch):
    work = []
    monkeypatch.setattr(reproduce, "train_base", lambda *_: work.append("base"))
    monkeypatch.setattr(reproduce, "run_row", lambda *_: work.append("row") or {})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/rows"):
        reproduce.make(Row("stts", 0.7, 2), tmp_path / "file" / "rows" / "a.json", *lab)
    assert not work
    reproduce.make(Row("stts", 0.7, 2), tmp_path / "new" / "rows" / "a.json", *lab)
    assert work == ["base", "row"] and (tmp_path / "new" / "rows" / "a.json").exists()


def test_a_row_may_have_its_own_number_of_steps(lab, monkeypatch):
    row, decoded = Row("saliency@3", 0.5, 0), []
    assert row.name == "saliency@3-k50-seed0"
    real = reproduce.train

    def spied(config, resume, device, reader, **options):
        decoded.append(len(reader.cache))
        return real(config, resume, device, reader, **options)

    monkeypatch.setattr(reproduce, "train", spied)
    lab[0].reader.cache_clear()
    record = run_row(row, *lab)
    assert decoded == [len(lab[0].train)]  # before the clock of training began
    assert record["config"]["steps"] == 3 and record["config"]["saliency_steps"] == 1
    assert len((Path("runs/rows") / row.name / "log.csv").read_text().splitlines()) == 1 + 3
    assert set(record["asked"]) == {"as trained"} and record["cpu_seconds"] > 0


@pytest.mark.parametrize("method", [*TRAINED, *TWINS])
def test_a_number_of_steps_changes_nothing_else(method, lab):
    k = 0.0 if method in ("unpruned", "blind") else 0.5
    plain, longer = (asdict(Row(m, k, 0).config("data", Path("b"))) for m in (method, f"{method}@7"))
    assert longer == {**plain, "steps": 7, "out": longer["out"]}
    assert reproduce.given_to(f"{method}@7") == reproduce.given_to(method)


@pytest.mark.parametrize("method", slow_but(["blind", "random", "tome"], "random"))
def test_with_its_own_number_of_steps_a_row_is_asked_as_ever(method, lab):
    model, k = checkpoint.load_model(lab[1] / "base0.pt")[0].float(), 0.0 if method == "blind" else 0.5
    plain, longer = (reproduce.ask_all(Row(m, k, 0), model, lab[0]) for m in (method, f"{method}@7"))
    plain, longer = ({**asked["as trained"], "method": ""} for asked in (plain, longer))
    assert plain == longer


def command(lab):
    """The command that trains what is missing of a table."""
    reproduce.main(["--table", "k", "--results", str(lab[1]), "--clips", "3"])


@pytest.mark.slow
def test_a_young_base_is_made_when_a_row_wants_it(lab, monkeypatch):
    base, row = lab[1] / "base0-few.pt", Row("young-cosine", 0.5, 2)
    assert not base.exists()
    monkeypatch.setitem(TABLES, "k", [row])
    command(lab)
    record = json.loads((lab[1] / "rows" / f"{row.name}.json").read_text())
    assert base.exists() and record["base_sha256"] == checkpoint.digest_of(base, 16)
    assert record["base_sha256"] != checkpoint.digest_of(lab[1] / "base0.pt", 16)


def test_the_rows_of_the_tables():
    k, methods = TABLES["k"], TABLES["methods"]
    clock = {(row.method, row.k) for row in TABLES["clock"]}
    recipes = {(parted(m)[0], k) for m, k in clock if not m.startswith("young-")}
    assert recipes <= clock  # each beside the recipe's own
    assert ("oracle", 0.9) in {(row.method, row.k) for row in methods}
    assert len(set(k)) == len(k) == 3 + 27 + 12 and len(set(methods)) == len(methods)
    assert {(r.method, r.k) for r in k if r.seed == 2} == {
        ("unpruned", 0.0), *((m, x) for m in ("stts", "saliency", "random") for x in (0.5, 0.8, 0.9))
    }  # fmt: skip
    every = [row for table in TABLES.values() for row in table]
    asked = [row for row in every if row.asked]
    assert asked == TABLES["rivals"] and {r.method for r in TABLES["rivals-trained"]} < set(RIVALS)
    for row in every:
        config = row.config("data", Path("base.pt"))
        assert isinstance(config, PaperConfig) and config.k == (
            0.0 if parted(row.method)[0] in ("frames", "young-frames", "resolution") else row.k
        )
    for row in every:  # but for what makes the method, all is the same
        own = {"k", "out", "init", *scores.ONE_METHODS_OWN}
        a, b = (asdict(r.config("data", Path("b"))) for r in (row, Row("unpruned", 0.0, row.seed)))
        assert {name for name in a if a[name] != b[name]} <= own


OWN_RIVAL = """
def Mine(model):
    return lambda frames, num_frames=None, k=0.5: model.encode_video(
        frames, num_frames, k, lambda x, n: x.unflatten(2, (-1, 4)).mean((3, 4)))


Mine.merges = True
"""
OWN_SCORER = """
import torch
from torch import nn


class Middle(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w2 = config.w**2
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, num_frames=None):
        return self.weight * x.detach().unflatten(2, (-1, self.w2)).std(dim=(3, 4))
"""


def test_a_rival_of_ones_own_is_asked(lab, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_RIVAL)
    reproduce.main(
        ["--rival", f"{tmp_path / 'mine.py'}:Mine", "--seeds", "1", "--results", str(lab[1]), "--clips", "3"]
    )
    record = json.loads((lab[1] / "rows" / "Mine-k0-seed1.json").read_text())
    assert record["asked"]["inference only, k = 0.8"]["tokens"] > 0
    assert record["asked"]["inference only, k = 0.8"]["evidence_kept"] is None  # it says that it merges
    assert "| Mine | 80 | 1 |" in pages(Results(lab[1] / "rows"))["README.md"]
    with pytest.raises(SystemExit):
        reproduce.main(["--rival", "evs", "--k", "0.9"])
    assert "--k goes with --scorer alone" in capsys.readouterr().err
    with pytest.raises(ValueError, match="fastv prunes inside the LLM: it is asked, at k = 0, and not trained"):
        Row("fastv", 0.5, 0).config("data", Path())
    with pytest.raises(SystemExit, match="know evs, "):
        reproduce.main(["--rival", "nobody", "--results", str(lab[1])])


def test_a_scorer_of_ones_own_gets_a_row_beside_the_others(lab, tmp_path, monkeypatch):
    """One file, touched by nobody else: trained, judged, in the tables."""
    (tmp_path / "mine.py").write_text(OWN_SCORER)
    name = f"{tmp_path / 'mine.py'}:Middle"
    reproduce.main(["--scorer", name, "--k", "0.5", "--results", str(lab[1]), "--clips", "3"])
    results = Results(lab[1] / "rows")
    assert results.seeds(name, 0.5) == [0, 1, 2] and (lab[1] / "rows" / "Middle-k50-seed2.json").exists()
    assert "| Middle | 50 |" in pages(results)["README.md"]
    reproduce.main(["--ship", "Middle-k50-seed2", "--results", str(lab[1])])
    assert checkpoint.load(lab[1] / "Middle-k50-seed2.pt")["scorer_file"] == checkpoint.contents(name)
    (tmp_path / "other.py").write_text(OWN_SCORER)
    with pytest.raises(SystemExit, match=r"is the row of .*mine.py:Middle: move it, or rename your class"):
        reproduce.main(["--scorer", f"{tmp_path / 'other.py'}:Middle", "--results", str(lab[1]), "--clips", "3"])
    with pytest.raises(SystemExit, match="there is no file"):
        reproduce.main(["--scorer", "nowhere.py:Middle", "--results", str(lab[1])])
    (tmp_path / "mine.py").write_text(f"{OWN_SCORER}\n# changed")
    with pytest.raises(SystemExit, match=r"Middle-k50-seed0.json was made before .*mine.py:Middle changed: move it"):
        reproduce.main(["--scorer", name, "--results", str(lab[1]), "--clips", "3"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--scorer", "mine.py:Middle", "--k", "0.502"], "--k 0.502: rows are named by whole percents"),
        (["--base", "0", "--panels", "0"], "--panels has no effect beside --base"),
        (["--ship", "a", "--seeds", "1", "--clips", "3"], "--seeds --clips has no effect beside --base and --ship"),
    ],
)
def test_what_would_have_another_effect_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(words)
    assert message in capsys.readouterr().err


def test_the_real_settings_of_every_row_and_base_can_be():
    """The tests above run with small ones in their place."""
    for table in TABLES.values():
        for row in table:
            config = row.config("data", Path("base.pt"))
            assert config.curriculum_steps == 0 and config.thinning == (4 if row.method.endswith("-range") else 1)
    for settings in reproduce.BASE_RUNS.values():
        PaperConfig(**{**BASE, **settings})


def test_a_rows_weights_can_be_shipped(lab):
    run_row(Row("stts", 0.5, 0), *lab)
    reproduce.main(["--ship", "stts-k50-seed0", "--results", str(lab[1])])
    shipped, state = checkpoint.load_model(lab[1] / "stts-k50-seed0.pt")
    model, _ = checkpoint.load_model("runs/rows/stts-k50-seed0/checkpoint.pt")
    assert "optimizers" not in state and state["train_config"]["k"] == 0.5
    assert {w.dtype for w in checkpoint.load(lab[1] / "stts-k50-seed0.pt")["model"].values()} == {torch.float16}
    for a, b in zip(shipped.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    state = checkpoint.load("runs/rows/stts-k50-seed0/checkpoint.pt")
    torch.save({**state, "step": 1}, "runs/rows/stts-k50-seed0/checkpoint.pt")
    with pytest.raises(SystemExit, match="is at step 1 of 2: let it end first"):
        reproduce.main(["--ship", "stts-k50-seed0", "--results", str(lab[1])])
    with pytest.raises(SystemExit, match="no checkpoint at"):
        reproduce.main(["--ship", "nothing", "--results", str(lab[1])])


def test_no_git_no_locks_and_no_rows(monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert machine.commit() == "unknown"
    monkeypatch.undo()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "theirs" / "stts_mini" / "lab" / "speed" / "machine.py"))
    for folder in (tmp_path, tmp_path / "theirs" / "stts_mini"):  # the package in somebody's repository
        folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    git = "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a"
    subprocess.run(["git", *git, "commit", "-qm", "theirs", "--allow-empty"], check=True)
    assert machine.commit() == "unknown"

    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with reproduce.claimed(tmp_path / "a.lock") as mine:
        assert mine
    with pytest.raises(SystemExit, match="no row of this table has a seed of"):
        reproduce.main(["--table", "k", "--seeds", "7"])
