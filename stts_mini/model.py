"""The video VLM, and the one place where the pieces of STTS come together (paper Figure 3).

    frames → ViT blocks 0..l → score → select → block l+1 with the key bias → pack
           → ViT blocks l+2.. under the block mask → unpack → connect → LLM → answer

`VLM.encode_video` does these steps up to the LLM. `VLM.forward` gives the losses of a batch, and `VLM.generate`
answers its questions.

Why the speed-up grows with the number of frames: pruning saves the same share of the ViT's work for any T. But in
the LLM every token attends to every other. Half the tokens leave a quarter of these pairs, and the pairs' share of
all work grows with T.

Legend
    B videos · T frames of the longest, num_frames (B,) of each · g×g = N patches · w×w patches in a
    cell, C cells · D ViT width · W LLM width · F real frames of the batch · K kept cells of the batch
    L length of a sequence · A answer tokens · R questions of a batch

Where we differ from the paper
    - Only kept cells go through the connector, which has norms of its own.
    - The ViT never computes padding frames.
    - A video with nothing to remove runs exactly as in the unpruned model: no bias, no L_sim.
    - The connector reads blocks −3 and −1 of a small ViT (`taps`). The public code reads −3 and −9 of 27.
    - Cells are selected before block l+1 runs, and removed after it. The result is the same.

What this file does not do: lay out sequences (`sequence.py`), read files (`data/`), optimise (`train.py`) or
evaluate (`eval.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stts_mini.llm import LLM, KVCache, LLMConfig, RMSNorm, added
from stts_mini.packing import Packed, Segments, block_mask, frame_counts, num_removed, pack, select
from stts_mini.scorer import (
    SCORERS,
    CellPooler,
    CosineScorer,
    ScorerConfig,
    attention_bias,
    cell_major,
    cell_side,
    similarity_loss,
    spread,
    temporal_target,
)
from stts_mini.sequence import CELL, MARKS, Batch, Branches, Layout, Marks, check_prompts, prefix_ids, sent
from stts_mini.vit import ViT, ViTConfig

AT_ONCE = 32  # questions answered side by side; a limit, because each copies the keys and values that it sees


@dataclass(frozen=True)
class VLMConfig:
    """The ViT, the LLM, and everything between them.

    score_after  l: cells are scored after this block (0-based) and pruned after the next one
    w            side of a cell in patches
    scored_by    "stts", a baseline ("cosine" or "random"), or a class of yours (see `scorer.find_scorer`)
    taps         the blocks whose outputs the connector reads, counted from the end: −1 is the last
    bias         "log": S = log s (the paper); "rescaled": as in the public code; "none": no key bias
    spread       how much kept cells are spread over time (see `scorer.spread`); 0 as in the paper: not at all
    detach_target  whether L_sim's target is detached (see `scorer.similarity_loss`)
    marks        the token ids that sequences are built with
    stages       how often `encode_video` prunes; only a fork does so more than once (tutorials/fork_me.md, 5)
    Raises ValueError for blocks that do not exist or are not packed, and for a grid that w does not divide.
    """

    vit: ViTConfig = field(default_factory=ViTConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    w: int = 2
    score_after: int = 0
    scored_by: str = "stts"
    scorer_heads: int = 4
    scorer_mlp: int = 256
    connector_mlp: int = 256
    taps: tuple[int, ...] = (-3, -1)
    bias: str = "log"
    spread: float = 0.0
    detach_target: bool = True
    marks: Marks = MARKS
    stages = 1

    def __post_init__(self):
        cell_side(self.vit.num_patches, self.w)
        if self.score_after < 0 or self.num_packed < 1:
            raise ValueError(
                f"score_after {self.score_after} leaves no packed block in a ViT of depth {self.vit.depth}:"
                f" give 0 or more, and a depth of score_after + {2 + self.stages} or more"
            )
        if not self.taps or not all(-self.num_packed <= tap < 0 for tap in self.taps):
            raise ValueError(f"taps {self.taps}: give one or more of the packed blocks −{self.num_packed}..−1")
        if self.bias not in ("log", "rescaled", "none"):
            raise ValueError(f"bias {self.bias!r}: give log, rescaled or none")
        if self.scored_by not in SCORERS:
            raise ValueError(
                f"scored_by {self.scored_by!r}: we know {', '.join(SCORERS)}. To use a class in your own file, give"
                f" --scorer {self.scored_by}, or call scorer.find_scorer first"
            )

    @property
    def num_packed(self) -> int:
        """How many blocks run on packed rows, after the last pruning."""
        return self.vit.depth - self.score_after - 1 - self.stages

    @property
    def cells(self) -> int:
        """C, cells of a frame."""
        return self.vit.num_patches // self.w**2

    @property
    def scorer(self) -> ScorerConfig:
        """The scorer's own sizes."""
        return ScorerConfig(self.vit.width, self.w, self.scorer_heads, self.scorer_mlp)


