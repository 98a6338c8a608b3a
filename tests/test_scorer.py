"""Properties of the scorer, its bias and its auxiliary loss, against loops over cells."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.packing import select
from stts_mini.scorer import (
    CellPooler,
    CosineScorer,
    RandomScorer,
    Scorer,
    ScorerConfig,
    attention_bias,
    cell_major,
    real_frames,
    similarity_loss,
    spread,
    temporal_target,
)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))  # B, T, w, cells a side


def video(B, T, w, side, D=4, seed=0):
    torch.manual_seed(seed)
    return torch.randn(B, T, (side * w) ** 2, D, dtype=torch.float64)


@given(st.integers(1, 3), st.integers(1, 4))
def test_cell_major_lays_every_cell_side_by_side(w, side):
    g = w * side
    order = cell_major(torch.arange(g * g).view(1, -1, 1), w).flatten().tolist()
    expected = [
        (cell_y * w + y) * g + cell_x * w + x
        for cell_y in range(side)
        for cell_x in range(side)
        for y in range(w)
        for x in range(w)
    ]
    assert order == expected


@pytest.mark.parametrize("patches, w", [(16, 3), (15, 1), (9, 2), (9, 0)])
def test_a_grid_that_w_does_not_divide_is_refused(patches, w):
    with pytest.raises(ValueError, match=f"{patches}-patch grid .* w = {w}"):
        cell_major(torch.zeros(1, patches, 2), w)
    with pytest.raises(ValueError, match=f"{patches}-patch grid .* w = {w}"):
        temporal_target(torch.zeros(1, 2, patches, 2), w)


def test_cell_pooler_is_plain_cross_attention():
    pooler = CellPooler(6, 8, heads=2).double()
    cell = torch.randn(5, 6, dtype=torch.float64)
    q, k, v = pooler.q_proj(cell.mean(0)), pooler.k_proj(cell), pooler.v_proj(cell)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(torch.stack([q[h] @ k[i, h] / math.sqrt(4) for i in range(5)]), 0)
        heads.append(sum(weights[i] * v[i, h] for i in range(5)))
    torch.testing.assert_close(pooler(cell), pooler.out_proj(torch.cat(heads)), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="not a multiple"):
        CellPooler(6, 8, heads=3)


@given(shapes)
def test_scorer_is_a_loop_over_cells(shape):
    B, T, w, side = shape
    scorer = Scorer(ScorerConfig(width=4, w=w, heads=2, mlp=6)).double()
    for p in scorer.parameters():
        torch.nn.init.normal_(p, std=0.5)  # biases too
    x = video(B, T, w, side)
    scores = scorer(x)
    assert scores.shape == (B, T, side * side) and ((scores > 0) & (scores < 1)).all()
    silu = torch.nn.functional.silu
    for b in range(B):
        for t in range(T):
            for c in range(side * side):
                now = scorer.pooler(x[b, t, c * w * w : (c + 1) * w * w])
                before = scorer.pooler(x[b, t - 1, c * w * w : (c + 1) * w * w]) if t else torch.zeros_like(now)
                h = silu(scorer.mlp[1](silu(scorer.mlp[0](torch.cat([before, now])))))
                torch.testing.assert_close(scores[b, t, c], scorer.mlp[2](h).sigmoid()[0], rtol=1e-12, atol=1e-12)


def test_scores_of_one_video_know_nothing_of_another_nor_of_padding():
    scorer = Scorer(ScorerConfig(width=4, heads=2, mlp=6))
    x = torch.randn(3, 4, 16, 4)
    scores = scorer(x, torch.tensor([4, 2, 4]))
    changed = x.clone()
    changed[0] += 1
    changed[1, 2:] = 7.0
    again = scorer(changed, torch.tensor([4, 2, 4]))
    assert torch.equal(scores[1:], again[1:]) and not torch.equal(scores[0], again[0])
    assert (scores[1, 2:] == 0).all()


@given(shapes)
def test_temporal_target_is_a_loop_over_cells(shape):
    B, T, w, side = shape
    x = video(B, T, w, side)
    target = temporal_target(x, w)
    assert target.shape == (B, T - 1, side * side)
    for b in range(B):
        for t in range(1, T):
            for c in range(side * side):
                a, z = (x[b, s, c * w * w : (c + 1) * w * w].flatten() for s in (t - 1, t))
                expected = 1 - (a @ z) / (a.norm() * z.norm())
                torch.testing.assert_close(target[b, t - 1, c], expected, rtol=1e-12, atol=1e-12)


@given(shapes, st.data())
def test_similarity_loss_is_a_loop_and_padding_does_not_count(shape, data):
    B, T, w, side = shape
    C = side * side
    torch.manual_seed(0)
    scores, target = torch.rand(B, T, C, dtype=torch.float64), torch.rand(B, T - 1, C, dtype=torch.float64)
    frames = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    per_video = [
        sum(float((scores[b, t, c] - target[b, t - 1, c]) ** 2) for t in range(1, n) for c in range(C)) / (n * C)
        for b, n in enumerate(frames)
        if n > 1
    ]
    expected = sum(per_video) / len(per_video) if per_video else 0.0
    for b, n in enumerate(frames):
        target[b, n - 1 :] = math.inf
    scores.requires_grad_()
    loss = similarity_loss(scores, target, torch.tensor(frames))
    assert math.isclose(float(loss.detach()), expected, rel_tol=1e-12, abs_tol=1e-12)
    loss.backward()
    assert scores.grad.isfinite().all() and (scores.grad[:, 0] == 0).all()


def test_only_the_target_is_detached_and_the_switch_works():
    x = video(1, 3, 2, 2).requires_grad_()
    scorer = Scorer(ScorerConfig(width=4, heads=2, mlp=6)).double()
    for detach in (True, False):
        through_target = torch.autograd.grad(
            similarity_loss(scorer(x.detach()), temporal_target(x, 2), detach_target=detach), x, allow_unused=True
        )[0]
        assert (through_target is None) == detach
    through_scores = torch.autograd.grad(similarity_loss(scorer(x), temporal_target(x, 2)), x)[0]
    assert through_scores.abs().sum() > 0
    with pytest.raises(ValueError, match="need"):
        similarity_loss(torch.rand(1, 3, 4), torch.rand(1, 3, 4))


@given(shapes, st.data())
def test_attention_bias_is_the_log_of_the_cells_score(shape, data):
    B, T, w, side = shape
    frames = data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B))
    torch.manual_seed(1)
    scores = torch.rand(B, T, side * side, dtype=torch.float64)
    scores[0, -1, 0] = 0.0
    bias = attention_bias(scores, w, torch.tensor(frames))
    assert bias.shape == (B, T, (side * w) ** 2)
    for b in range(B):
        for t in range(T):
            for n in range(bias.shape[2]):
                s = float(scores[b, t, n // (w * w)])
                expected = math.log(max(s, 1e-4)) if 0 < t < frames[b] else 0.0
                assert math.isclose(float(bias[b, t, n]), expected, abs_tol=1e-12)


def test_rescaled_bias_spans_minus_two_to_zero_per_frame_and_is_calm_on_flat_frames():
    scores = torch.rand(2, 3, 4, dtype=torch.float64)
    scores[1, 2] = 0.3
    scores.requires_grad_()
    bias = attention_bias(scores, w=1, rescale=True)
    assert (bias[:, 0] == 0).all()
    torch.testing.assert_close(bias[0, 1].amin(), torch.tensor(-2.0).double())
    torch.testing.assert_close(bias[0, 1].amax(), torch.tensor(0.0).double())
    assert (bias[1, 2] == bias[1, 2, 0]).all()
    grad = torch.autograd.grad((bias * torch.randn_like(bias)).sum(), scores)[0]
    assert grad.isfinite().all() and grad.abs().max() < 1e4


@pytest.mark.parametrize("rescale", [False, True])
def test_what_padding_holds_does_not_reach_the_gradient_of_the_bias(rescale):
    scores, gradients = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)), []
    for garbage in (0.5, math.nan, math.inf):
        scores[1, 2] = garbage
        bias = attention_bias(scores.requires_grad_(), 1, torch.tensor([3, 2]), rescale)
        gradients.append(torch.autograd.grad(bias.square().sum(), scores)[0])
        scores = scores.detach()
    assert gradients[0].abs().sum() > 0 and all(torch.equal(g, gradients[0]) for g in gradients)


def test_baselines_score_every_cell():
    x = torch.randn(2, 3, 16, 4)
    config = ScorerConfig(width=4, w=2)
    cosine = CosineScorer(config)(x)
    assert torch.equal(cosine[:, 1:], temporal_target(x, 2)) and cosine.shape == (2, 3, 4)
    torch.manual_seed(3)
    first = RandomScorer(config)(x)
    torch.manual_seed(3)
    assert torch.equal(first, RandomScorer(config)(x)) and first.shape == (2, 3, 4)


def test_scores_stay_fine_grained_under_autocast():
    scorer = Scorer(ScorerConfig(width=8, heads=2, mlp=16))
    with torch.autocast("cpu", torch.bfloat16):
        scores = scorer(torch.randn(1, 60, 36, 8))
    assert scores.dtype == torch.float32 and len(scores.unique()) > 500


def test_a_half_precision_model_scores_in_float32():
    scorer = Scorer(ScorerConfig(width=8, heads=2, mlp=16)).bfloat16()
    assert scorer(torch.randn(1, 60, 36, 8).bfloat16()).unique().numel() > 500


def test_random_scores_differ_and_padding_scores_nothing():
    scores = RandomScorer(ScorerConfig(width=4, w=2))(torch.randn(2, 30, 16, 4))
    assert scores.unique().numel() > 200 and scores.min() >= 0 and scores.max() < 1
    x = torch.randn(1, 3, 16, 4)
    x[0, 2] = math.inf
    assert (Scorer(ScorerConfig(width=4, heads=2, mlp=8))(x, torch.tensor([2]))[0, 2] == 0).all()


def test_weights_start_as_documented():
    torch.manual_seed(0)
    scorer = Scorer(ScorerConfig(width=64, mlp=256))
    for name, p in scorer.state_dict().items():
        if p.ndim == 1:
            assert (p == (-3 if name == "mlp.2.bias" else 0)).all(), name  # scores start near most targets
        else:
            spread = p * p.shape[1] ** 0.5
            assert spread.abs().max() <= 2 and abs(float(spread.std()) - 0.88) < 0.08, name  # cut off at two


def test_any_number_of_dims_may_come_first():
    x = torch.randn(2, 3, 2, 36, 4)
    for w in (2, 3):
        assert torch.equal(cell_major(x, w)[1, 2, 0], cell_major(x[1, 2, 0], w))


def test_half_precision_targets_and_devices():
    x = torch.randn(1, 3, 16, 4)
    assert temporal_target(x.bfloat16(), 2).dtype == torch.float32
    config = ScorerConfig(width=4, w=2)
    assert RandomScorer(config)(x.to("meta")).is_meta
    for counts in (None, torch.tensor([2])):
        assert attention_bias(torch.empty(1, 3, 4, device="meta"), 2, counts).is_meta
    assert (CosineScorer(config)(x)[:, 0] == 1).all()  # frame 0 has nothing before it: the largest change


def test_the_target_is_detached_unless_it_is_asked_for():
    target = torch.rand(1, 2, 4, requires_grad=True)
    scores = torch.rand(1, 3, 4, requires_grad=True)
    similarity_loss(scores, target).backward()
    assert target.grad is None and scores.grad is not None


def test_real_frames_are_those_before_the_padding():
    scores = torch.zeros(2, 3, 4)
    assert real_frames(scores, None).tolist() == [[[True]] * 3] * 2
    assert real_frames(scores, torch.tensor([3, 1])).tolist() == [[[True]] * 3, [[True], [False], [False]]]


def test_spread_is_logistic_noise_without_chance():
    """In any run of frames a cell's pattern is as even as can be: no three-distance gap is large."""
    pattern = spread(torch.full((1, 300, 9), 0.5, dtype=torch.float64), 1.0)[0]
    assert torch.equal(pattern, spread(torch.full((1, 400, 9), 0.5, dtype=torch.float64), 1.0)[0, :300])
    for start in (0, 37, 220):
        u = pattern[start : start + 55].sigmoid().sort(dim=0).values  # (55, C)
        gaps = torch.cat([u[:1], u.diff(dim=0), 1 - u[-1:]])
        assert gaps.max() < 3 / 55
    together = torch.corrcoef(pattern.T) - torch.eye(9)
    assert together.abs().max() < 0.9  # no two cells are in step
    later = spread(torch.full((1, 20, 9), 0.5, dtype=torch.float64), 1.0, start=280)
    torch.testing.assert_close(later[0], pattern[280:])


