"""The third teacher: its measure against finite differences, what it teaches, when it teaches."""

import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stts_mini import train as training
from stts_mini.lab.paper.train import PaperConfig
from stts_mini.model import VLM
from stts_mini.packing import select
from stts_mini.sequence import Batch
from stts_mini.train import train
from stts_mini.training.saliency import answer_saliency, log_odds, ranks, saliency_loss
from stts_mini.training.step import forward_backward, parts_of, wrap
from tests.test_model import batch_of, build
from tests.test_train import CPU, folder, make_sampler, tiny  # noqa: F401


def scored(model: VLM, batch: Batch):
    """An unpruned output whose cells were scored."""
    return model(batch, 0.0, functools.partial(model.encode_video, score_all=True))


@pytest.fixture
def small():
    model = build()
    return model, batch_of(model, [4, 3, 1])


def test_log_odds_are_those_of_the_probability():
    logits = torch.randn(7, 5, dtype=torch.float64)
    targets = torch.arange(7) % 5
    p = logits.softmax(-1)[torch.arange(7), targets]
    torch.testing.assert_close(log_odds(logits, targets), (p / (1 - p)).log())


def test_saliency_is_the_change_of_the_log_odds_when_a_token_fades(small):
    model, batch = small
    output = scored(model, batch)
    worth = answer_saliency(output)
    encoded, h = output.encoded, 1e-6
    assert worth.shape == encoded.keep.shape and not worth.requires_grad
    found = torch.zeros_like(worth)
    for i, place in enumerate(encoded.place):
        odds = []
        for factor in (1 + h, 1 - h):
            tokens = encoded.tokens.detach().clone()
            tokens[i] *= factor
            faded = encoded.__class__(tokens, encoded.kept, encoded.shown, encoded.place)
            o = model(batch, 0.0, lambda *_, faded=faded: faded)
            odds.append(log_odds(o.logits, o.targets).sum().item())
        found[tuple(place)] = abs(odds[0] - odds[1]) / (2 * h)
    torch.testing.assert_close(worth.double(), found.double(), rtol=1e-4, atol=1e-7)
    assert (worth[1, 3:] == 0).all() and (worth[0] > 0).all()  # padding, and real frames


def test_a_first_layer_is_blind_to_it():
    """It normalises every token before it reads it: of a longer token it reads the same."""
    worth = {}
    for depth in (1, 2):
        model = build()
        model.llm.layers = model.llm.layers[:depth]
        assert len(model.llm.layers) == depth
        worth[depth] = float(answer_saliency(scored(model, batch_of(model, [4, 3]))).max())
    assert worth[1] < 1e-3 * worth[2]
    with pytest.raises(ValueError, match="saliency_steps = 9 need an LLM of 2 layers or more: give --llm-depth 2"):
        PaperConfig(k=0.5, saliency_steps=9, llm_depth=1)


def test_unpruned_and_scored_is_still_the_unpruned_model(small):
    model, batch = small
    plain, output = model(batch, 0.0), scored(model, batch)
    assert torch.equal(plain.logits, output.logits) and plain.encoded.scores is None
    assert output.sim_loss == 0 and output.encoded.keep.sum() == plain.encoded.keep.sum()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(2, 3), st.integers(0, 2**31))
def test_ranks_are_places_in_the_sorted_list(frames, C, seed):
    values = torch.randint(5, (len(frames), max(frames), C), generator=torch.Generator().manual_seed(seed)).float()
    found = ranks(values, torch.tensor(frames))
    for b, n in enumerate(frames):
        cells = values[b, :n].flatten().tolist()
        order = sorted(range(len(cells)), key=lambda i: (cells[i], i))
        expected = [order.index(i) / (len(cells) - 1) for i in range(len(cells))]
        assert found[b, :n].flatten().tolist() == pytest.approx(expected) and (found[b, n:] == 0).all()


