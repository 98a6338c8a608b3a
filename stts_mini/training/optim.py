"""How each parameter is optimised, and how fast: Muon, AdamW, the schedule.

Muon takes momentum, then the nearest orthogonal matrix, by five Newton–Schulz steps.

    m ← μ m + (1 − μ) g,   u = g + μ (m − g),   W ← W − lr · √max(1, rows/columns) · orthogonal(u)

The update rule is that of `torch.optim.Muon`, and a test compares the two. Torch's computes in bfloat16, which is slow
on a CPU without bfloat16 instructions. On two AVX2 cores a step took 1.46 s, longer than the forward and backward
passes together. Here it is float32 on a CPU, with all matrices of one shape at once, and takes 0.05 s.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from stts_mini.model import VLM
from stts_mini.training.config import TrainConfig


def orthogonalise(x: Tensor) -> Tensor:
    """Roughly the nearest matrix with orthonormal rows or columns, for each of x (n, rows, columns).

    Singular values end up between about 0.7 and 1.2, which is near enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # as in torch.optim.Muon
    dtype = x.dtype
    x = x.float() if x.device.type == "cpu" else x.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(dtype)


class Muon(torch.optim.Optimizer):
    """Muon for matrices. Raises ValueError for parameters that are not 2-D, and for impossible rates."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95):
        if not lr >= 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr {lr}, momentum {momentum}: give lr ≥ 0 and 0 ≤ momentum < 1")
        super().__init__(params, dict(lr=lr, momentum=momentum))
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(f"Muon takes matrices; a parameter is {tuple(p.shape)}: give that one to AdamW")

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape].append(p)
            for (rows, columns), params in same_shape.items():
                updates = []
                for p in params:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - momentum)
                    updates.append(p.grad.lerp(m, momentum))
                rate = lr * max(1, rows / columns) ** 0.5
                for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-rate)


def build_optimizers(model: VLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the rest, each with a group for every part of the model. A matrix with one
    row is the last layer of a scorer, and so AdamW's.

    Every group has its peak rate as `peak_lr`. Weight decay is 0 and β = (0.9, 0.95), as in the public code. The paper
    gives neither."""
    ratios = {"llm": 1.0, "vit": config.vision_lr_ratio, "connector": config.vision_lr_ratio}
    groups: dict[tuple[str, str], list] = {}
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        ends = ("embed_tokens", "lm_head", "position_embedding", "patch_embedding")
        hidden = p.ndim == 2 and len(p) > 1 and not any(end in name for end in ends) and config.muon_lr > 0
        groups.setdefault(("muon" if hidden else "adamw", part), []).append(p)
    optimizers = []
    adamw = functools.partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.0)
    for kind, rate, make in (("muon", config.muon_lr, Muon), ("adamw", config.lr, adamw)):
        own = [
            dict(params=params, lr=(peak := rate * ratios.get(part, config.scorer_lr_ratio)), peak_lr=peak)
            for (k, part), params in groups.items()
            if k == kind
        ]
        optimizers += [make(own)] if own else []
    return optimizers


def update(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Step every optimiser at this share of its peak rates, and forget the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        optimizer.step()
        optimizer.zero_grad()


def rate_at(step: int, config: TrainConfig) -> float:
    """The share of the peak learning rate at a step: linear warm-up, flat to the end of the curriculum, then a cosine
    to zero.

    >>> config = TrainConfig(steps=120, warmup=10, stages=dict(image=10, brief=10))
    >>> [round(rate_at(step, config), 2) for step in (0, 9, 20, 70, 119)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    flat = max(config.warmup, config.curriculum_steps)
    done = max(step - flat, 0) / (config.steps - flat)
    return 0.5 * (1 + math.cos(math.pi * done))
