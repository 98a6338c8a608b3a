"""Several processes as one: the few functions that torch's DistributedDataParallel needs around it.

    torchrun --nproc-per-node 2 -m stts_mini.train

Each process makes its share of every batch. DistributedDataParallel averages the gradients. Process 0 alone prepares
data, prints and writes. In a single process every function here does nothing.

What this file does not do: split batches (`data/batches.py`), weigh losses (`step.py`).
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes if `torchrun` started several, and leave them at the end. Yields this process's device.
    Only process 0 prints to standard output."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # two hours, because the others wait while process 0 writes clips
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
            yield device
        dist.barrier()  # all leave together: gloo's threads can kill a process that ends while others still work
    finally:
        gc.collect()  # frees DDP, which still uses the group
        dist.destroy_process_group()


@contextmanager
def first() -> Iterator[bool]:
    """Whether this is process 0. The others wait until it has left the block, so that they find what it made."""
    yield rank() == 0
    if dist.is_initialized():
        dist.barrier()


def in_turn(make: Callable[[], Any]) -> Any:
    """make(), first in process 0. Then the others call it, too, and find what process 0 wrote."""
    with first() as here:
        made = make() if here else None
    return made if here else make()


def total(*numbers: float) -> list[float]:
    """Sums over all processes."""
    if not dist.is_initialized():
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return summed.tolist()


def totals(*lists: Sequence[float]) -> list[list[float]]:
    """Sums over all processes of several lists, in one message."""
    summed = iter(total(*itertools.chain(*lists)))
    return [list(itertools.islice(summed, len(own))) for own in lists]


def gather(value: Any) -> list:
    """The values of all processes, in their order."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values
