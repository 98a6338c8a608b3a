"""Wrong on purpose: every frame gets a row of its own, so nothing is saved."""

import torch


def first_fit_descending(lengths, capacity):
    lengths = torch.as_tensor(lengths, dtype=torch.long)
    row = torch.where(lengths > 0, (lengths > 0).cumsum(0) - 1, -1)
    return row, torch.zeros_like(lengths), int((lengths > 0).sum())