@dataclass
class Encoded:
    """What an encoder makes of a batch of videos. Any callable (frames, num_frames, k) → Encoded is an encoder.

    tokens   (K, W): the LLM tokens, ordered by video, frame, cell
    kept     (B, T) int on the CPU: how many tokens each frame has
    shown    (B, T) bool on the CPU: which frames have a stamp and markers in the sequence; others have no tokens
    place    (K, 3) int: video, frame and cell of every token
    keep     (B, T, C) bool, or None for an encoder that does not select cells
    scores   (B, T, C), or None if nothing was scored
    packed   the rows and their source frames, or None
    sim_loss L_sim, or 0 if nothing was pruned, or if the scorer does not learn from it (`injects_bias`)
    target   (B, T−1, C), what L_sim compares the scores with, or None in the same two cases
    """

    tokens: Tensor
    kept: Tensor
    shown: Tensor
    place: Tensor
    keep: Tensor | None = None
    scores: Tensor | None = None
    packed: Packed | None = None
    sim_loss: Tensor | float = 0.0
    target: Tensor | None = None


Encoder = Callable[..., Encoded]


@dataclass
class Output:
    """Losses and logits of a batch with A answer tokens.

    task_loss  cross-entropy of the answer tokens, averaged per answer
    sim_loss   L_sim
    logits     (A, V); targets (A,); branch (A,): the answer's number in the batch
    tokens     the number of real tokens in all sequences
    """

    task_loss: Tensor
    sim_loss: Tensor | float
    logits: Tensor
    targets: Tensor
    branch: Tensor
    tokens: int
    encoded: Encoded


class Connector(nn.Module):
    """From ViT features to LLM tokens: LayerNorm, pool each cell, a SwiGLU projection, RMSNorm.

    x (K, w², taps·D) → (K, W). The norms are ours. Without them, a model trained from scratch makes tokens
    hundreds of times larger than word embeddings, and then the LLM cannot write time into them.
    Weights start normal with std 1/√fan_in, biases at zero. Only up_proj's start at 1, so that the SwiGLU begins
    near a linear map instead of a pure product.
    """

    def __init__(self, config: VLMConfig):
        super().__init__()
        features = len(config.taps) * config.vit.width
        self.norm_in = nn.LayerNorm(features, eps=config.vit.eps)
        self.pooler = CellPooler(features, config.vit.width, config.vit.heads)
        self.gate_proj = nn.Linear(config.vit.width, config.connector_mlp)
        self.up_proj = nn.Linear(config.vit.width, config.connector_mlp)
        self.down_proj = nn.Linear(config.connector_mlp, config.llm.width, bias=False)
        self.norm_out = RMSNorm(config.llm.width, eps=config.llm.eps)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, 1.0 if layer is self.up_proj else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooler(self.norm_in(x))  # (K, D)
        return self.norm_out(self.down_proj(F.silu(self.gate_proj(pooled)) * self.up_proj(pooled)))


