"""Check this project on your GPU: one command, about ten minutes, one page of results.

    python -m stts_mini.lab.gpu_check -o mine        writes mine.json and mine.md again after every part
    python -m stts_mini.lab.gpu_check --device cpu   tiny sizes, to see whether the command itself works

    tests       tests/test_gpu.py, in a clone
    training    40 steps of `--preset gpu` on few clips, and its exam: seconds, measured and estimated memory
    speed       `lab.speed --shape so400m`, the paper's ViT: with masks, with --varlen, with --compile

Each part has its own process and time limit. If one fails, the next still runs. Exits 1 if any of them failed. Parts
that cannot run here are skipped, and the page says why.

What this file does not do: measure (`lab/speed`, `train.py`), or say what is right (`tests/test_gpu.py`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from stts_mini.data.files import check_outputs, write_json, write_text
from stts_mini.lab.grade import ROOT
from stts_mini.lab.speed.machine import MACHINE, machine
from stts_mini.lab.speed.page import memory_table, speed_table
from stts_mini.report.markdown import markdown
from stts_mini.train import pick_device
from stts_mini.training.logging import one_line_errors, parser_of

# flags of the two commands: without CUDA, with CUDA
TRAINING = (
    "--preset smoke --train-clips short=8,image=8,brief=8 --test-clips 2 --steps 3 --stages image=1,brief=1 --warmup 1"
    " --batch-size 2 --questions 2",
    "--preset gpu --train-clips short=128,watch=64,image=64,brief=64 --test-clips 16 --steps 40"
    " --stages image=8,brief=8 --warmup 4",
)
SPEED = ("--shape toy --load 1x2 --k 0,0.5 --rounds 1", "--shape so400m --load 2x64 --k 0,0.5,0.8")
FIGURES = dict(gpu_gb="of the GPU", estimated_gb="memory, estimated:", pruned_step_over_unpruned="over the unpruned:")


def parts_of(device: torch.device, folder: Path) -> list[tuple[str, list[str], int, str]]:
    """The parts for a device: name, words for `python -m`, seconds that it may take, and why it is skipped ("" if it is
    not). All output goes to `folder`."""
    on_cuda, tests = device.type == "cuda", ROOT / "tests" / "test_gpu.py"
    there = tests.is_file() and find_spec("pytest") and find_spec("hypothesis")
    clone = "" if there else "clone the repository, and run pip install -e '.[test]' in the clone"
    flags = ["-v", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-W", "default"]
    own = [f"--device={device}", f"--data={folder / 'data'}", f"--out={folder / 'run'}"]
    speed = ["stts_mini.lab.speed", *SPEED[on_cuda].split(), f"--device={device}", f"--out={folder / 'speed.json'}"]
    new = on_cuda and torch.cuda.get_device_capability(device) >= (8, 0)
    return [
        ("tests", ["pytest", *flags, str(tests)], 120, clone),
        ("training", ["stts_mini.train", *TRAINING[on_cuda].split(), *own], 180, ""),
        ("speed", speed, 90, ""),
        ("speed --varlen", [*speed, "--varlen"], 90, "" if new else "it is for CUDA, Ampere or newer"),
        ("speed --compile", [*speed, "--compile"], 150, "" if on_cuda else "it takes minutes on a CPU"),
    ]


def run(part: str, words: list[str], limit: int, skip: str, folder: Path) -> dict:
    """Run a part, and record how it went, its seconds, the end of its output, and what it measured."""
    record = dict(part=part, command=" ".join(["python -m", *words]), seconds=0.0, said="", measured={})
    if skip:
        return record | dict(how=f"skipped: {skip}")
    began = time.monotonic()
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    with subprocess.Popen([sys.executable, "-m", *words], start_new_session=True, **pipe) as process:
        try:
            said = process.communicate(timeout=limit)[0]
            how = f"failed: exit status {process.returncode}" if process.returncode else "done"
        except BaseException as error:  # too long, or Ctrl-C
            with suppress(ProcessLookupError):  # also the processes it started, which would hold memory
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            said, how = process.communicate()[0], f"failed: not done after {limit} s"
    record |= dict(seconds=round(time.monotonic() - began, 1), said=said[-6000:], how=how)
    if how == "done":
        try:
            record["measured"] = measured(part, said, folder)
        except (OSError, ValueError, LookupError) as error:
            record["how"] = f"failed: what it wrote cannot be read ({type(error).__name__}: {error})"
    return record


def measured(part: str, said: str, folder: Path) -> dict:
    """What a finished part has measured, from its output and its files."""
    if part == "tests":
        return dict(tests=said.strip().splitlines()[-1].strip("= "))
    if part != "training":
        return json.loads((folder / "speed.json").read_text())
    log = np.genfromtxt(folder / "run" / "log.csv", delimiter=",", names=True)
    pruned = float(np.median(np.diff(log["seconds"])[-10:]))  # the first steps are unpruned and slow
    figures = {name: float(at[1]) for name, text in FIGURES.items() if (at := re.search(text + r" ([\d.]+)", said))}
    return dict(seconds_of_a_pruned_step=round(pruned, 3), **figures)


def page(report: dict) -> str:
    """The report as Markdown."""
    head = "# GPU check\n\n" + MACHINE + "; CUDA {cuda}, cuDNN {cudnn}, Python {python}"
    table = markdown(("part", "how it went", "seconds"), [(r["part"], r["how"], r["seconds"]) for r in report["parts"]])
    pieces = [head.format(**report), table]
    for record in [r for r in report["parts"] if not r["how"].startswith("skipped")]:
        pieces += [f"## {record['part']}\n\n`{record['command']}`"]
        if "speed" in record["measured"]:
            pieces += [speed_table(record["measured"]["speed"]), memory_table(record["measured"]["memory"])]
        elif record["measured"]:
            pieces.append("\n".join(f"- {name}: {value}" for name, value in record["measured"].items()))
        if record["how"].startswith("failed"):
            pieces.append("```\n" + "\n".join(record["said"].splitlines()[-30:]) + "\n```")
    return "\n\n".join(pieces) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.gpu_check", __doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("-o", "--out", default="gpu_check", help="name of the two files")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog), tempfile.TemporaryDirectory() as folder:
        files = [Path(args.out + end) for end in (".json", ".md")]
        check_outputs(files)
        device, versions = pick_device(args.device), dict(cuda=torch.version.cuda, python=platform.python_version())
        report = dict(**machine(device), **versions, cudnn=torch.backends.cudnn.version(), parts=[])
        for part in parts_of(device, Path(folder)):
            print(f"{part[0]}: at most {part[2]} s", file=sys.stderr, flush=True)
            report["parts"].append(run(*part, Path(folder)))
            write_json(files[0], report)
            write_text(files[1], page(report))
    print(page(report))
    if any(record["how"].startswith("failed") for record in report["parts"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
