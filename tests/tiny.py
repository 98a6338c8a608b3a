"""Settings so small that a training step takes milliseconds, for tests of train and eval."""

import sys
import tempfile

import pytest

from stts_mini.training.config import TrainConfig, as_text

TINY = dict(
    train_clips=dict(short=6, watch=2, image=2, brief=2), stages=dict(image=1, brief=1), test_clips=4,
    max_frames=4, steps=4, batch_size=4, questions=2, warmup=2, save_every=2, image_size=48, patch_size=8,
    vit_width=8, vit_depth=4, vit_mlp=8, llm_width=8, llm_depth=1, llm_heads=2, llm_kv_heads=1,
    llm_head_dim=4, llm_mlp=8, device="cpu",
)  # fmt: skip


def slow_but(values, *quick) -> list:
    """A test's parameters, of which all but these are slow."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


forks = pytest.mark.skipif(sys.platform != "linux", reason="workers are forks, on Linux alone")
CLIPS = tempfile.TemporaryDirectory(prefix="stts_mini_tests_")  # of the world: written once, for all tests


def tiny(tmp_path, config=TrainConfig, **options) -> TrainConfig:
    return config(**{**TINY, "data": CLIPS.name, "out": str(tmp_path / "run"), **options})


def flags_of(**options) -> list[str]:
    """The same as flags of a command."""
    return [f"--{name.replace('_', '-')}={as_text(value)}" for name, value in {**TINY, **options}.items()]
