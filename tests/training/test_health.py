"""The scorer's health: each number by its definition, whatever the cuts; and who is told when it dies."""

import csv
import functools
import math
import signal

import av
import numpy as np
import pytest
import torch

from stts_mini import train as training
from stts_mini.data.clips import held_out
from stts_mini.eval import Reader, judge
from stts_mini.lab.explore import remarks
from stts_mini.model import Encoded, NotFinite
from stts_mini.report.picture import draw_curve
from stts_mini.scorer import SCORERS, attention_bias
from stts_mini.training import checkpoint, logging
from stts_mini.training import step as steps
from stts_mini.training.config import TrainConfig
from stts_mini.training.health import SATURATED, WINDOW, Health, dead, sums
from stts_mini.training.logging import Log
from stts_mini.training.optim import Muon
from stts_mini.training.step import forward_backward
from tests.test_model import batch_of, build
from tests.test_train import make_sampler
from tests.tiny import slow_but, tiny

CPU = torch.device("cpu")
ALIVE = Health(0.5, 0.1, 0.0, 0.9, 0.0, 1.0, 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("health")


def given(scores, keep, target, num_frames):
    """What an encoder with these scores (B, T, C) gives; only what is looked at."""
    shown = torch.arange(scores.shape[1]) < torch.tensor(num_frames)[:, None]
    return Encoded(torch.zeros(0, 4), shown.long(), shown, torch.zeros(0, 3), keep, scores, None, 0.0, target)


def test_each_number_by_a_loop_and_padding_and_unpruned_videos_do_not_count():
    draw = torch.Generator().manual_seed(0)
    scores, target = (torch.rand(3, t, 2, generator=draw) for t in (4, 3))
    scores[0, 1, 0], scores[0, 2, 1], scores[0, 3, 0] = 1e-5, 1 - 1e-6, 1e-9
    scores[1, 3:], target[1, 2:] = math.nan, math.inf
    keep = torch.ones(3, 4, 2).bool()  # the third video loses nothing
    keep[0, 1, 0] = keep[0, 3, 0] = keep[1, 2, 0] = keep[1, 3] = False
    health = Health.of(sums(given(scores, keep, target, [4, 3, 4])).tolist())
    cells = [(b, t, c) for b, frames in ((0, 4), (1, 3)) for t in range(1, frames) for c in range(2)]
    s = np.array([scores[cell] for cell in cells])
    y = np.array([target[b, t - 1, c] for b, t, c in cells])
    assert health.score_mean == pytest.approx(s.mean()) and health.score_spread == pytest.approx(s.std())
    assert health.correlation == pytest.approx(np.corrcoef(s, y)[0, 1])
    assert health.saturated == 3 / len(cells) and health.ties == 0


@pytest.mark.parametrize(
    "scores, gone, share",
    [
        ([3, 3, 3, 3], 2, 1.0),  # all alike
        ([1, 3, 3, 4], 2, 0.5),  # the first would have gone anyway
        ([1, 2, 3, 3], 2, 0.0),  # alike, but none of them goes
        ([1, 1, 3, 4], 2, 0.0),  # alike, but both go
        ([3, 3, 3, 3], 4, 0.0),  # all go
    ],
)
def test_the_share_of_removals_that_ties_decide(scores, gone, share):
    keep = torch.ones(1, 2, 4).bool()
    keep[0, 1, :gone] = False
    scores = torch.tensor([[[3.0, 3.0, 3.0, 3.0], scores]]) / 10  # frame 0 is never removed, and ties with nothing
    assert Health.of(sums(given(scores, keep, torch.zeros(1, 1, 4), [2])).tolist()).ties == share
    near = scores.clone()
    near[0, 1, :gone] -= 1e-7
    assert Health.of(sums(given(near, keep, torch.zeros(1, 1, 4), [2])).tolist()).ties == 0


@pytest.mark.parametrize("weight, bias", [(0.5, "log"), (0.0, "log"), (3.0, "rescaled"), (1.0, "none")])
def test_the_gradients_are_those_of_the_two_losses(weight, bias):
    """Each alone, by autograd, at the scores."""
    model = build(bias=bias)
    batch = batch_of(model, [4, 1, 3])
    config = TrainConfig(sim_weight=weight)
    health = forward_backward(model, batch, config, CPU, 0.5).health
    output = model(batch, 0.5)
    scores = output.encoded.scores
    both = torch.autograd.grad(weight * output.sim_loss, scores, retain_graph=True)
    both += torch.autograd.grad(output.task_loss + 0 * scores.sum(), scores)
    for found, expected in zip(health[-2:], (g.norm().item() for g in both), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert (health.sim_gradient > 0) == (weight > 0) and (health.lm_gradient > 0) == (bias != "none")


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_and_recomputing_change_nothing(folder, parts):
    found = []
    for options in ({}, dict(accumulate=parts), dict(recompute=True)):
        config = tiny(folder, **options)
        model = training.build_model(config, CPU).double()
        run = training.wrap(model, config, CPU)
        batch = make_sampler(config)(0)
        batch.frames = batch.frames.double() / 127.5 - 1
        found.append(forward_backward(model, batch, config, CPU, 0.5, None, run)[5])
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])
    assert min(found[0].sim_gradient, found[0].lm_gradient, found[0].score_spread) > 0


