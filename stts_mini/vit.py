"""The image encoder: a Vision Transformer with the SigLIP 2 architecture, in plain PyTorch.

    x = patches·W + b + positions
    x = x + Attention(LayerNorm(x));  x = x + MLP(LayerNorm(x))         in every block
    Attention = softmax(QKᵀ/√d + S) V                                   S: optional bias per key

Every frame is encoded on its own. There is no CLS token and no pooling head. `from_siglip` renames
the weights of Hugging Face's `SiglipVisionModel`, and then both give the same numbers.

Legend
    F frames (of any video) · N patches of a frame · D width · d width of a head
    H, W pixels · p side of a patch in pixels · g = H/p patches to a side, row-major, N = g²

What this file does not do: score, prune or pack. A block takes a bias per key, and a mask or a function instead of
`attend`. It does not know what they are for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v → y, all (F, heads, N, d)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of the ViT. Raises ValueError for sizes that do not divide. SigLIP so400m/14-384 has image_size 378,
    patch_size 14, width 1152, depth 27, heads 16, mlp 4304."""

    image_size: int = 48
    patch_size: int = 8
    width: int = 64
    depth: int = 6
    heads: int = 2
    mlp: int = 256
    eps: float = 1e-6

    def __post_init__(self):
        for whole, part in (("image_size", "patch_size"), ("width", "heads")):
            a, b = getattr(self, whole), getattr(self, part)
            if b < 1 or a < b or a % b:
                raise ValueError(f"ViT {whole} {a} is not a multiple of {part} {b}: change one of the two")

    @property
    def grid(self) -> int:
        """g, patches to a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """N, patches of a frame."""
        return self.grid**2

    @property
    def head_dim(self) -> int:
        """d, width of one head."""
        return self.width // self.heads


def attend(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d + S) V.

    q, k, v   (F, heads, N, d)
    key_bias  S (F, N), the same for every head and query
    mask      (F, 1, N, N) bool, True = may attend, or floats to add to the logits, without a gradient
    returns   (F, heads, N, d); a query that may attend to nothing gets zeros

    A float mask with a gradient would drop PyTorch to its slow path. So S rides in extra channels:
    [q, c, c]·[k, hi, lo]/√d = q·k/√d + S. Without a gradient, S is a mask where that is exact and fast: on a CPU, in
    more than 16 bits, with no other mask.
    """
    d = q.shape[-1]
    full_precision_on_cpu = q.is_cpu and q.dtype.itemsize > 2
    if key_bias is not None and mask is None and full_precision_on_cpu and not key_bias.requires_grad:
        mask = key_bias[:, None, None].to(q.dtype)  # (F, 1, 1, N)
    elif key_bias is not None:
        q, k, v = add_bias_channels(q, k, v, key_bias, pad_to=8 if q.is_cuda else 1)
    # cuDNN's attention has given wrong results under masks: keep to kernels that are right
    masked_on_cuda = q.is_cuda and mask is not None
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if masked_on_cuda else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=d**-0.5)[..., :d]


def add_bias_channels(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor, pad_to: int = 1) -> tuple[Tensor, ...]:
    """q, k, v (F, heads, N, d) with more channels, so that q·k grows by √d · key_bias (F, N).

    The query's constant c is a power of two near √d. In half precision S is split in two: what the type can hold,
    and the rest. That keeps its error below 2e-4. The width becomes a multiple of `pad_to`, because CUDA's fast
    kernels want 8.
    """
    d = q.shape[-1]
    c = 2.0 ** round(math.log2(d) / 2)
    S = key_bias * (math.sqrt(d) / c)
    parts = [S.to(k.dtype)]
    if k.dtype in (torch.bfloat16, torch.float16):
        parts.append((S - parts[0]).to(k.dtype))
    spare = -(d + len(parts)) % pad_to
    extra = torch.stack(parts, dim=-1)[:, None].expand(*k.shape[:3], len(parts))  # (F, heads, N, 1 or 2)
    q = F.pad(torch.cat([q, q.new_full((), c).expand_as(extra)], dim=-1), (0, spare))
    return q, F.pad(torch.cat([k, extra], dim=-1), (0, spare)), F.pad(v, (0, len(parts) + spare))