class VLM(nn.Module):
    """Video in, answers out. The module's docstring shows how the data flows."""

    def __init__(self, config: VLMConfig):
        super().__init__()
        self.config = config
        self.vit = ViT(config.vit)
        self.vit.post_layernorm = nn.Identity()  # the connector taps hidden states before it
        self.scorer: nn.Module = SCORERS[config.scored_by](config.scorer)
        self.connector = Connector(config)
        self.llm = LLM(config.llm)
        self.varlen = False  # True: in half precision, packed rows use a CUDA kernel instead of a mask

    # ---------------------------------------------------------------------------------- the method

    def encode_video(
        self,
        frames: Tensor,
        num_frames: Tensor | None = None,
        k: float = 0.5,
        scorer: Callable[[Tensor, Tensor], Tensor] | None = None,
        still: Tensor | None = None,
        score_all: bool = False,
    ) -> Encoded:
        """From frames to the LLM tokens of the kept cells (paper Figure 3, §3.2 and §3.3).

        frames      (B, T, 3, H, W) uint8, or floats in [−1, 1]
        num_frames  (B,) int; None: all T frames are real
        k           share of the cells to remove, 0 ≤ k < 1; 0 is the unpruned model
        scorer      to use instead of the model's own: (x (B, T, N, D), num_frames (B,) on the CPU) → scores (B, T, C).
                    It gets the key bias and L_sim only if its attribute `injects_bias` is true.
        still       (B,) bool, True = several pictures, not a video: never pruned; None: all are videos
        score_all   score even if no cell of the batch is removed
        Raises ValueError for a k outside [0, 1), for other shapes and for an empty batch, and NotFinite.
        """
        cfg, l = self.config, self.config.score_after
        scorer = self.scorer if scorer is None else scorer
        counts, real, prunable = ragged(frames, num_frames, k, cfg.cells, still)  # (B,), (B, T), (B,), on the CPU
        own_frame = sent(real.nonzero(), frames.device).unbind(1)  # (F,) videos, (F,) times: the real frames in order
        scores, key_bias, sim_loss, target = None, None, 0.0, None
        keep = (real & ~prunable[:, None])[..., None].expand(-1, -1, cfg.cells)  # (B, T, C), on the CPU

        x = self.stem(frames[own_frame])  # blocks 0..l: (F, N, D)

        if prunable.any() or score_all:
            grid = x.new_zeros(*real.shape, *x.shape[1:]).index_put(own_frame, x)  # (B, T, N, D)
            injects = getattr(scorer, "injects_bias", False)
            scores = scorer(grid, counts)  # (B, T, C)
            # the one wait for the GPU: how many rows there will be depends on the scores
            on_cpu = check_scores(scores.detach().cpu(), keep.shape, real, must_be_bounded(scorer, cfg.spread), x)
            keep = keep | select(spread(on_cpu, cfg.spread), k, counts)
            if prunable.any() and injects:
                # `select` has no gradient, so block l+1 runs on all cells: its bias brings the LM's loss to the scores
                target = temporal_target(grid, cfg.w)  # (B, T−1, C)
                key_bias, sim_loss = self.teach(scores, target, torch.where(prunable, counts, 1), own_frame)

        x = self.vit.blocks[l + 1](x, key_bias=key_bias)

        tokens, packed = self.encode_kept(x, keep[real], l + 2, bool(prunable.any()))  # pack … connect
        place, there = sent(keep.nonzero(), x.device), sent(keep, x.device)
        return Encoded(tokens, keep.sum(2), real, place, there, scores, packed, sim_loss, target)

    def encode_kept(self, x: Tensor, keep: Tensor, first: int, pruned: bool = True) -> tuple[Tensor, Packed]:
        """The second half of Figure 3: pack the kept cells, run the blocks from `first` on, unpack, connect.

        x (F, N, D) after block first − 1, keep (F, C) bool → LLM tokens (K, W), by frame and cell, and the packed rows.
        With pruned=False every row is one frame and needs no mask. Then ValueError if a cell is removed.
        """
        w = self.config.w
        packed = pack(x, keep.repeat_interleave(w * w, dim=1))
        if not pruned and len(packed.slot) < x.shape[:2].numel():
            raise ValueError("cells are removed, so frames share rows: leave out pruned=False")
        mask = self.within_frames(packed) if pruned else None
        outputs = [packed.x]
        for block in self.vit.blocks[first:]:
            outputs.append(block(outputs[-1], mask=mask))  # (F', N, D)
        tapped = packed.unpack(torch.cat([outputs[tap] for tap in self.config.taps], dim=-1))  # (K·w², taps·D)
        return self.connector(tapped.unflatten(0, (-1, w * w))), packed  # (K, W)

    def stem(self, frames: Tensor) -> Tensor:
        """Blocks 0..l, each frame on its own: frames (F, 3, H, W) → (F, N, D), cell-major."""
        x = self.vit.embed(normalise(frames, self.vit.position_embedding.dtype))
        x = cell_major(x, self.config.w)
        for block in self.vit.blocks[: self.config.score_after + 1]:
            x = block(x)
        return x

    def teach(self, scores: Tensor, target: Tensor, counts: Tensor, own_frame: tuple) -> tuple[Tensor | None, Tensor]:
        """What trains the scorer: the key bias of block l+1, (F, N) or None, and L_sim.

        scores     (B, T, C); target (B, T−1, C)
        counts     (B,), how many frames a video has, but 1 if no cell of it is removed
        own_frame  the real frames as indices: (F,) videos, (F,) times
        Like an image, a video with count 1 gets no bias, and L_sim leaves it out.
        """
        cfg = self.config
        sim_loss = similarity_loss(scores, target, counts, cfg.detach_target)
        if cfg.bias == "none":
            return None, sim_loss
        bias = attention_bias(scores, cfg.w, counts, rescale=cfg.bias == "rescaled")  # (B, T, N)
        return bias[own_frame], sim_loss

    def within_frames(self, packed: Packed) -> Tensor | Segments:
        """The block mask of packed rows, made once for all blocks. With `varlen`, a kernel that needs no mask."""
        if self.varlen and in_half_precision(packed.x):
            return Segments.of(packed.frame)
        return added(block_mask(packed.frame), packed.x)  # (F', 1, N, N)

    def encode_blind(self, frames: Tensor, num_frames: Tensor | None = None, k: float = 0.0) -> Encoded:
        """The blind control (k = 100 in the paper's tables): no vision tokens, no stamps, no markers."""
        nothing = torch.zeros(frames.shape[:2], dtype=torch.long)
        tokens = torch.zeros(0, self.config.llm.width, device=frames.device)
        return Encoded(tokens, nothing, nothing.bool(), torch.zeros(0, 3, dtype=torch.long))

    def encode(self, batch: Batch, k: float, encode: Encoder | None = None) -> Encoded:
        """Encode the batch's videos, by `encode` if given. Otherwise by `encode_video`, with the batch's own scores if
        it has any. `encode` sees several pictures as a video. Raises ValueError if the result does not fit the
        batch (`check_encoded`)."""
        if encode is not None:
            return check_encoded(encode(batch.frames, batch.num_frames, k), batch)
        given = None if batch.scores is None else lambda *_: sent(batch.scores, batch.frames.device)
        return check_encoded(self.encode_video(batch.frames, batch.num_frames, k, given, batch.still), batch)

    # ------------------------------------------------------------------------------------- the LLM

    def forward(self, batch: Batch, k: float = 0.5, encode: Encoder | None = None) -> Output:
        """Losses and logits of a batch. `encode` is another encoder instead of `encode_video`."""
        encoded, layout, hidden = self.read(batch, batch.branches, k, encode)
        row, column, targets, branch = layout.answers
        logits = self.llm.logits(hidden[row, column])  # (A, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, targets, reduction="none")  # (A,)
        num_branches = sum(map(len, batch.branches))
        lengths = losses.new_zeros(num_branches).index_add(0, branch, torch.ones_like(losses))  # (R,)
        task_loss = (losses / lengths[branch]).sum() / num_branches
        return Output(task_loss, encoded.sim_loss, logits, targets, branch, layout.tokens, encoded)

    def read(
        self, batch: Batch, branches: Branches, k: float, encode: Encoder | None, cache: KVCache | None = None
    ) -> tuple[Encoded, Layout, Tensor]:
        """Encode the videos, lay out their sequences with these branches, and run the LLM: hidden states (B, L, W)."""
        check_prompts(branches)
        encoded, marks = self.encode(batch, k, encode), self.config.marks
        prefixes = prefix_ids(batch.stamps, encoded.kept, encoded.shown, marks)
        layout = Layout.build(prefixes, branches, encoded.tokens.device, marks)
        x = self.fill_cells(layout.ids, encoded.tokens)  # (B, L, W)
        return encoded, layout, self.llm(x, layout.positions, layout.mask, cache)

    def fill_cells(self, ids: Tensor, cells: Tensor) -> Tensor:
        """Embeddings (B, L, W) of ids (B, L). Wherever ids are CELL, the next row of cells (K, W) is put."""
        x = self.llm.embed(ids.clamp(min=0))
        places = (ids != CELL).flatten().int().argsort(stable=True)[: len(cells)]  # nonzero() would wait for a GPU
        return x.flatten(0, 1).index_copy(0, places, cells.to(x.dtype)).view_as(x)

    @torch.no_grad()
    def generate(
        self, batch: Batch, k: float = 0.5, max_new_tokens: int = 16, encode: Encoder | None = None
    ) -> list[list[list[int]]]:
        """Greedy answers to the prompt of every branch, as ids, video by video. The branches' answers are not used.

        Prompts are read as in training: all prompts of a video after its prefix, in one pass. Then each is continued
        on a copy of the keys and values that it sees.
        """
        prompts = [[(prompt, []) for prompt, _ in video] for video in batch.branches]
        cache = KVCache()
        _, layout, hidden = self.read(batch, prompts, k, encode, cache)
        row, column, _, _ = layout.answers  # (R,) each: where every prompt ends
        flat: list[list[int]] = []
        for r, c in zip(row.split(AT_ONCE), column.split(AT_ONCE), strict=True):
            ends = hidden[r, c], layout.positions[r, c], cache, r, layout.mask[r, 0, c]
            flat += self.llm.generate(*ends, max_new_tokens, self.config.marks.end)
        answers = iter(flat)
        return [[next(answers) for _ in video] for video in batch.branches]


