"""The ViT against equations written out by hand, and the bias in a channel against a bias in a mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.vit import ViT, ViTConfig, attend, from_siglip

SMALL = ViTConfig(image_size=8, patch_size=2, width=8, depth=2, heads=2, mlp=12)


def model():
    """All weights random, so that none can be forgotten."""
    torch.manual_seed(0)
    vit = ViT(SMALL)
    for p in vit.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return vit


def softmax_attention(q, k, v, key_bias, mask):
    """softmax(QKᵀ/√d + S) V, one query at a time."""
    y = torch.zeros_like(q)
    F, heads, N, d = q.shape
    for f in range(F):
        for h in range(heads):
            for i in range(N):
                logits = torch.stack([q[f, h, i] @ k[f, h, j] / math.sqrt(d) + key_bias[f, j] for j in range(N)])
                weights = logits.masked_fill(~mask[f, 0, i], -math.inf).softmax(0)
                y[f, h, i] = weights @ v[f, h]
    return y


@given(st.integers(1, 2), st.integers(1, 2), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.booleans())
def test_attention_is_the_equation(F, heads, N, d, with_bias, with_mask):
    torch.manual_seed(N)
    q, k, v = (torch.randn(F, heads, N, d, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(F, N, dtype=torch.float64, requires_grad=True) * 3
    mask = (torch.rand(F, 1, N, N) < 0.5) | torch.eye(N, dtype=torch.bool)
    fast = attend(q, k, v, bias if with_bias else None, mask if with_mask else None)
    slow = softmax_attention(q, k, v, bias * with_bias, mask if with_mask else torch.ones_like(mask))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(fast)
    wanted = [q, k, v] + ([bias] if with_bias else [])
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), wanted) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(dtype):
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    mask[..., 3, :] = False
    y = attend(q, k, v, mask=mask)
    assert (y[:, :, 3] == 0).all() and y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.square().sum(), (q, k, v)))


def test_embedding_is_a_linear_map_of_each_patch():
    vit = model().double()
    frames = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    x = vit.embed(frames)
    assert x.shape == (2, SMALL.num_patches, 8)
    for n in range(16):
        y, z = divmod(n, 4)
        patch = frames[1, :, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2].flatten()
        expected = vit.patch_embedding.weight @ patch + vit.patch_embedding.bias + vit.position_embedding[n]
        torch.testing.assert_close(x[1, n], expected)


def test_frames_do_not_see_each_other():
    vit = model()
    frames = torch.randn(3, 3, 8, 8)
    changed = frames.clone()
    changed[1] += 1
    before, after = vit(frames), vit(changed)
    assert before.shape == (3, 16, 8)
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize("sizes", [dict(image_size=9, patch_size=2), dict(width=10, heads=4), dict(patch_size=0)])
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match="not a multiple"):
        ViTConfig(**sizes)


def test_frames_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"takes \(F, 3, 8, 8\)"):
        ViT(SMALL)(torch.zeros(1, 3, 10, 10))


def test_siglip_names_become_ours():
    ours = set(ViT(SMALL).state_dict())
    theirs = {
        "vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 2, 2),
        "vision_model.embeddings.position_embedding.weight": torch.zeros(16, 8),
        "vision_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8),
        "vision_model.head.probe": torch.zeros(1),
    }
    renamed = from_siglip(theirs)
    assert len(renamed) == 3 and set(renamed) <= ours
    assert renamed["patch_embedding.weight"].shape == (8, 12)
