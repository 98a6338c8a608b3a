"""A run on a real machine: alone in its folder, ended by a scheduler, on a full disk, resumed with something else."""

import csv
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from stts_mini import train as training
from stts_mini.data import files
from stts_mini.data.batches import TOKENIZER
from stts_mini.data.files import naming, write_text
from stts_mini.lab.paper.train import main as lab_main
from stts_mini.train import build_model, build_optimizers, train
from stts_mini.training import checkpoint, distributed
from stts_mini.training.checkpoint import CheckpointError, alone, origin, restore, save_run
from stts_mini.training.config import TrainConfig, parse_flags
from stts_mini.training.logging import Interrupt, Log, one_line_errors, sigterm_as_ctrl_c
from tests.tiny import forks, slow_but, tiny

CPU = torch.device("cpu")
HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def dead_pid():
    """The number of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


FORK = multiprocessing.get_context("fork")  # at once; a new process would have to load PyTorch


def hold(folder, held):
    """Hold a run's folder for a minute."""
    with alone(folder):
        held.set()
        time.sleep(60)


# ------------------------------------------------------------------------------ one run in a folder


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_second_run_in_a_folder_is_refused_until_the_first_is_dead(folder, tmp_path):
    out = tmp_path / "run"
    train(tiny(folder, out=str(out)), False, CPU)
    first = FORK.Process(target=hold, args=(out, held := FORK.Event()), daemon=True)
    first.start()
    assert held.wait(20)
    for resume in (False, True):
        with pytest.raises(ValueError, match=rf"run is in use by process {first.pid} on "):
            train(tiny(folder, out=str(out)), resume, CPU)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # nothing was moved away
    first.kill()
    first.join()
    assert (out / "lock").exists()  # and does not count
    train(tiny(folder, out=str(out)), True, CPU)
    assert not (out / "lock").exists()


def test_a_run_within_a_run_holds_what_is_held(tmp_path):
    with alone(tmp_path / "run"), alone(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()  # nothing came of it
    with alone(tmp_path / "run"):
        with alone(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()} on {platform.node()}"


def test_folders_and_files_that_cannot_be_written_are_noticed_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "training_clips", lambda *_: pytest.fail("the work began"))
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        with pytest.raises(ValueError, match=f"cannot write to the folder .*{out} .*give another --out"):
            train(tiny(folder, out=str(tmp_path / out)), False, CPU)
    for name in checkpoint.FILES:
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(ValueError, match=f"{name} is a folder"):
            train(tiny(folder, out=str(tmp_path / name)), False, CPU)
        assert os.listdir(tmp_path / name) == [name]


@pytest.mark.parametrize("another", [False, True])
def test_a_lock_that_was_removed_meanwhile_is_left_to_whoever_made_another(another, tmp_path, monkeypatch):
    def removed(*_):
        """Between the opening and the locking of a file, the run that had made it ends."""
        (tmp_path / "lock").unlink()
        if another:
            (tmp_path / "lock").write_text("theirs")

    monkeypatch.setattr(checkpoint.fcntl, "flock", removed)
    with pytest.raises(ValueError, match="was in use just now: try again"), alone(tmp_path):
        pytest.fail("two runs are in one folder")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["theirs"] * another


def test_an_old_run_is_moved_from_behind_a_link(tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "checkpoint.pt").write_text("old")
    (tmp_path / "run").symlink_to("disk")
    with alone(tmp_path / "run"):
        checkpoint.keep_old_run(tmp_path / "run")
        assert os.listdir(tmp_path / "disk") == ["lock"]
    assert (tmp_path / "disk.1" / "checkpoint.pt").read_text() == "old" and "was moved to" in capsys.readouterr().out


def test_what_dead_processes_left_half_written_is_removed(tmp_path):
    gone, host = dead_pid(), platform.node()
    dead = [f"checkpoint.pt.{gone}.partial", f"a.b.mp4.{gone}@{host}.partial", f"a.json.{10**30}.partial"]
    alive = [f"a.pt.{os.getpid()}.partial", f"a.pt.{gone}@elsewhere.partial", f"film.{gone}.partial", "a.mp4.partial"]
    for name in (*dead, *alive):
        (tmp_path / name).write_text("half")
    files.sweep.cache_clear()
    write_text(tmp_path / "new", "whole")
    assert set(os.listdir(tmp_path)) == {*alive, "new"}


# -------------------------------------------------------------------------- the end, from outside


