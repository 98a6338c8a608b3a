"""Measure on this machine: bytes, in a process of its own, and which machine it is.

What this file does not do: know what is measured (`bench.py`, `backbones.py`, `lab/long.py`).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from stts_mini.train import peak_memory

MACHINE = "{device}, {threads} threads, torch {torch}, commit {commit}, load {started_under_load} when it began"


def commit() -> str:
    """The checked-out commit, with a + if anything in the package differs from it. "unknown" without git, or if the
    package lies in another project's repository."""
    package = Path(__file__).parents[2]
    if not shutil.which("git") or not (package.parent / ".git").exists():
        return "unknown"
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=package)
    head = git("rev-parse", "--short", "HEAD").stdout.strip()
    return head + "+" * bool(git("status", "--porcelain", ".").stdout.strip()) if head else "unknown"


def machine(device: torch.device) -> dict:
    """The machine, for `MACHINE`. The load is how many processes wanted to run in the last minute. If others did, the
    figures are those of a busy machine."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{device} ({platform.machine()})"
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return dict(
        device=name, threads=torch.get_num_threads(), torch=torch.__version__, commit=commit(), started_under_load=load
    )


def process_memory(field: str = "VmHWM") -> int:
    """Bytes that this process holds (VmRSS), or the most that it has held (VmHWM). They come from /proc where it
    exists, because `getrusage` may give the parent's peak, which outlives exec."""
    status = Path("/proc/self/status")
    if not status.exists():
        return round(peak_memory() * 1e9)
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def in_own_process(work: Callable, *given: object):
    """work(*given) in a fresh process, so that its memory can be measured. It has as many threads as this process.

    We make glibc give back what is freed, which it would partly keep. So we measure what tensors hold, as on CUDA. A
    MALLOC_MMAP_THRESHOLD_ that you have set is kept.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "131072")  # bytes, read when a process starts, so not by this one
    threads = dict(initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    with ProcessPoolExecutor(1, get_context("spawn"), **threads) as pool:
        return pool.submit(work, *given).result()