class Attention(nn.Module):
    """Multi-head self-attention with biases in all four projections."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, key_bias: Tensor | None = None, mask: Tensor | Attend | None = None) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections)  # (F, heads, N, d)
        assert key_bias is None or not callable(mask), "a function that replaces `attend` takes no bias per key"
        y = mask(q, k, v) if callable(mask) else attend(q, k, v, key_bias, mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (F, N, D)


class Block(nn.Module):
    """A pre-LayerNorm transformer block: x (F, N, D) → (F, N, D). `mask` is one of `attend`, or a function q, k, v → y
    to use instead of `attend`."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attention = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.eps)
        fc1, fc2 = nn.Linear(config.width, config.mlp), nn.Linear(config.mlp, config.width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU(approximate="tanh"), fc2=fc2))

    def forward(self, x: Tensor, key_bias: Tensor | None = None, mask: Tensor | Attend | None = None) -> Tensor:
        x = x + self.attention(self.layer_norm1(x), key_bias, mask)
        return x + self.mlp(self.layer_norm2(x))


def sines(g: int, D: int) -> Tensor:
    """Positions of a g×g grid, (g², D): sines and cosines of the row, then of the column. Wavelengths go from 4 to 32
    patches."""
    count = -(-D // 4)
    frequency = 2 * math.pi / torch.logspace(2, 5, count, base=2)
    angle = torch.arange(g)[:, None] * frequency
    along = torch.cat([angle.sin(), angle.cos()], dim=1)  # (g, 2·count)
    row, column = along[:, None].expand(g, g, -1), along[None].expand(g, g, -1)
    return torch.cat([row, column], dim=2).flatten(0, 1)[:, :D]


class ViT(nn.Module):
    """frames (F, 3, H, W), scaled to [−1, 1] → (F, N, D), row-major, after the final LayerNorm.

    `embed` and `blocks` are public, for callers that need hidden states on the way.
    Raises ValueError for frames of another size.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.width)
        self.position_embedding = nn.Parameter(sines(config.grid, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear weights are normal with std 1/√fan_in, biases zero, LayerNorms 1 and 0. Two gains differ. It is 0.01
        for weights that write to the residual stream (out_proj, fc2), so that every block starts as almost the
        identity. It is 3 for the patch embedding, because the pixels of a patch differ little. Positions are learned.
        They start as 2-D sines, so that a cell's mean still shows where it lies."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                gain = 0.01 if name.endswith(("out_proj", "fc2")) else 3.0 if name == "patch_embedding" else 1.0
                nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def embed(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) → (F, N, D): a linear map of each flattened patch, plus its position."""
        size, p = self.config.image_size, self.config.patch_size
        if frames.ndim != 4 or frames.shape[1:] != (3, size, size):
            raise ValueError(f"frames are {tuple(frames.shape)}; this ViT takes (F, 3, {size}, {size})")
        patches = frames.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (F, 3, g, p, g, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (F, N, 3·p²)
        return self.patch_embedding(patches) + self.position_embedding

    def forward(self, frames: Tensor) -> Tensor:
        x = self.embed(frames)
        for block in self.blocks:
            x = block(x)
        return self.post_layernorm(x)


def resized_positions(positions: Tensor, num_patches: int, antialias: bool = False) -> Tensor:
    """Resize the position embeddings (N, D) of a square grid, by bicubic interpolation as in Hugging Face's SigLIP.
    `antialias` smooths them first where the grid shrinks.

    >>> resized_positions(torch.ones(16, 3), 4).shape
    torch.Size([4, 3])
    """
    old, new = math.isqrt(len(positions)), math.isqrt(num_patches)
    grid = positions.float().unflatten(0, (old, old)).permute(2, 0, 1)[None]  # (1, D, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False, antialias=antialias)
    return grid[0].flatten(1).T.to(positions.dtype)


FROM_SIGLIP = {
    "vision_model.": "",
    "embeddings.": "",
    "encoder.": "",
    "layers.": "blocks.",
    "self_attn.": "attention.",
    "position_embedding.weight": "position_embedding",
}


def from_siglip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of Hugging Face's `SiglipVisionModel` to that of `ViT`.

    Its patch convolution becomes our linear map. Its pooling head is left out, because we have none.
    """
    renamed = {}
    for key, value in state.items():
        for theirs, ours in FROM_SIGLIP.items():
            key = key.replace(theirs, ours)
        if not key.startswith("head."):
            renamed[key] = value.flatten(1) if key == "patch_embedding.weight" else value  # (D, 3, p, p) → (D, 3·p²)
    return renamed
