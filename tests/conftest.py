"""One Hypothesis profile for all tests: no deadline (shared machines are slow now and then), and more examples with
HYPOTHESIS_PROFILE=thorough. And the grader's options: see tests/README.md."""

import gc
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
settings.register_profile("default", max_examples=25, **common)
settings.register_profile("thorough", max_examples=250, **common)
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
    for device in (torch.cuda, torch.mtia, torch.xpu):
        if not device.is_available():
            device.manual_seed_all = lambda seed: None  # keeps a stack of the caller for later, in every manual_seed
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


class Warm:
    """Runs `python -c CODE WORDS` in a folder, one after the other, in processes that know nothing of ours, but others'
    packages already."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, "-c", WARM], env=environment, **pipes)
        self.asked, self.answers = 0, []

    def ask(self, folder, code, *words) -> int:
        print(json.dumps([str(folder), code, *map(str, words)]), file=self.process.stdin, flush=True)
        self.asked += 1
        return self.asked - 1

    def answer(self, number: int) -> SimpleNamespace:
        while len(self.answers) <= number:
            self.answers.append(json.loads(self.process.stdout.readline()))
        status, said = self.answers[number]
        return SimpleNamespace(returncode=status, stdout=said)


def pytest_collection_finish(session):
    """Let it take its seconds to begin while the first tests run. And what is there now will stay: the garbage
    collector need not look at it again."""
    gc.freeze()
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if names & {"in_new_process", "report"}:
        session.config.warm = Warm()


@pytest.fixture(scope="session")
def in_new_process(pytestconfig):
    """See `Warm`."""
    warm = pytestconfig.warm
    return lambda *asked: warm.answer(warm.ask(*asked))


GRADE = "import runpy; runpy.run_module('stts_mini.lab.grade', run_name='__main__')"


@pytest.fixture(scope="session", autouse=True)
def graders(request, tmp_path_factory):
    """Of each test that is marked `graded(FILES, OPTIONS)`: its folder, and which answer of `Warm` is its report. All
    begin at once, so that they run on a second core while other tests run on the first."""
    started = {}
    if not hasattr(request.config, "workerinput"):  # with pytest-xdist no core is idle
        for item in request.session.items:
            if mark := item.get_closest_marker("graded"):
                started[item.nodeid] = start_grader(request.config.warm, tmp_path_factory, *mark.args)
    return started


def start_grader(warm, tmp_path_factory, files, options):
    """Somebody's project: a package `tests`, a conftest.py that imports it, and settings of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "tests").mkdir()
    theirs = {
        "tests/__init__.py": "", "tests/grading.py": "", "pytest.ini": "[pytest]\naddopts = --no-such-option\n",
        "conftest.py": "import tests.grading\nraise RuntimeError('not ours')\n",
    }  # fmt: skip
    for name, text in {**theirs, **files}.items():
        (folder / name).write_text(text)
    return folder, {*folder.rglob("*")}, warm.ask(folder, GRADE, *options, "-x")


@pytest.fixture
def report(request, graders, tmp_path_factory):
    """What `python -m stts_mini.lab.grade OPTIONS -x` said of FILES, and what it wrote beside them."""
    warm, args = request.config.warm, request.node.get_closest_marker("graded").args
    folder, before, number = graders.get(request.node.nodeid) or start_grader(warm, tmp_path_factory, *args)
    done = warm.answer(number)
    done.written = {path for path in folder.rglob("*") if "__pycache__" not in path.parts} - before
    return done


def pytest_unconfigure(config):
    if warm := getattr(config, "warm", None):
        if len(warm.answers) < warm.asked:  # stopped before
            warm.process.terminate()
        warm.process.communicate()  # closes its input, at which it ends


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """The report's first lines say what is graded. (A header would not be shown with -q.)"""
    for line in session.config.graded:
        session.config.pluginmanager.get_plugin("terminalreporter").write_line(line)
