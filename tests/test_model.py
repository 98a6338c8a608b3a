"""The whole method against a slow, obvious reference; who sees whom; where the gradient comes from."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

import stts_mini.model
from stts_mini.data.tokenizer import END
from stts_mini.llm import KVCache, LLMConfig
from stts_mini.model import VLM, Connector, NotFinite, VLMConfig, check_scores, normalise
from stts_mini.packing import Packed, block_mask, num_removed, pack, select
from stts_mini.scorer import CosineScorer, RandomScorer, Scorer, attention_bias, cell_major, temporal_target
from stts_mini.sequence import CELL, Batch, Marks
from stts_mini.vit import ViTConfig, add_bias_channels

LLM_SMALL = LLMConfig(vocab_size=40, width=8, depth=2, heads=2, kv_heads=1, head_dim=4, mlp=12)


@functools.cache
def untrained(config):
    """The model of a config in float64: made once, and copied by `build`, which is quicker than to make it anew."""
    return VLM(config).double().eval()


def build(w=2, side=2, depth=4, score_after=0, taps=(-2, -1), seed=0, width=8, **options):
    """A tiny VLM in float64 whose weights are all random, norms and biases included."""
    vit = ViTConfig(image_size=2 * w * side, patch_size=2, width=width, depth=depth, heads=2, mlp=12)
    config = VLMConfig(vit, LLM_SMALL, w=w, score_after=score_after, scorer_heads=2, scorer_mlp=6, taps=taps, **options)
    model = copy.deepcopy(untrained(config))
    torch.manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def clips(model, frames, seed=0):
    """Random clips with these numbers of frames, padded with garbage: (B, T, 3, H, W), (B,)."""
    torch.manual_seed(seed)
    size = model.config.vit.image_size
    x = torch.randn(len(frames), max(frames), 3, size, size, dtype=torch.float64)
    return x, torch.tensor(frames)


def batch_of(model, frames, questions=2, seed=0):
    x, num_frames = clips(model, frames, seed)
    stamps = [[[20 + t] for t in range(n)] for n in frames]
    branches = [[([4, 10 + q, 6], [12 + q, 30 + b]) for q in range(questions)] for b in range(len(frames))]
    return Batch(x, num_frames, stamps, branches)


def connect(connector, cell):
    """The connector, written out: LayerNorm, attention pooling, SwiGLU, RMSNorm; cell (w², taps·D) → (W,)."""
    width = connector.gate_proj.in_features
    c = (cell - cell.mean(-1, keepdim=True)) / (cell.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    c = c * connector.norm_in.weight + connector.norm_in.bias
    pool, heads = connector.pooler, connector.pooler.heads
    q = pool.q_proj(c.mean(0)).view(heads, -1)
    key, value = pool.k_proj(c).view(len(c), heads, -1), pool.v_proj(c).view(len(c), heads, -1)
    weights = (torch.einsum("hd,nhd->hn", q, key) / (width / heads) ** 0.5).softmax(-1)
    pooled = pool.out_proj(torch.einsum("hn,nhd->hd", weights, value).flatten())
    gate = connector.gate_proj(pooled)
    token = connector.down_proj(gate * gate.sigmoid() * connector.up_proj(pooled))
    return token / (token.square().mean() + 1e-6).sqrt() * connector.norm_out.weight


def bias_of(scores, rescale):
    """S of one frame's cells (C,)."""
    if not rescale:
        return [s.clamp(min=1e-4).log() for s in scores]
    low, high, floor = min(scores), max(scores), math.exp(-2)
    span = high - low if (high - low).item() > 0.01 else 0.01
    return [(floor + (1 - floor) * (s - low) / span).log() for s in scores]


