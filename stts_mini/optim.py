"""Muon for CPUs: momentum, then the nearest orthogonal matrix, by five Newton–Schulz steps.

    m ← μ m + (1 − μ) g,   u = g + μ (m − g),   W ← W − lr · √max(1, rows/columns) · orthogonal(u)

The update rule is that of `torch.optim.Muon`. That one computes in bfloat16, which a CPU without
bfloat16 instructions emulates: measured once, 1.46 s a step on two AVX2 cores, longer than the
forward and backward passes together. Here it is float32 on a CPU, and matrices of one shape go through
together: 0.05 s. A test holds the two against each other.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest matrix with orthonormal rows or columns: x (n, rows, columns), each on its own.

    Singular values end up between about 0.7 and 1.2, which is near enough.
    """
    a, b, c = NEWTON_SCHULZ
    dtype = x.dtype
    x = x.float() if x.device.type == "cpu" else x.bfloat16()
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(dtype)


class Muon(torch.optim.Optimizer):
    """Muon for matrices. Raises ValueError for anything but 2-D parameters and sensible rates."""

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
