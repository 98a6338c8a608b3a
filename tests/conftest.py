"""One Hypothesis profile for all tests: no deadline (shared machines are slow now and then), and more examples with
HYPOTHESIS_PROFILE=thorough. And the grader's options: see tests/README.md."""

import os
from pathlib import Path

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
    files = {Path(arg.split("::")[0]).name for arg in config.args}
    paths = {module: config.getoption(f"--{module}") for module in GRADED}
    try:
        config.graded = [put_in_place(module, path, files) for module, path in paths.items() if path]
        if rival := config.getoption("--rival"):
            find_rival(rival)
            config.graded.append(f"grading {rival}")
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """The report's first lines say what is graded. (A header would not be shown with -q.)"""
    for line in session.config.graded:
        session.config.pluginmanager.get_plugin("terminalreporter").write_line(line)
