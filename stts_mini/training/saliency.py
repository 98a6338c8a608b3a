"""A third loss for the scorer, ours and not the paper's: which cells do the answers depend on?

    saliency of a cell = | xᵀ · ∂ Σ log-odds / ∂x |        x: the cell's LLM token, at k = 0; log-odds of right answers
    L_sal = (1/(T·C)) · Σ over t ≥ 1 and cells of (s − rank)²       rank of the cell's saliency in its video, 0 to 1

Why. The paper's two losses do not say what a cell is worth to an answer. The auxiliary loss says what changed. The LM's
gradient on a score says whether *more* attention to a cell would help. A trained model already pays that attention, and
in ours the mean gradient is about zero, whether a cell matters or not (notebook 9). The size of the gradient does tell
them apart: if a cell is not read, nothing depends on it. |xᵀ∂/∂x| is the first-order change of the log-odds if the
token were removed (Taylor importance, Molchanov et al., arXiv 1611.06440). It is log-odds because the gradient of the
log-likelihood has a factor 1 − p. With it, answers that are certain would count for nothing. The LLM's first layer adds
nothing: it reads x normalised, so scaling x changes nothing there. Only x's share in what deeper layers read counts.
With a single layer, only rounding would be left.

When. For `saliency_steps` unpruned steps, before pruning begins, because a pruned cell has no gradient to learn from.
After that the scorer does not change. The LM's gradient would blur it again (measured: tutorials/results). The target
is the rank, and not what some k would keep. If only the best tenth counted, a scorer would see too few examples.

What this file does not do: change how a cell is scored, selected or packed. Nothing of it runs after training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stts_mini.model import Output
from stts_mini.scorer import similarity_loss


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """log p/(1 − p) of each target: logits (A, V), targets (A,) → (A,).

    >>> log_odds(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([2])).exp()       # 1/3 against 2/3
    tensor([0.5000])
    """
    target = targets[:, None]
    others = logits.scatter(1, target, float("-inf"))
    return logits.gather(1, target).squeeze(1) - others.logsumexp(1)


def answer_saliency(output: Output) -> Tensor:
    """What each cell of an unpruned batch is worth to its answers: ≥ 0, (B, T, C), detached, 0 for padding.

    The graph is kept, so that the losses can still go backward.
    """
    encoded = output.encoded
    (gradient,) = torch.autograd.grad(
        log_odds(output.logits, output.targets).sum(), encoded.tokens, retain_graph=True
    )  # (K, W)
    worth = (encoded.tokens * gradient).sum(-1).abs().detach().float()  # (K,)
    return worth.new_zeros(encoded.keep.shape).index_put(tuple(encoded.place.unbind(1)), worth)


def ranks(values: Tensor, num_frames: Tensor) -> Tensor:
    """For each video the place of each cell among its own, from 0 (the least) to 1: (B, T, C) → (B, T, C).

    num_frames (B,), at least 2 cells each. Padding gets 0. Of equal values, the later cell ranks higher.

    >>> ranks(torch.tensor([[[0.1, 0.9], [0.5, 7.0], [0.0, 0.0]]]), torch.tensor([2]))[0, :2]
    tensor([[0.0000, 0.6667],
            [0.3333, 1.0000]])
    """
    T, C = values.shape[1:]
    num_frames = torch.as_tensor(num_frames, device=values.device)
    real = (torch.arange(T, device=values.device) < num_frames[:, None])[:, :, None].expand_as(values)
    flat = values.masked_fill(~real, -torch.inf).flatten(1)  # padding comes first
    place = flat.argsort(stable=True).argsort(stable=True).view_as(values)
    cells = (num_frames * C)[:, None, None]
    return torch.where(real, (place - (T * C - cells)) / (cells - 1), 0)


def saliency_loss(output: Output, num_frames: Tensor, still: Tensor | None = None) -> Tensor:
    """L_sal of an unpruned batch whose cells were scored nevertheless.

    num_frames (B,). still (B,) bool or None: which are several pictures and never pruned. The mean is over the videos
    with more than one frame, and 0 without any. Raises ValueError if there are no scores, or if they have no gradient.
    """
    scores = output.encoded.scores
    if scores is None or not scores.requires_grad:
        raise ValueError("a scorer without weights learns nothing from saliency: give --saliency-steps 0")
    videos = taught(num_frames, still)
    if not videos.any():
        return scores.sum() * 0
    here = videos.to(scores.device)
    target = ranks(answer_saliency(output), num_frames)[here]
    return similarity_loss(scores[here], target[:, 1:].to(scores), num_frames[videos])


def taught(num_frames: Tensor, still: Tensor | None = None) -> Tensor:
    """Which videos teach the scorer: (B,) bool. Single frames and several pictures do not."""
    return num_frames > 1 if still is None else (num_frames > 1) & ~still
