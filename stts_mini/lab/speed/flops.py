"""How many multiply-adds a forward pass and a training step must do. This limits what pruning can save.

    limit at k = multiply-adds(unpruned) / multiply-adds(k)            both by the same formula

What a perfect implementation must compute is decided here, once:
    stem       patch embedding and blocks 0..l+1, on every real frame (never on padding frames)
    score      the scorer, on every cell of a video that is pruned
    packed     blocks l+2.., on kept patches only. Attention is only within a frame: Σ n² pairs, no spare room
    connector  on kept cells only
    llm        on real tokens only. Attention counts the pairs (query, key) that may see each other: the lower
               triangle of causal text, and all pairs of vision tokens. Logits of predicted tokens only

We count products of matrices: linear layers, and QKᵀ and weights·V of the attention over frames and sequences. A
backward pass does each of them twice more. The patch embedding is done only once more, because its input needs no
gradient. We do not count norms, activations, softmax, rotations, sums inside a cell, losses, the optimiser, or anything
that moves data. One multiply-add is two FLOP.

Work says how much there is to do, `multiply_adds` what it costs. `needed` gives the Work of a perfect implementation.

Legend: B videos · T frames of a video, F of a batch · N patches of a frame, C cells · w² patches of a cell
n kept patches of a frame · P tokens of a video's prefix in the LLM, V of them vision · D, W widths of ViT, LLM

What this file does not do: time anything (`bench.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stts_mini.data.files import require
from stts_mini.llm import LLMConfig
from stts_mini.model import VLMConfig
from stts_mini.packing import num_removed
from stts_mini.vit import ViTConfig

Text = Sequence[Sequence[tuple[int, int]]]  # for each video, for each question: tokens of prompt and answer

# Molmo2-4B, as far as the paper says: 25 of So400m/14's 27 blocks, Qwen3-4B. The connector's width is a guess.
PAPER = VLMConfig(
    ViTConfig(378, 14, 1152, 25, 16, 4304),
    LLMConfig(151936, 2560, 36, 32, 8, 128, 9728),
    w=3, score_after=3, scorer_heads=16, scorer_mlp=4304, connector_mlp=9728, taps=(-7, -1),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """How much there is to do.

    frames   F, through the stem
    scored   cells that are scored
    slots    tokens of the packed rows, and pairs (query, key) of their attention
    kept     cells through the connector
    tokens   of the LLM, and seen: pairs (query, key) of its attention
    logits   tokens whose next one is predicted
    """

    frames: int = 0
    scored: int = 0
    slots: int = 0
    pairs: int = 0
    kept: int = 0
    tokens: int = 0
    seen: int = 0
    logits: int = 0


def evenly_kept(k: float, cells: int, frames: int) -> list[int]:
    """Kept cells of each frame, if they are spread as evenly as frame 0 allows.

    >>> evenly_kept(0.5, cells=9, frames=4)
    [9, 3, 3, 3]
    """
    each, more = divmod(num_removed(k, cells, frames), max(frames - 1, 1))
    return [cells, *(cells - each - (t < more) for t in range(frames - 1))]


def needed(config: VLMConfig, kept: Sequence[Sequence[int]], k: float, text: Text, stamp: int = 1) -> Work:
    """What must be done for videos with these kept cells and these questions.

    kept   for each video, for each of its real frames: kept cells
    text   for each video, for each question: tokens of its prompt and of its answer (its end is predicted, not read)
    stamp  tokens of a time stamp
    Raises ValueError for a model that prunes more than once.

    >>> work = needed(VLMConfig(), [[9, 3]], 0.3, text=[[(5, 1)]])      # 12 cells, 2 stamps, 4 markers; 6 tokens
    >>> work.slots, work.pairs, work.tokens, work.logits
    (48, 1440, 24, 2)
    >>> work.seen == 18 * 19 / 2 + 16 * 15 / 2 + 6 * 18 + 6 * 7 / 2
    True
    """
    require(config.stages == 1, f"this model prunes in {config.stages} stages: lab.speed and lab.explore know one")
    tokens = seen = logits = 0
    for video, questions in zip(kept, text, strict=True):
        V = sum(video) + 2 * len(video)
        P = V + stamp * len(video)
        tokens, seen = tokens + P, seen + P * (P + 1) // 2 + V * (V - 1) // 2
        for prompt, answer in questions:
            q = prompt + answer
            tokens, seen, logits = tokens + q, seen + q * P + q * (q + 1) // 2, logits + answer + 1
    patches = [n * config.w**2 for video in kept for n in video]
    scored = sum(config.cells * len(v) for v in kept if num_removed(k, config.cells, len(v)))
    return Work(
        frames=len(patches), scored=scored, slots=sum(patches), pairs=sum(n * n for n in patches),
        kept=sum(map(sum, kept)), tokens=tokens, seen=seen, logits=logits,
    )  # fmt: skip


def decoded(config: VLMConfig, cached: Sequence[int]) -> Work:
    """The Work of one more token for each row, after so many cached ones."""
    return Work(tokens=len(cached), seen=sum(cached) + len(cached), logits=len(cached))


def multiply_adds(config: VLMConfig, work: Work, backward: bool = False, recompute: bool = False) -> dict[str, int]:
    """Multiply-adds of each stage in a forward pass. `backward`: in forward and backward together. `recompute`: blocks
    and layers run forward once more (`step.recompute`), except their last product, which is not needed."""
    vit, llm, w2 = config.vit, config.llm, config.w**2
    D, W, M, N = vit.width, llm.width, config.connector_mlp, vit.num_patches
    heads, kv_heads = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim

    def blocks(count: int, tokens: int, pairs: int) -> int:
        """ViT blocks: four projections, two layers of the MLP, attention."""
        return count * (tokens * (4 * D * D + 2 * D * vit.mlp) + 2 * D * pairs)

    def pooler(features: int) -> int:
        """Pooling one cell: its query, its tokens' keys and values, its output."""
        return features * D * (1 + 2 * w2) + D * D

    embed = work.frames * N * 3 * vit.patch_size**2 * D
    dense = blocks(config.score_after + 2, work.frames * N, work.frames * N * N)
    packed = blocks(config.num_packed, work.slots, work.pairs)
    learned = config.scored_by == "stts"
    score = work.scored * (pooler(D) + (2 * D + config.scorer_mlp + 1) * config.scorer_mlp) if learned else 0
    layers = llm.depth * (work.tokens * (2 * W * (heads + kv_heads) + 3 * W * llm.mlp) + 2 * heads * work.seen)
    count = {
        "stem": dense,
        "score": score,
        "packed": packed,
        "connector": work.kept * (pooler(len(config.taps) * D) + 2 * D * M + M * W),
        "llm": layers + work.logits * W * llm.vocab_size,
    }
    times = 3 if backward else 1
    total = {name: times * n for name, n in count.items()}
    total["stem"] += (2 if backward else 1) * embed
    if recompute:
        total["stem"] += dense - (config.score_after + 2) * work.frames * N * D * vit.mlp
        total["packed"] += packed - config.num_packed * work.slots * D * vit.mlp
        total["llm"] += layers - llm.depth * work.tokens * W * llm.mlp
    return total


