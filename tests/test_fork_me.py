"""The page for forks keeps its word: its diffs apply to this very package, and train."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini.data.clips import WORLD_ID
from stts_mini.lab import pretrained
from stts_mini.scorer import SCORERS
from stts_mini.sequence import Batch
from stts_mini.train import build_model, train
from stts_mini.training import checkpoint
from tests.test_model import batch_of, build
from tests.tiny import flags_of, tiny

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "tutorials" / "fork_me.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
PROBE = """
import torch
from stts_mini.model import VLM
from stts_mini.training.config import TrainConfig
model = VLM(TrainConfig().model)
with torch.no_grad():
    encoded = model.encode_video(torch.randint(0, 256, (2, 20, 3, 48, 48), dtype=torch.uint8), None, 0.5)
print(encoded.kept.sum(1).tolist(), encoded.keep[:, 0].all().item(), len(encoded.tokens))
"""


def run(folder, *command, rc=0):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stderr if rc else done.stdout


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, under git, which `git apply` needs."""
    shutil.copytree(ROOT / "stts_mini", tmp_path / "stts_mini", ignore=shutil.ignore_patterns("__pycache__"))
    run(tmp_path, "git", "init", "-q")
    return tmp_path


def flags(**options):
    return flags_of(data="data", out="run", test_clips=2, **options)


def apply(folder, diff):
    (folder / "a.diff").write_text(diff)
    run(folder, "git", "apply", "--verbose", "a.diff")


@pytest.mark.slow
def test_a_built_in_scorer(copy):
    apply(copy, DIFFS[0])
    said = run(copy, sys.executable, "-m", "stts_mini.train", *flags(scorer="contrast"))
    assert "scorer=contrast" in said and "all done" in said
    said = run(copy, sys.executable, "-m", "stts_mini.eval", "run/checkpoint.pt", "--clips=2")
    assert "scorer contrast (trained: contrast)" in said


@pytest.mark.slow
def test_a_second_pruning_stage(copy):
    before = run(copy, sys.executable, "-c", PROBE)
    apply(copy, DIFFS[1])
    after = run(copy, sys.executable, "-c", PROBE)
    assert before.split() == ["[90,", "90]", "True", "180"] and after.split() == ["[36,", "36]", "True", "72"]
    assert "all done" in run(copy, sys.executable, "-m", "stts_mini.train", *flags())
    said = run(copy, sys.executable, "-m", "stts_mini.train", *flags(vit_depth=3), rc=2)
    assert "give 0 or more, and a depth of score_after + 4 or more" in said
    clip = str(next((copy / "data").rglob("*.mp4")))
    for tool in ("long", "explore"):  # which would show what the model never did
        said = run(copy, sys.executable, "-m", f"stts_mini.lab.{tool}", clip, "--checkpoint=run/checkpoint.pt", rc=1)
        assert "this model prunes in 2 stages" in said and f"lab.{tool}" in said


def test_the_diffs_apply(copy):
    """Both, in any order: when the code moves on, the page must."""
    assert len(DIFFS) == 2
    for diff in DIFFS[::-1]:
        apply(copy, diff)


def test_the_pages_data_is_in_the_format():
    from stts_mini.data.clips import parse_clip

    lines = [line for line in PAGE.splitlines() if line.startswith("{")]
    clips = [parse_clip(line, i, Path(".")) for i, line in enumerate(lines)]
    assert [(c.start, len(c.images), c.qa[0].task) for c in clips] == [
        (None, 0, "question"), (61.5, 0, "free"), (None, 2, "question"),
    ]  # fmt: skip


@pytest.fixture
def every_other():
    names = {}
    exec(dict(PYTHON)["every_other.py"], names)
    return names["every_other"]


def test_an_encoder_that_drops_frames_is_a_model_that_never_had_them(every_other):
    """Losses and answers, of a ragged batch, its padding filled with garbage: the stamps are those of shown frames."""
    model = build()
    batch = batch_of(model, [4, 3, 1])
    fewer = Batch(batch.frames[:, ::2], torch.tensor([2, 2, 1]), [own[::2] for own in batch.stamps], batch.branches)
    dropped, never = model(batch, 0.5, every_other(model)), model(fewer, 0.0)
    torch.testing.assert_close(dropped.logits, never.logits, rtol=1e-10, atol=1e-10)
    assert dropped.tokens == never.tokens
    assert model.generate(batch, 0.5, 4, every_other(model)) == model.generate(fewer, 0.0, 4)


