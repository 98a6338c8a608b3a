"""One Hypothesis profile for all tests: no deadline (shared machines are slow now and then), and more examples with
HYPOTHESIS_PROFILE=thorough. And the grader's options: see tests/README.md."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from stts_mini.lab.paper.rivals.known import find_rival
from tests.grading import GRADED, put_in_place

collect_ignore = ["wrong"]  # modules that are wrong on purpose: see test_grading.py

common = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("default", max_examples=40, **common)
settings.register_profile("thorough", max_examples=400, **common)
fast = dict(derandomize=True, phases=[Phase.explicit, Phase.generate])  # a mutant needs no small counter-example
settings.register_profile("mutants", max_examples=25, **common, **fast)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.manual_seed(0)


def pytest_addoption(parser):
    for module in GRADED:
        parser.addoption(f"--{module}", metavar="FILE", help=f"grade this file instead of stts_mini.{module}")
    parser.addoption("--rival", metavar="FILE:CLASS", help="grade this rival (tests/lab/paper/test_rivals.py)")


def pytest_configure(config):
    torch.set_num_threads(1)  # tensors here are tiny: a second thread costs more than it gains
    files = {Path(arg.split("::")[0]).name for arg in config.args}
    paths = {module: config.getoption(f"--{module}") for module in GRADED}
    try:
        config.graded = [put_in_place(module, path, files) for module, path in paths.items() if path]
        if rival := config.getoption("--rival"):
            find_rival(rival)
            config.graded.append(f"grading {rival}")
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


WARM = """
import json, os, sys, tempfile
import av, pytest, torch, torch._dynamo  # takes seconds: once for all

for line in sys.stdin:
    folder, code, *words = json.loads(line)
    with tempfile.TemporaryFile() as said:
        if not (child := os.fork()):
            os.chdir(folder)
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            sys.argv[1:] = words
            exec(code, {"__name__": "__main__"})
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(json.dumps([status, said.read().decode()]), flush=True)
"""


def pytest_collection_finish(session):
    """Let `in_new_process` take its seconds to begin while the first tests run."""
    if any("in_new_process" in item.fixturenames for item in session.items if hasattr(item, "fixturenames")):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        session.config.warm = subprocess.Popen([sys.executable, "-c", WARM], env=environment, **pipes)


@pytest.fixture(scope="session")
def in_new_process(pytestconfig):
    """`python -c CODE WORDS` in a folder, as a process that knows nothing of ours, but others' packages already."""
    warm = pytestconfig.warm

    def run(folder, code, *words):
        print(json.dumps([str(folder), code, *map(str, words)]), file=warm.stdin, flush=True)
        status, said = json.loads(warm.stdout.readline())
        return SimpleNamespace(returncode=status, stdout=said)

    return run


def pytest_unconfigure(config):
    if warm := getattr(config, "warm", None):
        warm.communicate()  # closes its input, at which it ends


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """The report's first lines say what is graded. (A header would not be shown with -q.)"""
    for line in session.config.graded:
        session.config.pluginmanager.get_plugin("terminalreporter").write_line(line)
