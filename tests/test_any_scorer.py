"""What every scorer must do, whoever wrote it: ours, and one of yours.

python -m stts_mini.lab.grade --scorer my_file.py:MyScorer
"""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.data.batches import TOKENIZER
from stts_mini.model import VLM
from stts_mini.packing import num_removed
from stts_mini.scorer import SCORERS, ScorerConfig, find_scorer
from stts_mini.sequence import Batch
from stts_mini.training import checkpoint
from tests.tiny import tiny

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))  # B, T, w, cells a side


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        own = metafunc.config.getoption("--scorer") or ""
        metafunc.parametrize("name", [own] if ":" in own else ["stts", "cosine", "random"])


def made(name, w=2, width=8):
    """A scorer with that name, always from the same seed."""
    torch.manual_seed(0)
    return find_scorer(name)(ScorerConfig(width=width, w=w, heads=2, mlp=8))


def scored(scorer, x, num_frames):
    torch.manual_seed(1)
    with torch.no_grad():
        return scorer(x, num_frames)


def is_random(scorer):
    """Whether it gives other scores each time."""
    x = torch.randn(1, 3, 16, 8)
    with torch.no_grad():
        return not torch.equal(scorer(x, torch.tensor([3])), scorer(x, torch.tensor([3])))


@given(shape=shapes, seed=st.integers(0, 99))
def test_one_finite_score_for_every_cell(name, shape, seed):
    B, T, w, side = shape
    scorer = made(name, w)
    x = torch.randn(B, T, (side * w) ** 2, 8, generator=torch.Generator().manual_seed(seed))
    scores = scored(scorer, x, torch.full((B,), T))
    assert scores.shape == (B, T, side**2) and scores.is_floating_point() and scores.isfinite().all()
    if getattr(scorer, "injects_bias", False):  # log of the score is taken, and L_sim compares it with 1 − cos
        assert ((scores >= 0) & (scores <= 1)).all()


@given(shape=shapes, seed=st.integers(0, 99))
def test_padding_and_other_videos_do_not_matter(name, shape, seed):
    B, T, w, side = shape
    scorer, g = made(name, w), torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, (side * w) ** 2, 8, generator=g)
    num_frames = torch.randint(1, T + 1, (B,), generator=g)
    real = torch.arange(T) < num_frames[:, None]
    other = torch.where(real[..., None, None], x, 100 * torch.randn(x.shape, generator=g))
    a, b = scored(scorer, x, num_frames), scored(scorer, other, num_frames)
    assert torch.equal(a[real], b[real])
    if not is_random(made(name)):  # random scores are drawn for the whole batch
        n = int(num_frames[0])
        alone = scored(scorer, x[:1, :n], num_frames[:1])
        torch.testing.assert_close(alone[0], a[0, :n], rtol=1e-5, atol=1e-6)


def a_model(name, tmp_path, **options):
    torch.manual_seed(0)
    return VLM(dataclasses.replace(tiny(tmp_path, **options).model, scored_by=name))


def a_batch(B=2, T=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (B, T, 3, 48, 48), generator=g, dtype=torch.uint8)
    stamps = [[[TOKENIZER.stamp(t / 2)] for t in range(T)]] * B
    branch = (TOKENIZER.prompt("what colour is the circle ?"), TOKENIZER.encode("red"))
    return Batch(frames, torch.full((B,), T), stamps, [[branch]] * B)


@pytest.mark.parametrize("k", [0.3, 0.5, 0.9])
def test_the_budget_and_frame_0_are_everybodys(name, k, tmp_path):
    find_scorer(name)
    model, batch = a_model(name, tmp_path), a_batch()
    with torch.no_grad():
        encoded = model.encode(batch, k)
    assert (encoded.keep.flatten(1).sum(1) == 45 - min(num_removed(k, 9, 5), 36)).all() and encoded.keep[:, 0].all()
    assert torch.equal(encoded.keep.sum(2), encoded.kept)


def test_it_trains_and_survives_a_checkpoint(name, tmp_path):
    find_scorer(name)
    model, batch = a_model(name, tmp_path), a_batch()
    output = model(batch, 0.5)
    (output.task_loss + output.sim_loss).backward()
    own = [p for p in model.scorer.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in own if p.grad is not None)
    if getattr(model.scorer, "injects_bias", False):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
    checkpoint.save(tmp_path / "a.pt", model, step=0)
    again, _ = checkpoint.load_model(tmp_path / "a.pt")
    x, n = torch.randn(2, 3, 36, 8), torch.tensor([3, 2])
    assert type(again.scorer) is find_scorer(name)
    torch.testing.assert_close(scored(again.scorer, x, n), scored(model.eval().scorer, x, n))


MINE = """
from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass
class Options:
    scale: float = 1.0


class Mine(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w2, self.score = config.w**2, nn.Linear(config.width, 1)

    def forward(self, x, num_frames=None):
        return self.score(x.unflatten(2, (-1, self.w2)).mean(3)).squeeze(-1)


def not_a_class(x, num_frames): ...
"""


def test_a_class_in_a_file_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("stts_mini.scorer.SCORERS", dict(SCORERS))
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine.txt").write_text(MINE)
    name = f"{tmp_path / 'mine.py'}:Mine"
    with pytest.raises(ValueError, match=r"class in your own file, give --scorer .*mine.py:Mine"):
        a_model(name, tmp_path)
    found = find_scorer(name)
    assert found.__name__ == "Mine" and find_scorer(name) is found
    for wrong, message in (
        ("nobody", "know stts, cosine, random"),
        (f"{tmp_path}/none.py:Mine", "there is no file"),
        (f"{tmp_path}/mine.txt:Mine", "not a Python file"),
        (f"{tmp_path}/mine.py:Yours", "no nn.Module class 'Yours'"),
        (f"{tmp_path}/mine.py:not_a_class", "no nn.Module class 'not_a_class'"),
    ):
        with pytest.raises(ValueError, match=message):
            find_scorer(wrong)


def test_a_checkpoint_imports_no_file_by_itself(tmp_path, monkeypatch):
    """It names a file, which runs only when it is asked for."""
    known = {own: scorer for own, scorer in SCORERS.items() if ":" not in own}  # no class of an earlier test
    for module in ("scorer", "model", "training.checkpoint"):
        monkeypatch.setattr(f"stts_mini.{module}.SCORERS", known)
    (tmp_path / "mine.py").write_text(MINE + "\nimport pathlib; pathlib.Path(__file__ + '.ran').touch()\n")
    name = f"{tmp_path / 'mine.py'}:Mine"
    find_scorer(name)
    checkpoint.save(tmp_path / "a.pt", a_model(name, tmp_path), step=0)
    (tmp_path / "mine.py.ran").unlink()
    del known[name]
    with pytest.raises(checkpoint.CheckpointError, match=r"give --scorer .*mine.py:Mine"):
        checkpoint.load_model(tmp_path / "a.pt")
    assert not (tmp_path / "mine.py.ran").exists()
    find_scorer(name)
    model, _ = checkpoint.load_model(tmp_path / "a.pt")
    assert type(model.scorer).__name__ == "Mine"