def test_the_loss_is_the_distance_to_the_rank_of_saliency(small):
    model, batch = small
    output = scored(model, batch)
    loss = saliency_loss(output, batch.num_frames)
    target = ranks(answer_saliency(output), batch.num_frames)
    scores = output.encoded.scores
    error = (scores - target.double()) ** 2
    per_video = [error[b, 1:n].sum() / (n * scores.shape[2]) for b, n in ((0, 4), (1, 3))]
    torch.testing.assert_close(loss, sum(per_video) / 2)  # the picture is nobody's lesson
    alone = saliency_loss(output, batch.num_frames, torch.tensor([False, True, False]))
    torch.testing.assert_close(alone, per_video[0])
    nobody = saliency_loss(output, batch.num_frames, torch.tensor([True, True, True]))
    nobody.backward()
    assert nobody == 0


@pytest.mark.slow
def test_it_teaches_the_scorer_to_keep_what_answers_hang_on(small):
    model, batch = small
    optimizer = torch.optim.Adam(model.scorer.parameters(), lr=1e-2)
    with torch.no_grad():
        kept = select(model.encode_video(batch.frames, batch.num_frames, 0.5).scores, 0.5, batch.num_frames)
    for _ in range(150):
        optimizer.zero_grad()
        output = scored(model, batch)
        saliency_loss(output, batch.num_frames).backward()
        optimizer.step()
    wanted = select(answer_saliency(output), 0.5, batch.num_frames)
    learned = select(output.encoded.scores, 0.5, batch.num_frames)
    assert (kept != wanted).any() and torch.equal(learned, wanted)


def test_scorers_without_weights_are_refused(small):
    model, batch = small
    with pytest.raises(ValueError, match=r"a scorer without weights .* --saliency-steps 0"):
        saliency_loss(model(batch, 0.0), batch.num_frames)
    with pytest.raises(ValueError, match="saliency_steps = 3 teach what to keep, but k = 0 keeps all"):
        PaperConfig(k=0.0, saliency_steps=3)
    with pytest.raises(ValueError, match="steps = 702, but the first 702 are unpruned"):
        PaperConfig(steps=702, saliency_steps=2)


def test_parts_of_a_batch_teach_what_the_whole_teaches(folder):  # noqa: F811
    grads = []
    for accumulate in (1, 2):
        config = tiny(folder, PaperConfig, accumulate=accumulate, saliency_steps=1, steps=9, llm_depth=2)
        model = training.build_model(config, CPU).double()
        batch = make_sampler(config)(2)
        batch.frames = batch.frames.double() / 127.5 - 1
        result = forward_backward(model, batch, config, CPU, 0.0, saliency=True)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
        assert result[1] > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_the_scorer_is_taught_before_pruning_and_stays(folder, monkeypatch):  # noqa: F811
    seen = []
    original = training.forward_backward

    def spy(model, batch, config, device, k, encode, run, saliency):
        weights = torch.cat([p.detach().flatten().clone() for p in model.scorer.parameters()])
        seen.append((k, saliency, weights, model.llm.embed_tokens.weight.detach().clone()))
        return original(model, batch, config, device, k, encode, run, saliency)

    monkeypatch.setattr(training, "forward_backward", spy)
    train(tiny(folder, PaperConfig, steps=7, saliency_steps=2, llm_depth=2), False, CPU)
    ks, teaching, scorers, words = zip(*seen, strict=True)
    assert ks == (0, 0, 0, 0, 0.5, 0.5, 0.5) and teaching == (False, False, True, True, False, False, False)
    changed = [not torch.equal(a, b) for a, b in pairwise(scorers)]
    assert changed == [False, False, True, True, False, False]
    assert all(not torch.equal(a, b) for a, b in pairwise(words))


@pytest.mark.parametrize("k, frames", [(0.05, [4, 2, 2, 4]), (0.03, [2, 2, 2, 3]), (0.5, [1, 4, 1, 3])])
def test_parts_weigh_as_many_videos_as_there_is_to_learn_from(k, frames):
    """Whatever k would prune of them."""
    found = []
    for accumulate in (1, 2, 4):
        model = build()
        config = PaperConfig(k=k, saliency_steps=1, accumulate=accumulate, batch_size=4, sim_weight=0.0)
        _, loss, *_ = forward_backward(model, batch_of(model, frames), config, CPU, 0.0, saliency=True)
        gradient = torch.cat([p.grad.flatten() for p in model.scorer.parameters()])
        assert loss > 0 and gradient.abs().sum() > 0  # λ weighs L_sim, not this
        found.append((loss, gradient))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0])
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-6, atol=1e-9)


