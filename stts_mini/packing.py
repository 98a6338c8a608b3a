"""Hard pruning and sequence packing (paper §3.3, Algorithm 1).

`select` decides which cells stay. `pack` moves their tokens into few rows, and `Packed.unpack` brings them back.
Nothing here has weights.

    remove the floor(k·C·T) cells with the lowest scores, jointly over a video's T frames,
    but none of frame 0; then fill rows of N patches by first-fit descending

Legend
    B videos · T frames of a video · F frames of a whole batch · C cells of a frame
    N patches of a frame, and the capacity of a row ("bin") · F' rows after packing (the paper's T')
    w² patches of a cell · k share of the cells that is *removed*

Where we differ from the paper
    - A video of one frame keeps all its cells, since the paper never prunes frame 0.
    - Ties are broken by position, so that the result is deterministic.
    - Spare slots of a row stay empty, so that a video's features cannot depend on its batch.

What this file does not do: score (`scorer.py`), attend (`vit.py`). `Segments` only calls a CUDA kernel for packed rows.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


def check_k(k: float) -> None:
    """Raise `ValueError`, with the remedy, unless 0 ≤ k < 1.

    >>> check_k(50)
    Traceback (most recent call last):
    ...
    ValueError: k = 50 is not in [0, 1): k is the share of cells to remove; did you mean 0.5?
    """
    if not 0 <= k < 1:
        hint = f"; did you mean {k / 100:g}?" if 2 <= k < 100 else ""
        if k == 1 or k == 100:
            hint = "; to see no video at all, evaluate or train blind"
        raise ValueError(f"k = {k} is not in [0, 1): k is the share of cells to remove{hint}")


def num_removed(k: float, cells: int, frames: int) -> int:
    """How many cells a video of `frames` frames loses: floor(k·C·T), but never one of frame 0.

    The product is exact in decimal: 0.3 · 9 · 10 is 27, while floats, rounded twice, give 26.999…. Raises ValueError
    for a k outside [0, 1) or a video without frames.

    >>> num_removed(0.3, cells=9, frames=10), num_removed(0.9, cells=9, frames=2)
    (27, 9)
    >>> num_removed(0.5, cells=9, frames=1)   # an image
    0
    """
    check_k(k)
    if frames < 1:
        raise ValueError(f"a video of {frames} frames: give at least 1")
    return min(math.floor(Fraction(str(float(k))) * cells * frames), cells * (frames - 1))


def scaled_frames(max_frames: int, k: float) -> int:
    """Test-time scaling: ceil(T/(1−k)) pruned frames keep about as many cells as T unpruned ones have (paper §4).

    >>> scaled_frames(64, 0.3), scaled_frames(64, 0.4), scaled_frames(64, 0.5), scaled_frames(70, 0.3)
    (92, 107, 128, 100)
    """
    check_k(k)
    return math.ceil(max_frames / (1 - Fraction(str(float(k)))))


def frame_counts(num_frames: Tensor | None, B: int, T: int) -> list[int]:
    """`num_frames` (B,) as checked Python ints. None means that all T frames are real. Raises ValueError for other
    numbers, and for a batch without videos or frames.

    >>> frame_counts(None, 2, 5), frame_counts(torch.tensor([5, 1]), 2, 5)
    ([5, 5], [5, 1])
    """
    if B < 1 or T < 1:
        raise ValueError(f"a batch of {B} videos of {T} frames: give at least 1 of each")
    if num_frames is None:
        return [T] * B
    counts = torch.as_tensor(num_frames).tolist()
    if not isinstance(counts, list) or len(counts) != B or not all(isinstance(n, int) and 1 <= n <= T for n in counts):
        raise ValueError(f"num_frames = {counts}: give {B} whole numbers from 1 to {T}, one for each video")
    return counts


def select(scores: Tensor, k: float, num_frames: Tensor | None = None) -> Tensor:
    """Choose the cells that stay: all but the `num_removed` lowest scores of each video.

    scores      (B, T, C) float, higher = more worth keeping; bfloat16 is compared in float32
    k           share of cells to remove, 0 ≤ k < 1
    num_frames  (B,) int, how many of the T frames are real; None: all
    returns     (B, T, C) bool, True = kept; frame 0 is always kept, padding never

    Of equal scores, the smallest (t, cell) is removed first. NaN counts as the highest score.
    Raises ValueError for a k outside [0, 1), scores that are not (B, T, C) floats, or a num_frames
    outside 1..T. Paper §3.3.

    >>> scores = torch.tensor([[[.1, .2], [.9, .3], [.3, .8]]])      # one video, T = 3, C = 2
    >>> select(scores, k=0.5).int().tolist()                        # 3 of 6 are removed, none of frame 0
    [[[1, 1], [1, 0], [0, 0]]]
    """
    if scores.ndim != 3 or not scores.is_floating_point():
        raise ValueError(f"scores are {scores.dtype} {tuple(scores.shape)}: give floats of (B, T, C)")
    B, T, C = scores.shape
    counts = frame_counts(num_frames, B, T)
    budget = torch.tensor([num_removed(k, C, n) for n in counts], device=scores.device)
    real = torch.arange(T, device=scores.device) < torch.tensor(counts, device=scores.device)[:, None]  # (B, T)

    ranked = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    ranked = ranked.masked_fill(~real[..., None], torch.nan)[:, 1:].flatten(1)  # no frame 0; NaN sorts padding last
    order = ranked.argsort(stable=True)  # lowest first, ties by position
    in_budget = torch.arange(order.shape[1], device=scores.device) < budget[:, None]
    removed = real.new_zeros(B, T * C).scatter(1, C + order, in_budget)  # + C: frame 0's cells come first
    return real[..., None] & ~removed.view(B, T, C)


def first_fit_descending(lengths: list[int] | Tensor, capacity: int) -> tuple[Tensor, Tensor, int]:
    """Put segments into rows: the longest first, each into the first row with room for it.

    lengths   F whole numbers from 0 to capacity (a list or a 1-D tensor)
    returns   row (F,) int, offset (F,) int, both on the CPU, and the number of rows;
              a segment of length 0 takes no room: row −1, offset 0

    Equal lengths keep their source order. There are at most 11/9·OPT + 6/9 rows (Dósa 2007).
    Raises ValueError for a length outside 0..capacity or a capacity below 1. Paper, Algorithm 1.

    >>> row, offset, num_rows = first_fit_descending([2, 0, 5, 3], capacity=6)
    >>> row.tolist(), offset.tolist(), num_rows      # 5 first; 3 needs a new row; 2 joins 3
    ([1, -1, 0, 1], [3, 0, 0, 0], 2)
    """
    lengths = torch.as_tensor(lengths, dtype=torch.long).tolist()
    if capacity < 1:
        raise ValueError(f"capacity = {capacity}: a row must hold at least 1 token")
    for i, n in enumerate(lengths):
        if not 0 <= n <= capacity:
            raise ValueError(f"lengths[{i}] = {n} does not fit a row: give 0 to {capacity}")
    # Looking at every row for every segment would take F² steps. A binary tree takes F·log F: a leaf is the room that
    # a row has left, and a node is the larger of its two children, so one walk down finds the first row with room.
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [capacity] * (2 * leaves)  # room[leaves + r] is row r; node n has the children 2n and 2n + 1
    row, offset, num_rows = [-1] * len(lengths), [0] * len(lengths), 0
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        node = 1
        while node < leaves:  # go left wherever the left half has a row with room
            node = 2 * node if room[2 * node] >= lengths[i] else 2 * node + 1
        row[i], offset[i] = node - leaves, capacity - room[node]
        num_rows = max(num_rows, row[i] + 1)
        room[node] -= lengths[i]
        while node > 1:  # the maxima above the row that was filled
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return torch.tensor(row, dtype=torch.long), torch.tensor(offset, dtype=torch.long), num_rows


@dataclass(frozen=True)
class Packed:
    """Kept tokens in rows, and the way back.

    x      (F', N, D)  the rows, zero in spare slots
    frame  (F', N)     the source frame of every slot, −1 = spare
    slot   (kept,)     the place of each kept token in the flattened rows, in source order
    """

    x: Tensor
    frame: Tensor
    slot: Tensor

    @property
    def least_rows(self) -> int:
        """⌈Σ/N⌉, a lower bound: no packing can have fewer rows. First-fit descending has F'.

        >>> pack(torch.zeros(3, 5, 1), torch.arange(5).expand(3, 5) < 3).least_rows     # 9 tokens, rows of 5
        2
        """
        return -(-len(self.slot) // self.frame.shape[1])

    def unpack(self, y: Tensor) -> Tensor:
        """The kept tokens of any y (F', N, ·), frame by frame in their order: (kept, ·)."""
        if y.shape[:2] != self.frame.shape:
            raise ValueError(f"y is {tuple(y.shape)}, but the rows are {tuple(self.frame.shape)}")
        return y.flatten(0, 1)[self.slot]


def pack(x: Tensor, keep: Tensor) -> Packed:
    """Move the kept tokens of F frames into F' ≤ F rows of the same N slots.

    x     (F, N, D)  tokens, any D
    keep  (F, N) bool
    A frame's kept tokens stay together and in order. A frame with none takes no room, so there are zero
    rows if nothing is kept. Raises ValueError if the shapes disagree. Paper, Algorithm 1.

    >>> x = torch.arange(6.).view(3, 2, 1) + 1
    >>> packed = pack(x, torch.tensor([[True, False], [True, True], [True, False]]))
    >>> packed.frame.tolist(), packed.x.squeeze(2).tolist()
    ([[1, 1], [0, 2]], [[3.0, 4.0], [1.0, 5.0]])
    >>> packed.unpack(packed.x).squeeze(1).tolist()
    [1.0, 3.0, 4.0, 5.0]
    """
    if x.ndim != 3 or keep.shape != x.shape[:2] or keep.dtype != torch.bool:
        got = f"x {tuple(x.shape)}, keep {keep.dtype} {tuple(keep.shape)}"
        raise ValueError(f"{got}: give x (F, N, D) and a bool keep (F, N)")
    F, N, D = x.shape
    on_cpu = keep.cpu()  # the only wait for a GPU: indices are made on the CPU and sent in one piece
    lengths = on_cpu.sum(1)
    row, offset, num_rows = first_fit_descending(lengths, N)
    start = row * N + offset - (lengths.cumsum(0) - lengths)  # slot of a frame's first kept token − its rank
    frame = torch.arange(F).repeat_interleave(lengths)  # (kept,)
    slot = start[frame] + torch.arange(len(frame))  # (kept,)
    source = on_cpu.flatten().nonzero().squeeze(1)  # (kept,)
    indices = torch.stack([frame, slot, source])
    frame, slot, source = (indices.pin_memory() if x.is_cuda else indices).to(x.device, non_blocking=x.is_cuda)
    rows = x.new_zeros(num_rows * N, D).index_copy(0, slot, x.flatten(0, 1)[source])
    frames = torch.full((num_rows * N,), -1, device=x.device).index_copy(0, slot, frame)
    return Packed(rows.view(num_rows, N, D), frames.view(num_rows, N), slot)


def block_mask(frame: Tensor) -> Tensor:
    """The attention mask of packed rows: a token sees the tokens of its own source frame, and none sees padding.

    frame (F', N) int → (F', 1, N, N) bool: [row, 1, query, key]. Paper §3.3.

    >>> block_mask(torch.tensor([[7, 7, 4, -1]]))[0, 0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    same = frame[:, :, None] == frame[:, None, :]
    return (same & (frame >= 0)[:, None, :])[:, None]


@dataclass(frozen=True)
class Segments:
    """Attention within packed rows by a kernel instead of a mask. The kernel takes sequences of any length, one after
    another, and skips what a mask would hide. It is PyTorch's `torch.nn.attention.varlen` (FlashAttention), for CUDA
    in half precision only, without a bias.

    ends   (runs + 1,) int32, from 0 to F'·N: 0, then the end of each run in the flattened rows (`cu_seqlens`);
           a run is one frame's tokens, or the spare slots of a row
    """

    ends: Tensor

    @classmethod
    def of(cls, frame: Tensor) -> Segments:
        """The runs of rows with these source frames, (F', N) int, F' ≥ 1. Waits for the device once.

        >>> Segments.of(torch.tensor([[7, 7, 4, -1], [5, 5, 5, -1]])).ends.tolist()
        [0, 2, 3, 4, 7, 8]
        """
        _, lengths = frame.flatten().unique_consecutive(return_counts=True)
        return cls(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(QKᵀ/√d) V within each run, over (F', heads, N, d). The output of spare slots is not used."""
        from torch.nn.attention.varlen import varlen_attn  # since torch 2.10

        rows, N = q.shape[0], q.shape[2]
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (F'·N, heads, d)
        y = varlen_attn(q, k, v, self.ends, self.ends, N, N)  # no run is longer than a row
        return y.unflatten(0, (rows, N)).transpose(1, 2)


def check_varlen(device: torch.device, head_dim: int) -> None:
    """Raise ValueError where `Segments` cannot attend, and say why."""
    if device.type != "cuda":
        raise ValueError(f"--varlen is for CUDA, and the device is {device}: leave it out")
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise ValueError(f"--varlen needs torch 2.10 or later, and this is {torch.__version__}: leave it out")
    if torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"--varlen needs an Ampere GPU or newer, not {name}: leave it out")
    if head_dim % 8 or head_dim > 256:
        raise ValueError(f"--varlen takes heads of 8, 16, … 256, and the ViT's are {head_dim} wide: leave it out")