def ragged(frames: Tensor, num_frames: Tensor | None, k: float, cells: int, still: Tensor | None) -> tuple[Tensor, ...]:
    """Which frames of a ragged batch are real, and which videos lose cells. All on the CPU:

    counts    (B,) int, how many frames each video has
    real      (B, T) bool, which frames those are
    prunable  (B,) bool, False for images, for the pictures of `still` and where floor(k·C·T) is 0
    Raises ValueError for a k outside [0, 1), for other shapes and for an empty batch.
    """
    if frames.ndim != 5:
        raise ValueError(f"frames are {tuple(frames.shape)}: give (B, T, 3, H, W)")
    B, T = frames.shape[:2]
    counts = torch.tensor(frame_counts(num_frames, B, T))
    prunable = torch.tensor([num_removed(k, cells, n) > 0 for n in counts.tolist()])
    if still is not None:
        still = torch.as_tensor(still).cpu()
        if still.shape != (B,) or still.dtype != torch.bool:
            raise ValueError(f"still is {still.dtype} {tuple(still.shape)}: give a bool for each of the {B} videos")
        prunable &= ~still
    return counts, torch.arange(T) < counts[:, None], prunable


class NotFinite(ValueError):
    """Features, scores, losses or gradients are NaN or infinite. `batch`: the number of the batch, if it is not that of
    the training step."""

    def __init__(self, message: str, batch: int | None = None):
        super().__init__(message)
        self.batch = batch