def reference(model, frames, num_frames, k):
    """STTS with loops, no padding, no packing: every frame's kept tokens alone, the bias written out."""
    cfg, w = model.config, model.config.w
    blocks, cells = model.vit.blocks, model.config.cells
    tokens, places = [], []
    for b, T in enumerate(num_frames.tolist()):
        xs = []
        for t in range(T):
            x = cell_major(model.vit.embed(frames[b, t][None]), w)
            for block in blocks[: cfg.score_after + 1]:
                x = block(x)
            xs.append(x[0])
        budget = num_removed(k, cells, T)
        removed, bias = set(), torch.zeros(T, cfg.vit.num_patches, dtype=torch.float64)
        if budget:
            scores = model.scorer(torch.stack(xs)[None])[0]
            order = sorted((float(scores[t, c].detach()), t, c) for t in range(1, T) for c in range(cells))
            removed = {(t, c) for _, t, c in order[:budget]}
            for t in range(1, T):
                S = bias_of(scores[t], cfg.bias == "rescaled")
                for n in range(cfg.vit.num_patches):
                    bias[t, n] = S[n // (w * w)]
        for t in range(T):
            block, x = blocks[cfg.score_after + 1], xs[t][None]
            h = block.layer_norm1(x)
            a = block.attention
            q, key, v = (p(h)[0].unflatten(-1, (cfg.vit.heads, -1)) for p in (a.q_proj, a.k_proj, a.v_proj))
            logits = torch.einsum("ihd,jhd->hij", q, key) / cfg.vit.head_dim**0.5 + bias[t]
            x = x + a.out_proj(torch.einsum("hij,jhd->ihd", logits.softmax(-1), v).flatten(1))[None]
            x = x + block.mlp(block.layer_norm2(x))
            kept = [c for c in range(cells) if (t, c) not in removed]
            if not kept:
                continue
            x = torch.cat([x[:, c * w * w : (c + 1) * w * w] for c in kept], 1)
            features = {}
            for i in range(cfg.score_after + 2, cfg.vit.depth):
                x = blocks[i](x)
                features[i - cfg.vit.depth] = x[0]
            for i, c in enumerate(kept):
                cell = torch.cat([features[tap][i * w * w : (i + 1) * w * w] for tap in cfg.taps], -1)
                tokens.append(connect(model.connector, cell))
                places.append((b, t, c))
    return torch.stack(tokens), torch.tensor(places)


ragged = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@settings(max_examples=settings.default.max_examples * 5 // 8)
@given(
    ragged,
    st.sampled_from([0.0, 0.2, 0.5, 0.75, 0.9, 0.99]),
    st.sampled_from([(1, 3), (2, 2), (3, 1), (2, 1)]),
    st.sampled_from([dict(), dict(depth=6, score_after=2), dict(depth=5, score_after=1, taps=(-1,))]),
    st.sampled_from(["log", "rescaled"]),
)
@example([1, 4, 2], 0.9, (2, 2), {}, "log")
@example([1, 1], 0.5, (2, 2), {}, "log")
@example([3, 2], 0.5, (2, 2), dict(depth=6, score_after=2), "rescaled")
def test_encode_video_is_the_reference_in_values_and_gradients(frames, k, grid, depths, bias):
    model = build(*grid, **depths, bias=bias)
    x, num_frames = clips(model, frames)
    weight, results = None, []
    for way in ("fast", "slow"):
        inputs = x.clone().requires_grad_()
        if way == "fast":
            encoded = model.encode_video(inputs, num_frames, k)
            tokens, place = encoded.tokens, encoded.place
        else:
            tokens, place = reference(model, inputs, num_frames, k)
        weight = torch.randn_like(tokens) if weight is None else weight
        wanted = [inputs, *model.vit.parameters(), *model.scorer.parameters(), *model.connector.parameters()]
        grads = torch.autograd.grad((tokens * weight).sum(), wanted, materialize_grads=True)
        results.append((place, tokens.detach(), *grads))
    fast, slow = results
    assert torch.equal(fast[0], slow[0])
    for a, b in zip(fast[1:], slow[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_k_0_is_the_unpruned_vit(monkeypatch):
    model = build()
    monkeypatch.setattr(model, "within_frames", None)  # no mask is made, for no row needs one
    x, num_frames = clips(model, [3, 2])
    encoded = model.encode_video(x, num_frames, k=0.0)
    assert encoded.scores is None and encoded.sim_loss == 0.0 and len(encoded.tokens) == 5 * model.config.cells
    assert encoded.packed.frame.tolist() == [[f] * model.config.vit.num_patches for f in range(5)]
    frame = model.vit.embed(x[1, 1][None])
    features = []
    for block in model.vit.blocks:
        frame = block(frame)
        features.append(frame)
    tapped = cell_major(torch.cat([features[tap] for tap in model.config.taps], -1), 2)[0]
    expected = model.connector(tapped.unflatten(0, (-1, 4)))
    got = encoded.tokens[(encoded.place[:, 0] == 1) & (encoded.place[:, 1] == 1)]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@given(ragged, st.sampled_from([0.3, 0.5, 0.9]), st.integers(0, 3))
def test_a_video_alone_is_the_video_in_any_batch(frames, k, seed):
    model = build()
    x, num_frames = clips(model, frames, seed)
    together = model.encode_video(x, num_frames, k)
    order = list(reversed(range(len(frames))))
    turned = model.encode_video(x[order], num_frames[order], k)
    for b, T in enumerate(frames):
        alone = model.encode_video(x[b : b + 1, :T], k=k)
        for other, row in ((together, b), (turned, order.index(b))):
            mine = other.place[:, 0] == row
            assert torch.equal(other.place[mine][:, 1:], alone.place[:, 1:])
            torch.testing.assert_close(other.tokens[mine], alone.tokens, rtol=1e-10, atol=1e-10)


def test_changing_one_video_moves_no_other_by_a_single_bit():
    """Same shapes, so bit for bit: kept cells, tokens, and the gradient of what the LM says about A."""
    model = build().float()
    batch = batch_of(model, [4, 3])
    batch.frames = batch.frames.float()
    outputs = []
    for change in (0.0, 1.0):
        frames = batch.frames.clone()
        frames[1] += change * torch.randn(frames[1].shape)
        frames[1, 3:] = 1e3 * change  # padding
        frames.requires_grad_()
        output = model(Batch(frames, batch.num_frames, batch.stamps, batch.branches), 0.5)
        a = output.branch < 2
        grad = torch.autograd.grad(output.logits[a].sum(), frames)[0]
        assert (grad[1] == 0).all() and grad[0].abs().sum() > 0
        outputs.append((output.encoded.keep[0], output.logits[a], grad[0]))
    for before, after in zip(*outputs, strict=True):
        assert torch.equal(before, after)


def test_images_among_videos_are_untouched():
    model = build()
    x, num_frames = clips(model, [1, 4])
    mixed, alone = model.encode_video(x, num_frames, 0.9), model.encode_video(x[:1, :1], k=0.0)
    assert mixed.keep[0, 0].all() and not mixed.keep[0, 1:].any()
    torch.testing.assert_close(mixed.tokens[mixed.place[:, 0] == 0], alone.tokens, rtol=1e-10, atol=1e-10)


def test_a_video_with_nothing_to_remove_is_unpruned_beside_one_that_is_pruned():
    """k = 0.1, C = 4: floor(0.8) = 0 cells go of two frames, floor(1.6) = 1 of four."""
    model = build()
    x, num_frames = clips(model, [2, 4])
    mixed, alone = model.encode_video(x, num_frames, 0.1), model.encode_video(x[:1, :2], k=0.0)
    assert mixed.kept.sum(1).tolist() == [8, 15]
    pruned_alone = model.encode_video(x[1:], k=0.1)
    torch.testing.assert_close(mixed.sim_loss, pruned_alone.sim_loss, rtol=1e-10, atol=1e-10)  # of that one only
    no_pictures = model.encode_video(x, num_frames, 0.1, still=torch.zeros(2).bool())
    assert no_pictures.sim_loss == mixed.sim_loss
    torch.testing.assert_close(mixed.tokens[mixed.place[:, 0] == 0], alone.tokens, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", ["log", "rescaled", "none"])
def test_the_lm_loss_reaches_the_scorer_through_the_bias_alone(bias):
    model = build(bias=bias)
    output = model(batch_of(model, [4, 3]), 0.5)
    scorer = list(model.scorer.parameters())
    grads = torch.autograd.grad(output.task_loss, scorer, materialize_grads=True, retain_graph=True)
    assert (sum(g.abs().sum() for g in grads) > 0) == (bias != "none")
    sim = torch.autograd.grad(output.sim_loss, scorer, materialize_grads=True)
    assert sum(g.abs().sum() for g in sim) > 0


def test_the_bias_gradient_is_that_of_finite_differences_and_blind_to_a_frame_shift():
    """d(loss)/d(log-score of one cell), with the selection held fixed; and the sum over a frame is 0."""
    model = build()
    batch = batch_of(model, [3])
    scores = torch.rand(1, 3, 4, dtype=torch.float64) * 0.5 + 0.25

    class Fixed:
        injects_bias = True

        def __init__(self, log_scores):
            self.log_scores = log_scores

        def __call__(self, x, num_frames):
            return self.log_scores.exp()

    def loss(log_scores):
        encode = lambda f, n, k: model.encode_video(f, n, k, scorer=Fixed(log_scores))
        return model(batch, 0.5, encode).task_loss

    log_scores = scores.log().requires_grad_()
    grad = torch.autograd.grad(loss(log_scores), log_scores)[0]
    assert (grad[:, 0] == 0).all() and grad[:, 1:].abs().max() > 1e-6
    torch.testing.assert_close(grad.sum(-1), torch.zeros_like(grad.sum(-1)), rtol=0, atol=1e-12)
    for t, c in ((1, 0), (2, 3)):
        step = torch.zeros_like(scores)
        step[0, t, c] = 1e-5
        numeric = (loss(scores.log() + step) - loss(scores.log() - step)) / 2e-5
        torch.testing.assert_close(grad[0, t, c], numeric.detach(), rtol=1e-5, atol=1e-9)


def test_a_frame_shift_of_the_log_scores_changes_no_value_of_the_next_block():
    model = build()
    x = torch.randn(3, 16, 8, dtype=torch.float64)
    scores = torch.rand(1, 3, 4, dtype=torch.float64) * 0.5 + 0.25
    block = model.vit.blocks[1]
    shifted = scores * torch.tensor([0.5, 1.5, 0.7]).double()[None, :, None]
    a, b = (block(x, key_bias=attention_bias(s, 2)[0]) for s in (scores, shifted))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(a[1:], block(x)[1:])


def test_sim_loss_is_over_prunable_videos_and_their_block_l_tokens():
    model = build()
    x, num_frames = clips(model, [1, 3])
    encoded = model.encode_video(x, num_frames, 0.5)
    tokens = model.vit.blocks[0](cell_major(model.vit.embed(x[1]), 2))[None]
    target, scores = temporal_target(tokens, 2), model.scorer(tokens)
    expected = (scores[:, 1:] - target).square().sum() / (3 * 4)
    torch.testing.assert_close(encoded.sim_loss, expected, rtol=1e-10, atol=1e-10)
    x, num_frames = clips(model, [4, 2])  # each by its own T, whatever stands beside it
    alone = [model.encode_video(x[b : b + 1, :n], k=0.5).sim_loss for b, n in enumerate((4, 2))]
    torch.testing.assert_close(model.encode_video(x, num_frames, 0.5).sim_loss, sum(alone) / 2, rtol=1e-10, atol=1e-10)
    assert model.encode_video(x, num_frames, 0.01).sim_loss == 0.0  # floor(0.01·12) = 0: nothing to remove


@pytest.mark.parametrize("kind", [CosineScorer, RandomScorer])
def test_other_scorers_prune_as_many_and_inject_nothing(kind):
    model = build()
    x, num_frames = clips(model, [4, 2])
    scorer = kind(model.config.scorer)
    encoded = model.encode_video(x, num_frames, 0.5, scorer=scorer)
    assert encoded.kept.sum(1).tolist() == [8, 4] and encoded.sim_loss == 0.0
    assert encoded.keep[:, 0].all()


@pytest.mark.parametrize("detach", [True, False])
def test_the_detach_switch_reaches_the_target(detach):
    """With the scorer's input cut off, only an attached target leads back to the frames."""
    model = build(detach_target=detach)
    x = clips(model, [3])[0].requires_grad_()

    class Blindfold:
        injects_bias = True

        def __call__(self, tokens, frames):
            return model.scorer(tokens.detach(), frames)

    sim = model.encode_video(x, k=0.5, scorer=Blindfold()).sim_loss
    grad = torch.autograd.grad(sim, x, materialize_grads=True)[0]
    assert (grad.abs().sum() > 0) == (not detach)


@pytest.mark.parametrize("shape", [(1, 3, 16), (1, 4, 4), (2, 3, 4), (1, 3)])
def test_a_scorer_of_the_wrong_shape_is_refused(shape):
    model = build()
    x, num_frames = clips(model, [3])
    with pytest.raises(ValueError, match=r"give \(B, T, C\) = \(1, 3, 4\)"):
        model.encode_video(x, num_frames, 0.5, scorer=lambda tokens, frames: torch.rand(shape))


@pytest.mark.parametrize("name, kind", [("stts", Scorer), ("cosine", CosineScorer), ("random", RandomScorer)])
def test_a_model_has_the_scorer_that_its_config_names(name, kind):
    assert type(build(scored_by=name).scorer) is kind


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pixels_come_in_the_models_own_precision(dtype):
    model = build().to(dtype)
    frames = torch.randint(256, (1, 2, 3, 8, 8), dtype=torch.uint8)
    encoded = model.encode_video(frames, k=0.5)
    assert encoded.tokens.dtype == dtype and encoded.tokens.isfinite().all()
    assert encoded.scores.dtype == torch.promote_types(dtype, torch.float32)
    output = model(replace(batch_of(model, [2]), frames=frames), 0.5)
    assert output.logits.dtype == output.task_loss.dtype == torch.promote_types(dtype, torch.float32)


def test_the_cells_stand_in_their_places():
    model = build()
    cells = torch.randn(2, 8, dtype=torch.float64)
    ids = torch.tensor([[7, CELL, 0], [CELL, 9, 9]])
    x = model.fill_cells(ids, cells)
    assert torch.equal(x[ids == CELL], cells)
    assert torch.equal(x[ids != CELL], model.llm.embed_tokens.weight[[7, 0, 9, 9]])


def test_an_oracle_can_be_any_function():
    model = build()
    x, num_frames = clips(model, [3])
    wanted = torch.zeros(1, 3, 4, dtype=torch.float64)
    wanted[0, 1, 2] = wanted[0, 2, 0] = 1
    encoded = model.encode_video(x, num_frames, 0.5, scorer=lambda tokens, frames: wanted)
    assert encoded.keep[0].int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 0]]


def test_uint8_frames_are_scaled_to_one():
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    x = torch.randn(3)
    assert normalise(x) is x and normalise(x, torch.float64).dtype == torch.float64


def test_the_connector_starts_near_a_linear_map():
    connector = Connector(VLMConfig(ViTConfig(width=64), LLMConfig(width=128)))
    layers = {name: layer for name, layer in connector.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert len(layers) == 7 and connector.down_proj.bias is None
    for name, layer in layers.items():
        assert 0.9 < layer.weight.std() * layer.in_features**0.5 < 1.1  # within 9 standard deviations
        assert name == "down_proj" or (layer.bias == (name == "up_proj")).all()


# ---------------------------------------------------------------------------------- the LLM's side


@settings(max_examples=settings.default.max_examples // 2)
@given(ragged, st.sampled_from([0.0, 0.5, 0.9]))
def test_branches_do_not_see_each_other_nor_the_padding(frames, k):
    model = build()
    batch = batch_of(model, frames, questions=3)
    together = model(batch, k)
    for b in range(len(frames)):
        for q in range(3):
            one = Batch(batch.frames[b : b + 1, : frames[b]], batch.num_frames[b : b + 1], [batch.stamps[b]],
                        [[batch.branches[b][q]]])  # fmt: skip
            alone = model(one, k)
            mine = together.branch == b * 3 + q
            torch.testing.assert_close(together.logits[mine], alone.logits, rtol=1e-9, atol=1e-9)
            assert torch.equal(together.targets[mine], alone.targets)


def test_the_loss_is_the_mean_over_answers_of_the_mean_over_their_tokens():
    model = build()
    batch = batch_of(model, [2])
    batch.branches = [[([4, 10, 6], [12]), ([4, 11, 6], [13, 14, 15])]]
    output = model(batch, 0.0)
    assert output.targets.tolist() == [12, END, 13, 14, 15, END]
    losses = -output.logits.log_softmax(-1)[torch.arange(6), output.targets]
    torch.testing.assert_close(output.task_loss, (losses[:2].mean() + losses[2:].mean()) / 2)


@settings(max_examples=settings.default.max_examples * 3 // 8)
@given(ragged, st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 5))
def test_generate_with_the_cache_is_recomputing_everything(frames, k, seed):
    model = build(seed=seed)
    batch = batch_of(model, frames)
    prompts = ([4, 10, 6], [4, 6], [4, 10, 11, 12, 6])
    batch.branches = [[(prompt, [13, 14]) for prompt in prompts] for _ in frames]  # its answers are not looked at
    answers = model.generate(batch, k, max_new_tokens=3)
    for b, video in enumerate(batch.branches):
        for q, (prompt, _) in enumerate(video):
            new: list[int] = []
            while len(new) < 3:
                branches = [[(p, [])] for p in [prompt + new]]
                one = Batch(batch.frames[b : b + 1], batch.num_frames[b : b + 1], [batch.stamps[b]], branches)
                token = int(model(one, k).logits[-1].argmax())
                if token == END:
                    break
                new.append(token)
            assert answers[b][q] == new


def test_questions_beyond_what_is_answered_at_once_have_the_same_answers(monkeypatch):
    model = build()
    batch = batch_of(model, [3, 2])
    batch.branches = [[([4, 10 + i, 6], []) for i in range(n)] for n in (4, 1)]
    whole, rows, real = model.generate(batch, 0.5, 4), [], KVCache.rows
    monkeypatch.setattr(stts_mini.model, "AT_ONCE", 2)

    def spied(cache, index, columns, room):
        taken = real(cache, index, columns, room)
        rows.append((index.tolist(), taken.layers[0][0]))
        return taken

    monkeypatch.setattr(KVCache, "rows", spied)
    assert model.generate(batch, 0.5, 4) == whole and [len(video) for video in whole] == [4, 1]
    assert [index for index, _ in rows] == [[0, 0], [0, 0], [1]]
    buffers = [buffer.shape[2] for _, buffer in rows]
    kept = model.encode_video(batch.frames, batch.num_frames, 0.5).kept.sum(1).tolist()
    first, second = 3 * 3 + kept[0], 2 * 3 + kept[1]  # stamps and markers, cells
    assert buffers == [
        n + 3 + 3 for n in (first, first, second)
    ]  # its own prompt; three new tokens; nothing has to grow


def test_blind_sees_nothing_of_the_video():
    model = build()
    batch = batch_of(model, [3, 2])
    widths = []
    model.llm.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    one = model(batch, 0.0, model.encode_blind)
    batch.frames = torch.randn_like(batch.frames)
    batch.stamps = [[[25]] * 3, [[26]] * 2]
    other = model(batch, 0.0, model.encode_blind)
    assert torch.equal(one.logits, other.logits)
    assert one.tokens == 2 * 2 * (3 + 2) and widths[0] == 2 * (3 + 2)  # two questions of three tokens, with answers
    assert model.generate(batch, 0.0, 3, model.encode_blind)
    encoded = model.encode_blind(batch.frames.to("meta"))
    assert encoded.tokens.shape == (0, LLM_SMALL.width) and encoded.tokens.is_meta
    assert torch.equal(encoded.kept, torch.zeros(2, 3).long()) and torch.equal(encoded.shown, torch.zeros(2, 3).bool())
    assert encoded.place.shape == (0, 3) and encoded.kept.dtype == encoded.place.dtype == torch.long


def test_the_whole_batch_reaches_the_encoder():
    model, seen = build(), []
    batch = batch_of(model, [3, 2])
    model(batch, 0.3, lambda *given: seen.append(given) or model.encode_blind(batch.frames))
    assert all(a is b for a, b in zip(seen[0], (batch.frames, batch.num_frames, 0.3), strict=True))
    kept = model(replace(batch, still=torch.tensor([True, False])), 0.5).encoded.kept.sum(1).tolist()
    assert kept == [12, 4] and torch.equal(model(batch).logits, model(batch, 0.5).logits)
    assert model.encode_video(batch.frames, batch.num_frames).kept.sum(1).tolist() == [6, 4]


def test_with_varlen_half_precision_attends_by_segments_and_the_rest_by_a_mask():
    model = build()
    packed = pack(torch.zeros(2, 16, 8), torch.arange(16).expand(2, 16) < 8)
    for varlen, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model.varlen = varlen
        mask = model.within_frames(replace(packed, x=packed.x.to(dtype)))
        assert torch.equal(mask == 0, block_mask(packed.frame)) and mask.dtype == dtype
    model.varlen = True
    assert model.within_frames(replace(packed, x=packed.x.bfloat16())).ends.tolist() == [0, 8, 16]


def test_the_marks_are_those_of_the_config():
    """The same rows under other ids: the same hidden states, so the same logits of all that is no mark."""
    ours, theirs = build(), build(marks=Marks(36, 37, 38, 39))
    theirs.load_state_dict(ours.state_dict())
    theirs.llm.embed_tokens.weight.data[36:] = ours.llm.embed_tokens.weight[:4]
    one, other = (model(batch_of(model, [3, 1]), 0.5) for model in (ours, theirs))
    torch.testing.assert_close(one.logits[:, 4:36], other.logits[:, 4:36], rtol=1e-12, atol=1e-12)
    assert other.targets[2].item() == 37 and one.targets[2].item() == END


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(w=3, side=2, patches=16), "cannot be cut into cells of w = 3"),
        (dict(score_after=2), "leaves no packed block"),
        (dict(taps=(-3,)), "give one or more of the packed blocks"),
        (dict(taps=(0,)), "give one or more of the packed blocks"),
        (dict(taps=()), "give one or more of the packed blocks"),
        (dict(taps=(-9,)), "give one or more of the packed blocks"),
        (dict(bias="sum"), "log, rescaled or none"),
        (dict(scored_by="mine"), "know stts, cosine, random"),
    ],
)
def test_configs_that_cannot_be_are_refused(options, message):
    options = dict(options)  # the parameter itself stays as it is: tests may run twice in one process
    patches = options.pop("patches", None)
    with pytest.raises(ValueError, match=message):
        if patches:
            VLMConfig(ViTConfig(image_size=8, patch_size=2, width=8, heads=2), LLM_SMALL, w=options["w"])
        else:
            build(**options)


def test_a_second_stage_leaves_the_connector_one_block_less(monkeypatch):
    monkeypatch.setattr(VLMConfig, "stages", 2)
    assert build(taps=(-1,)).config.num_packed == 1
    with pytest.raises(ValueError, match=r"give one or more of the packed blocks −1\.\.−1"):
        build(taps=(-2, -1))
    with pytest.raises(ValueError, match=r"a depth of score_after \+ 4 or more"):
        build(depth=3, taps=(-1,))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(kept=torch.ones(2, 2).long()), r"gave kept \(2, 2\), shown \(2, 3\): give \(B, T\) = \(2, 3\)"),
        (dict(shown=torch.ones(2, 2).bool()), r"gave kept \(2, 3\), shown \(2, 2\): give \(B, T\) = \(2, 3\)"),
        (dict(shown=torch.ones(2, 3).bool()), "a frame of padding: video 1 has 2 frames"),
        (dict(tokens=torch.zeros(19, 8)), "gave 19 tokens, and kept counts 20, 20 of them in shown frames"),
        (dict(tokens=torch.zeros(21, 8)), "gave 21 tokens, and kept counts 20, 20 of them in shown frames"),
        (dict(shown=torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()), "gave 20 tokens, and kept counts 20, 16 of them"),
    ],
)
def test_what_an_encoder_gives_must_fit_together(wrong, message):
    """Else tokens would stand in other frames' places, or nowhere."""
    model = build()
    batch = batch_of(model, [3, 2])
    given = replace(model.encode_video(batch.frames, batch.num_frames, 0.0), **wrong)
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            run(batch, 0.0, encode=lambda *_: given)


