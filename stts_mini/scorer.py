"""Which cells of a video are worth their tokens: the scorer, and what trains it (paper §3.2).

    s      = sigmoid(MLP([pooled[t−1], pooled[t]]))               one score in (0, 1) per cell
    S      = log s, for every key of the cell, in one block       the LM's loss reaches s through it
    L_sim  = 1/(T·C) · Σ_{t≥1,i} (s[t,i] − (1 − cos(x[t−1,i], x[t,i])))²

The LM's loss orders only the cells *within* a frame, because softmax cancels any constant that is added to all
keys of a frame. The order of frames comes from L_sim and from the features. `training/saliency.py` adds a third
signal, which is ours.

Legend
    B videos · T frames · g×g patches, N = g² · a cell is w×w patches · C = N/w² cells · D width
    tokens are *cell-major*: token = cell · w² + place in the cell, cells row-major. A cell is then
    a run of w² tokens, and everything per cell is a reshape

Where we differ from the paper
    - `1 − cos` compares the cell's own tokens, as in the public code. The paper compares pooled features, but a learned
      pooler could make them all alike.
    - The previous frame is always one of the same video. The public code crosses from one video to the next.
    - log s is clamped below at 1e-4 (SATURATED), but not with `rescaled`. The paper gives no range.
    - A fresh scorer starts at scores of about 0.05, near most targets. From 0.5 it falls so fast that the sigmoid
      saturates, and then it gets no gradient any more (`tutorials/dead_scorer.py`).

What this file does not do: select or pack (`packing.py`). A scorer of your own is any callable
(x (B, T, N, D), num_frames (B,) on the CPU) → scores (B, T, C). `CosineScorer` is a short example. If it is a class in
your own file, every command that takes a scorer finds it as "my_file.py:MyScorer" (`find_scorer`).
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START = -3.0  # first value of the output bias: a score of 0.05
SATURATED = 1e-4  # a score below this, where log s is clamped and so gives no gradient, or above 1 − this


def cell_side(num_patches: int, w: int) -> int:
    """The side g of a square grid of `num_patches`. Raises ValueError unless it is square and w divides g."""
    g = math.isqrt(num_patches)
    if w < 1 or g * g != num_patches or g % w:
        raise ValueError(
            f"a {num_patches}-patch grid (side {num_patches**0.5:g}) cannot be cut into cells of w = {w}:"
            f" choose image and patch size so that the grid's side is a multiple of {max(w, 1)}"
        )
    return g


def cell_major(x: Tensor, w: int) -> Tensor:
    """Reorder tokens (..., N, D) from row-major to cell-major.

    >>> cell_major(torch.arange(16).view(1, 16, 1), w=2)[0, :8, 0].tolist()     # a 4×4 grid
    [0, 1, 4, 5, 2, 3, 6, 7]
    """
    g = cell_side(x.shape[-2], w)
    grid = x.unflatten(-2, (g // w, w, g // w, w))  # (..., cell row, y, cell column, x, D)
    return grid.transpose(-4, -3).flatten(-5, -2)


@dataclass(frozen=True)
class ScorerConfig:
    """Width D of the tokens, side w of a cell in patches, heads of the pooler, width of the MLP."""

    width: int = 64
    w: int = 2
    heads: int = 4
    mlp: int = 256


class CellPooler(nn.Module):
    """Attention pooling inside each cell: the query is the mean token, keys and values are the cell's tokens.

    (..., w², in_width) → (..., width). Multi-head, with its own Q/K/V/O, without LayerNorm or residual. The paper
    (§3.2) says "a self-attention layer for pooling", and the details are the public code's.
    Raises ValueError if width is not a multiple of heads.
    """

    def __init__(self, in_width: int, width: int, heads: int):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"pooler width {width} is not a multiple of its {heads} heads")
        self.heads = heads
        self.q_proj = nn.Linear(in_width, width)
        self.k_proj = nn.Linear(in_width, width)
        self.v_proj = nn.Linear(in_width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x.mean(-2)).unflatten(-1, (self.heads, 1, -1))  # (..., heads, 1, d)
        k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for p in (self.k_proj, self.v_proj))
        weights = (q * k).sum(-1) / q.shape[-1] ** 0.5  # (..., heads, w²)
        pooled = (weights.softmax(-1)[..., None] * v).sum(-2)  # (..., heads, d)
        return self.out_proj(pooled.flatten(-2))


class Scorer(nn.Module):
    """STTS's scorer: pool each cell, concatenate the same cell of the previous frame, score with a small MLP.

    x           (B, T, N, D) cell-major tokens after ViT block l
    num_frames  (B,) int or None; the scores of padding frames are 0
    returns     (B, T, C) in (0, 1), float32 or better, also under autocast
    Paper §3.2. Weights start normal with std 1/√fan_in, truncated at two std. Biases start at zero, and the last one
    at START.
    """

    injects_bias = True  # its log-scores enter the attention of block l+1; a baseline's do not

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.config = config
        self.pooler = CellPooler(config.width, config.width, config.heads)
        widths = (2 * config.width, config.mlp, config.mlp, 1)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                std = layer.in_features**-0.5
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.mlp[-1].bias, START)

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        pooled = self.pooler(x.unflatten(2, (-1, self.config.w**2)))  # (B, T, C, D)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has too few distinct scores
            pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
            previous = torch.cat([torch.zeros_like(pooled[:, :1]), pooled[:, :-1]], dim=1)
            h = torch.cat([previous, pooled], dim=-1)  # (B, T, C, 2D)
            for i, layer in enumerate(self.mlp):
                h = F.linear(F.silu(h) if i else h, layer.weight.to(h.dtype), layer.bias.to(h.dtype))
            scores = h.squeeze(-1).sigmoid()  # (B, T, C)
        return torch.where(real_frames(scores, num_frames), scores, 0)


def real_frames(scores: Tensor, num_frames: Tensor | None) -> Tensor:
    """Which frames of scores (B, T, C) are real, not padding: bool (B, T, 1). None: all are."""
    B, T = scores.shape[:2]
    counts = torch.as_tensor([T] * B if num_frames is None else num_frames)
    counts = counts.to(scores.device, non_blocking=scores.is_cuda)  # a few bytes: no wait
    return (torch.arange(T, device=scores.device) < counts[:, None])[..., None]


def temporal_target(x: Tensor, w: int) -> Tensor:
    """How much each cell changed since the frame before: 1 − cos, the auxiliary target (paper §3.2).

    x (B, T, N, D) cell-major → (B, T−1, C). Entry [b, t−1] compares frames t−1 and t. The cosine is
    over the cell's w² tokens laid end to end.

    >>> x = torch.tensor([[1., 0.], [1., 0.], [0., 2.]]).view(1, 3, 1, 2)       # T = 3, one patch
    >>> temporal_target(x, w=1).flatten().tolist()                              # still, then changed
    [0.0, 1.0]
    """
    cell_side(x.shape[2], w)
    cells = x.unflatten(2, (-1, w * w)).flatten(3)  # (B, T, C, w²·D)
    cells = cells.to(torch.promote_types(x.dtype, torch.float32))
    return 1 - F.cosine_similarity(cells[:, :-1], cells[:, 1:], dim=-1)


def similarity_loss(
    scores: Tensor, target: Tensor, num_frames: Tensor | None = None, detach_target: bool = True
) -> Tensor:
    """L_sim: the mean over videos of 1/(T·C) · Σ_{t≥1} (s − target)² (paper §3.2).

    scores (B, T, C), target (B, T−1, C) from `temporal_target`. T is each video's own number of frames, so padding
    does not count. The mean leaves out videos of one frame. If there is no other video, the loss is 0.

    Why the target is detached (unless `detach_target` is False): the scores should follow the features. If the
    target had a gradient, the ViT could lower the loss by changing its features until they fit the scores.

    >>> float(similarity_loss(torch.full((1, 2, 1), 0.5), torch.zeros(1, 1, 1)))     # 0.25 / (2·1)
    0.125
    """
    B, T, C = scores.shape
    if target.shape != (B, T - 1, C):
        raise ValueError(f"target is {tuple(target.shape)}; scores {tuple(scores.shape)} need {(B, T - 1, C)}")
    target = target.detach() if detach_target else target
    real = real_frames(scores, num_frames)  # (B, T, 1)
    # `where` instead of ×: padding may hold inf, and inf × 0 would put NaN into the loss and the gradient
    error = torch.where(real[:, 1:], scores[:, 1:] - target, 0).square()  # (B, T−1, C)
    frames = real.sum((1, 2))  # (B,)
    per_video = error.sum((1, 2)) / (frames * C)
    return per_video.sum() / (frames > 1).sum().clamp(min=1)


def attention_bias(scores: Tensor, w: int, num_frames: Tensor | None = None, rescale: bool = False) -> Tensor:
    """S, the attention bias of each key: log of its cell's score (paper §3.2).

    scores (B, T, C) in (0, 1) → (B, T, N), cell-major. S = log max(s, 1e-4). Frame 0 and padding get 0, so an image
    gets no bias. `rescale` clamps no score. It scales each frame's scores to [e⁻², 1] before the log, by min–max, as
    the public code does for each row of an image. The range is floored at 0.01, so that a flat frame does not blow up
    the gradient.

    Why per key and not per query: a constant that is added to all logits of one query cancels in its softmax. Added
    to a key, it decides how much every query takes from that key, so a cell with a low score is hardly seen.

    >>> attention_bias(torch.tensor([[[.5, .5], [1., .0]]]), w=1)[0].int().tolist()    # log 1e-4 = −9.2
    [[0, 0], [0, -9]]
    """
    biased = real_frames(scores, num_frames) & (torch.arange(scores.shape[1], device=scores.device) > 0)[:, None]
    if rescale:
        scores = torch.where(biased, scores, 0)  # padding may hold NaN: amin and amax would put it into the gradient
        low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
        low_end = math.exp(-2)
        bias = (low_end + (1 - low_end) * (scores - low) / (high - low).clamp(min=0.01)).log()
    else:
        bias = scores.clamp(min=SATURATED).log()
    return torch.where(biased, bias, 0).repeat_interleave(w * w, dim=-1)


def spread(scores: Tensor, amount: float, start: int = 0) -> Tensor:
    """Spread the kept cells over time: rank cells by logit(scores) + amount · a fixed pattern. Then a cell that looks
    the same in every frame is kept in some frames, instead of in all or in none. This is ours, not the paper's.

    scores  (B, T, C) of frames start, start + 1, …, in [0, 1]; others are clamped
    returns (B, T, C), for `select`, without a gradient; with amount = 0 the scores themselves, as in the paper

    The pattern is log u/(1 − u) with u = frac(t/φ + c/ρ), φ the golden ratio and ρ the plastic number. It is
    distributed as logistic noise but not random. In any run of frames a cell's u are spread evenly, and neighbouring
    cells are out of step.

    >>> select_by = spread(torch.full((1, 4, 2), 0.5), amount=1.0)
    >>> (select_by[0] > 0).int().tolist()                         # equal scores take turns
    [[0, 1], [1, 0], [0, 1], [1, 1]]
    """
    if amount == 0:
        return scores
    T, C = scores.shape[-2:]
    t, c = torch.arange(start, start + T, dtype=torch.float64)[:, None], torch.arange(C, dtype=torch.float64)
    u = (t * 0.6180339887498949 + c * 0.7548776662466927) % 1  # 1/φ, 1/ρ
    pattern = torch.logit(u, eps=0.01).to(scores)  # within ± 4.6
    return torch.logit(scores.detach().float(), eps=1e-4).to(scores) + amount * pattern


class Baseline(nn.Module):
    """A scorer without weights. It only scores: no bias, no L_sim."""

    injects_bias = False

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.config = config


class RandomScorer(Baseline):
    """Uniform random scores. They come from torch's CPU generator, so they are the same on every device, and a resumed
    run continues them."""

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        B, T, N, _ = x.shape
        return torch.rand(B, T, N // self.config.w**2).to(x.device)


class CosineScorer(Baseline):
    """The paper's heuristic: a cell's score is how much it changed since the frame before. Cells that did not change at
    all get scores of about 1e-7 around 0, so rounding decides which of them stay."""

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        change = temporal_target(x, self.config.w)  # (B, T−1, C)
        return F.pad(change, (0, 0, 1, 0), value=1.0)  # frame 0 has no frame before it


SCORERS: dict[str, type[nn.Module]] = {"stts": Scorer, "cosine": CosineScorer, "random": RandomScorer}


def find_scorer(name: str) -> type[nn.Module]:
    """The scorer class of that name: one of `SCORERS`, or "my_file.py:MyScorer". Your class is an `nn.Module` and takes
    a `ScorerConfig`. Raises ValueError if there is no such class.

    A file is imported once, and its class is then in `SCORERS` under that name. Models and checkpoints can use it from
    then on. A checkpoint never imports a file by itself. If the class attribute `injects_bias` is True, your scorer is
    trained by the key bias and L_sim, and its scores must lie in (0, 1). Otherwise it only scores.

    >>> find_scorer("cosine").__name__
    'CosineScorer'
    """
    path, colon, class_name = name.rpartition(":")
    if name not in SCORERS and colon:
        if not Path(path).is_file():
            raise ValueError(f"scorer {name!r}: there is no file {Path(path).absolute()}")
        spec = importlib.util.spec_from_file_location(f"scorer file {path}", path)
        if spec is None or spec.loader is None:
            raise ValueError(f"scorer {name!r}: {path} is not a Python file (its name must end in .py)")
        module = sys.modules[f"scorer file {path}"] = importlib.util.module_from_spec(spec)  # dataclasses need it
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's file may raise anything
            raise ValueError(f"scorer {name!r}: {path} cannot be imported ({type(error).__name__}: {error})") from error
        found = getattr(module, class_name, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError(f"scorer {name!r}: {path} has no nn.Module class {class_name!r}")
        SCORERS[name] = found
    if name not in SCORERS:
        raise ValueError(f"scorer {name!r}: we know {', '.join(SCORERS)}, or your own as my_file.py:MyScorer")
    return SCORERS[name]
