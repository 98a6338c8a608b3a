"""The main command with the lab's settings."""

import pytest

from stts_mini.lab.paper import train
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.training.config import TrainConfig


def test_the_command_has_the_labs_flags_and_the_base(capsys):
    train.main(["--preset", "base", "--saliency-steps", "60", "--spread", "0.3", "--k", "0.8", "--dry-run"])
    said = capsys.readouterr().out
    assert said.startswith("preset base: k=0.8") and "saliency_steps=60 spread=0.3" in said
    train.main(["--preset", "gpu", "--dry-run"])
    assert "video_size=96" in capsys.readouterr().out  # as the model sees it, if nothing else is said
    with pytest.raises(SystemExit):
        train.main(["--thinning", "0.5", "--dry-run"])
    assert "python -m stts_mini.lab.paper.train: error: thinning = 0.5" in capsys.readouterr().err


def test_without_the_labs_settings_it_is_the_main_command():
    plain, labs = TrainConfig(), PaperConfig()
    assert labs.model == plain.model and labs.video_size == plain.video_size
    assert [labs.k_at(s) for s in range(0, 1600, 50)] == [plain.k_at(s) for s in range(0, 1600, 50)]
    assert PaperConfig(image_size=32).video_size == 32 and PaperConfig(image_size=32, video_size=48).video_size == 48