def test_pictures_are_no_lesson():
    model = build()
    batch = batch_of(model, [3, 4])
    config = PaperConfig(k=0.5, saliency_steps=1)
    losses = []
    for still in ([False, False], [True, False]):
        batch.still = torch.tensor(still)
        losses.append(forward_backward(model, batch, config, CPU, 0.0, saliency=True)[1])
    batch.still = None
    alone = forward_backward(model, parts_of(batch, 2)[1], config, CPU, 0.0, saliency=True)[1]
    assert losses[1] == pytest.approx(alone) and losses[0] != pytest.approx(alone)


def test_the_auxiliary_loss_has_no_say_once_saliency_taught():
    gradients = []
    for weight in (0.0, 1.0):
        model = build()
        config = PaperConfig(k=0.5, saliency_steps=1, sim_weight=weight)
        forward_backward(model, batch_of(model, [4, 4]), config, CPU, 0.5)
        gradients.append(model.vit.blocks[0].attention.q_proj.weight.grad)
    assert torch.equal(*gradients)


def test_ranks_follow_their_values_to_any_device():
    assert ranks(torch.zeros(2, 3, 4, device="meta"), torch.tensor([3, 2])).shape == (2, 3, 4)


@pytest.mark.parametrize(
    "options, message", [(dict(scorer="cosine"), "scorer cosine has no weights"), ({}, "no weights")]
)
def test_what_cannot_be_taught_is_refused_before_the_first_step(options, message, folder):  # noqa: F811
    config = tiny(folder, PaperConfig, steps=9, saliency_steps=1, llm_depth=2, **options)
    annotate = None if options else lambda clip, video: None
    with pytest.raises(ValueError, match=message):
        train(config, False, CPU, annotate=annotate)
    with pytest.raises(ValueError, match="blind training has no cells"):
        tiny(folder, PaperConfig, saliency_steps=1, steps=9, llm_depth=2, blind=True)


def test_saliency_under_recomputation_is_the_same():
    grads = []
    for recompute in (False, True):
        model = build()
        config = PaperConfig(k=0.5, saliency_steps=1, recompute=recompute)
        run = wrap(model, config, CPU)
        forward_backward(model, batch_of(model, [4, 2]), config, CPU, 0.0, run=run, saliency=True)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


@pytest.mark.slow
def test_resuming_amid_the_lessons_is_uninterrupted(folder, tmp_path, monkeypatch):  # noqa: F811
    options = dict(steps=8, saliency_steps=3, llm_depth=2, spread=0.4)
    options["save_every"] = 4
    whole = train(tiny(folder, PaperConfig, **options, out=str(tmp_path / "whole")), False, CPU)
    config = tiny(folder, PaperConfig, **options, out=str(tmp_path / "parts"))
    monkeypatch.setattr(training.Interrupt, "asked", True, raising=False)
    monkeypatch.setattr(training.Interrupt, "__enter__", lambda self: self)
    monkeypatch.setattr(training.Interrupt, "__exit__", lambda self, *_: None)
    for _ in range(4):
        with pytest.raises(SystemExit):
            train(config, (tmp_path / "parts" / "checkpoint.pt").exists(), CPU)
    monkeypatch.undo()
    parts = train(config, True, CPU)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_pruning_begins_after_the_lessons():
    config = PaperConfig(k=0.8, stages=dict(image=2, brief=1), saliency_steps=2)
    assert [config.k_at(step) for step in range(7)] == [0.0] * 5 + [0.8] * 2
    assert config.model.spread == 0 and PaperConfig(spread=0.3).model.spread == 0.3
    with pytest.raises(ValueError, match="spread = -1"):
        PaperConfig(spread=-1.0)
