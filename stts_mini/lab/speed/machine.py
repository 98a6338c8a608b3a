"""What something takes on this machine: seconds in turns, bytes in a process of its own, and which machine it is.

What this file does not do: know what is measured (`bench.py`, `backbones.py`, `lab/long.py`).
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from stts_mini.train import peak_memory

MACHINE = "{device}, {threads} threads, torch {torch}, commit {commit}, load {started_under_load} when it began"


def commit() -> str:
    """The checked-out commit, with a + if anything in the package differs from it."""
    package = Path(__file__).parents[2]
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=package)
    head = git("rev-parse", "--short", "HEAD").stdout.strip()
    return head + "+" * bool(git("status", "--porcelain", ".").stdout.strip()) if head else "unknown"


def machine(device: torch.device) -> dict:
    """What the figures are of, for `MACHINE`. The load is how many processes wanted to run in the last minute: if more
    than ours did, the figures are those of a busy machine."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{device} ({platform.machine()})"
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return dict(
        device=name, threads=torch.get_num_threads(), torch=torch.__version__, commit=commit(), started_under_load=load
    )


def in_turns(
    run: Callable, sides: Sequence, rounds: int, now: Callable[[], float], warm: Sequence
) -> dict[object, list[float]]:
    """Seconds of run(side), for every side, in every round; every other round in reverse. Before it, run(side) for each
    side in `warm`, untimed."""
    seconds: dict[object, list[float]] = {side: [] for side in sides}
    for side in warm:
        run(side)
    for i in range(rounds):
        for side in sides[:: -1 if i % 2 else 1]:
            began = now()
            run(side)
            seconds[side].append(now() - began)
    return seconds


def process_memory(field: str = "VmHWM") -> int:
    """Bytes that this process holds, VmRSS, or the most that it has held, VmHWM, where /proc says so. (What `getrusage`
    says may be the parent's: it outlives exec.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return round(peak_memory() * 1e9)
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def in_own_process(work: Callable, *given: object):
    """work(*given) in a fresh process, for its memory to be measured, with as many threads as here.

    There, glibc gives back what is freed, so what is measured is what tensors hold, as on CUDA. Left to itself, glibc
    keeps some of it. (A MALLOC_MMAP_THRESHOLD_ of your own is left as it is.)
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "131072")  # bytes; read when a process starts, so not by this one
    threads = dict(initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    with ProcessPoolExecutor(1, get_context("spawn"), **threads) as pool:
        return pool.submit(work, *given).result()