def test_spread_keeps_what_looks_alike_now_and_then():
    """Two things, one a little dearer, in every frame: select alone keeps the one always and the other never."""
    scores = torch.tensor([0.8, 0.7, 0.1, 0.1]).expand(1, 20, 4)
    plain, even = (select(spread(scores, amount), 0.75)[0, 1:].float().mean(0) for amount in (0.0, 1.0))
    assert plain[1] < 0.1 and 0.2 < even[1] < even[0] and even[2:].max() < even[1]
    assert torch.equal(spread(scores, 0.0), scores)


def test_spread_does_not_overturn_what_is_certain():
    scores = torch.rand(2, 12, 9) * 0.02
    scores[:, 3] = 0.98
    assert select(spread(scores, 0.4), 0.8)[:, 3].all()
    near, half = torch.tensor([[[0.99, 0.96]]]), torch.full((1, 1, 2), 0.5)
    logits = [math.log(p / (1 - p)) for p in (0.99, 0.96)]
    assert (spread(near, 0.4) - spread(half, 0.4)).flatten().tolist() == pytest.approx(logits, rel=1e-5)
    assert spread(torch.tensor([[[2.0, -1.0, 0.0, 1.0]]]), 1.0).isfinite().all()  # others' scores may lie beyond
    assert not spread(torch.rand(1, 2, 3, requires_grad=True), 1.0).requires_grad
