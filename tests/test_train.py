"""Training that can be trusted: resumed = uninterrupted, bit for bit; every refusal is one clear line."""

import csv
import dataclasses
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini import train as training
from stts_mini.data.batches import TOKENIZER
from stts_mini.data.clips import WORLD_ID, fingerprint, held_out
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.scorer import SCORERS
from stts_mini.toy.world import TASKS
from stts_mini.train import TrainError, build_model, build_optimizers, describe, rate_at, train
from stts_mini.training import checkpoint, logging
from stts_mini.training.checkpoint import CheckpointError
from stts_mini.training.config import PRESETS, TrainConfig, parse_flags
from stts_mini.training.logging import Log
from stts_mini.training.step import forward_backward, wrap
from tests.tiny import flags_of, forks, slow_but, tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The prepared clips, shared by the tests of this file."""
    return tmp_path_factory.mktemp("train")


def state_of(path):
    return checkpoint.load(path)


def same(a, b):
    """Equal, bit for bit, all the way down."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize(
    "scorer, workers",
    [
        pytest.param("stts", 0, marks=pytest.mark.slow),
        ("random", 0),  # has a random state of its own
        pytest.param("random", 2, marks=[forks, pytest.mark.slow]),
    ],
)
def test_resumed_is_uninterrupted_bit_for_bit(folder, tmp_path, scorer, workers, monkeypatch):
    """Killed at the worst moment, right after a checkpoint or between two; the random scorer also draws
    from torch's generator. With workers as without."""
    whole = tiny(folder, out=str(tmp_path / "whole"), scorer=scorer, save_every=2)
    train(whole, False, CPU)
    expected = state_of(tmp_path / "whole" / "checkpoint.pt")
    for stop in (2, 3):
        config = tiny(folder, out=str(tmp_path / f"stop{stop}"), scorer=scorer, workers=workers, save_every=2)
        calls = []

        def dies(*args, calls=calls, stop=stop, **kwargs):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(1)
            return forward_backward(*args, **kwargs)

        monkeypatch.setattr(training, "forward_backward", dies)
        with pytest.raises(KeyboardInterrupt):
            train(config, False, CPU)
        assert not multiprocessing.active_children()
        monkeypatch.setattr(training, "forward_backward", forward_backward)
        assert state_of(tmp_path / f"stop{stop}" / "checkpoint.pt")["step"] == 2
        torch.manual_seed(99)
        train(config, True, CPU)
        got = state_of(tmp_path / f"stop{stop}" / "checkpoint.pt")
        for key in ("model", "optimizers", "rng", "step"):
            assert same(expected[key], got[key]), key
        rows = list(csv.reader((tmp_path / f"stop{stop}" / "log.csv").read_text().splitlines()))
        assert [row[0] for row in rows] == ["step", "0", "1", "2", "3"]
        reference = list(csv.reader((tmp_path / "whole" / "log.csv").read_text().splitlines()))
        assert [row[1:6] for row in rows] == [row[1:6] for row in reference]


