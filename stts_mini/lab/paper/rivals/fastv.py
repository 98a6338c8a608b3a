"""FastV (arXiv 2403.06764): prune inside the LLM, by what the question's last token looks at.

    s[j] = mean over heads of softmax(QKᵀ/√d)[last token of the prompt, j]       in the LLM's second layer, K = 2
    the layers after it go on without the floor(k·C·T) cells of lowest s; all others keep their positions

The ViT and two layers see everything, so less is saved than elsewhere. But FastV alone knows the question, and another
question keeps other cells. So questions do not share a video's tokens any more. Each, with all its options, is a row of
its own, and what is kept of a video is not one mask (`keep` is None).

That is the public code's rule. The paper's text takes the attention received from all tokens, on average.

Simplified: a picture loses nothing, as always here. The paper prunes pictures. In a video frame 0 may lose cells.
What is pruned is not in the KV cache of the later layers. The first two keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stts_mini.data.files import require
from stts_mini.llm import KVCache, added, rotary, rotate
from stts_mini.model import VLM, Encoder, ragged
from stts_mini.packing import num_removed
from stts_mini.sequence import CELL, Batch, Branches, Layout, check_prompts, prefix_ids

K = 2  # layers that see every cell


class FastV(VLM):
    """A model with another one's very weights. Raises ValueError for an LLM without a layer after the second."""

    gone_from, frame_0, exact = "llm", False, True

    def __init__(self, model: VLM):
        require((n := model.config.llm.depth) > K, f"FastV prunes after layer {K}, and this LLM has {n}: give more")
        nn.Module.__init__(self)
        vars(self).update(vars(model))

    def run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: KVCache, layers: Iterable[int]) -> Tensor:
        """x (R, L, W) through some of the LLM's layers, as `LLM.forward` does it."""
        llm, mask = self.config.llm, added(mask, x)
        rope = rotary(positions, llm.head_dim, llm.rope_theta, x.dtype)
        for i in layers:
            x = self.llm.layers[i](x, rope, mask, cache, i)
        return x

    def received(self, x: Tensor, positions: Tensor, seen: Tensor, cache: KVCache) -> Tensor:
        """s, (R, L): attention in layer K − 1 from tokens x (R, 1, W), its input, which see `seen` (R, L)."""
        layer, key, llm = self.llm.layers[K - 1], cache.layers[K - 1][0], self.config.llm  # key: (R, kv_heads, L, d)
        q = layer.self_attn.q_proj(layer.input_layernorm(x)).unflatten(-1, (-1, llm.head_dim))
        q = layer.self_attn.q_norm(q).transpose(1, 2)  # (R, heads, 1, d)
        q = rotate(q, *rotary(positions, llm.head_dim, llm.rope_theta, x.dtype))
        logits = q.unflatten(1, (llm.kv_heads, -1)).squeeze(3) @ key.mT / llm.head_dim**0.5
        logits = logits.masked_fill(~seen[:, None, None], -torch.inf)  # (R, kv_heads, heads of each, L)
        return logits.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32)).mean((1, 2))  # bfloat16 has ties

    def both_parts(self, batch: Batch, branches: Branches, k: float, encode: Encoder | None, cache: KVCache) -> tuple:
        """What `VLM.read` returns, with a row for each question; then where prompts end (R,), and which columns of the
        cache their last tokens see, in the first layers (R, L) and in the later ones (R, L')."""
        check_prompts(branches)
        encoded, marks = self.encode(batch, 0.0, encode), self.config.marks
        prefixes = prefix_ids(batch.stamps, encoded.kept, encoded.shown, marks)
        asked = [(b, [*q]) for b, own in enumerate(branches) for _, q in groupby(own, key=lambda branch: branch[0])]
        layout = Layout.build([prefixes[b] for b, _ in asked], [q for _, q in asked], batch.frames.device, marks)
        cells = encoded.tokens.split(encoded.kept.sum(1).tolist())
        x = self.fill_cells(layout.ids, torch.cat([cells[b] for b, _ in asked]))  # (R, L, W)
        before = self.run(x, layout.positions, layout.mask, cache, range(K - 1))
        x = self.run(before, layout.positions, layout.mask, cache, [K - 1])

        row = torch.arange(len(asked), device=x.device)[:, None]
        ends = torch.tensor([[len(prefixes[b]) + len(q[0][0]) - 1] for b, q in asked], device=x.device)  # (R, 1)
        seen = layout.mask[row, 0, ends].squeeze(1)
        score = self.received(before[row, ends], layout.positions[row, ends], seen, cache)
        order = score.masked_fill(layout.ids != CELL, torch.inf).argsort(dim=1, stable=True)
        counts, _, prunable = ragged(batch.frames, batch.num_frames, k, self.config.cells, batch.still)
        lost = [[num_removed(k, self.config.cells, int(counts[b])) if prunable[b] else 0] for b, _ in asked]
        gone = order.argsort(dim=1) < torch.tensor(lost, device=x.device)  # (R, L)
        stays = ~gone & (layout.segment >= 0)  # no padding
        columns = (~stays).int().argsort(dim=1, stable=True)[:, : stays.sum(1).max()]  # (R, L'): what stays, in order
        mask = (layout.mask & ~gone[:, None, None])[row[..., None], 0, columns[..., None], columns[:, None]][:, None]
        y = self.run(x[row, columns], layout.positions[row, columns], mask, cache, range(K, len(self.llm.layers)))
        hidden = torch.zeros_like(x).index_put((row, columns), self.llm.norm(y))
        return replace(encoded, keep=None), layout, hidden, ends, [seen, (seen & ~gone)[row, columns]]

    def read(self, batch: Batch, branches: Branches, k: float, encode: Encoder | None, cache: KVCache | None = None):
        """As `VLM.read`, with a row for each question."""
        return self.both_parts(batch, branches, k, encode, KVCache() if cache is None else cache)[:3]

    @torch.no_grad()
    def generate(self, batch: Batch, k: float = 0.5, max_new_tokens: int = 16, encode: Encoder | None = None):
        """As `VLM.generate`. What a row has written is seen in all layers, its pruned cells in the first K alone."""
        prompts, cache = [[(p, []) for p, _ in own] for own in batch.branches], KVCache()
        _, layout, hidden, ends, seen = self.both_parts(batch, prompts, k, encode, cache)
        row, end = torch.arange(len(ends), device=ends.device)[:, None], self.config.marks.end
        new, at = [self.llm.logits(hidden[row, ends]).argmax(-1)], layout.positions[row, ends]  # (R, 1) each
        while len(new) < max_new_tokens and not (torch.cat(new, 1) == end).any(1).all():
            at, seen = at + 1, [F.pad(columns, (0, 1), value=True) for columns in seen]
            x = self.run(self.llm.embed(new[-1]), at, seen[0][:, None, None], cache, range(K))
            x = self.run(x, at, seen[1][:, None, None], cache, range(K, len(self.llm.layers)))
            new.append(self.llm.logits(self.llm.norm(x)).argmax(-1))
        said = (ids[: [*ids, end].index(end)] for ids in torch.cat(new, 1)[layout.answers[0]].tolist())  # by branch
        return [[next(said) for _ in own] for own in batch.branches]