def test_worker_processes_end_with_their_parent(tmp_path):
    """However it ends: this way nobody can clean up."""
    script = """
import os, time
from stts_mini.data.clips import on_all_cores
def slow(_):
    time.sleep(0.05)
    return os.getpid()
if __name__ == "__main__":
    for i, pid in enumerate(on_all_cores(slow, range(640))):
        if i == 0:
            print(pid, flush=True)
"""
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=HERE, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.stdout.close()
    parent.wait()
    give_up = time.monotonic() + 20
    while alive(worker) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid):
    """Whether a process runs; one that has ended may still stand in the list, as a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=forks)])
def test_sigterm_saves_as_ctrl_c_does_and_comes_twice(workers, folder, tmp_path, monkeypatch, capsys):
    """Schedulers send it to a whole group, and terminals Ctrl-C: the workers leave both to this process."""
    real = training.forward_backward

    def terminated(*args, **kwargs):
        assert len(multiprocessing.active_children()) == workers
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM), os.kill(child.pid, signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "forward_backward", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        train(tiny(folder, out=str(tmp_path), save_every=100, workers=workers), False, CPU)
    assert caught.value.code == 130 and "--resume" in capsys.readouterr().out
    assert not multiprocessing.active_children()
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_ctrl_c_outside_the_loop():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, one_line_errors("x"):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 130
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c(), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked
        interrupt.__exit__()
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_holds_its_folder_to_the_end_and_hears_sigterm(folder, tmp_path, monkeypatch, capsys):
    left = []

    def finish(*_):
        assert (tmp_path / "run" / "lock").exists()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training, "train", lambda *_, **__: None)
    monkeypatch.setattr(training, "finish", finish)
    monkeypatch.setattr(os, "_exit", left.append)
    training.main(["--preset", "smoke", "--out", str(tmp_path / "run")])
    assert left == [130] and "Interrupted" in capsys.readouterr().err and not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------- a full disk


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_named_and_so_is_the_file(folder, tmp_path, monkeypatch):
    class Full:
        """A file on a disk that is full after the first 4 KB: torch.save's own error hides the reason."""

        def __init__(self, path):
            self.file = open(path, "wb")  # noqa: SIM115

        write = lambda self, data: self.file.write(data) if self.file.tell() < 4096 else full()
        flush = lambda self: self.file.flush()
        fileno = lambda self: self.file.fileno()
        __enter__ = lambda self: self
        __exit__ = lambda self, *_: self.file.close()

    monkeypatch.setattr(checkpoint, "open", lambda path, _: Full(path), raising=False)
    with pytest.raises(CheckpointError, match=r"No space left on device.*checkpoint.pt"):
        checkpoint.save(tmp_path / "checkpoint.pt", build_model(tiny(folder), CPU), step=1)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device.*result.json"):
        write_text(tmp_path / "result.json", "{}")
    log = Log(tmp_path / "log.csv", 0)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"No space left on device.*log.csv"):
        log.flush()
    with pytest.raises(RuntimeError, match=r"^another$"), naming(tmp_path):
        raise RuntimeError("another")


@pytest.mark.parametrize("part", ["step_time_ratio", "draw_clips"])
def test_the_result_is_written_before_anything_else_can_fail(folder, tmp_path, monkeypatch, part):
    config = tiny(folder, out=str(tmp_path))
    monkeypatch.setattr(training, "step_time_ratio", lambda *_: 0.75)
    monkeypatch.setattr(training, part, full)
    with pytest.raises(OSError, match="No space"):
        training.finish(config, build_model(config, CPU).eval(), CPU)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["choice"] and result.get("step_time_ratio") == (0.75 if part == "draw_clips" else None)


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def saved(folder):
    """A checkpoint of a whole run."""
    train(tiny(folder, out=str(folder / "saved")), False, CPU)
    return folder / "saved" / "checkpoint.pt"


@pytest.fixture(scope="module")
def parts(saved):
    """What it holds, for tests that leave that as it is."""
    return checkpoint.load(saved)


@pytest.mark.parametrize("part", ["model_config", "model", "train_config", "step", "optimizers", "rng", "clips"])
@pytest.mark.parametrize("value", slow_but([None, "absent", 7], "absent"))
def test_a_checkpoint_without_a_part_is_refused(folder, saved, parts, tmp_path, part, value):
    state = {**parts, part: value}
    if value == "absent":
        del state[part]
    shutil.copytree(saved.parent, tmp_path / "run")
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    words = "optimisers or random state|lacks|the training clips were 7"
    if (part, value) != ("step", 7):
        with pytest.raises(CheckpointError, match=words) as caught:
            train(tiny(folder, out=str(tmp_path / "run")), True, CPU)
        assert "\n" not in str(caught.value)
    if part in ("model_config", "model", "train_config") or (part == "step" and value != 7):
        with pytest.raises(CheckpointError, match=f"lacks {part}"):
            checkpoint.load_trained(tmp_path / "run" / "checkpoint.pt")