def must_be_bounded(scorer: Callable[[Tensor, Tensor], Tensor], amount: float) -> bool:
    """Whether scores must lie in [0, 1]: a bias and a loss are made of them, or they are a module's and spread by this
    amount. `spread` clamps others, such as the cosine heuristic's, which reach 2, and a function's, which may repeat
    them. A larger range than that could be clamped to one value."""
    own = isinstance(scorer, nn.Module) and not isinstance(scorer, CosineScorer)
    return getattr(scorer, "injects_bias", False) or (amount > 0 and own)


def check_scores(
    scores: Tensor, shape: tuple[int, ...], real=..., bounded: bool = False, features: Tensor | None = None
) -> Tensor:
    """Return the scores. Raises ValueError if they are not floats (B, T, C), and NotFinite if they contain NaN at the
    indices `real`. If they must be `bounded`, they must be in [0, 1], too. With `features`, those that were scored, the
    message says whether the NaN came from there."""
    if scores.shape != shape:
        raise ValueError(f"the scorer gave {tuple(scores.shape)}: give (B, T, C) = {tuple(shape)}")
    if not scores.is_floating_point():
        raise ValueError(f"the scorer gave {scores.dtype}: give floats, for example by .float()")
    low, high = (0.0, 1.0) if bounded else (-math.inf, math.inf)
    values = scores[real]
    if not bool(((values >= low) & (values <= high)).all()):
        if features is not None and not bool(features.isfinite().all()):
            raise NotFinite("the features to score are NaN or infinite, because the frames or the weights are")
        span = f"from {float(values.min()):.3g} to {float(values.max()):.3g}"
        wanted = "scores in (0, 1), as its bias or the spread needs, e.g. by a sigmoid" if bounded else "no NaN"
        kind = NotFinite if bool(values.isnan().any()) else ValueError
        raise kind(f"the scorer gave scores {span}: give {wanted}")
    return scores


