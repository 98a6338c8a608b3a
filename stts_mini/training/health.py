"""The scorer's health: does it still learn, and from which of its two losses?

L_sim is a sparse regression, because most cells hardly change. A scorer that learns too fast overshoots the small
targets. Then its sigmoid is saturated, where L_sim has no gradient. With the bias `log`, log s is clamped there, so the
LM has none either. The scores say nothing any more, and ties decide what is removed. No loss shows it.

`sums` are plain sums over the prunable cells of a batch: cells of frames t ≥ 1 in videos that lose something. The sums
of parts and processes add up to those of the whole batch. `Health.of` turns them into numbers to read.

What this file does not do: repair a dead scorer. You choose its rate, λ and where the scores start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stts_mini.model import Encoded
from stts_mini.scorer import SATURATED
from stts_mini.sequence import sent

WINDOW = 20  # pruned steps to average over, so that a single batch raises no alarm
NUM_SUMS = 11


def gradients(encoded: Encoded, sim_share: float, loss_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The gradients of L_sim and of the LM at the scores of frames t ≥ 1, (B, T−1, C) each. Arguments as for `sums`.

    L_sim's is 2·(s − t)/(T·C) · sim_share. The LM's is the rest of `scores.grad`, or 0 without one. A rest below 1e-6
    of L_sim's is rounding, and counts as 0."""
    s, frames = encoded.scores.detach()[:, 1:], sent(encoded.shown, encoded.scores.device).sum(1)[:, None, None]
    sim = 2 * (s - encoded.target.detach()) * sim_share / (frames * s.shape[2])
    arrived = encoded.scores.grad
    lm = torch.zeros_like(sim) if arrived is None else arrived[:, 1:] / loss_scale - sim
    return sim, torch.where(lm.abs() > 1e-6 * sim.abs(), lm, 0)


def sums(encoded: Encoded, sim_share: float = 0.0, loss_scale: float = 1.0) -> Tensor:
    """What `Health.of` needs of a batch or a part of it: (NUM_SUMS,), float64 where the device has it. Zeros if there
    was no L_sim. The result stays on the device, so that nothing waits for it.

    sim_share   λ divided by the number of pruned videos in the whole batch
    loss_scale  what the loss was multiplied by before it went backward

    The sums, with scores s and targets t: cells, s, s², t, t², s·t, saturated scores, removals that ties decide,
    removals, and the squared gradients of L_sim and of the LM.

    Ties decide a removal if its score is the highest one removed from its video, and a prunable cell with exactly the
    same score stays. With `spread`, the pattern decides between them.
    """
    wide = torch.float32 if encoded.tokens.device.type == "mps" else torch.float64
    if encoded.target is None:
        return torch.zeros(NUM_SUMS, dtype=wide, device=encoded.tokens.device)
    s, t, keep = encoded.scores.detach()[:, 1:], encoded.target.detach(), encoded.keep[:, 1:]  # (B, T−1, C)
    real = sent(encoded.shown, s.device)[..., None]  # (B, T, 1)
    gone = real[:, 1:] & ~keep
    prunable = real[:, 1:] & gone.any((1, 2), keepdim=True)  # an `any` of each video
    border = s == s.masked_fill(~gone, -torch.inf).amax((1, 2), keepdim=True)
    tied = gone & border & (prunable & keep & border).any((1, 2), keepdim=True)

    sim, lm = gradients(encoded, sim_share, loss_scale)
    saturated = (s < SATURATED) | (s > 1 - SATURATED)
    ones, s, t, sim, lm = torch.ones_like(s, dtype=wide), s.to(wide), t.to(wide), sim.to(wide), lm.to(wide)
    values = torch.stack([ones, s, s * s, t, t * t, s * t, saturated, tied, gone, sim * sim, lm * lm])
    return torch.where(prunable, values, 0).sum((1, 2, 3))


def watch(encoded: Encoded) -> None:
    """Call this before the backward pass, to keep the gradient that arrives at the scores."""
    if encoded.target is not None and encoded.scores.requires_grad:
        encoded.scores.retain_grad()


class Health(NamedTuple):
    """Columns of log.csv, over the prunable cells of a step.

    score_mean, score_spread   mean and standard deviation of the scores
    saturated                  share of the scores that are saturated
    correlation                Pearson's, with the target 1 − cos, NaN if either is constant
    ties                       share of the removals that ties decide
    sim_gradient, lm_gradient  L2 norms of the gradients at the scores, of λ·L_sim and of the LM
    """

    score_mean: float
    score_spread: float
    saturated: float
    correlation: float
    ties: float
    sim_gradient: float
    lm_gradient: float

    @classmethod
    def of(cls, sums: Sequence[float]) -> Health | None:
        """From added-up `sums`. None if nothing was pruned.

        >>> health = Health.of([2, 1.0, 0.625, 0.5, 0.25, 0.375, 0, 0, 1, 0.25, 0.0625])  # scores ¼, ¾; targets 0, ½
        >>> health.score_mean, health.score_spread, health.correlation, health.sim_gradient, health.lm_gradient
        (0.5, 0.25, 1.0, 0.5, 0.25)
        """
        cells, s, ss, t, tt, st, saturated, tied, removed, sim, lm = sums
        if not cells:
            return None
        mean, about = s / cells, t / cells
        s_var, t_var, both = ss / cells - mean**2, tt / cells - about**2, st / cells - mean * about
        varies = s_var > 1e-12 * mean**2 and t_var > 1e-12 * about**2  # else only rounding is left
        r = both / (s_var * t_var) ** 0.5 if varies else float("nan")
        return cls(mean, max(s_var, 0) ** 0.5, saturated / cells, r, tied / removed, sim**0.5, lm**0.5)


def dead(*healths: Health | None) -> str:
    """A line with the remedy if the scorer is dead, else "". It is dead if, on average over `healths`, ties decide more
    than half of the removals, or more than 95% of the scores are saturated.

    In a video that hardly changes, nearly all scores are rightly saturated. So they do not count as dead if they follow
    their target (r ≥ 0.3) and are not all near 0."""
    known = [h for h in healths if h]
    ties = sum(h.ties for h in known) / max(len(known), 1)
    saturated = sum(h.saturated for h in known) / max(len(known), 1)
    r = sum(0.0 if math.isnan(h.correlation) else h.correlation for h in known) / max(len(known), 1)
    sparse = r >= 0.3 and sum(h.score_mean for h in known) > SATURATED * len(known)
    if ties <= 0.5 and (saturated <= 0.95 or sparse):
        return ""
    found = f"ties decide {100 * ties:.0f}% of what is removed, and {100 * saturated:.0f}% of its scores are saturated"
    cure = "train again with a lower --scorer-lr-ratio or a larger --sim-weight"
    return f"the scorer is dead: {found}; {cure}"