def test_nothing_is_measured_where_nothing_is_taught():
    model = build()
    batch = batch_of(model, [4, 2])
    config = TrainConfig()
    assert forward_backward(model, batch, config, CPU, 0.0)[5] is None
    assert forward_backward(model, batch_of(model, [1, 1]), config, CPU, 0.5)[5] is None
    cosine = functools.partial(model.encode_video, scorer=SCORERS["cosine"](model.config.scorer))
    assert forward_backward(model, batch, config, CPU, 0.5, cosine)[5] is None
    assert dead(None) == "" == dead()


def test_scores_that_are_all_alike_have_no_correlation():
    keep = torch.tensor([[[True, True], [False, True]]])
    for value in (0.0, 0.3):
        health = Health.of(sums(given(torch.full((1, 2, 2), value), keep, torch.rand(1, 1, 2), [2])).tolist())
        assert math.isnan(health.correlation) and health.ties == 1 and health.score_spread < 1e-7


# ------------------------------------------------------------------------------------ who is told


def kill(model):
    model.scorer.mlp[-1].bias.data.fill_(-50)
    return model


def test_the_death_of_a_scorer_is_told_once_by_train_and_by_eval(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging, "WINDOW", 3)
    said = {}
    for name, change in (("healthy", lambda model: model), ("dead", kill)):
        config = tiny(folder, out=str(tmp_path / name), steps=8, lr=1e-6, muon_lr=1e-6)
        model = training.train(config, False, CPU, model=change(training.build_model(config, CPU)))
        told = capsys.readouterr()
        text, _ = judge(model, held_out(config.data, 48, 4, kinds=["short"]), Reader(4, 48), 0.5)
        said[name] = told.out.count("the scorer is dead"), text.count("the scorer is dead")
        assert " r " in told.err and " ties " in told.err
    assert said == {"healthy": (0, 0), "dead": (1, 1)}
    assert "saturated" in (tmp_path / "dead" / "log.csv").read_text().splitlines()[0]