def test_an_encoder_that_drops_frames_trains_and_is_judged(every_other, tmp_path, monkeypatch, capsys):
    """The page's script, at a size of seconds."""
    monkeypatch.setitem(sys.modules, "every_other", SimpleNamespace(every_other=every_other))
    monkeypatch.setattr("stts_mini.training.config.TrainConfig", lambda out: tiny(tmp_path, accumulate=2))
    exec(dict(PYTHON)["half_the_frames.py"].replace("clips=200", "clips=2"), names := {})
    result = names["result"]  # two videos of four frames
    assert (result.kept, result.cells, result.rows) == (2 * 2 * 9, 2 * 4 * 9, (4, 4)) and 0 < result.evidence_kept() < 1
    assert "short (mean)" in capsys.readouterr().out


def test_a_scorer_of_ones_own_is_compared_moved_and_exported(tmp_path, monkeypatch, capsys):
    """A checkpoint of a class that is not known: judged with another scorer; and with its own, in another folder. What
    is another file, or a scorer with fresh weights, is said."""
    monkeypatch.setattr("stts_mini.scorer.SCORERS", known := dict(SCORERS))
    for module in ("model", "training.checkpoint"):
        monkeypatch.setattr(f"stts_mini.{module}.SCORERS", known)
    source = dict(PYTHON)["my_file.py"].replace("super().__init__()", "super().__init__(); self.a = nn.Linear(1, 1)")
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "my_file.py").write_text(source)
    here, there = (f"{tmp_path}/{place}/my_file.py:Contrast" for place in ("here", "there"))
    config = tiny(tmp_path, scorer=here, steps=3)
    train(config, False, torch.device("cpu"))
    path, trained = f"{config.out}/checkpoint.pt", checkpoint.load_model(f"{config.out}/checkpoint.pt")[0].state_dict()
    del known[here]
    for name in ("cosine", "random"):
        evaluation.main([path, "--data", config.data, "--clips", "2", "--scorer", name, "--why", path])
        said = capsys.readouterr().out
        assert f"scorer {name} (trained: {here}), k = 0.5" in said and "fresh" not in said
    model, _, _ = checkpoint.load_trained(path, scorer="stts")  # fresh weights, as beside any other scorer
    assert type(model.scorer) is SCORERS["stts"] and torch.equal(model.llm.norm.weight, trained["llm.norm.weight"])
    assert f"was trained with {here}: the weights of stts are fresh" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"give --scorer .*here/my_file.py:Contrast"):
        checkpoint.load_trained(path)
    resumed = train(tiny(tmp_path, scorer=there, steps=3), True, torch.device("cpu"))  # by another path
    assert all(torch.equal(weight, trained[name]) for name, weight in resumed.state_dict().items())
    moved, _, _ = checkpoint.load_trained(path, scorer=there)
    assert moved.state_dict().keys() == trained.keys() and moved.config.scored_by == there
    assert all(torch.equal(weight, trained[name]) for name, weight in moved.state_dict().items())
    assert "contents" not in capsys.readouterr().out
    (tmp_path / "there" / "my_file.py").write_text(source + "# another")
    assert type(checkpoint.load_trained(path)[0].scorer) is known[there]  # found by the class's name
    assert f"was trained with {here} (contents " in (said := capsys.readouterr().out) and f"; {there} has " in said
    pytest.importorskip("safetensors")
    pretrained.main(["--export", path, str(tmp_path / "folder"), "--scorer", there])
    again, _ = pretrained.load_folder(tmp_path / "folder")
    assert all(torch.equal(weight, trained[name]) for name, weight in again.state_dict().items())
    for flags in (["--no-such-flag"], ["--lr", "1"], ["--vit-depth", "3"]):
        with pytest.raises(SystemExit):
            pretrained.main(["--export", path, str(tmp_path / "other"), *flags])
        assert f"has no use for {flags[0]}" in capsys.readouterr().err


def test_export_with_another_scorer_is_a_model_of_that_scorer(tmp_path):
    pytest.importorskip("safetensors")
    config = tiny(tmp_path)
    rest = dict(step=0, world=WORLD_ID, train_config=asdict(config))
    checkpoint.save(tmp_path / "a.pt", build_model(config, torch.device("cpu")), **rest)
    pretrained.main(["--export", str(tmp_path / "a.pt"), str(tmp_path / "folder"), "--scorer", "cosine"])
    assert pretrained.load_folder(tmp_path / "folder")[0].config.scored_by == "cosine"