def test_a_checkpoint_without_a_setting_that_commands_ask_for_is_refused(parts, tmp_path):
    for name in checkpoint.READ:
        rest = {key: value for key, value in parts["train_config"].items() if key != name}
        torch.save({**parts, "train_config": rest}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=f"lacks the setting {name}: "):
            checkpoint.load_trained(tmp_path / "a.pt")


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_checkpoint_with_a_number_that_is_none_is_refused(saved, tmp_path, number):
    state = checkpoint.load(saved)
    weight = state["model"]["llm.norm.weight"]
    state["model"]["llm.norm.weight"] = torch.cat([weight[:-1], torch.tensor([number])])
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt is damaged: model.llm.norm.weight is not a finite number"):
        checkpoint.load_model(tmp_path / "a.pt")
    state["model"]["llm.norm.weight"] = weight
    adam = state["optimizers"][-1]["state"]
    next(iter(adam.values()))["exp_avg"].fill_(number)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"optimizers\.1\.state\.\d+\.exp_avg is not a finite"):
        checkpoint.load(tmp_path / "a.pt")


class Other:
    """A tokenizer, as far as a checkpoint asks."""

    def __init__(self, text):
        self.json_text, self.names = text, dict(pad="<pad>")


def test_another_model_tokenizer_or_scorer_file_is_another_run(folder, tmp_path, capsys):
    """All of the same shape and under the same names."""
    mine = tmp_path / "mine.py"
    source = "import torch\nclass Mine(torch.nn.Module):\n    def __init__(self, config):\n        super().__init__()\n"
    mine.write_text(source)
    config, path = tiny(folder, scorer=f"{mine}:Mine"), tmp_path / "checkpoint.pt"

    def a_run(seed=0, eps=1e-6, text="{}"):
        model = build_model(tiny(folder, scorer=config.scorer, seed=seed), CPU)
        llm = type(model.config.llm)(**{**vars(model.config.llm), "eps": eps})
        model.config = type(model.config)(**{**vars(model.config), "llm": llm})
        return model, build_optimizers(model, config), origin(config, "clips", Other(text), model)

    model, optimizers, began = a_run()
    save_run(path, 2, model, optimizers, config, began, [torch.get_rng_state()])
    assert began["weights"] and began["scorer_file"]
    with pytest.raises(CheckpointError, match=r"shape: .* in this model, whose scorer is .*mine.py:Mine\."):
        checkpoint.load_weights(model, {"model": {}}, path)
    for scorer, message in ((None, "was trained with None, and that file"), ("stts", "of scorer stts cannot be read")):
        state = checkpoint.load(path)
        torch.save({**state, "model_config": {**state["model_config"], "scored_by": scorer}}, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load_model(tmp_path / "b.pt")
    assert restore(path, *a_run()[:2], config, a_run()[2]) == 2
    for change, message in (
        (dict(seed=1), "the first weights of ViT and LLM were"),
        (dict(eps=1e-2), "the model's llm was .*eps=1e-06.*, is .*eps=0.01"),
        (dict(text="[]"), "the tokenizer was another"),
    ):
        model, optimizers, began = a_run(**change)
        with pytest.raises(CheckpointError, match=f"cannot resume .*: {message}"):
            restore(path, model, optimizers, config, began)
    mine.write_text(source + "    changed = True\n")
    model, optimizers, began = a_run()
    with pytest.raises(CheckpointError, match=r"file were \w{12}, are \w{12}"):
        restore(path, model, optimizers, config, began)
    mine.unlink()
    with pytest.raises(CheckpointError, match=r"the file of scorer .*mine.py:Mine cannot be read"):
        origin(config, "clips", TOKENIZER, None)
    assert origin(tiny(folder), "clips", TOKENIZER, None) == dict(clips="clips")  # a model from the seed needs no more


def test_each_process_has_its_own_random_state_back(folder, tmp_path, monkeypatch, capsys):
    config, path = tiny(folder), tmp_path / "checkpoint.pt"
    model, began = build_model(config, CPU), dict(clips="clips")
    states = [torch.Generator().manual_seed(i).get_state() for i in range(2)]
    save_run(path, 2, model, build_optimizers(model, config), config, began, states)
    for rank, of in ((0, 0), (1, 1), (2, 0)):  # a third process, which was not there then
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        restore(path, model, build_optimizers(model, config), config, began)
        assert torch.equal(torch.get_rng_state(), states[of])
    torch.save({**checkpoint.load(path), "rng": states[1]}, path)  # as older checkpoints had it
    restore(path, model, build_optimizers(model, config), config, began)
    assert torch.equal(torch.get_rng_state(), states[1])


def test_the_loop_saves_the_random_state_of_every_process(folder, tmp_path, monkeypatch):
    real = distributed.gather
    both = lambda value: [value, value + 1] if isinstance(value, torch.Tensor) else real(value)
    monkeypatch.setattr(training.distributed, "gather", both)
    train(tiny(folder, out=str(tmp_path)), False, CPU)
    first, second = checkpoint.load(tmp_path / "checkpoint.pt")["rng"]
    assert torch.equal(first + 1, second)


# --------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(steps=3, warmup=4, stages={}), "warmup = 4 steps, longer than the run of steps = 3: give a smaller"),
        (dict(seed=2**63), "seed = 9223372036854775808: give 0 or more, and less than 2^63"),
        (dict(steps=2.0), "steps = 2.0: give int"),
        (dict(k="0.5"), "k = '0.5'"),
        (dict(compile="no"), "compile = 'no': give bool"),
        (dict(stages="image=3"), "stages = 'image=3': give dict"),
        (dict(fps=1e300), "fps = 1e+300: give more than 0, and less than 2^63"),
        (dict(fps=math.inf), "fps = inf: give more than 0, and less than 2^63"),
        (dict(train_clips=dict(short="3")), "train_clips has short='3': give --train-clips KIND=COUNT"),
    ],
)
def test_settings_that_would_end_a_run_in_its_middle_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**settings)


