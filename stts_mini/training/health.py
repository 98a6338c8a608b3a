"""The scorer's health: is it still alive, and which of its two teachers reaches it?

L_sim is a sparse regression: most cells hardly change. A scorer that learns too fast runs past the small targets, until
its sigmoid is saturated, where L_sim has no gradient, and log s is clamped, where the LM has none. Then the scores say
nothing, and ties decide what is removed. No loss shows it.

`sums` are plain sums over the prunable cells of a batch: those of frames t ≥ 1 of the videos that lose something.
However a batch is cut into parts and processes, their sums add up to its own; `Health.of` makes numbers of them.

What this file does not do: cure. The scorer's rate, λ and where the scores start are the user's to choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stts_mini.model import Encoded
from stts_mini.sequence import sent

SATURATED = 1e-4  # scores below this, where log s is clamped and the LM has no gradient, or above 1 − this
WINDOW = 20  # pruned steps that are looked at together, so that no single batch raises the alarm
NUM_SUMS = 11


def gradients(encoded: Encoded, sim_share: float, loss_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Both teachers' gradients at the scores of frames t ≥ 1, (B, T−1, C) each: L_sim's, 2·(s − t)/(T·C) · sim_share,
    and the LM's, which is what else has arrived at `scores.grad` (0 without one). What is left of it below 1e-6 of
    L_sim's is rounding, and counts as 0. Arguments as for `sums`."""
    s, frames = encoded.scores.detach()[:, 1:], sent(encoded.shown, encoded.scores.device).sum(1)[:, None, None]
    sim = 2 * (s - encoded.target.detach()) * sim_share / (frames * s.shape[2])
    arrived = encoded.scores.grad
    lm = torch.zeros_like(sim) if arrived is None else arrived[:, 1:] / loss_scale - sim
    return sim, torch.where(lm.abs() > 1e-6 * sim.abs(), lm, 0)


def sums(encoded: Encoded, sim_share: float = 0.0, loss_scale: float = 1.0) -> Tensor:
    """What `Health.of` needs of a batch, or of a part of one: (NUM_SUMS,), float64 where the device has it; zeros if
    nothing was taught. On the device: nothing waits for it.

    sim_share   λ over the number of pruned videos in the whole batch, whatever this part of it holds
    loss_scale  what the loss was multiplied by before it went backward

    The sums: cells; s, s², t, t², s·t of scores s and targets t; saturated scores; removals that ties decide; removals;
    and the squares of both teachers' gradients at the scores.

    Ties decide a removal if the removed score is the highest one removed from its video, and, bit for bit, also that of
    a prunable cell which stays. (With `spread`, its pattern decides between them.)
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
    """Before the losses go backward: keep the gradient that arrives at the scores."""
    if encoded.target is not None and encoded.scores.requires_grad:
        encoded.scores.retain_grad()


class Health(NamedTuple):
    """Columns of log.csv, all of the prunable cells of a step: mean and standard deviation of the scores, the share of
    them that is saturated, their Pearson correlation with the target 1 − cos (NaN if either is constant), the share
    of removals that ties decide, and the L2 norms of both teachers' gradients at the scores: λ·L_sim's, the LM's."""

    score_mean: float
    score_spread: float
    saturated: float
    correlation: float
    ties: float
    sim_gradient: float
    lm_gradient: float

    @classmethod
    def of(cls, sums: Sequence[float]) -> Health | None:
        """From `sums`, added up; None if nothing was pruned.

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
    """A line that says so, with the remedy, if by the mean of these the scorer is dead: ties decide more than half of
    the removals, or more than 95% of the scores are saturated. Else, and if there is none, nothing. (Where hardly
    anything changes, it is right that nearly all are: then scores that follow their target, r ≥ 0.3, and are not all
    near 0 are no sign of death.)"""
    known = [h for h in healths if h]
    ties = sum(h.ties for h in known) / max(len(known), 1)
    saturated = sum(h.saturated for h in known) / max(len(known), 1)
    r = sum(0.0 if math.isnan(h.correlation) else h.correlation for h in known) / max(len(known), 1)
    sparse = r >= 0.3 and sum(h.score_mean for h in known) > SATURATED * len(known)
    if ties <= 0.5 and (saturated <= 0.95 or sparse):
        return ""
    found = f"ties decide {100 * ties:.0f}% of what is removed, and {100 * saturated:.0f}% of its scores are saturated"
    cure = "train anew with a lower --scorer-lr-ratio or a larger --sim-weight"
    return f"the scorer is dead: {found}; {cure}"