def test_the_first_steps_and_a_single_one_raise_no_alarm(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    worst = ALIVE._replace(ties=1.0, saturated=1.0)
    said = []
    for step in range(3 * WINDOW):
        log.add(step, 1.0, 0.0, 1.0, 0.5, 10, None if step % 2 else worst, seconds=1.0)
        said.append(log.warning())
    assert [step for step, warning in enumerate(said) if warning] == [2 * WINDOW - 2]
    assert "--scorer-lr-ratio" in said[2 * WINDOW - 2] and "100% of what is removed" in said[2 * WINDOW - 2]
    assert dead(*[ALIVE] * (WINDOW - 1), worst) == "" and dead(*[worst] * 11, *[ALIVE] * 9)


def test_a_scorer_that_dies_late_is_noticed_within_a_window(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    said = []
    for step, ties in enumerate([0.0] * 3 * WINDOW + [1.0] * WINDOW):
        log.add(step, 1.0, 0.0, 1.0, 0.5, 10, ALIVE._replace(ties=ties), seconds=1.0)
        said.append(log.warning())
    assert [step for step, warning in enumerate(said) if warning] == [3 * WINDOW + WINDOW // 2]


def test_a_low_score_is_saturated_where_its_log_gives_no_gradient():
    scores = torch.tensor([[[0.5, 0.5], [0.99 * SATURATED, 1.01 * SATURATED]]], requires_grad=True)
    attention_bias(scores, w=1).sum().backward()
    assert (scores.grad[0] > 0).tolist() == [[False, False], [False, True]]


def test_sparse_scores_that_follow_their_target_are_alive():
    sparse = ALIVE._replace(saturated=0.99, score_mean=0.002)
    assert not dead(sparse) and dead(sparse._replace(correlation=0.2)) and dead(sparse._replace(score_mean=1e-5))
    assert dead(sparse._replace(correlation=math.nan)) and dead(sparse._replace(ties=0.6))


def test_the_explorer_says_so(folder):
    config = tiny(folder)
    clip = held_out(config.data, 48, 1, kinds=["short"])[0]
    video, model = Reader(4, 48)(clip), training.build_model(config, CPU).eval()
    state = {"train_config": {"k": 0.5}}
    assert not any("dead" in note for note in remarks(model, state, video, {}))
    assert any("the scorer is dead" in note for note in remarks(kill(model), state, video, {}))


# ------------------------------------------------------------------------------------- the warm-up


@torch.no_grad()
def sim_loss(model, batches):
    encoded = [model.encode_video(batch.frames, batch.num_frames, 0.5) for batch in batches]
    return sum(float(e.sim_loss) for e in encoded)


def test_before_pruning_begins_the_scorer_alone_learns(folder):
    config = tiny(folder, stages={}, steps=80, batch_size=3, lr=5e-3, muon_lr=0.02)
    model, batches = training.build_model(config, CPU), list(make_sampler(config).beyond(80, 20))
    state, before = {name: p.clone() for name, p in model.state_dict().items()}, sim_loss(model, batches)
    heard = []
    for p in model.parameters():  # DistributedDataParallel listens like this, and waits in its next step for the rest
        p.register_post_accumulate_grad_hook(heard.append)
    steps.warm_up(model, training.build_optimizers(model, config), batches, config, CPU)
    assert not heard
    changed = {name.split(".")[0] for name, p in model.state_dict().items() if not torch.equal(p, state[name])}
    assert changed == {"scorer"} and sim_loss(model, batches) < 0.8 * before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("accumulate", [2, 4])
def test_lessons_do_not_depend_on_how_a_batch_is_cut(folder, accumulate):
    found = []
    for parts in (1, accumulate):
        config = tiny(folder, stages={}, batch_size=4, accumulate=parts, lr=5e-3, muon_lr=0.02)
        model = training.build_model(config, CPU).double()
        steps.warm_up(model, training.build_optimizers(model, config), make_sampler(config).beyond(4, 2), config, CPU)
        found.append(model.scorer.state_dict())
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-5, atol=1e-7)


def noted(monkeypatch, model, config, batches):
    """A warm-up whose optimisers only note their rates and gradients: (is Muon, rates, gradients)."""
    notes, optimizers = [], training.build_optimizers(model, config)

    def note(optimizer):
        groups = optimizer.param_groups
        own = [p.grad.flatten() for group in groups for p in group["params"] if p.grad is not None]
        notes.append((isinstance(optimizer, Muon), {group["lr"] for group in groups}, torch.cat(own)))

    for optimizer in optimizers:
        monkeypatch.setattr(optimizer, "step", functools.partial(note, optimizer))
    steps.warm_up(model, optimizers, batches, config, CPU)
    return notes


def test_lessons_have_a_rate_that_rises_and_falls_and_clipped_gradients(folder, monkeypatch):
    config = tiny(folder, stages={}, steps=20, lr=1e-3, muon_lr=0.02, scorer_lr_ratio=3.0)
    monkeypatch.setattr(steps, "CLIP_NORM", 1e-4)
    batches = make_sampler(config).beyond(20, 20)
    notes = noted(monkeypatch, training.build_model(config, CPU), config, batches)
    for is_muon, peak in ((True, 0.02), (False, 1e-3)):
        rates = [rate for kind, (rate,), _ in notes if kind == is_muon]
        assert rates == pytest.approx([5 * peak * min((i + 1) / 10, 1 - i / 20) for i in range(20)])
    norms = [math.hypot(a[2].norm(), b[2].norm()) for a, b in zip(notes[::2], notes[1::2], strict=True)]
    assert max(norms) == pytest.approx(1e-4, rel=1e-2)


def test_several_pictures_give_no_lesson(folder, monkeypatch):
    config = tiny(folder, stages={}, muon_lr=0.0)
    model, gradients = training.build_model(config, CPU), []
    batch = next(b for b in make_sampler(config).beyond(4, 9) if b.num_frames.min() > 1)
    batch.still = torch.arange(4) == 1
    for _ in range(2):
        gradients += [gradient for *_, gradient in noted(monkeypatch, model, config, [batch])]
        batch.frames[1] = 255 - batch.frames[1]
    assert gradients[0].norm() > 0 and all(torch.equal(g, gradients[0]) for g in gradients)


def test_a_lesson_that_is_no_number_ends_the_run(folder, tmp_path):
    config = tiny(folder, out=str(tmp_path), steps=6)
    model = training.build_model(config, CPU)
    model.scorer.mlp[-1].bias.register_hook(lambda gradient: gradient * math.nan)
    optimizers, beyond = training.build_optimizers(model, config), make_sampler(config).beyond(6, 1)
    with pytest.raises(NotFinite, match="lesson 1 of the scorer: gradient norm nan") as caught:
        steps.warm_up(model, optimizers, beyond, config, CPU)
    assert caught.value.batch == 6
    model.zero_grad()
    saved = "last good checkpoint is .*lower --lr"  # of the two steps before
    with pytest.raises(training.TrainError, match=rf"step 2: lesson 1 of .*clips \[.*{saved}"):
        training.train(config, False, CPU, model=model)


def test_a_scorer_whose_rate_is_0_stays_as_it_is(folder, tmp_path):
    config = tiny(folder, out=str(tmp_path), scorer_lr_ratio=0.0)
    fresh, model = training.build_model(config, CPU).scorer.state_dict(), training.train(config, False, CPU)
    assert all(torch.equal(p, fresh[name]) for name, p in model.scorer.state_dict().items())


def test_a_scorer_without_weights_needs_no_lessons(folder, tmp_path, monkeypatch):
    class Half(torch.nn.Module):
        injects_bias = True

        def forward(self, x, num_frames):
            return torch.full((*x.shape[:2], x.shape[2] // 4), 0.5)

    config = tiny(folder, out=str(tmp_path), steps=6)
    model = training.build_model(config, CPU)
    model.scorer = Half()
    monkeypatch.setattr(training, "warm_up", lambda *_: pytest.fail("there is nothing to teach"))
    training.train(config, False, CPU, model=model)
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert len(rows) == 6 and {row["score_mean"] for row in rows} == {"", "0.5"}  # some prune, and all scores are alike


def test_every_process_warms_up_on_whole_batches_beyond_the_run(folder):
    config = tiny(folder, stages={})
    whole, half = make_sampler(config), make_sampler(config)
    half.shard = (1, 2)
    for step_number, (a, b) in enumerate(zip(whole.beyond(7, 3), half.beyond(7, 3), strict=True), start=7):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.frames, whole(step_number).frames)
    assert half.shard == (1, 2)


@pytest.mark.parametrize("settings, count", [({}, 4), (dict(sim_weight=0.0), 0), (dict(scorer="cosine"), 0)])
def test_a_run_warms_up_once_and_resumes_as_if_it_had_not_been_cut(settings, count, folder, tmp_path, monkeypatch):
    warmed, plain = [], training.warm_up

    def counting(model, optimizers, batches, *rest):
        batches = list(batches)
        warmed.append(len(batches))
        plain(model, optimizers, batches, *rest)

    monkeypatch.setattr(training, "warm_up", counting)
    options = dict(stages={"image": 2}, steps=6, save_every=2)
    config = tiny(folder, out=str(tmp_path / "whole"), **options, **settings)
    assert training.train(config, False, CPU) and warmed == [count] * bool(count)
    if not count:
        return
    monkeypatch.setattr(training, "warm_up", plain)
    cut, states = tiny(folder, out=str(tmp_path / "cut"), **options), []
    for stop in (2, 4):  # right before the warm-up, and after it
        monkeypatch.setattr(training, "one_step", stopping_at(stop, training.one_step))
        with pytest.raises(KeyboardInterrupt):
            training.train(cut, stop > 2, CPU)
        monkeypatch.undo()
    training.train(cut, True, CPU)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "cut")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("stages", slow_but([{"image": 2}, {}], {}))  # lessons after two steps, and before the first
def test_a_run_stopped_amid_its_lessons_resumes_as_if_it_had_not_been(stages, folder, tmp_path, monkeypatch, capsys):
    options = dict(stages=stages, steps=8, save_every=5)
    whole = training.train(tiny(folder, out=str(tmp_path / "whole"), **options), False, CPU).state_dict()
    config, given, plain = tiny(folder, out=str(tmp_path / "cut"), **options), [], steps.similarity_loss

    def stopped(*args):
        given.append(1)
        if len(given) == 3:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(steps, "similarity_loss", stopped)
    with pytest.raises(SystemExit) as caught:
        training.train(config, False, CPU)
    assert caught.value.code == 130 and len(given) == 3
    assert f"Stopped after step {len(stages) * 2}. Go on with" in capsys.readouterr().out
    resumed = training.train(config, True, CPU).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "cut")]
    uninterrupted, cut = ([row.split(",")[:6] for row in log] for log in logs)
    assert uninterrupted == cut