def test_flags_without_an_effect_are_told(folder, capsys):
    def said(*flags, main=training.main):
        main([*flags, "--dry-run", "--device", "cpu"])
        return next((x for x in capsys.readouterr().out.splitlines() if x.startswith("note: without effect")), "")

    assert said("--steps", "2000", "--k", "0.3", "--bias", "none") == ""
    assert "--stages (--data has clips of your own)" in said("--data", "mine.jsonl", "--stages", "image=3")
    assert "--sim-weight (--k 0 prunes nothing)" in said("--k", "0", "--sim-weight", "2")
    assert "--bias (the scorer cosine does not learn from it)" in said("--scorer", "cosine", "--bias", "none")
    assert "--k (--blind has no vision tokens)" in said("--blind", "--k", "0.3", main=lab_main)


def test_a_kind_that_comes_twice_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_flags(["--train-clips", "short=3,short=4"])
    assert "short comes twice" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("recompute", slow_but([False, True], True))
def test_blocks_are_compiled_with_recomputing_too(folder, recompute):
    """How torch.compile is called is counted, and not what a compiler makes of it."""
    config, graphs = tiny(folder, compile=True, recompute=recompute), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    torch.compiler.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))
        model = build_model(config, CPU)
        training.wrap(model, config, CPU)
    model.vit.blocks[0](torch.randn(2, 36, 8, requires_grad=True)).sum().backward()
    assert graphs and all(p.grad is not None for p in model.vit.blocks[0].parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # which PyTorch hides
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # PyTorch's own imports
@pytest.mark.parametrize(
    "backend, recompute",
    [("eager", True), ("inductor", False), ("inductor", True)],
)
@pytest.mark.slow
def test_a_compiled_run_logs_what_a_plain_one_logs_with_few_graphs(folder, tmp_path, monkeypatch, backend, recompute):
    """The scorer's health, too. A ViT block comes plain, with a bias, and with a mask (of which PyTorch makes two
    graphs), an LLM layer in one form; and what runs without gradients is not compiled."""
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    real, rows = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))
    for compiled in (False, True):
        torch.compiler.reset()
        counters.clear()
        config = tiny(folder, out=str(tmp_path / f"{compiled}"), compile=compiled, recompute=recompute and compiled)
        train(config, False, CPU)
        with open(tmp_path / f"{compiled}" / "log.csv", newline="") as log:
            logged = [{name: float(x or "nan") for name, x in row.items()} for row in csv.DictReader(log)]
        rows.append([[row[name] for name in Log.NAMES if name != "seconds"] for row in logged])
    plain, with_graphs = rows
    assert [row[2] > 0 for row in plain] == [min(row[-2:]) > 0 for row in plain] == [False, False, True, False]
    for row, expected in zip(with_graphs, plain, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-6, nan_ok=True)
    assert counters["stats"]["unique_graphs"] == 5
