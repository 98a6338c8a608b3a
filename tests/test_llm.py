"""The LLM against equations written out by hand; the cache against recomputation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.llm import LLM, KVCache, LLMConfig, RMSNorm, from_qwen3, rotary, rotate

SMALL = LLMConfig(vocab_size=11, width=8, depth=2, heads=4, kv_heads=2, head_dim=6, mlp=10)


def rms(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x, position, theta):
    """RoPE on one vector, pair by pair."""
    d = len(x)
    y = x.clone()
    for i in range(d // 2):
        a = position * theta ** (-2 * i / d)
        y[i] = x[i] * math.cos(a) - x[i + d // 2] * math.sin(a)
        y[i + d // 2] = x[i + d // 2] * math.cos(a) + x[i] * math.sin(a)
    return y


def slow_llm(llm, x, positions, mask):
    """One token, one head, one key at a time. x (L, D)."""
    c = llm.config
    for layer in llm.layers:
        h = rms(x, layer.input_layernorm.weight)
        a = layer.self_attn
        rows = []
        for i in range(len(x)):
            heads = []
            for head in range(c.heads):
                shared = head // (c.heads // c.kv_heads)
                group = slice(shared * c.head_dim, (shared + 1) * c.head_dim)
                q = a.q_proj.weight[head * c.head_dim : (head + 1) * c.head_dim] @ h[i]
                q = turn(rms(q, a.q_norm.weight), int(positions[i]), c.rope_theta)
                seen = [j for j in range(len(x)) if mask[i, j]]
                logits = []
                for j in seen:
                    k = turn(rms(a.k_proj.weight[group] @ h[j], a.k_norm.weight), int(positions[j]), c.rope_theta)
                    logits.append(q @ k / math.sqrt(c.head_dim))
                weights = torch.stack(logits).softmax(0)
                heads.append(sum(w * (a.v_proj.weight[group] @ h[j]) for w, j in zip(weights, seen, strict=True)))
            rows.append(a.o_proj.weight @ torch.cat(heads))
        x = x + torch.stack(rows)
        h = rms(x, layer.post_attention_layernorm.weight)
        m = layer.mlp
        gate = h @ m.gate_proj.weight.T
        x = x + (gate * torch.sigmoid(gate) * (h @ m.up_proj.weight.T)) @ m.down_proj.weight.T
    return rms(x, llm.norm.weight)


def model(seed=0, config=SMALL):
    torch.manual_seed(seed)
    llm = LLM(config).double()
    for p in llm.parameters():  # norms too, so that a forgotten weight shows
        torch.nn.init.normal_(p, std=0.5)
    return llm


@pytest.mark.parametrize("causal", [True, False])
def test_llm_is_the_equations(causal):
    llm = model()
    torch.manual_seed(1)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    positions = torch.arange(5)[None] if causal else torch.tensor([[0, 1, 2, 2, 40]])
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    if causal:
        y = llm(x)
    else:
        mask[0, 1] = True
        mask[4, 2] = False
        y = llm(x, positions, mask[None, None])
    torch.testing.assert_close(y[0], slow_llm(llm, x[0], positions[0], mask), rtol=1e-10, atol=1e-10)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50))
def test_rope_knows_only_distances(i, j, shift):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)

    def product(a, b):
        at = lambda p: rotary(torch.tensor([[p]]), 6, 1e4, torch.float64)
        return (rotate(q, *at(a)) * rotate(k, *at(b))).sum()

    torch.testing.assert_close(product(i, j), product(i + shift, j + shift), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_norms_and_rotations_of_half_precision_are_computed_in_float32_and_rounded_once(half):
    """x² of 300 is beyond float16; bfloat16 has no 1001, so that position would be that of 1000."""
    x = 300 * torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0)).to(half)
    norm = RMSNorm(8, eps=1e-6)  # its weights in float32, as under autocast
    torch.nn.init.normal_(norm.weight)
    expected = F.rms_norm(x.float(), (8,), norm.weight, 1e-6).to(half)
    assert expected.isfinite().all() and torch.equal(norm(x), expected)
    (cos, sin), exact = (rotary(torch.tensor([[7, 1001, 5555]]), 8, 1e4, dtype) for dtype in (half, torch.float32))
    assert torch.equal(torch.stack([cos, sin]), torch.stack(exact))
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).to(half))


@given(st.integers(1, 5), st.integers(1, 3))
def test_cache_gives_what_recomputing_gives(prefix, step):
    llm = model()
    torch.manual_seed(2)
    x = torch.randn(2, prefix + 2 * step, 8, dtype=torch.float64)
    full, cache, parts = llm(x), KVCache(), []
    L = x.shape[1]
    mask, positions = torch.ones(L, L, dtype=torch.bool).tril(), torch.arange(L).expand(2, L)
    for a, b in ((0, prefix), (prefix, prefix + step), (prefix + step, L)):
        parts.append(llm(x[:, a:b], positions[:, a:b], mask[a:b, :b][None, None], cache))
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-10, atol=1e-10)
    columns = torch.tensor([[0, L - 1], [L - 1, 1], [1, 1]])
    rows = cache.rows(torch.tensor([1, 1, 0]), columns)
    for taken, whole in zip(rows.layers[1], cache.layers[1], strict=True):
        expected = [whole[1, :, columns[0]], whole[1, :, columns[1]], whole[0, :, columns[2]]]
        assert torch.equal(taken, torch.stack(expected)) and rows.lengths == [2, 2]
    with pytest.raises(ValueError, match="filled cache"):
        llm(x, cache=cache)


def test_generate_is_argmax_again_and_again_whatever_the_padding():
    llm = model(config=LLMConfig(vocab_size=11, width=8, depth=2, heads=4, kv_heads=2, head_dim=6, mlp=10, tied=False))
    prompts = [[1, 2, 3, 4], [5, 6]]
    expected = []
    for ids in prompts:
        new = []
        while len(new) < 6:
            token = int(llm.logits(llm(llm.embed(torch.tensor([ids + new])))[0, -1]).argmax())
            if token == 10:
                break
            new.append(token)
        expected.append(new)
    padded, cache = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), KVCache()
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    hidden = llm(llm.embed(padded), torch.arange(4).expand(2, 4), mask, cache)
    row, last = torch.tensor([1, 0, 1]), torch.tensor([1, 3, 1])  # in another order, one of them twice
    seen = torch.arange(4) <= last[:, None]
    expected = [expected[r] for r in row]
    assert llm.generate(hidden[row, last], last, cache, row, seen, 6, stop=10) == expected
    assert any(expected) and len(expected[0]) != len(expected[1])
    assert cache.lengths == [4, 4] and cache.layers[0][0].shape[2] == 4  # what was read stays as it is


def test_generate_stops_at_stop(monkeypatch):
    llm, cache, copies = model(), KVCache(), []
    real = KVCache.rows
    monkeypatch.setattr(KVCache, "rows", lambda *args, **options: copies.append(1) or real(*args, **options))
    mask, positions = torch.ones(1, 1, 2, 2).bool().tril(), torch.tensor([[0, 1]])
    hidden = llm(llm.embed(torch.tensor([[1, 2]])), positions, mask, cache)
    asked = hidden[:, 1], torch.tensor([1]), cache, torch.tensor([0]), torch.ones(1, 2).bool()
    first = llm.generate(*asked, 1, stop=-1)[0][0]
    assert llm.generate(*asked, 5, stop=first) == [[]]
    assert llm.generate(*asked, 0, stop=-1) == [[]]
    assert copies == []  # the first new token needs none
    assert len(llm.generate(*asked, 3, stop=-1)[0]) == 3 and copies == [1]


def test_weights_start_as_documented():
    torch.manual_seed(0)
    llm = LLM(LLMConfig(vocab_size=50, width=64, depth=1, heads=2, kv_heads=1, head_dim=24, mlp=96, tied=False))
    for name, p in llm.named_parameters():
        if "norm" in name:
            assert (p == 1).all(), name
            continue
        writes = "o_proj" in name or "down_proj" in name  # to the residual stream
        std = 0.02 if "embed" in name or "head" in name else (0.01 if writes else 1.0) / p.shape[1] ** 0.5
        assert float(p.detach().std()) == pytest.approx(std, rel=0.1), name


def test_tied_and_untied_heads():
    tied, untied = LLM(SMALL), LLM(LLMConfig(**{**vars(SMALL), "tied": False}))
    h = torch.randn(3, 8)
    assert torch.equal(tied.logits(h), h @ tied.embed_tokens.weight.T)
    assert torch.equal(untied.logits(h), h @ untied.lm_head.weight.T)
    state = {"model." + k: v for k, v in tied.state_dict().items()} | {"lm_head.weight": tied.embed_tokens.weight}
    tied.load_state_dict(from_qwen3(state))
    assert "lm_head.weight" in from_qwen3(state, tied=False)


@pytest.mark.parametrize(
    "sizes", [dict(heads=4, kv_heads=3), dict(head_dim=7), dict(kv_heads=0), dict(heads=0), dict(head_dim=0)]
)
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match=r"not a multiple|not even"):
        LLMConfig(**sizes)


@pytest.mark.parametrize("half", [False, True])
def test_layers_share_one_mask_in_the_type_they_compute_in(half, monkeypatch):
    llm, seen = LLM(LLMConfig(width=8, depth=2, heads=2, kv_heads=1, head_dim=4, mlp=8)), []
    real = F.scaled_dot_product_attention

    def spied(q, k, v, attn_mask=None, **options):
        seen.append((attn_mask, q.dtype))
        return real(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spied)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        llm(torch.randn(1, 3, 8), mask=mask)
    (first, dtype), (second, _) = seen
    assert first is second and first.dtype == dtype == (torch.bfloat16 if half else torch.float32)
    assert torch.equal(first == 0, mask) and torch.equal(first == -math.inf, ~mask)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 4), st.integers(0, 2**31))
def test_a_cache_holds_what_was_put_into_it(lengths, room, seed):
    """Whatever room it takes; and rows that were taken out of it go their own way."""
    torch.manual_seed(seed)
    new = [(torch.randn(2, 3, n, 4), torch.randn(2, 3, n, 4)) for n in lengths]
    cache, taken = KVCache(), None
    for i, (k, v) in enumerate(new):
        for layer in (0, 1):
            keys, values = cache.append(layer, k + layer, v - layer)
        so_far = [torch.cat([pair[j] for pair in new[: i + 1]], dim=2) for j in (0, 1)]
        assert torch.equal(keys, so_far[0] + 1) and torch.equal(values, so_far[1] - 1)
        if i == 0:
            taken = cache.rows(torch.tensor([1, 1, 0]), torch.arange(lengths[0]).expand(3, -1), room)
            assert taken.layers[0][0].shape[2] == lengths[0] + room
    other = torch.randn(3, 3, 2, 4)
    keys, _ = taken.append(0, other, other)
    assert torch.equal(keys, torch.cat([new[0][0][[1, 1, 0]], other], dim=2))
    keys, _ = cache.append(0, other[:2], other[:2])
    assert torch.equal(keys, torch.cat([so_far[0], other[:2]], dim=2))
    assert torch.equal(new[0][0], so_far[0][:, :, : lengths[0]])  # what was given is nobody's buffer
