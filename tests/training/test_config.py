"""Sizes, estimates and flags, worked out by hand."""

import re
from dataclasses import asdict, fields

import pytest
import torch

from stts_mini.lab.paper.train import PaperConfig
from stts_mini.training.config import PRESETS, TrainConfig, describe, idle, parse_flags, saved_floats, scaled, setting

CPU = torch.device("cpu")


def test_every_size_of_the_model_is_its_setting():
    sizes = dict(
        image_size=96, patch_size=12, w=4, vit_width=24, vit_depth=9, vit_heads=3, vit_mlp=40, score_after=2,
        bias="none", llm_width=16, llm_depth=5, llm_heads=6, llm_kv_heads=3, llm_head_dim=8,
        llm_mlp=70, scorer="cosine",
    )  # fmt: skip
    model = TrainConfig(**sizes).model
    for part, names in (
        (model.vit, "vit_width vit_depth vit_heads vit_mlp"),
        (model.llm, "llm_width llm_depth llm_heads"),
    ):
        for name in names.split():
            assert getattr(part, name.partition("_")[2]) == sizes[name]
    assert (model.vit.image_size, model.vit.patch_size, model.llm.kv_heads, model.llm.head_dim) == (96, 12, 3, 8)
    assert (model.llm.mlp, model.connector_mlp, model.w, model.score_after) == (70, 70, 4, 2)
    assert (model.bias, model.scored_by, model.scorer_heads, model.scorer_mlp) == ("none", "cosine", 3, 40)
    assert model.taps == (-3, -1) and TrainConfig(vit_depth=3).model.taps == (-1, -1)


@pytest.mark.parametrize(
    "sizes, scale, expected",
    [
        ({}, 0.5, (3, 1, 2, 1, 2, 0, 32, 128, 64, 128)),
        (PRESETS["gpu"], 2, (28, 12, 16, 8, 16, 6, 768, 3072, 1024, 3072)),
        (dict(llm_heads=6, llm_mlp=96), 0.1, (1, 1, 1, 1, 3, 0, 32, 128, 63, 47)),  # heads of 128 // 6 = 21
    ],
)
def test_every_size_is_scaled(sizes, scale, expected):
    names = "vit_depth vit_heads llm_depth llm_kv_heads llm_heads score_after vit_width vit_mlp llm_width llm_mlp"
    assert scaled(sizes, scale) == dict(zip(names.split(), expected, strict=True))


def test_what_a_step_keeps_is_counted_by_hand():
    """12 clips of 16 frames of 36 patches; 72 of 144 cells kept; 400 tokens: in numbers, the docstring's formula."""
    config = TrainConfig()
    vit, llm = 11 * 64 + 3 * 256, 16 * 128 + 4 * 256
    tokens, through_vit = 12 * 400, 12 * (2 * 16 * 36 + 4 * 72 * 4)
    count = lambda **flags: saved_floats(config.model, TrainConfig(**flags), 72, 400)
    assert count() == through_vit * vit + tokens * 4 * llm == 2 * count(accumulate=2)
    inputs = through_vit * 64 + tokens * 4 * 128
    assert count(recompute=True) == inputs + tokens * llm
    assert saved_floats(config.model, TrainConfig(recompute=True), 72, 10) == (
        through_vit * 64 + 120 * 4 * 128 + 12 * 16 * 36 * vit
    )


@pytest.mark.parametrize("device, preset", [("cpu", "cpu"), ("cpu", "gpu"), ("cuda", "gpu")])
def test_the_estimate_adds_up(device, preset):
    config = TrainConfig(**PRESETS[preset])
    model, vit, step, memory = describe(config, torch.device(device)).splitlines()
    millions = [float(x) for x in re.findall(r"([\d.]+) M", model)]
    assert millions[0] == pytest.approx(sum(millions[1:]), abs=0.03)
    total, activations, fixed, torchs, clips, *ahead = map(float, re.findall(r"(\d+\.\d+)", memory))
    assert fixed == pytest.approx(16 * millions[0] / 1000, abs=0.006) and torchs == 0.5
    assert total == pytest.approx(activations + fixed + torchs + sum([clips, *ahead]) * (device == "cpu"), abs=0.11)
    assert ahead == ([0.7] if preset == "gpu" else [])  # six batches of 113 MB
    assert clips == (
        32.0 if preset == "gpu" else round(3500 * 16 * 3 * 48**2 / 1e9, 1)
    )  # 56 GB are more than the cache
    if preset == "gpu":
        assert "4 of 14 blocks dense (29%), 10 packed; 16 cells of 3×3 patches" in vit
        assert "64 clips of up to 64 frames; of a full clip's 1024 vision tokens 512 are kept" in step
        assert f"at most about {64 * (512 + 192 + 224)} LLM tokens" in step


