"""A third teacher for the scorer, ours and not the paper's: which cells do the answers hang on?

    saliency of a cell = | xᵀ · ∂ Σ log-odds / ∂x |        x: the cell's LLM token, at k = 0; log-odds of right answers
    L_sal = (1/(T·C)) · Σ over t ≥ 1 and cells of (s − rank)²       rank of the cell's saliency in its video, 0 to 1

Why. The paper's two teachers say nothing of what a cell is worth to an answer. The auxiliary loss says what changed.
The LM's gradient on a score says whether *more* attention to a cell would help; a model that is trained already would
have paid it, and in ours the mean may as well be zero, whether a cell matters or not (notebook 9). What tells
them apart is its size: where nothing is read, nothing depends on it. |xᵀ∂/∂x| is the first-order change of the
log-odds were the token taken away (Taylor importance, as in Molchanov et al., arXiv 1611.06440). Log-odds, since the
log-likelihood's gradient carries a factor 1 − p: what is answered with certainty would count for nothing. The LLM's
first layer has no part in it: it reads x normalised, so scaling x changes nothing there. What counts is x's share in
what deeper layers read; with one layer, only rounding would be left.

When. For `saliency_steps` unpruned steps, before pruning begins; a cell that is pruned has no gradient to learn from.
From then on the scorer stays as it is, for the LM's gradient would blur it again (measured: tutorials/results). Ranks,
and not what some k would keep: a scorer that is taught the best tenth alone sees too few examples of it.

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
    """What each cell of an unpruned batch is worth to its answers: ≥ 0, (B, T, C), detached; 0 for padding.

    The graph is kept: the losses can still go backward.
    """
    encoded = output.encoded
    (gradient,) = torch.autograd.grad(
        log_odds(output.logits, output.targets).sum(), encoded.tokens, retain_graph=True
    )  # (K, W)
    worth = (encoded.tokens * gradient).sum(-1).abs().detach().float()  # (K,)
    return worth.new_zeros(encoded.keep.shape).index_put(tuple(encoded.place.unbind(1)), worth)


def ranks(values: Tensor, num_frames: Tensor) -> Tensor:
    """For each video the place of each cell among its own, from 0 (the least) to 1: (B, T, C) → (B, T, C).

    num_frames (B,), at least 2 cells each; padding gets 0, and of equal values the later cell is the higher.

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
    """L_sal of an unpruned batch whose cells were scored all the same.

    num_frames (B,); still (B,) bool or None: several pictures, never pruned. Mean over the videos with more than one
    frame; 0 without any. Raises ValueError if nothing was scored, or if the scores have no gradient.
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
    """Which videos there is something to learn from: (B,) bool. Not single frames, nor several pictures."""
    return num_frames > 1 if still is None else (num_frames > 1) & ~still