def stopping_at(stop, plain):
    """A step that is interrupted when it is the one with this number."""

    def one_step(model, optimizers, batch, step, *rest):
        if step == stop:
            raise KeyboardInterrupt
        return plain(model, optimizers, batch, step, *rest)

    return one_step


# ------------------------------------------------------------------------------------ log and picture


def test_a_log_with_fewer_columns_is_gone_on_with(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,task_loss,sim_loss,accuracy,grad_norm,tokens,seconds\n0,1,0,1,1,1,1\n1,1,0,1,1,1,1\n")
    log = Log(path, start=2)
    log.add(2, 1.0, 0.5, 1.0, 0.5, 10, ALIVE._replace(correlation=math.nan), seconds=2.0)
    log.flush()
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    assert header == list(Log.NAMES) and [row[0] for row in rows] == ["0", "1", "2"]
    assert {len(row) for row in rows} == {len(header)} and rows[0][7:] == [""] * 7
    assert rows[2][7:] == ["0.5", "0.1", "0", "", "0", "1", "0.1"]


@pytest.mark.parametrize("watched, panels", [(False, 1), (True, 2)])
def test_the_picture_has_a_panel_more_if_there_was_a_scorer_to_watch(tmp_path, watched, panels):
    log = Log(tmp_path / "log.csv", 0)
    for step in range(9):
        health = ALIVE._replace(correlation=math.nan, lm_gradient=0.0) if watched and step > 5 else None
        log.add(step, 1.0, 0.0, 1.0, 0.5, 10, health, seconds=1.0)
    log.flush()
    draw_curve(log.path, tmp_path / "curve.png")
    with av.open(str(tmp_path / "curve.png")) as file:
        assert next(file.decode(video=0)).height == panels * 420