def test_rows_that_frames_share_are_never_without_a_mask():
    model = build()
    x, keep = torch.randn(2, 16, 8, dtype=torch.float64), torch.tensor([[True, True, False, False]] * 2)
    with pytest.raises(ValueError, match="frames share rows: leave out pruned=False"):
        model.encode_kept(x, keep, 2, pruned=False)  # one full row, of two frames
    tokens, packed = model.encode_kept(x, keep, 2)
    alone, _ = model.encode_kept(x[1:], keep[1:], 2)
    torch.testing.assert_close(tokens[2:], alone, rtol=1e-10, atol=1e-10)
    assert packed.frame.tolist() == [[0] * 8 + [1] * 8]


@pytest.mark.parametrize("stamps", [1, 3])
def test_a_short_video_has_as_many_stamps_as_frames_too(stamps):
    """A padded row has room for one more; nobody may fill it."""
    model = build()
    batch = batch_of(model, [3, 2])
    batch.stamps[1] = [[25]] * stamps
    with pytest.raises(ValueError, match=f"video 1 has {stamps} time stamps and 2 frames"):
        model(batch, 0.0)
    model(batch, 0.0, model.encode_blind)  # which shows none


@pytest.mark.parametrize("k, message", [(50, "did you mean 0.5"), (1.0, "blind")])
def test_k_that_cannot_be_is_refused_whatever_the_batch(k, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        model.encode_video(clips(model, [1])[0], k=k)
    with pytest.raises(ValueError, match=r"give \(B, T, 3, H, W\)"):
        model.encode_video(torch.zeros(2, 3, 8, 8))


# ------------------------------------------------------------------------------ ways that must not matter


def test_the_order_of_the_rows_does_not_matter(monkeypatch):
    """Bins shuffled: the same kept cells, the same losses, the same logits."""
    model = build()
    batch = batch_of(model, [4, 3, 4])
    expected = model(batch, 0.5)
    seen = []

    def shuffled(x, keep):
        packed = pack(x, keep)
        order = torch.randperm(len(packed.x), generator=torch.Generator().manual_seed(3))
        N = packed.frame.shape[1]
        slot = order.argsort()[packed.slot // N] * N + packed.slot % N
        seen.append(not torch.equal(slot, packed.slot))
        return Packed(packed.x[order], packed.frame[order], slot)

    monkeypatch.setattr("stts_mini.model.pack", shuffled)
    output = model(batch, 0.5)
    assert seen == [True] and torch.equal(output.encoded.keep, expected.encoded.keep)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.task_loss, expected.task_loss, rtol=1e-10, atol=1e-10)


def test_channels_as_a_gpu_wants_them_give_the_same(monkeypatch):
    """The width that CUDA's kernels ask for, on the CPU: values and gradients."""
    model = build()
    batch, results = batch_of(model, [4, 3]), []
    for pad_to in (1, 8):
        wide = lambda q, k, v, bias, pad_to=pad_to: add_bias_channels(q, k, v, bias, pad_to)
        monkeypatch.setattr(
            "stts_mini.vit.add_bias_channels", lambda q, k, v, bias, pad_to, wide=wide: wide(q, k, v, bias)
        )
        output = model(batch, 0.5)
        grads = torch.autograd.grad(output.task_loss, list(model.parameters()), materialize_grads=True)
        results.append([output.logits, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_number_of_waits_for_the_device_does_not_grow_with_the_frames():
    """`pack` and `select` ask the device for values a fixed number of times, whatever F is."""

    class Count(TorchFunctionMode):
        waits = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, "__name__", "")
            self.waits += name in ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
            return func(*args, **(kwargs or {}))

    counts = []
    for F in (4, 400):
        x, keep = torch.randn(F, 9, 2), torch.rand(F, 9) < 0.5
        with Count() as mode:
            block_mask(pack(x, keep).frame)
            select(torch.rand(2, F, 9), 0.5, torch.tensor([F, F - 1]))
        counts.append(mode.waits)
    assert counts[0] == counts[1] > 0


def test_a_batchs_own_scores_stand_in_for_the_scorer():
    model = build()
    batch = batch_of(model, [3, 4])
    B, T = batch.frames.shape[:2]
    scores = torch.rand(B, T, model.config.cells, dtype=torch.float64)
    given = model(replace(batch, scores=scores), 0.5)
    assert torch.equal(given.encoded.scores, scores)
    assert torch.equal(given.encoded.keep, select(scores, 0.5, batch.num_frames))
    assert given.sim_loss == 0  # nobody's scores are trained
    said = model.generate(replace(batch, scores=scores), 0.5, 2)
    again = model.generate(batch, 0.5, 2, encode=lambda *_: given.encoded)
    assert said == again


@pytest.mark.parametrize(
    "value, injected, message", [(2.0, True, "from 0.5 to 2: give scores in"), (math.nan, False, "no NaN")]
)
def test_scores_that_cannot_be_are_refused_and_padding_may_hold_anything(value, injected, message):
    model = build()
    batch = batch_of(model, [3, 2])

    class Given:
        injects_bias = injected

        def __init__(self, place):
            self.place = place

        def __call__(self, x, num_frames):
            scores = torch.full((2, 3, model.config.cells), 0.5)
            scores[self.place] = value
            return scores

    model.encode_video(batch.frames, batch.num_frames, 0.5, Given((1, 2, 0)))  # the second video has two frames
    with pytest.raises(ValueError, match=message):
        model.encode_video(batch.frames, batch.num_frames, 0.5, Given((0, 1, 0)))


def test_features_that_are_no_numbers_are_not_blamed_on_the_scorer():
    model = build()
    batch = batch_of(model, [3, 2])
    with pytest.raises(NotFinite, match="scorer gave scores from nan"):
        model.encode_video(batch.frames, batch.num_frames, 0.5, lambda x, _: x[..., ::4, 0] * math.nan)
    model.vit.blocks[0].layer_norm1.weight.data.fill_(math.nan)
    for scorer in (None, CosineScorer(model.config.scorer)):
        with pytest.raises(NotFinite, match="the features to score are NaN or infinite"):
            model.encode_video(batch.frames, batch.num_frames, 0.5, scorer)


@pytest.mark.parametrize(
    "still, said",
    [([True], r"bool \(1,\)"), (torch.ones(3).bool(), r"bool \(3,\)"), (torch.tensor([0, 1]), r"int64 \(2,\)")],
)
def test_still_is_a_bool_for_each_video(still, said):
    model = build()
    x, num_frames = clips(model, [3, 2])
    with pytest.raises(ValueError, match=f"still is torch.{said}: give a bool for each of the 2 videos"):
        model.encode_video(x, num_frames, 0.5, still=still)
    as_list, as_tensor = (model.encode_video(x, num_frames, 0.5, still=s) for s in ([True, False], torch.eye(2)[0] > 0))
    assert torch.equal(as_list.keep, as_tensor.keep) and as_list.keep[0].all()


def test_a_batch_of_nothing_is_refused():
    model = build()
    x, num_frames = clips(model, [3, 2])
    for frames, counts in ((x[:, :0], None), (x[:0], None), (x[:0], num_frames[:0])):
        with pytest.raises(ValueError, match="give at least 1 of each"):
            model.encode_video(frames, counts, 0.5)


def test_scores_to_be_spread_are_refused_if_they_have_another_range():
    """They would be clamped to one value, and the pattern alone would choose. The heuristic's range is known, also to
    a function that repeats its scores."""
    model, plain = build(spread=0.3), build()
    batch, large = batch_of(model, [3]), torch.nn.Module()
    large.forward = lambda x, counts: 100 + torch.rand(1, 3, model.config.cells)
    with pytest.raises(ValueError, match="from 100 to 101: give scores in"):
        model.encode_video(batch.frames, None, 0.5, large)
    plain.encode_video(batch.frames, None, 0.5, large)
    opposite = 50 * torch.stack([batch.frames[:, 0], -batch.frames[:, 0]], 1)
    first = model.encode_video(opposite, None, 0.5, CosineScorer(model.config.scorer))
    again = model.encode_video(opposite, None, 0.5, lambda *_: first.scores)
    assert first.scores.max() > 1.5 and torch.equal(again.keep, first.keep)


@pytest.mark.parametrize("least, most, bounded", [(0.0, 1.0, True), (-math.inf, math.inf, False)])
def test_scores_at_the_very_ends_are_scores(least, most, bounded):
    scores = torch.tensor([[[least, most]]])
    assert check_scores(scores, (1, 1, 2), bounded=bounded) is scores
