"""The loop, its steps, its log and its report, with parts that are made by hand."""

import csv
import json
import math
import signal
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stts_mini import train as training
from stts_mini.data.batches import TOKENIZER, Reader
from stts_mini.data.clips import OWN, Clip
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.model import NotFinite
from stts_mini.scorer import START
from stts_mini.train import TrainError, build_model, build_optimizers, train
from stts_mini.training import checkpoint
from stts_mini.training import step as step_module
from stts_mini.training.checkpoint import CheckpointError, keep_old_run, load_model, restore, save_run, start_from
from stts_mini.training.config import PRESETS, TrainConfig
from stts_mini.training.logging import Interrupt, Log, parser_of
from stts_mini.training.optim import rate_at
from stts_mini.training.step import Seen
from stts_mini.vit import resized_positions
from tests.test_train import folder, make_sampler  # noqa: F401
from tests.tiny import tiny

CPU = torch.device("cpu")
FINE = Seen(2.0, 0.5, 3, 12, 7, None, []), 1.0  # and the gradient's norm


# --------------------------------------------------------------------------------------- the loop


def test_checkpoints_are_due_every_so_many_steps_and_at_the_end(tmp_path, capsys):
    saved, rows, of = [], [], lambda step: FINE
    config = tiny(tmp_path, steps=7, save_every=3)
    add, flush = lambda *row, seconds: rows.append(row), lambda: saved.append("log")
    log = SimpleNamespace(add=add, text=str, flush=flush, warning=str, skills=lambda step: f"skills at {step}")
    training.all_steps(config, 1, of, lambda done, rng: saved.append((done, len(rng))), log, str)
    assert capsys.readouterr().out.split() == " ".join(f"skills at {step}" for step in range(2, 8)).split()
    assert saved == ["log", (3, 1), "log", (6, 1), "log", (7, 1)]  # the log goes first
    assert rows == [(step, 2.0, 0.5, 1.0, 0.25, 7, None, []) for step in range(1, 7)]  # 3 of 12 answers were right
    training.all_steps(config, 0, of, lambda *_: pytest.fail("process 0 alone saves"), None, str)


@pytest.mark.parametrize("batch", [None, 9])
@pytest.mark.parametrize("start, step, saved", [(0, 1, False), (0, 2, True), (1, 1, True)])
def test_a_number_that_is_none_ends_the_run_and_says_what_is_saved(batch, start, step, saved, tmp_path):
    def of(at):
        if at == step:
            raise NotFinite("loss inf", batch)
        return FINE

    last = "last good checkpoint is .*run/checkpoint.pt" if saved else "nothing was saved yet"
    with pytest.raises(TrainError, match=f"step {step}: loss inf, on clips of {batch or step}; .*{last}"):
        training.all_steps(tiny(tmp_path, save_every=2), start, of, None, None, lambda at: f"clips of {at}")


@pytest.mark.parametrize("start", [0, 2])
def test_before_the_lessons_a_checkpoint_is_kept_even_of_no_step(start, tmp_path, capsys):
    """Whoever stops amid them has them anew."""
    config, done = tiny(tmp_path, stages=dict(image=start) if start else {}, save_every=9), []
    log = SimpleNamespace(flush=lambda: done.append("log"))

    def lessons(asked):
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        assert asked()

    with pytest.raises(SystemExit):
        training.all_steps(config, start, None, lambda *of: done.append(of[0]), log, str, lessons)
    assert done == ["log", start] and f"Stopped after step {start}. Go on with" in capsys.readouterr().out