def test_ctrl_c_saves_and_resumes(folder, tmp_path, monkeypatch, capsys):
    config = tiny(folder, out=str(tmp_path), save_every=100)

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return forward_backward(*args, **kwargs)

    monkeypatch.setattr(training, "forward_backward", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        train(config, False, CPU)
    assert caught.value.code == 130 and "--resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert state_of(tmp_path / "checkpoint.pt")["step"] == 1
    monkeypatch.setattr(training, "forward_backward", forward_backward)
    train(config, True, CPU)
    assert state_of(tmp_path / "checkpoint.pt")["step"] == 4


def test_when_nobody_reads_on_the_run_is_saved(folder, tmp_path, monkeypatch):
    """`python -m stts_mini.train | head`"""

    class Closed(io.StringIO):
        def write(self, text):
            if "right in training" in text:
                raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(SystemExit):
        train(tiny(folder, out=str(tmp_path), save_every=100), False, CPU)
    assert state_of(tmp_path / "checkpoint.pt")["step"] == 1


@pytest.mark.parametrize("command", ["train", "eval"])
def test_what_the_terminals_encoding_lacks_is_printed_as_an_escape(command, tmp_path, monkeypatch):
    """And ends no run after its work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))

    def said(*_):
        print("–")
        raise ValueError("done")

    monkeypatch.setattr(training, "describe", said)
    monkeypatch.setattr(evaluation, "run", said)
    with pytest.raises(SystemExit, match="done"):
        (training.main if command == "train" else evaluation.main)([])
    sys.stdout.seek(0)
    assert sys.stdout.read().splitlines()[-1] == "\\u2013"


@pytest.mark.parametrize("at, said", [(2, "the features to score are NaN"), (3, "loss nan")])  # videos, pictures
def test_a_nan_stops_with_the_step_the_clips_and_the_last_checkpoint(folder, tmp_path, monkeypatch, at, said):
    config = tiny(folder, out=str(tmp_path), save_every=2)
    calls = []

    def sick(model, *args, **kwargs):
        calls.append(1)
        if len(calls) == at + 1:
            next(iter(model.parameters())).data.fill_(math.nan)
        return forward_backward(model, *args, **kwargs)

    monkeypatch.setattr(training, "forward_backward", sick)
    with pytest.raises(
        TrainError, match=rf"step {at}: {said}.*clips \[.*seed 0.*last good checkpoint is .*checkpoint.pt.*lower --lr"
    ):
        train(config, False, CPU)
    good = state_of(tmp_path / "checkpoint.pt")
    assert good["step"] == 2 and all(p.isfinite().all() for p in good["model"].values() if p.is_floating_point())


def test_accumulated_parts_give_the_gradient_of_the_whole(folder):
    config = tiny(folder)
    sampler = make_sampler(config)
    grads = []
    for accumulate in (1, 2):
        model = build_model(config, CPU).double()
        batch = sampler(0)
        batch.frames = batch.frames.double() / 127.5 - 1
        forward_backward(model, batch, tiny(folder, accumulate=accumulate, sim_weight=0.0), CPU)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def gradients_and_saved(folder, **options):
    """Every gradient of one pruned batch and of one step with a saliency loss, the model wrapped as the settings say;
    and how many numbers were held for the backward pass of the first. (Weights are not small: in a fresh model hardly
    anything of a cell arrives at an answer, and rounding would rank the cells.)"""
    config = tiny(folder, PaperConfig, scorer="stts", k=0.5, llm_depth=2, steps=9, **options)
    sampler, model, held = make_sampler(config), build_model(config, CPU), []
    draw = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=draw)
    run = wrap(model, config, CPU)
    keep = lambda x: (held.append(x.numel()), x)[1]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        forward_backward(model, sampler(3), config, CPU, run=run)
    count = sum(held)
    if config.saliency_steps:
        forward_backward(model, sampler(2), config, CPU, k=0.0, run=run, saliency=True)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, count


def test_recomputing_holds_less_and_changes_no_gradient(folder):
    plain, held = gradients_and_saved(folder, saliency_steps=1)
    again, held_again = gradients_and_saved(folder, saliency_steps=1, recompute=True)
    assert plain.keys() == again.keys() and same(plain, again)
    assert held_again < 0.7 * held


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("saliency_steps", [0, 1])
def test_compiled_gives_the_same_gradients(folder, saliency_steps):
    plain, _ = gradients_and_saved(folder, saliency_steps=saliency_steps)
    torch.compiler.reset()  # nothing that another test compiled
    compiled, _ = gradients_and_saved(folder, saliency_steps=saliency_steps, compile=True)
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def make_sampler(config):
    from stts_mini.data.batches import Reader, Sampler
    from stts_mini.data.clips import load_clips, prepare

    clips = load_clips(prepare(config.data, "train", config.train_counts, config.image_size))
    return Sampler(clips, Reader(config.max_frames, config.image_size), config.batch_size, config.questions, 0)


def test_the_loss_is_task_plus_lambda_sim(folder):
    config = tiny(folder)
    batch = make_sampler(config)(0)

    def gradient(weight):
        model = build_model(config, CPU)
        forward_backward(model, batch, tiny(folder, sim_weight=weight), CPU)
        return torch.cat([p.grad.flatten() for p in model.scorer.parameters()])

    none, one, two = gradient(0.0), gradient(1.0), gradient(2.0)
    assert none.abs().sum() > 0 and (one - none).abs().sum() > 0
    torch.testing.assert_close(two - none, 2 * (one - none), rtol=1e-3, atol=1e-6)


def test_every_parameter_is_optimised_once_and_the_scorer_has_its_own_rate(folder):
    config = tiny(folder, scorer_lr_ratio=20.0, vision_lr_ratio=0.5)
    model = build_model(config, CPU)
    optimizers = build_optimizers(model, config)
    rates = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert id(p) not in rates
                rates[id(p)] = (type(optimizer).__name__, group["lr"])
    for name, p in model.named_parameters():
        kind, rate = rates[id(p)]
        ratio = {"scorer": 20.0, "vit": 0.5, "connector": 0.5, "llm": 1.0}[name.split(".")[0]]
        base = config.muon_lr if kind == "Muon" else config.lr
        assert math.isclose(rate, base * ratio), name
        if p.ndim != 2 or "embed" in name:
            assert kind == "AdamW", name
        elif "proj" in name:
            assert kind == "Muon", name
    assert [type(o).__name__ for o in build_optimizers(model, tiny(folder, muon_lr=0.0))] == ["AdamW"]


def test_nothing_is_pruned_in_the_curriculum(folder, monkeypatch):
    seen = []
    original = training.forward_backward

    def spy(model, batch, config, device, k, *_):
        seen.append((k, max(batch.num_frames.tolist())))
        return original(model, batch, config, device, k)

    monkeypatch.setattr(training, "forward_backward", spy)
    train(tiny(folder, steps=5, stages=dict(image=1, brief=2)), False, CPU)
    assert seen[0] == (0.0, 1) and [k for k, _ in seen] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert min(frames for _, frames in seen[1:3]) > 1


def test_stamps_start_as_sines_of_their_times(folder):
    model = build_model(tiny(folder), CPU)
    stamp = lambda text: model.llm.embed_tokens.weight[TOKENIZER.encode(text)[0]]
    assert torch.allclose(stamp("0.0"), torch.tensor([0.0] * 4 + [0.1] * 4))
    near, far = (torch.dist(stamp("60.0"), stamp(other)) for other in ("60.1", "63.0"))
    assert near < 0.6 * far
    word = model.llm.embed_tokens.weight[TOKENIZER.encode("red")[0]]
    assert 0.005 < word.std() < 0.05


def test_the_rate_warms_up_stays_through_the_curriculum_and_goes_down():
    config = TrainConfig(steps=50, warmup=5, stages=dict(image=3, brief=7))
    rates = [rate_at(step, config) for step in range(50)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0] and rates[5:11] == [1.0] * 6
    assert len(set(rates[10:])) == 40 and rates[10:] == sorted(rates[10:], reverse=True) and 0 <= rates[-1] < 0.01
    assert rate_at(0, TrainConfig(warmup=0)) == 1.0


# ------------------------------------------------------------------------------------- checkpoints


def test_a_failed_write_keeps_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    model = build_model(tiny(folder), CPU)
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, model, step=1)
    before = path.read_bytes()

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*the last good one is still there"):
        checkpoint.save(path, model, step=2)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_checkpoint_gives_the_same_model_and_runs_no_code(folder, tmp_path):
    model = build_model(tiny(folder), CPU)
    checkpoint.save(tmp_path / "a.pt", model, step=7, train_config=asdict(tiny(folder)))
    again, state = checkpoint.load_model(tmp_path / "a.pt")
    assert again.config == model.config and state["step"] == 7
    assert same(again.state_dict(), model.state_dict())

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": checkpoint.FORMAT, "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this project, or is damaged"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_files_that_are_no_checkpoint_are_refused(folder, tmp_path):
    model = build_model(tiny(folder), CPU)
    checkpoint.save(tmp_path / "good.pt", model, step=1)
    whole = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("a", "b")
    for name in ("cut", "text", "empty", "other", "zip"):
        with pytest.raises(CheckpointError, match=f"{name}.pt is not a checkpoint of this project"):
            checkpoint.load(tmp_path / f"{name}.pt")
    larger = build_model(tiny(folder, vit_width=16), CPU)
    with pytest.raises(CheckpointError, match=r"another shape: connector\..* is \(.*\) there and \(.*\) in this model"):
        checkpoint.load_weights(larger, checkpoint.load(tmp_path / "good.pt"), tmp_path / "good.pt")


@pytest.mark.parametrize("scorer", slow_but(["stts", "cosine", "random"], "cosine"))
def test_every_scorers_checkpoint_loads_and_is_evaluated_as_trained(folder, tmp_path, scorer, capsys):
    config = tiny(folder, out=str(tmp_path / scorer), scorer=scorer)
    train(config, False, CPU)
    path = str(tmp_path / scorer / "checkpoint.pt")
    model, _ = checkpoint.load_model(path)
    assert model.config.scored_by == scorer and type(model.scorer) is SCORERS[scorer]
    evaluation.main([path, "--data", config.data, "--clips", "2", "--json", str(tmp_path / "a.json")])
    said, result = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert f"scorer {scorer} (trained: {scorer}), k = 0.5" in said
    assert (result["scorer"], result["k"], result["max_frames"]) == (scorer, 0.5, 4)
    assert set(result["look_up"]) == set(result["blind"]) == set(result["chance"]) == set(result["choice"])
    evaluation.main(
        [path, "--data", config.data, "--clips", "2", "--scorer", scorer, "--json", str(tmp_path / "b.json")]
    )
    assert json.loads((tmp_path / "b.json").read_text()) == result  # its own scorer, with the weights it has learned


def test_a_checkpoint_is_evaluated_otherwise_than_it_was_trained(folder, tmp_path, capsys):
    """With another scorer, at another k, and as one that was trained unpruned."""
    config = tiny(folder)
    checkpoint.save(tmp_path / "a.pt", build_model(config, CPU), step=0, world=WORLD_ID, train_config=asdict(config))
    path = str(tmp_path / "a.pt")
    with pytest.raises(SystemExit, match=r"there is no folder .*none"):
        evaluation.main([path, "--data", config.data, "--json", str(tmp_path / "none" / "b.json")])
    evaluation.main([path, "--data", config.data, "--clips", "2", "--scorer", "cosine", "--k", "0.8"])
    said = capsys.readouterr().out
    assert "scorer cosine (trained: stts), k = 0.8" in said and "give 32 frames or more" in said
    state = checkpoint.load(path)
    torch.save({**state, "train_config": {**state["train_config"], "k": 0.0}}, path)
    evaluation.main([path, "--data", config.data, "--clips", "2"])
    assert "scorer stts (trained: unpruned, no scorer), k = 0.0" in capsys.readouterr().out


def test_a_checkpoint_of_another_world_is_refused(folder, tmp_path, monkeypatch):
    config = tiny(folder, out=str(tmp_path / "run"))
    train(config, False, CPU)
    monkeypatch.setattr("stts_mini.training.checkpoint.WORLD_ID", "world 99, words 0")
    with pytest.raises(checkpoint.CheckpointError, match=r"was trained in world .*; this code has world 99"):
        train(config, True, CPU)
    with pytest.raises(SystemExit, match="this code has world 99"):
        evaluation.main([str(tmp_path / "run" / "checkpoint.pt"), "--data", config.data])


def test_an_old_run_is_moved_aside_and_nothing_of_it_is_lost(folder, tmp_path, capsys):
    config = tiny(folder, out=str(tmp_path / "run"))
    for n in range(3):
        train(config, False, CPU)
        (tmp_path / "run" / "pruned.png").write_text(str(n))
        (tmp_path / "run" / "mine.jsonl").write_text(str(n))  # no file of a run: it stays
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert [(tmp_path / name / "pruned.png").read_text() for name in ("run.1", "run.2", "run")] == ["0", "1", "2"]
    assert [path.parent.name for path in tmp_path.glob("*/mine.jsonl")] == ["run"]
    assert (tmp_path / "run.1" / "checkpoint.pt").exists() and "was moved to" in capsys.readouterr().out
    train(config, True, CPU)
    assert (tmp_path / "run" / "pruned.png").read_text() == "2"


def test_a_row_that_was_cut_off_is_dropped_from_the_log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,task_loss,sim_loss,accuracy,grad_norm,tokens,seconds\n0,1,1,1,1,1,1\n1,1,1,1,1,1,1\n2,1")
    Log(path, start=5)
    assert [row.split(",")[0] for row in path.read_text().splitlines()] == ["step", "0", "1"]


@pytest.mark.parametrize(
    "left", ["", "\n", "step,loss\n0,1\n\0\0,1\n\n,\n1,1\n2,1", 'step,caf\udce9\n0,1\n1,0.\udcff\n1,x\n1,"x\n1,1\n']
)
def test_a_log_that_a_crash_left_is_gone_on_with(left, tmp_path):
    (tmp_path / "log.csv").write_bytes(os.fsencode(left))
    Log(tmp_path / "log.csv", start=2)
    steps = [row.split(",")[0] for row in (tmp_path / "log.csv").read_text().splitlines()]
    assert steps == ["step", *["0", "1"] * ("step" in left)]


def test_the_old_log_stays_until_the_new_one_is_whole_and_seconds_count_on(tmp_path, monkeypatch):
    log = Log(tmp_path / "log.csv", 0)
    for step in range(3):
        log.add(step, 1.0, 0.0, 1.0, 0.5, 10, None, seconds=1.5 * step)
    log.flush()
    before = log.path.read_text()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk"):
        patch.setattr(logging, "csv", SimpleNamespace(reader=csv.reader, writer=full))
        Log(log.path, 2)
    assert log.path.read_text() == before
    again = Log(log.path, 2)
    again.add(2, 1.0, 0.0, 1.0, 0.5, 10, None, seconds=0.25)
    assert again.text().endswith("tokens/s 40")
    again.flush()
    with open(log.path, newline="") as file:
        assert [row["seconds"] for row in csv.DictReader(file)] == ["0.00", "1.50", "1.75"]


def full(*_):
    raise OSError("disk full")


def test_a_checkpoint_of_another_version_is_refused(folder, tmp_path):
    config = tiny(folder, out=str(tmp_path / "run"))
    train(config, False, CPU)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    for wrong in (
        dict(state["model_config"], colour="red"),
        {k: v for k, v in state["model_config"].items() if k != "vit"},
    ):
        torch.save({**state, "model_config": wrong}, tmp_path / "b.pt")
        with pytest.raises(checkpoint.CheckpointError, match="another version"):
            checkpoint.load_model(tmp_path / "b.pt")


def test_resuming_with_other_settings_is_refused(folder, tmp_path):
    train(tiny(folder, out=str(tmp_path), steps=3), False, CPU)
    with pytest.raises(CheckpointError, match=r"cannot resume .*: vit_width was 8, is 16"):
        train(tiny(folder, out=str(tmp_path), steps=3, vit_width=16), True, CPU)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        train(tiny(folder, out=str(tmp_path / "new")), True, CPU)


# ------------------------------------------------------------------------------------------- flags


def test_every_setting_is_a_flag():
    flags = ["--preset", "smoke", "--k", "0.3", "--compile", "--steps", "9", "--stages", "image=3,glance=2", "--resume"]
    config, args = parse_flags([*flags, "--train-clips", "image=5,glance=6"])
    assert (config.k, config.compile, config.steps, args.resume) == (0.3, True, 9, True)
    assert config.stages == {"image": 3, "glance": 2} and config.batch_size == PRESETS["smoke"]["batch_size"]
    assert config.train_counts == dict(short=0, watch=0, parade=0, image=5, brief=0, glance=6)
    names = {f.name for f in fields(TrainConfig)}
    assert all(set(preset) <= names for preset in PRESETS.values()) and len(names) <= 45
    assert asdict(parse_flags([])[0]) == asdict(TrainConfig())
    assert parse_flags(["--stages", "none"])[0].curriculum_steps == 0
    assert TrainConfig(data="mine.jsonl").curriculum_steps == 0  # clips of your own are all of one kind


def test_one_dial_makes_the_model_larger_and_each_size_can_still_be_set(capsys):
    plain, _ = parse_flags([])
    double, _ = parse_flags(["--scale", "2", "--llm-depth", "3", "--k", "0.3"])
    sizes = ("vit_width", "vit_heads", "vit_mlp", "vit_depth", "llm_width", "llm_heads", "llm_kv_heads", "llm_mlp")
    assert all(getattr(double, name) == 2 * getattr(plain, name) for name in sizes)
    assert double.model.connector_mlp == double.llm_mlp
    assert (double.llm_depth, double.llm_head_dim, double.k) == (3, plain.llm_head_dim, 0.3)
    dense = [(c.score_after + 2) / c.vit_depth for c in (plain, double)]
    assert dense[0] == dense[1]
    for scale in ("0.5", "1.4", "2.5", "3"):  # sensible ones: whole heads of the same width
        config, _ = parse_flags(["--scale", scale])
        assert config.vit_width / config.vit_heads == 32 and config.llm_heads == 2 * config.llm_kv_heads
        assert config.llm_width == config.llm_heads * config.llm_head_dim
    gpu, _ = parse_flags(["--preset", "gpu", "--scale", "0.5"])
    assert (gpu.vit_width, gpu.vit_depth, gpu.llm_heads, gpu.batch_size) == (192, 7, 4, 64)
    for flags, message in ((["--scale", "0"], "scale = 0.0: give more than 0"), (["--scale", "nan"], "scale = nan")):
        with pytest.raises(SystemExit):
            parse_flags(flags)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_flags(["--scale", "2"], {"vit_width": 96})
    assert "these weights have their sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--k", "50"], "k = 50.0 is not in [0, 1): k is the share of cells to remove; did you mean 0.5?"),
        (["--k", "half"], "invalid float value: 'half'"),
        (["--w", "4"], "cannot be cut into cells of w = 4"),
        (["--patch-size", "7"], "image_size 48 is not a multiple of patch_size 7"),
        (["--score-after", "9"], "leaves no packed block"),
        (["--speps", "3"], "unrecognized arguments: --speps"),
        (["--step", "3"], "unrecognized arguments: --step"),
        (["--batch-size", "0"], "batch_size = 0: give more than 0"),
        (["--accumulate", "5"], "batch_size 12 is not a multiple of accumulate 5"),
        (["--scorer", "oracle"], "know stts, cosine, random"),
        (["--preset", "tpu"], "invalid choice: 'tpu'"),
        (["--train-clips", "brief=9", "--stages", "none"], "no training clips with questions"),
        (["--train-clips", "short=9,image=2"], "stages has brief=450, but there are no brief clips"),
        (["--train-clips", "short=9,tall=2"], "'tall=2' is no KIND=COUNT, such as short=2000, of short, watch, parade"),
        (["--train-clips", "short"], "'short' is no KIND=COUNT"),
        (["--stages", "image=-1"], "'image=-1' is no KIND=COUNT"),
        (["--steps", "3", "--stages", "image=2,brief=1"], "steps = 3, but the first 3 are unpruned"),
        (["--lr", "nan"], "lr = nan"),
        (["--fps", "inf"], "fps = inf: give more than 0"),
        (["--seed", "-1"], "seed = -1: give 0 or more"),
        (["--scorer-lr-ratio", "-1"], "scorer_lr_ratio = -1.0: give 0 or more"),
        (["--llm-mlp", "-1"], "llm_mlp = -1: give more than 0"),
        (["--llm-width", "0"], "llm_width = 0: give more than 0"),
        (["--image-size", "63", "--patch-size", "7"], "frames of 63 pixels: give an even --image-size"),
    ],
)
def test_wrong_flags_get_one_clear_line(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_flags(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(SystemExit, match="device 'gpu' is not there"):
        training.main(["--device", "gpu", "--dry-run"])


def test_a_dry_run_counts_for_a_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training.main(["--device", "cuda", "--dry-run"])
    said = capsys.readouterr().out
    assert "on the GPU; decoded clips" in said and " train_clips=short=" in said
    with pytest.raises(SystemExit, match="device 'cuda' is not there"):
        training.main(["--device", "cuda"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_describes_any_preset(preset, capsys):
    training.main(["--preset", preset, "--dry-run", "--device", "cpu"])
    text = capsys.readouterr().out
    assert "parameters:" in text and "memory, estimated:" in text and "seed=0" in text
    config = parse_flags(["--preset", preset])[0]
    assert (config.model.score_after + 2) / config.vit_depth <= 0.4  # at most 40% of the blocks are dense
    if preset != "gpu":
        count = sum(p.numel() for p in build_model(config, CPU).parameters())
        assert f"parameters: {count / 1e6:.2f} M" in describe(config, CPU)


def test_a_dry_run_knows_what_saves_memory():
    def activations(device, **flags):
        line = describe(TrainConfig(**{**PRESETS["gpu"], **flags}), torch.device(device)).splitlines()[-1]
        return float(line.split("activations ")[1].split(",")[0])

    whole = activations("cuda", accumulate=1)
    assert activations("cpu", accumulate=1) == pytest.approx(2 * whole, abs=0.1)
    assert activations("cuda") == pytest.approx(whole / 4, abs=0.1) and activations("cuda") < 40
    assert activations("cuda", accumulate=1, recompute=True) < whole / 4
    text = describe(TrainConfig(**PRESETS["gpu"]), torch.device("cuda"))
    assert "on the GPU; decoded clips 32.0, batches drawn ahead 0.7 beside it" in text and "on the GPU" not in describe(
        TrainConfig(), CPU
    )


def test_a_dry_run_counts_clips_of_your_own(tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}\n" * 50_000)
    decoded = 50_000 * 16 * 3 * 48**2 / 1e9  # GB
    for name, gigabytes in (("mine.jsonl", decoded), ("none.jsonl", 0.0)):
        config = TrainConfig(data=str(tmp_path / name), max_frames=16, cache_gb=100.0)
        assert f"decoded clips {gigabytes:.1f})" in describe(config, CPU)


def test_without_room_for_an_unpruned_step_the_rest_is_there(folder, tmp_path, monkeypatch, capsys):
    config = tiny(folder, out=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    model = build_model(config, CPU).eval()

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "step_time_ratio", full)
    training.finish(config, model, CPU)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "step_time_ratio" not in result and result["k"] == config.k
    said = capsys.readouterr().out
    assert "not measured, because the unpruned step does not fit" in said and "pruned clips to look at" in said


def test_who_starts_from_the_shipped_model_is_compared_with_it(folder, tmp_path, monkeypatch, capsys):
    config = tiny(folder, out=str(tmp_path), init=PRESETS["paper"]["init"], test_clips=2)
    model, clips = build_model(config, CPU).eval(), training.judged_clips(config)
    training.finish(config, model, CPU)
    assert "not compared with the unpruned model, which was run on test set ac983c3e12b1" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert "against_unpruned" not in result
    answers = dict.fromkeys(result["choice"], "11")
    (tmp_path / "unpruned.json").write_text(json.dumps(dict(fingerprint=fingerprint(clips), answers=answers)))
    monkeypatch.setattr(training, "SHIPPED", tmp_path)
    training.finish(config, model, CPU)
    said, result = capsys.readouterr().out, json.loads((tmp_path / "result.json").read_text())
    assert "against unpruned" in said and result["against_unpruned"]["count"] == result["choice"]["count"] - 1


def test_settings_can_be_chosen_on_validation_clips_at_any_dial(folder, tmp_path, capsys):
    """What is judged says so, and leaves the result on test clips alone."""
    config = tiny(folder, out=str(tmp_path), panels=0, k=0.0, test_clips=2)
    (tmp_path / "result.json").write_text("kept")
    training.finish(config, build_model(config, CPU).eval(), CPU, split="val")
    clips = held_out(config.data, 48, 2, "val", [kind for kind, n in config.train_counts.items() if n], panels=0)
    assert f"val set {fingerprint(clips)}, k = 0.0" in capsys.readouterr().out
    result = json.loads((tmp_path / "result-val.json").read_text())
    assert result["fingerprint"] == fingerprint(clips) and result["split"] == "val"
    assert (tmp_path / "result.json").read_text() == "kept"
    assert "-0panels" in str(training.training_clips(config)[1])


def test_a_dial_that_is_none_is_refused():
    with pytest.raises(ValueError, match="panels = 3: give 0, 1 or 2"):
        TrainConfig(panels=3)


@pytest.mark.slow
def test_the_command_end_to_end_without_a_warning(tmp_path):
    flags = flags_of(out="run", data="data")
    command = [sys.executable, "-W", "error", "-m", "stts_mini.train", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    for part in (
        "short (mean)",
        "needle",
        "image/count",
        "vision tokens of videos kept",
        "over the unpruned: ",
        "peak memory",
        "pruned.png",
    ):
        assert part in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["choice"]) >= {"attribute", "needle", "image/count"}
    for name in ("pruned.png", "log.csv", "config.json", "checkpoint.pt"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    command = [sys.executable, "-W", "error", "-m", "stts_mini.eval", "run/checkpoint.pt", "--clips", "3", "--k", "0.8"]
    done = subprocess.run([*command, "--json", "e.json"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "k = 0.8" in done.stdout, done.stderr
    assert json.loads((tmp_path / "e.json").read_text())["k"] == 0.8


def test_a_run_can_start_from_an_unpruned_model(folder, tmp_path):
    train(tiny(folder, out=str(tmp_path / "base"), k=0.0, seed=1), False, CPU)
    path = tmp_path / "base" / "checkpoint.pt"
    base = state_of(path)["model"]
    settings = dict(init=str(path), stages={})
    frozen = dict(lr=1e-12, muon_lr=1e-12, steps=1, warmup=1)
    model = train(tiny(folder, out=str(tmp_path / "row"), **settings, **frozen), False, CPU)
    fresh = build_model(tiny(folder), CPU).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, (fresh if name.startswith("scorer.") else base)[name], rtol=0, atol=1e-9)
    random = tiny(folder, out=str(tmp_path / "random"), scorer="random", **settings, **frozen)
    train(random, False, CPU)  # another scorer than the base's
    with pytest.raises(CheckpointError, match="another shape"):
        train(tiny(folder, out=str(tmp_path / "other"), **settings, vit_mlp=12), False, CPU)
    torch.save({**state_of(path), "world": "elsewhere"}, tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match="was trained in elsewhere"):
        train(tiny(folder, out=str(tmp_path / "x"), init=str(tmp_path / "elsewhere.pt")), False, CPU)


def test_resuming_goes_on_and_does_not_start_from_the_unpruned_model_again(folder, tmp_path):
    train(tiny(folder, out=str(tmp_path / "base"), k=0.0, seed=1), False, CPU)
    config = tiny(folder, out=str(tmp_path / "row"), init=str(tmp_path / "base" / "checkpoint.pt"))
    trained = train(config, False, CPU).state_dict()
    again = train(config, True, CPU).state_dict()  # nothing left to do
    assert same(dict(trained), dict(again))


@pytest.mark.slow
def test_a_run_may_be_resumed_when_the_file_it_began_with_has_moved_or_is_gone(folder, tmp_path):
    train(tiny(folder, out=str(tmp_path / "base"), k=0.0, seed=1), False, CPU)
    base, moved, other = (tmp_path / f"{name}.pt" for name in ("base", "moved", "other"))
    shutil.copy(tmp_path / "base" / "checkpoint.pt", base)
    go = lambda init, resume=True: train(tiny(folder, out=str(tmp_path / "row"), init=str(init)), resume, CPU)
    go(base, resume=False)
    torch.save({**state_of(base), "step": 9}, other)
    shutil.copy(base, moved)
    go(moved)
    for init in (other, ""):
        with pytest.raises(CheckpointError, match=r"cannot resume .*: init was .*base.pt', is "):
            go(init)
    for path in (base, moved):
        path.unlink()
    go(base)
    with pytest.raises(CheckpointError, match=r"init was .*, is .*other.pt"):
        go(other)  # also after it was resumed without
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*base.pt"):
        go(base, resume=False)


def test_half_precision_bases_are_small_and_usable(folder, tmp_path):
    model = train(tiny(folder, k=0.0), False, CPU)
    state = state_of(folder / "run" / "checkpoint.pt")
    rest = {name: state[name] for name in ("step", "train_config", "world")}
    checkpoint.save(tmp_path / "half.pt", model.half(), **rest)
    fresh = build_model(tiny(folder), CPU)
    checkpoint.start_from(fresh, state_of(tmp_path / "half.pt"), "half.pt")
    assert all(p.dtype == torch.float32 for p in fresh.parameters())
    torch.testing.assert_close(fresh.llm.norm.weight, model.llm.norm.weight.float())


def test_the_step_ratio_is_pruned_over_unpruned(monkeypatch):
    """By a clock that is moved by hand: the first pair warms up, and each of the two goes first in turn."""
    clock, order = [0.0], []

    def pass_(model, batch, config, device, k):
        order.append(k)
        clock[0] += (100.0 if len(order) <= 2 else 1.0) * (1.0 if k else 4.0)

    class Model:
        def zero_grad(self):
            order.append("zero")

    monkeypatch.setattr(training, "forward_backward", pass_)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert training.step_time_ratio(Model(), lambda i: None, TrainConfig(k=0.5), CPU, pairs=2) == 0.25
    assert order == [0.0, 0.5, 0.0, 0.5, 0.5, 0.0, "zero"]


def test_the_exam_is_at_the_runs_k_and_blind_beside_it(folder, tmp_path, monkeypatch):
    config, asked = tiny(folder, out=str(tmp_path / "run"), k=0.3), []
    (tmp_path / "run").mkdir()
    model, real = build_model(config, CPU).eval(), evaluation.evaluate

    def spied(model, clips, reader, k, encode=None, *args, **options):
        asked.append((k, encode == model.encode_blind, reader.max_frames, options["lenient"]))
        return real(model, clips, reader, k, encode, *args, **options)

    monkeypatch.setattr(evaluation, "evaluate", spied)
    training.finish(config, model, CPU)
    assert asked == [(0.3, False, config.max_frames, False), (0.0, True, config.max_frames, False)]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_the_exam_of_a_compiled_run_is_eager(compiled, folder, tmp_path, monkeypatch):
    """Prompts and answers of all lengths would be compiled anew and anew."""
    config, graphs, eager = tiny(folder, out=str(tmp_path / "run"), k=0.3, compile=compiled), [], {}
    (tmp_path / "run").mkdir()

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def watched(part, real):
        def watching(*args, **options):
            graphs.clear()
            torch.compiler.reset()
            torch.compile(lambda x: 2 * x, backend=backend)(torch.ones(2))
            eager.setdefault(part, set()).add(not graphs)
            return real(*args, **options)

        return watching

    for part in ("judge", "draw_clips", "step_time_ratio"):
        monkeypatch.setattr(training, part, watched(part, getattr(training, part)))
    training.finish(config, build_model(config, CPU).eval(), CPU)
    assert eager == {"judge": {compiled}, "draw_clips": {compiled}, "step_time_ratio": {False}}


def test_gradients_are_clipped(folder, tmp_path, monkeypatch):
    norms, real = [], torch.nn.utils.clip_grad_norm_

    def spied(parameters, largest):
        parameters = list(parameters)
        real(parameters, largest)
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        return torch.tensor(1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spied)
    monkeypatch.setattr(training, "CLIP_NORM", 1e-3)
    train(tiny(folder, out=str(tmp_path / "run"), steps=5, scorer="cosine"), False, CPU)
    assert len(norms) == 5 and all(norm == pytest.approx(1e-3, rel=1e-2) for norm in norms)


def test_a_run_that_knew_fewer_settings_is_resumed(folder, tmp_path):
    config = tiny(folder, out=str(tmp_path / "run"))
    train(config, False, CPU)
    path = tmp_path / "run" / "checkpoint.pt"
    state = checkpoint.load(path)
    old = state["train_config"]
    clips, stages = old.pop("train_clips"), old.pop("stages")
    old |= {f"train_{kind}": clips.get(kind, 0) for kind in TASKS}
    old |= {f"{kind}_steps": stages.get(kind, 0) for kind in ("image", "brief", "glance")}
    del old["varlen"], old["bias"]
    old |= dict(k_ramp=0, clip_norm=1.0, detach_target=True, tensorboard=False, video_size=48)
    old |= dict(thinning=1.0, coarse_steps=0, saliency_steps=0, spread=0.0)  # the lab's today
    old |= dict(elastic=False, connector_mlp=old["llm_mlp"])
    torch.save(state, path)
    train(config, True, CPU)
    with pytest.raises(CheckpointError, match=r"bias was 'log', is 'none'"):
        train(dataclasses.replace(config, bias="none"), True, CPU)
    torch.save({**state, "train_config": {**old, "clip_norm": 0.5}}, path)
    with pytest.raises(CheckpointError, match=r"clip_norm was 0\.5, is None"):
        train(config, True, CPU)


def test_the_second_ctrl_c_is_not_held_back():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are born deaf to it
    try:
        with training.Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_the_optimisers_constants(folder):
    config = tiny(folder)
    for optimizer in build_optimizers(build_model(config, CPU), config):
        for group in optimizer.param_groups:
            assert group.get("weight_decay", 0.0) == 0.0 and group.get("betas", (0.9, 0.95)) == (0.9, 0.95)
            assert group["peak_lr"] == group["lr"]


def test_the_models_shape_follows_the_settings():
    model = TrainConfig(vit_mlp=80, vit_heads=2).model
    assert model.taps == (-3, -1) and (model.scorer_mlp, model.scorer_heads) == (80, 2)
    assert TrainConfig(vit_depth=4).model.taps == (-2, -1)  # as far apart as there are packed blocks


def test_a_dry_run_counts_the_llms_tokens():
    """16 frames of 9 cells at k = 0.5, three tokens a frame, sixteen questions of 14; unpruned steps count in full."""
    line = lambda **flags: next(x for x in describe(PaperConfig(**flags), CPU).splitlines() if "a step:" in x)
    assert f"at most about {12 * (72 + 48 + 224)} LLM tokens" in line()
    assert f"at most about {12 * (144 + 48 + 224)} LLM tokens" in line(saliency_steps=60)


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(data="nothing.jsonl"), "nothing.jsonl"),
        (dict(scorer="cosine", saliency_steps=1, llm_depth=2), "no weights that saliency could train"),
        (dict(init="base.pt", llm_width=24), "another shape"),
    ],
)
def test_what_is_refused_leaves_the_old_run_where_it_is(folder, tmp_path, flags, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = train(tiny(folder, out="run"), False, CPU)
    checkpoint.save("base.pt", model, step=1, world=WORLD_ID)
    with pytest.raises((ValueError, OSError, CheckpointError), match=message):
        train(tiny(folder, PaperConfig, **{"out": "run", **flags}), False, CPU)
    assert (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "run.1").exists()


class Linear(torch.nn.Linear):
    """A scorer of one layer and a sigmoid."""

    squash, injects_bias = staticmethod(torch.sigmoid), True

    def __init__(self, config):
        super().__init__(config.width, 1)

    def forward(self, x, num_frames=None):
        return self.squash(super().forward(x.unflatten(2, (-1, 4)).mean(3)).squeeze(-1))


@pytest.mark.parametrize("k", [0.0, 0.5])
def test_a_number_that_no_checkpoint_can_hold_is_refused_before_the_training(folder, k):
    model = build_model(config := tiny(folder, k=k), CPU)
    model.scorer.register_buffer("mask", torch.tensor([0.0, -math.inf]), persistent=False)
    training.try_scorer(model, config, own=True)
    model.scorer.register_buffer("mask", model.scorer.mask, persistent=True)
    for own in (True, False):
        with pytest.raises(ValueError, match=r"model's scorer.mask is not a finite .*persistent=False"):
            training.try_scorer(model, config, own=own)


@pytest.mark.parametrize(
    "scorer, flags, said",
    [
        (dict(), {}, ""),
        (dict(), dict(bias="none"), ""),
        (dict(), dict(sim_weight=0.0), ""),
        (dict(), dict(bias="none", sim_weight=0.0), "give --sim-weight or --bias log"),
        (dict(), dict(bias="none", sim_weight=0.0, saliency_steps=1, llm_depth=2), ""),  # which trains them
        (dict(injects_bias=False), {}, "set injects_bias = True"),
        (dict(injects_bias=False), dict(k=0.0), ""),
    ],
)
def test_weights_that_nothing_teaches_are_warned_of(folder, monkeypatch, capsys, scorer, flags, said):
    monkeypatch.setitem(SCORERS, "cosine", type("Mine", (Linear,), scorer))
    config = tiny(folder, PaperConfig, scorer="cosine", **flags)
    model, before = build_model(config, CPU), torch.get_rng_state()
    training.try_scorer(model, config, own=True)
    warning = f"warning: nothing trains the weights of scorer cosine: {said}"
    out = capsys.readouterr().out
    assert out == "" if not said else out.startswith(warning.removesuffix(said)) and said in out
    assert torch.equal(torch.get_rng_state(), before)
    if config.saliency_steps:
        with pytest.raises(ValueError, match="annotate or encoder chooses, and has no weights that saliency"):
            training.try_scorer(model, config, own=False)


def test_a_scorer_that_changes_its_input_is_refused(folder, monkeypatch):
    """L_sim's target, and the blocks after it, would see the change."""
    forward = lambda self, x, num_frames=None: Linear.forward(self, x.sub_(1), num_frames)
    monkeypatch.setitem(SCORERS, "cosine", type("Mine", (Linear,), dict(forward=forward)))
    model = build_model(config := tiny(folder, scorer="cosine"), CPU)
    with pytest.raises(ValueError, match="scorer cosine changes its input: let it work on a copy"):
        training.try_scorer(model, config, own=True)


@pytest.mark.parametrize(
    "squash, flags, message",
    [
        (lambda s: 100 + s, {}, "give scores in"),
        (lambda s: 100 + s, dict(spread=0.3), "give scores in"),
        (lambda s: s.argsort(1).argsort(1), {}, r"gave torch.int64: give floats, for example by .float\(\)"),
        (lambda s: s.detach().sigmoid(), {}, r"nothing trains the weights .*: give scores with a gradient, or freeze"),
        (lambda s: s.detach(), dict(saliency_steps=1, llm_depth=2), "give scores with a gradient, or freeze them"),
    ],
)
def test_scores_that_end_a_run_are_refused_before_it_begins(folder, tmp_path, monkeypatch, squash, flags, message):
    """Not when pruning begins, after the stages."""
    own = dict(squash=staticmethod(squash), injects_bias="spread" not in flags and "saliency_steps" not in flags)
    monkeypatch.setitem(SCORERS, "cosine", type("Mine", (Linear,), own))
    monkeypatch.setattr(training, "one_step", None)
    with pytest.raises(ValueError, match=message):
        train(tiny(folder, PaperConfig, scorer="cosine", out=str(tmp_path / "new"), **flags), False, CPU)
    assert not (tmp_path / "new").exists()