def check_encoded(encoded: Encoded, batch: Batch) -> Encoded:
    """Return what an encoder made of the batch. Raises ValueError if `kept`, `shown`, `tokens` and the time stamps do
    not fit each other."""
    kept, shown, (B, T) = encoded.kept.cpu(), encoded.shown.cpu().bool(), batch.frames.shape[:2]
    if not kept.shape == shown.shape == (B, T):
        shapes = f"kept {tuple(kept.shape)}, shown {tuple(shown.shape)}"
        raise ValueError(f"the encoder gave {shapes}: give (B, T) = {(B, T)} for both")
    for b, n in enumerate(frame_counts(batch.num_frames, B, T)):
        if shown[b].any() and len(batch.stamps[b]) != n:
            raise ValueError(f"video {b} has {len(batch.stamps[b])} time stamps and {n} frames: give one a frame")
        if shown[b, n:].any():
            raise ValueError(f"the encoder shows a frame of padding: video {b} has {n} frames")
    tokens, every, seen = len(encoded.tokens), int(kept.sum()), int(kept[shown].sum())
    if not tokens == every == seen:
        counted = f"{tokens} tokens, and kept counts {every}, {seen} of them in shown frames"
        raise ValueError(f"the encoder gave {counted}: give as many tokens as kept counts, only in shown frames")
    return encoded


def in_half_precision(x: Tensor) -> bool:
    """Whether a product of x is computed in 16 bits, by its type or by autocast.

    >>> in_half_precision(torch.ones(1)), in_half_precision(torch.ones(1, dtype=torch.bfloat16))
    (False, True)
    """
    return x.dtype.itemsize == 2 or torch.is_autocast_enabled(x.device.type)


def normalise(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 pixels to [−1, 1], as SigLIP takes them. Floats are not scaled. The result is of `dtype`."""
    return frames.to(dtype) if frames.is_floating_point() else (frames.float() / 127.5 - 1).to(dtype)