def stepped(folder, step, config=None, spoil=None):  # noqa: F811
    """A model after one step, what the step returned, and the weights before."""
    config = config or tiny(folder)
    model = build_model(config, CPU)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = build_optimizers(model, config)
    if spoil:
        model.llm.norm.weight.register_hook(lambda gradient: gradient * spoil)
    batch = make_sampler(config)(0)
    numbers = training.one_step(model, optimizers, batch, step, config, CPU, None, model)
    return model, optimizers, before, numbers, batch


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_step_has_the_rate_and_the_k_of_its_number(folder, step):  # noqa: F811
    config = tiny(folder, steps=6, lr=0.1, scorer_lr_ratio=3.0)
    model, optimizers, before, (seen, norm), batch = stepped(folder, step, config)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        assert group["lr"] == pytest.approx(group["peak_lr"] * (0.5, 1, 1, 0.853553)[step], rel=1e-5)
    assert (seen.sim > 0) == (step >= 2) == (seen.health is not None)
    assert all(p.grad is None for p in model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert seen.task > 0 and norm > 0 and 0 <= seen.right <= seen.answers
    assert seen.tokens == model(batch, config.k_at(step)).tokens


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_noticed_and_changes_nothing(folder, spoil, monkeypatch):  # noqa: F811
    monkeypatch.setattr(training, "rate_at", lambda *_: pytest.fail("the optimisers make a step"))
    with pytest.raises(NotFinite, match=r"loss \d.*, L_sim \d.*, gradient norm (nan|inf)"):
        stepped(folder, 3, spoil=spoil)


@pytest.mark.parametrize("place", ["task", "sim"])
def test_a_loss_that_is_no_number_is_noticed(folder, monkeypatch, place):  # noqa: F811
    monkeypatch.setattr(training, "forward_backward", lambda *_: FINE[0]._replace(**{place: math.inf}))
    config = tiny(folder)
    model = build_model(config, CPU)
    with pytest.raises(NotFinite, match="inf"):
        training.one_step(model, [], None, 0, config, CPU, None, model)


@pytest.mark.parametrize("parts", [1, 2])
def test_right_answers_are_counted_for_each_task(folder, monkeypatch, parts):  # noqa: F811
    """By the questions' own texts: a question is right here if its running number in the batch is even."""
    config = tiny(folder, accumulate=parts)
    sampler, counted = make_sampler(config), []

    def answers_right(_, questions):
        counted.append(questions)
        before = sum(counted[:-1])
        return torch.arange(before, before + questions) % 2 == 0

    monkeypatch.setattr(step_module, "answers_right", answers_right)
    batch = sampler(1)
    seen = step_module.forward_backward(build_model(config, CPU), batch, config, CPU)
    of = [qa.task for clip in sampler.clips for qa in clip.qa]
    texts = {tuple(TOKENIZER.prompt(qa.question)): qa.task for clip in sampler.clips for qa in clip.qa}
    known = [texts.get(tuple(prompt)) for own in batch.branches for prompt, _ in own]  # None: options are shown
    assert sampler.tasks == list(dict.fromkeys(of)) and len(set(known)) > 3 and len(counted) == parts
    column = batch.tasks.long().argmax(1).tolist()
    assert all(task in (None, sampler.tasks[c]) for task, c in zip(known, column, strict=True))
    for c, (right, asked) in enumerate(seen.skills):
        own = [n for n, other in enumerate(column) if other == c]
        assert (right, asked) == (sum(n % 2 == 0 for n in own), len(own))
    assert sum(asked for _, asked in seen.skills) == seen.answers and seen.right == -(-seen.answers // 2)


# ---------------------------------------------------------------------------------------- the log


def test_the_log_by_hand(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    log.add(0, 2.0, 1.0, 4.0, 0.5, tokens=10, health=None, seconds=0.5)
    assert log.text() == "loss 3.000 accuracy 50.0% tokens/s 20"
    log.add(1, 0.75, 0.25, 8.0, 1.0, tokens=20, health=None, seconds=3.0)
    assert log.text() == "loss 2.800 accuracy 55.0% tokens/s 10"  # nine tenths of what was, one of what is
    log.flush()
    log.add(2, 1.0, 0.0, 1.0, 0.0, tokens=20, health=None, seconds=4.0)
    log.flush()
    first, second, third = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    values = dict(step=1, task_loss=0.75, sim_loss=0.25, accuracy=1, grad_norm=8, tokens=20, seconds=3)
    assert {name: float(second[name]) for name in values} == values and (first["step"], third["step"]) == ("0", "2")
    assert list(first) == list(Log.NAMES)
    Log(tmp_path / "log.csv", 2)
    assert [row["step"] for row in csv.DictReader((tmp_path / "log.csv").read_text().splitlines())] == ["0", "1"]
    Log(tmp_path / "log.csv", 0)
    Log(tmp_path / "lost.csv", 5)
    assert (tmp_path / "lost.csv").read_text() == (tmp_path / "log.csv").read_text()
    assert (tmp_path / "log.csv").read_text().splitlines() == [",".join(Log.NAMES)]


def test_the_log_shows_each_task(tmp_path):
    log = Log(tmp_path / "log.csv", 0, ["count", "order", "speed"])
    for step, skills in enumerate(([(1, 2), (3, 4), (0, 0)], [(1, 1), (0, 0), (0, 0)])):
        log.add(step, 2.0, 1.0, 4.0, 0.5, tokens=10, health=None, skills=skills, seconds=0.5)
    log.flush()
    rows = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    shown = [(row["count"], row["order"], row["speed"]) for row in rows]
    assert shown == [("0.5000", "0.7500", ""), ("1.0000", "", "")]
    assert log.skills(2) == "step 2, right in training: count 67% order 75%"
    log.add(2, 2.0, 1.0, 4.0, 0.5, tokens=10, health=None, skills=[(0, 0), (0, 4), (0, 0)], seconds=0.5)
    assert log.skills(3) == "step 3, right in training: order 0%"  # since it was last asked


def test_a_second_ctrl_c_is_for_who_was_there_before():
    heard = []
    before = [signal.signal(n, lambda number, _: heard.append(number)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        with Interrupt() as interrupt:
            assert not interrupt.asked
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
                signal.raise_signal(number)
        assert interrupt.asked and heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before[0]), signal.signal(signal.SIGTERM, before[1])


# ------------------------------------------------------------------------------------ checkpoints


def test_where_and_how_a_run_goes_on_may_change(folder, tmp_path, capsys):  # noqa: F811
    """All of it at once: another folder, machine and number of clips to judge by. Anything else is another run."""
    config, path = tiny(folder), tmp_path / "checkpoint.pt"
    model, began = build_model(config, CPU), dict(clips="clips")
    optimizers = build_optimizers(model, config)
    save_run(path, 3, model, optimizers, config, began, [torch.get_rng_state()])
    free = dict(
        out="b", data="c.jsonl", val="d.jsonl", device="auto", compile=True, recompute=True, cache_gb=1.0, save_every=9,
        accumulate=2, test_clips=9, workers=2,
    )  # fmt: skip
    assert restore(path, model, optimizers, replace(config, **free), began) == 3
    assert restore(path, model, optimizers, replace(config, varlen=True), began) == 3
    assert "resumed" in capsys.readouterr().out
    for change in (
        dict(lr=1.0),
        dict(seed=5),
        dict(test_clips=9, k=0.25),
        dict(train_clips=dict(short=7, brief=1, image=1)),
    ):
        name = list(change)[-1]
        with pytest.raises(CheckpointError, match=f"with other settings: {name} was .*, is [^;]*$"):
            restore(path, model, optimizers, replace(config, **change), began)
    with pytest.raises(CheckpointError, match=r"settings: the training clips were clips, are others$"):
        restore(path, model, optimizers, config, dict(clips="others"))
    with pytest.raises(CheckpointError, match="its optimisers or random state cannot be used"):
        restore(path, model, optimizers[:1], config, began)


def test_a_checkpoint_makes_its_folders_and_an_older_one_needs_no_marks(folder, tmp_path):  # noqa: F811
    model = build_model(tiny(folder), CPU)
    checkpoint.save(tmp_path / "a" / "b" / "c.pt", model)
    again, state = load_model(tmp_path / "a" / "b" / "c.pt")
    assert not again.training and state["format"] == checkpoint.FORMAT and again.config.taps == model.config.taps
    del state["model_config"]["marks"], state["model_config"]["scored_by"]
    torch.save(state, tmp_path / "old.pt")
    assert load_model(tmp_path / "old.pt", scorer="stts")[0].config == model.config
    other = load_model(tmp_path / "old.pt", scorer="cosine")[0]  # which is not put into the model here
    assert other.config.scored_by == "stts"


def test_a_world_is_asked_for_unless_the_words_are_another_models():
    checkpoint.check_world(dict(world=checkpoint.WORLD_ID), "a.pt")
    checkpoint.check_world(dict(tokenizer=dict(json="{}")), "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt was trained in an older world; this code has world"):
        checkpoint.check_world({}, "a.pt")


def test_numbers_are_looked_for_in_all_that_a_checkpoint_holds():
    whole = dict(a=[1.0, dict(b=(torch.ones(2), math.inf))], c=math.nan, d="nan", e=torch.tensor([1, 2]), f=None)
    assert list(checkpoint.no_numbers(whole)) == ["a.1.b.1", "c"]


def test_the_first_weight_that_does_not_fit_is_named(folder, tmp_path):  # noqa: F811
    model = build_model(tiny(folder), CPU)
    weights = dict(model.state_dict())
    gone = {name: w for name, w in weights.items() if name != "llm.norm.weight"}
    with pytest.raises(
        CheckpointError, match=r"x.pt has another shape: llm.norm.weight is nothing there and \(8,\) in"
    ):
        checkpoint.load_weights(model, {"model": gone}, "x.pt")
    with pytest.raises(CheckpointError, match=r"another shape: extra is \(2, 3\) there and nothing in this model"):
        checkpoint.load_weights(model, {"model": {**weights, "extra": torch.zeros(2, 3)}}, "x.pt")


def test_a_run_may_start_with_another_grid_and_then_positions_are_resized(folder):  # noqa: F811
    base, model = build_model(tiny(folder), CPU), build_model(tiny(folder, image_size=32, seed=1), CPU)
    positions, scorer = base.vit.position_embedding.detach(), next(model.scorer.parameters()).clone()
    start_from(model, {"model": dict(base.state_dict())}, "base.pt")
    torch.testing.assert_close(model.vit.position_embedding, resized_positions(positions, 16, antialias=True))
    assert torch.equal(model.llm.embed_tokens.weight, base.llm.embed_tokens.weight)
    assert torch.equal(next(model.scorer.parameters()), scorer)


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(vit_heads=4), "vit.heads is 2 there and 4 here"),
        (dict(llm_heads=4, llm_kv_heads=2, llm_head_dim=2), "llm.heads is 2 there and 4 here"),
    ],
)
def test_a_run_may_not_start_with_other_heads_of_the_same_shapes(folder, flags, said):  # noqa: F811
    base, model = build_model(tiny(folder), CPU), build_model(tiny(folder, seed=1, **flags), CPU)
    state = {"model": dict(base.state_dict()), "model_config": asdict(base.config)}
    with pytest.raises(CheckpointError, match=f"base.pt is another model: {said}. Give the flags"):
        start_from(model, state, "base.pt")
    state["model_config"]["llm"].pop("rope_theta")  # as in an older file
    start_from(build_model(tiny(folder, seed=1), CPU), state, "base.pt")


def test_of_an_old_run_the_checkpoint_is_moved_last_and_the_lock_stays(tmp_path, monkeypatch, capsys):
    """So that a run that is only half moved is still there to be moved, or to go on."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run.1").mkdir()
    for name in ("a", "checkpoint.pt", "config.json", "lock", "result.json"):
        (tmp_path / "run" / name).write_text(name)
    moved, real, own = [], Path.rename, ["checkpoint.pt", "config.json", "result.json"]
    monkeypatch.setattr(Path, "rename", lambda self, to: moved.append(self.name) or real(self, to))
    keep_old_run(tmp_path / "run")
    assert moved[-1] == "checkpoint.pt" and sorted(moved) == own
    assert sorted(p.name for p in (tmp_path / "run.2").iterdir()) == own
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["a", "lock"]


def test_an_old_run_that_cannot_be_moved_is_said_with_a_remedy(tmp_path, monkeypatch):
    """A mounted disk, for example."""
    (tmp_path / "run").mkdir()
    for name in ("checkpoint.pt", "log.csv"):
        (tmp_path / "run" / name).touch()
    real = Path.rename

    def across(self, to):
        if self.name == "checkpoint.pt":
            raise OSError(18, "Invalid cross-device link")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", across)
    with pytest.raises(ValueError, match=r"cannot move the run in .*run aside .*: give another --out, or --resume"):
        keep_old_run(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "log.csv"]


def test_a_run_needs_a_folder():
    with pytest.raises(ValueError, match="out is empty: give --out a folder"), checkpoint.alone(""):
        pass


# ----------------------------------------------------------------------------- around the training


@pytest.mark.parametrize("saliency_steps, start", [(0, START), (1, 0.0)])
def test_a_scorer_starts_where_its_targets_are(saliency_steps, start, tmp_path):
    model = build_model(tiny(tmp_path, PaperConfig, saliency_steps=saliency_steps, llm_depth=2), CPU)
    assert model.scorer.mlp[-1].bias.tolist() == [start]


def test_stamps_start_as_these_very_sines(folder):  # noqa: F811
    for width in (8, 9):
        config = tiny(folder, llm_width=width)
        stamp = build_model(config, CPU).llm.embed_tokens.weight[training.TOKENIZER.stamp(1.5)].tolist()
        waves = [10 ** (-2.5 + 2.5 * i / ((width + 1) // 2 - 1)) for i in range((width + 1) // 2)]
        angles = [2 * math.pi * 1.5 * wave for wave in waves]
        assert stamp == pytest.approx([0.1 * f(a) for f in (math.sin, math.cos) for a in angles][:width], abs=1e-5)


def test_what_is_trained_on_and_judged_by(monkeypatch, tmp_path):
    config = tiny(tmp_path, train_clips=dict(short=3, brief=2, image=1), stages={}, image_size=32)
    monkeypatch.setattr(training, "prepare", lambda *of: ("index", *of))
    monkeypatch.setattr(training, "load_clips", lambda *of, **how: (of, how))
    monkeypatch.setattr(training, "held_out", lambda *of: of)
    clips, index = training.training_clips(config)
    counts = dict(short=3, watch=0, parade=0, image=1, brief=2, glance=0)
    assert index == ("index", config.data, "train", counts, 32, 2) and clips == ((index,), {})
    kinds = ["short", "image", "brief"]
    assert training.judged_clips(config) == (config.data, 32, 4, "test", kinds, 2)
    assert training.judged_clips(replace(config, panels=0), "val") == (config.data, 32, 4, "val", kinds, 0)
    mine = replace(config, data="a.jsonl", val="b.jsonl")
    assert training.training_clips(mine) == ((("a.jsonl",), {}), Path("a.jsonl"))
    assert training.judged_clips(mine) == (("b.jsonl",), dict(judged=True))


def a_clip(number, kind, images=()):
    return Clip(Path(f"{number}.mp4"), kind, "train", number, (), images=images)


@pytest.mark.parametrize("alone, numbers", [(False, [0, 3]), (True, [1, 2])])
def test_a_step_is_timed_on_what_can_lose_cells(alone, numbers, monkeypatch, capsys):
    kinds = [a_clip(0, "short"), a_clip(1, "image"), a_clip(2, OWN, (Path("a.png"), Path("b.png"))), a_clip(3, OWN)]
    clips = [clip for clip in kinds if not alone or clip.seed in numbers]
    config, reader = TrainConfig(k=0.3), Reader(4, 48)
    asked = lambda model, sampler, *_: (asked_of.append(sampler), 0.756)[1]
    asked_of = []
    monkeypatch.setattr(training, "step_time_ratio", asked)
    assert training.step_time("model", clips, reader, config, CPU, "tokenizer") == dict(step_time_ratio=0.756)
    assert "at k = 0.3 over the unpruned: 0.76 (median" in capsys.readouterr().out
    (sampler,) = asked_of
    assert [clip.seed for clip in sampler.clips] == numbers and sampler.reader is reader
    assert (sampler.batch_size, sampler.questions, sampler.seed, sampler.tokenizer) == (12, 16, 0, "tokenizer")


@pytest.mark.parametrize(
    "settings, processes, timed, drawn",
    [
        ({}, 1, True, True),
        (dict(k=0.0), 1, False, True),
        ({}, 2, False, True),
        (dict(blind=True), 1, False, False),
        (dict(init=PRESETS["paper"]["init"]), 1, True, True),
    ],
)  # fmt: skip
def test_what_a_run_ends_with(settings, processes, timed, drawn, tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, PaperConfig, out=str(tmp_path), seed=3, **settings)
    clips, done = ([a_clip(0, "short")], [a_clip(1, "short")]), []
    monkeypatch.setattr(training, "training_clips", lambda _: (clips[0], None))
    monkeypatch.setattr(training, "judged_clips", lambda _, split: clips[1])
    monkeypatch.setattr(training, "own_reader", lambda config, clips: Reader(4, 48))
    monkeypatch.setattr(training, "fingerprint", lambda clips: f"of {clips[0].seed}")
    monkeypatch.setattr(training.distributed, "world_size", lambda: processes)
    monkeypatch.setattr(
        training, "judge", lambda *args, shipped: done.append((*args, shipped)) or ("", dict(short=0.25))
    )
    monkeypatch.setattr(training, "step_time", lambda *args: done.append("timed") or dict(step_time_ratio=0.5))
    monkeypatch.setattr(training, "draw_clips", lambda *_, **__: done.append("drawn"))
    summary = training.finish(config, "model", CPU, "tokenizer")
    (model, judged, _, k, learned, blind, tokenizer, shipped), *rest = done
    assert (model, judged, learned, tokenizer) == ("model", clips[1], clips[0], "tokenizer")
    assert (shipped is not None) == ("init" in settings) and (not shipped or len(shipped["answers"]) == 15)
    assert (k, blind) == (config.k, config.blind) and rest == ["timed"] * timed + ["drawn"] * drawn
    expected = dict(fingerprint="of 1", k=config.k, max_frames=4, seed=3, split="test", short=0.25)
    expected["torch"] = torch.__version__
    assert summary == {**expected, **({"step_time_ratio": 0.5} if timed else {})}
    assert json.loads((tmp_path / "result.json").read_text()) == summary
    monkeypatch.setattr(training.distributed, "rank", lambda: 1)
    assert training.finish(config, "model", CPU) == {}  # process 0 writes


def test_memory_is_counted_as_each_system_counts_it(monkeypatch):
    monkeypatch.setattr(training.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3_000_000))
    for system, gigabytes in (("linux", 3.0), ("darwin", 0.003)):
        monkeypatch.setattr(sys, "platform", system)
        assert training.peak_memory() == gigabytes


def test_a_reader_is_filled_where_one_process_needs_all(monkeypatch, tmp_path):
    filled, config = [], tiny(tmp_path, max_frames=3, fps=1.5, cache_gb=0.5)
    monkeypatch.setattr(Reader, "preload", lambda self, clips: filled.append(clips))
    reader = training.own_reader(config, ["clip"])
    assert (reader.max_frames, reader.size, reader.fps, reader.room) == (3, 48, 1.5, 0.5e9) and filled == [["clip"]]
    monkeypatch.setattr(training.distributed, "world_size", lambda: 2)
    training.own_reader(config, ["clip"])
    assert len(filled) == 1


def test_the_job_is_a_training_and_an_exam(tmp_path, monkeypatch, capsys):
    config, done = tiny(tmp_path), []
    args = Namespace(preset="p", idle=["--a (b)"], dry_run=True, resume="resume", split="val")
    monkeypatch.setattr(training, "train", lambda *a, **b: done.append((a, b)) or "trained")
    monkeypatch.setattr(training, "finish", lambda *a: done.append(a))
    training.job("name", config, args)
    said = capsys.readouterr().out
    assert not done and f"preset p: k={config.k} scorer=stts" in said and "without effect here: --a (b)" in said
    args.dry_run, args.idle = False, []
    training.job("name", config, args, None, "tokenizer")
    assert done == [
        ((config, "resume", CPU), dict(model=None, tokenizer="tokenizer")),
        (config, "trained", CPU, "tokenizer", "val"),
    ]
    said = capsys.readouterr().out
    assert "all done in 0:00, peak memory " in said and "run/checkpoint.pt" in said and "note:" not in said
    with pytest.raises(SystemExit, match="name: error: --split val is for the toy world: leave it out"):
        training.job("name", tiny(tmp_path, data="mine.jsonl"), args)
    torchs_own = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate {9}")
    for error, words in (
        (MemoryError("x"), "name: error: out of memory: give --recompute"),
        (torchs_own, r"name: error: out of memory: give --recompute.*\{9}"),
        (OSError("y {}"), "name: error: y {}"),
    ):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(training, "train", fails)
        with pytest.raises(SystemExit, match=words):
            training.job("name", config, args)


def test_a_run_writes_its_settings_and_may_be_given_a_model(folder, tmp_path):  # noqa: F811
    config = tiny(folder, out=str(tmp_path / "run"), lr=1e-12, muon_lr=1e-12, steps=3)
    given = build_model(tiny(folder, seed=5), CPU)
    start = given.llm.layers[0].mlp.up_proj.weight.detach().clone()
    model = train(config, False, CPU, model=given)
    assert model is given and not model.training
    torch.testing.assert_close(model.llm.layers[0].mlp.up_proj.weight.detach(), start, rtol=0, atol=1e-9)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == asdict(config)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt", "weights", "clips")
    assert state["step"] == 3 and state["train_config"] == asdict(config)
    for group in (group for saved in state["optimizers"] for group in saved["param_groups"]):
        assert group["lr"] == pytest.approx(group["peak_lr"] * rate_at(2, config))


def test_help_shows_a_default_if_there_is_one():
    parser = parser_of("lab.x", "What it does.\nMore.")
    parser.add_argument("--seed", type=int, default=0, help="a number")
    parser.add_argument("--json", help="a file")
    parser.add_argument("--quick", action="store_true", help="less")
    said = parser.format_help()
    assert said.startswith("usage: python -m stts_mini.lab.x ") and "What it does." in said and "More" not in said
    assert "a number (default: 0)" in said and said.count("default") == 1