def test_flags_without_an_effect_are_all_known():
    def without(config):
        found = idle(config, [f.name for f in fields(TrainConfig)] + ["video_size"])
        return {text.split(" (")[0]: text.split(" (")[1].split()[0] for text in found}

    assert without(TrainConfig()) == {}
    of_scorer = ("--scorer", "--bias", "--sim-weight", "--scorer-lr-ratio")
    assert without(TrainConfig(k=0.0)) == dict.fromkeys(of_scorer, "--k")
    assert without(PaperConfig(blind=True, k=0.0)) == dict.fromkeys(["--k", *of_scorer], "--blind")
    assert without(TrainConfig(scorer="random")) == dict.fromkeys(of_scorer[1:], "the")
    own = ("--stages", "--train-clips", "--test-clips", "--panels", "--video-size")
    assert without(TrainConfig(data="a.jsonl")) == dict.fromkeys(own, "--data")
    assert without(PaperConfig(saliency_steps=1, llm_depth=2)) == {"--sim-weight": "--saliency-steps"}


def test_the_labs_settings_without_an_effect_are_known():
    lab = ("scorer_steps", "spread", "coarse_steps")
    found = lambda **flags: [text.split()[0] for text in idle(PaperConfig(**{"thinning": 2.0, **flags}), lab)]
    assert found() == [] and found(thinning=1.0) == ["--coarse-steps"]
    assert set(found(k=0.0)) == set(found(blind=True)) == {"--scorer-steps", "--spread"}
    for flags in (dict(scorer="cosine"), dict(sim_weight=0.0), dict(scorer_lr_ratio=0.0), dict(saliency_steps=1)):
        assert found(**flags) == ["--scorer-steps"] and (flags.get("scorer") or not PaperConfig(**flags).lessons)
    with pytest.raises(ValueError, match="saliency_steps = 1 teach nothing at scorer_lr_ratio = 0: give"):
        PaperConfig(saliency_steps=1, scorer_lr_ratio=0.0)


def test_settings_may_be_as_large_and_as_small_as_they_say():
    TrainConfig(seed=2**63 - 1, warmup=1400, stages=dict(image=1399, glance=0))  # of no glance, no clip is needed
    TrainConfig(stages={}, train_clips=dict(image=1), accumulate=12)
    assert TrainConfig().train_clips is not TrainConfig().train_clips  # each its own
    for wrong, message in (
        (dict(train_clips=dict(short=-1)), r"train_clips has short=-1: give --train-clips KIND=COUNT"),
        (dict(stages=dict(tall=1)), "stages has tall=1"),
        (dict(val="a.jsonl"), "goes with clips of your own"),
        (dict(data="a.json"), "a list of clips of your own ends in .jsonl"),
        (dict(varlen=True, compile=True), "give one of the two"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**wrong)


def test_flags_go_before_what_is_given_and_that_before_the_preset(capsys):
    given = dict(batch_size=6, seed=7)
    config, rest = parse_flags(["--preset", "smoke", "--seed", "8", "--no-recompute"], given)
    assert (config.steps, config.batch_size, config.seed) == (20, 6, 8)
    assert vars(rest) == dict(resume=False, dry_run=False, preset="smoke", split="test", idle=[])
    assert parse_flags(["--dry-run", "--lr", "0.5", "--out", "a b"])[0] == TrainConfig(lr=0.5, out="a b")
    assert parse_flags(["--scale", "1"], given)[0].batch_size == 6
    with pytest.raises(SystemExit):
        parse_flags(["--scale", "inf"])
    with pytest.raises(SystemExit):
        parse_flags(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--batch-size INT" in said and "(default: 12, smoke: 8, gpu: 64)" in said and "--no-compile" in said
    stages = "(default: image=250,brief=450, paper: none, smoke: image=4,brief=4,"
    assert "--stages KIND=COUNT,…" in said and stages in said


def test_a_setting_may_be_0_only_if_it_says_so():
    assert setting(1, "a").metadata == {"help": "a", "may_be_0": False} and setting({}, "a").metadata["help"] == "a"
    assert {f.name for f in fields(TrainConfig) if f.metadata["may_be_0"]} == {
        "k", "muon_lr", "scorer_lr_ratio", "vision_lr_ratio", "sim_weight", "warmup", "seed", "score_after", "cache_gb",
        "panels", "workers",
    }  # fmt: skip
    assert asdict(TrainConfig(cache_gb=0.0))["cache_gb"] == 0


def test_a_model_from_nothing_is_asked_all_that_is_learned_late():
    assert TrainConfig().late == ("direction", "start")
    assert TrainConfig(**PRESETS["paper"]).late == () == TrainConfig(init="base.pt").late  # rows stay as they were