def saved_floats(config: VLMConfig, work: Work) -> int:
    """How many numbers a training step must keep for its backward pass, if it keeps what each layer reads, nothing
    twice, and recomputes nothing.

    A ViT block keeps both norms' inputs and outputs, Q, K, V, the attention's result, and the MLP's hidden layer before
    and after GELU. An LLM layer keeps the same, with Q and K before and after their norms, and four widths of the
    SwiGLU: gate, its SiLU, up, and the product. Statistics of norms and softmax, masks and logits' gradients are left
    out."""
    vit, llm, w2 = config.vit, config.llm, config.w**2
    D, heads, kv_heads = vit.width, llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    patches = work.frames * vit.num_patches
    block = 8 * D + 2 * vit.mlp
    floats = (
        patches * (3 * vit.patch_size**2 + (config.score_after + 2) * block) + config.num_packed * work.slots * block
    )
    # a pooler: its input, the mean, K, V, the query, the pooled cell
    floats += work.scored * (w2 * 2 * D + 3 * D + 2 * D + 4 * config.scorer_mlp) * (config.scored_by == "stts")
    taps = len(config.taps) * D
    floats += work.kept * (w2 * (2 * taps + 2 * D) + taps + 3 * D + 4 * config.connector_mlp + 2 * llm.width)
    layer = 4 * llm.width + 3 * heads + 3 * kv_heads + 4 * llm.mlp
    return floats + work.tokens * llm.depth * layer + work.logits * llm.vocab_size
