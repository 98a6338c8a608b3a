"""One Hypothesis profile for all tests: no deadline (shared machines are slow now and then), printed
seeds, and more examples with HYPOTHESIS_PROFILE=thorough. And the grader's options: see tests/README.md."""

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

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
        parser.addoption(f"--{module}", metavar="FILE", help=f"grade this file in the place of stts_mini.{module}")


def pytest_configure(config):
    config.graded = []
    for module, names in GRADED.items():
        path = config.getoption(f"--{module}")
        if path and ":" in path:  # my_file.py:MyScorer, for test_any_scorer.py
            config.graded.append(path)
        elif path:
            try:
                found = put_in_place(module, path)
            except ValueError as error:
                raise pytest.UsageError(str(error)) from error
            ours = [name for name in names if name not in found]
            config.graded.append(f"{path}: {', '.join(found)}" + (f" (ours: {', '.join(ours)})" if ours else ""))


def pytest_report_header(config):
    return [f"grading {line}" for line in config.graded]
