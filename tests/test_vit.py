"""The ViT against equations written out by hand, and the bias in a channel against a bias in a mask."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend

from stts_mini.vit import Attention, ViT, ViTConfig, add_bias_channels, attend, from_siglip, resized_positions, sines

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
    with torch.no_grad():  # where a bias is a mask
        again = attend(q, k, v, bias.detach() if with_bias else None, mask if with_mask else None)
    torch.testing.assert_close(again, slow.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [2, 7, 16, 72])
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.bfloat16, 2e-4), (torch.float16, 2e-4)])
def test_the_bias_survives_half_precision_and_padding(d, dtype, error):
    """q·k grows by √d·S: exactly, but for what two numbers of the type cannot hold; any width that is asked for."""
    q, k, v = (torch.zeros(2, 3, 5, d, dtype=dtype) for _ in range(3))
    S = torch.rand(2, 5, dtype=torch.float64).mul(1e-4 - 1).add(1).log()
    for pad_to in (1, 8):
        wide_q, wide_k, wide_v = add_bias_channels(q, k, v, S, pad_to)
        assert wide_q.shape == wide_k.shape == wide_v.shape and wide_q.shape[-1] % pad_to == 0
        assert d**0.5 / 1.5 < float(wide_q[0, 0, 0, d]) < 1.5 * d**0.5 and math.log2(wide_q[0, 0, 0, d]) % 1 == 0
        assert wide_v.shape[-1] <= d + 2 + pad_to and (wide_v == 0).all()
        logits = (wide_q.double() @ wide_k.double().mT) / d**0.5
        assert (logits - S[:, None, None, :]).abs().max() < error
    channels = 1 if dtype in (torch.float32, torch.float64) else 2
    assert add_bias_channels(q, k, v, S)[0].shape[-1] == d + channels  # no padding unless it is asked for


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
        "vision_model.post_layernorm.weight": torch.zeros(8),
    }
    renamed = from_siglip(theirs)
    assert len(renamed) == 4 and set(renamed) <= ours
    assert renamed["patch_embedding.weight"].shape == (8, 12)


def test_a_block_and_the_whole_written_out():
    vit = model().double()
    x = torch.randn(2, 16, 8, dtype=torch.float64)

    def norm(x, layer):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * layer.weight + layer.bias

    def by_hand(x, block):
        h, a = norm(x, block.layer_norm1), block.attention
        q, k, v = (p(h).view(2, 16, 2, 4).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        y = softmax_attention(q, k, v, torch.zeros(2, 16), torch.ones(2, 1, 16, 16).bool())
        x = x + a.out_proj(y.transpose(1, 2).flatten(2))
        h = block.mlp.fc1(norm(x, block.layer_norm2))
        h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())  # tanh-GELU
        return x + block.mlp.fc2(h)

    torch.testing.assert_close(vit.blocks[0](x), by_hand(x, vit.blocks[0]), rtol=1e-9, atol=1e-9)
    frames = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = norm(by_hand(by_hand(vit.embed(frames), vit.blocks[0]), vit.blocks[1]), vit.post_layernorm)
    torch.testing.assert_close(vit(frames), expected, rtol=1e-9, atol=1e-9)


def test_positions_start_as_sines_that_all_differ():
    for g, D in ((6, 64), (27, 1152), (4, 10)):
        positions = sines(g, D)
        assert positions.shape == (g * g, D) and positions.abs().max() <= 1
        assert (positions.amax(0) - positions.amin(0)).min() > 0.05  # no channel is dead
        assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.3


def test_the_wavelengths_of_positions_go_from_4_to_32_patches():
    g, D = 9, 16  # channels: 4 sines and 4 cosines of the row, then of the column
    positions = sines(g, D).view(g, g, D)
    for n, channel in enumerate((0, 3)):
        wavelength = (4, 32)[n]
        angle = 2 * math.pi * torch.arange(g) / wavelength
        torch.testing.assert_close(positions[:, 5, channel], angle.sin(), rtol=0, atol=1e-5)
        torch.testing.assert_close(positions[:, 5, channel + 4], angle.cos(), rtol=0, atol=1e-5)
        torch.testing.assert_close(positions[5, :, channel + 8], angle.sin(), rtol=0, atol=1e-5)


def test_weights_start_as_documented():
    torch.manual_seed(0)
    vit = ViT(ViTConfig(width=64, depth=2))
    for name, p in vit.state_dict().items():
        if name.endswith("bias"):
            assert (p == 0).all()
        elif p.ndim == 2 and name != "position_embedding":
            gain = 0.01 if "out_proj" in name or "fc2" in name else 3.0 if name == "patch_embedding.weight" else 1.0
            assert abs(float(p.std()) * p.shape[1] ** 0.5 / gain - 1) < 0.05, name


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_any_patch_size_takes_all_its_pixels(patch):
    vit = ViT(ViTConfig(image_size=8, patch_size=patch, width=8, depth=1, heads=2, mlp=12))
    assert vit.patch_embedding.in_features == 3 * patch**2
    assert vit(torch.zeros(1, 3, 8, 8)).shape == (1, (8 // patch) ** 2, 8)


class ClaimsToBeOnCUDA(torch.Tensor):
    """On the CPU, but says otherwise."""

    is_cuda, is_cpu = True, False


def test_what_a_gpu_would_take(monkeypatch):
    """Widths are padded to 8 for the key bias, and masks keep to the two kernels that are right under them."""
    taken, attention = [], torch.nn.functional.scaled_dot_product_attention

    @contextmanager
    def pinned(backends):
        taken.append(set(backends))
        yield
        taken.append("out")

    def widths(q, k, v, **options):
        taken.append((q.shape[-1], k.shape[-1], v.shape[-1]))
        return attention(q, k, v, **options)

    monkeypatch.setattr("stts_mini.vit.sdpa_kernel", pinned)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", widths)
    right = {SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH}
    plain = [torch.randn(2, 3, 5, 8) for _ in range(3)]
    bias, mask = torch.randn(2, 5), torch.rand(2, 1, 5, 5) > 0.3
    for kind, padded, pin in ((ClaimsToBeOnCUDA, 16, True), (torch.Tensor, 8, False)):  # on a CPU it is a mask
        q, k, v = (x.as_subclass(kind) for x in plain)
        torch.testing.assert_close(
            attend(q, k, v, bias).as_subclass(torch.Tensor), softmax_attention(*plain, bias, torch.ones(2, 1, 5, 5) > 0)
        )
        attend(q, k, v)
        assert taken == [(padded,) * 3, (8, 8, 8)]  # no mask: PyTorch picks its fastest
        taken.clear()
        attend(q, k, v, mask=mask)
        assert taken == ([right, (8, 8, 8), "out"] if pin else [(8, 8, 8)])
        taken.clear()


@pytest.mark.parametrize("dtype, gradient, with_mask, channels", [
    (torch.float32, False, False, 0),  # a mask of one row a frame, which every head and query shares
    (torch.float32, True, False, 1),  # a mask with a gradient would be slow
    (torch.float32, False, True, 1),  # there is one mask already
    (torch.bfloat16, False, False, 2),  # a mask would be rounded
])  # fmt: skip
def test_a_bias_is_a_mask_where_it_may_be_one(dtype, gradient, with_mask, channels, monkeypatch):
    taken, attention = [], torch.nn.functional.scaled_dot_product_attention

    def spied(q, k, v, attn_mask=None, **options):
        taken.append((q.shape[-1], None if attn_mask is None else tuple(attn_mask.shape)))
        return attention(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=dtype) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool) if with_mask else None
    for kind in (torch.float32, torch.float64) if not gradient else (torch.float32,):  # a scorer may have its own type
        taken.clear()
        attend(q, k, v, torch.randn(2, 5, dtype=kind).requires_grad_(gradient), mask)
    shape = (2, 1, 5, 5) if with_mask else (2, 1, 1, 5) if channels == 0 else None
    assert taken == [(8 + channels, shape)]


def test_positions_resized_keep_what_is_smooth():
    """A slope stays a slope; the same grid stays as it is."""
    at = (torch.arange(8) + 0.5) / 8
    slope = torch.stack([at[:, None].expand(8, 8), at.expand(8, 8)], -1).flatten(0, 1)  # (64, 2): y, x
    torch.testing.assert_close(resized_positions(slope, 64), slope)
    small = resized_positions(slope, 16).view(4, 4, 2)
    middle = (torch.arange(4) + 0.5) / 4
    torch.testing.assert_close(small[1:3, 1:3, 0], middle[1:3, None].expand(2, 2), atol=0.02, rtol=0)
    torch.testing.assert_close(small[1:3, 1:3, 1], middle[None, 1:3].expand(2, 2), atol=0.02, rtol=0)
    impulse = torch.zeros(144, 1)
    impulse[0] = 1.0  # where plain bicubic sampling of every third place never looks
    assert resized_positions(impulse, 16, antialias=True).view(4, 4)[0, 0] > 0.05
    assert resized_positions(impulse, 16).eq(0).all()


def test_a_function_may_replace_attention():
    attention, x, F, heads = Attention(SMALL), torch.randn(3, SMALL.num_patches, SMALL.width), 3, SMALL.heads
    taken = []

    def weigh(q, k, v):
        taken.append(q.shape)
        return q + 2 * k + 3 * v

    expected = attention.out_proj(attention.q_proj(x) + 2 * attention.k_proj(x) + 3 * attention.v_proj(x))
    torch.testing.assert_close(attention(x, mask=weigh), expected)
    assert taken == [(F, heads, SMALL.num_patches, SMALL.head_dim)]
    with pytest.raises(AssertionError, match="takes no bias per key"):
        attention(x, torch.zeros(3, SMALL.num_patches), weigh)
