"""Two processes on one batch: the gradients, the run and the result of a single one."""

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from stts_mini.data.batches import Reader, Sampler
from stts_mini.data.clips import load_clips, prepare
from stts_mini.eval import evaluate
from stts_mini.report.result import merged
from stts_mini.train import build_model, train
from stts_mini.training import checkpoint, distributed
from stts_mini.training.step import forward_backward, wrap
from tests.own import write_own_clips
from tests.test_any_scorer import MINE
from tests.tiny import flags_of, tiny

CPU = torch.device("cpu")
SCRIPT = """
import os, socket, sys
from pathlib import Path
from tests.training.test_distributed import write_gradients

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE="2")
child = os.fork()  # two processes, as torchrun's
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if child else "1"
write_gradients(*map(Path, sys.argv[1:]))
sys.exit(child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def write_gradients(index, out):
    """Of one step, by however many processes there are; one file each."""
    config = tiny(out, batch_size=6, accumulate=2)  # parts of 3 and 3 clips, or of 2, 1, 2 and 1
    with distributed.processes(CPU) as device:
        shard = distributed.rank(), distributed.world_size()
        sampler = Sampler(load_clips(index), Reader(4, 48), 6, 3, 0, shard=shard)
        batch = sampler(0)
        batch.frames = batch.frames.double() / 127.5 - 1
        model = build_model(config, device).double()
        run = wrap(model, config, device)
        *seen, health, skills = forward_backward(model, batch, config, device, 0.5, None, run)
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert len(batch.num_frames) == {1: (6,), 2: (3, 3)}[shard[1]][shard[0]]
        kept = dict(seen=seen, health=list(health), skills=skills, gradients=gradients)
        torch.save(kept, out / f"rank{shard[0]}of{shard[1]}.pt")


def torchrun(count, *arguments, cwd):
    """Run a command in `count` processes; returns what it printed."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return run(sys.executable, *start, *arguments, cwd=cwd)


def run(*command, cwd):
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[:6000]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


def test_a_shard_of_a_batch_is_its_part_of_it(folder):
    clips = load_clips(prepare(folder / "data", "train", {"short": 6, "image": 2}, 48))
    whole, *shards = (Sampler(clips, Reader(4, 48), 4, 3, 0, shard=s)(2) for s in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for i, shard in enumerate(shards):
        assert shard.branches == whole.branches[i::3] and shard.stamps == whole.stamps[i::3]
        T = shard.frames.shape[1]
        assert torch.equal(shard.frames, whole.frames[i::3, :T])
        ends = torch.tensor([len(own) for own in whole.branches]).cumsum(0)
        of = [t for t, end in enumerate(ends) for _ in range(end - (ends[t - 1] if t else 0))]
        assert torch.equal(shard.tasks, whole.tasks[[t % 3 == i for t in of]])


def test_two_processes_have_the_gradients_of_one(folder, tmp_path, in_new_process):
    """Parts of 3 and 3 clips against parts of 2, 1, 2 and 1, with numbers of questions of their own; float64."""
    index = prepare(folder / "data", "train", {"short": 3, "watch": 2, "brief": 0}, 48)
    lines = index.read_text().splitlines()
    mixed = folder / "data" / index.parent.name / "mixed.jsonl"
    rows = [json.loads(line) for line in lines]
    for i, row in enumerate(rows):
        row["kind"], row["qa"] = "own", row["qa"][: i + 1]
        row["qa"] = [dict(question=q["question"], answer=q["answer"]) for q in row["qa"]]
        del row["split"], row["seed"]
    mixed.write_text("\n".join(map(json.dumps, rows)))
    write_gradients(mixed, tmp_path)
    done = in_new_process(tmp_path, SCRIPT, mixed, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("rank0of1", "rank0of2", "rank1of2"))
    for other in two:
        assert other["seen"][2:] == one["seen"][2:] and other["skills"] == one["skills"]
        assert other["seen"][:2] == pytest.approx(one["seen"][:2], rel=1e-10)
        assert other["health"] == pytest.approx(one["health"], rel=1e-8) and min(one["health"][-2:]) > 0
        assert other["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-8, atol=1e-12)
    assert any(name.startswith("scorer") and g.abs().sum() > 0 for name, g in one["gradients"].items())


OWN_SCORER = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear, self.w2 = torch.nn.Linear(config.width, 1), config.w**2

    def forward(self, x, num_frames=None):
        return self.linear(x.unflatten(2, (-1, self.w2)).mean(3)).squeeze(-1).sigmoid()
"""


@pytest.mark.slow
def test_scores_that_no_loss_reaches_do_not_stop_two_processes(folder, tmp_path):
    """DistributedDataParallel waits for a gradient of all that the model gives back."""
    (tmp_path / "mine.py").write_text(OWN_SCORER)
    flags = flags_of(data=folder / "data", scorer="mine.py:Mine", steps=6)
    said = torchrun(2, "-m", "stts_mini.train", *flags, "--out", "none", cwd=tmp_path)
    assert "nothing trains the weights of scorer mine.py:Mine" in said and said.count("all done") == 1


@pytest.mark.slow
def test_after_the_lessons_two_processes_may_meet_images_alone(folder, tmp_path):
    """A step without scores. With this seed it is the first pruned one."""
    flags = flags_of(data=folder / "data", train_clips="short=6,image=6,brief=2", steps=6, seed=2)
    said = torchrun(2, "-m", "stts_mini.train", *flags, "--out", "images", cwd=tmp_path)
    assert said.count("all done") == 1


@pytest.mark.slow
def test_the_command_in_two_processes_and_its_resumption_in_one(folder, tmp_path):
    """One checkpoint, one log, one result; the weights of a single process; resumed with another number of them."""
    flags = flags_of(data=folder / "data")
    said = torchrun(2, "-m", "stts_mini.train", *flags, "--out", "two", cwd=tmp_path)
    assert said.count("all done") == 1 and said.count("short (mean)") == 1
    rows = (tmp_path / "two" / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "1", "2", "3"]
    one = train(tiny(folder, data=str(folder / "data"), out=str(tmp_path / "one")), False, CPU)
    two, _ = checkpoint.load_model(tmp_path / "two" / "checkpoint.pt")
    for name, weight in two.state_dict().items():
        torch.testing.assert_close(weight, one.state_dict()[name], rtol=1e-3, atol=1e-4)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert set(result["choice"]) >= {"attribute", "needle"}
    judge = ["-m", "stts_mini.eval", "two/checkpoint.pt", "--data", str(folder / "data"), "--clips", "3"]
    said = [re.sub("packed rows.*", "", torchrun(n, *judge, cwd=tmp_path)) for n in (1, 2)]  # other batches, other rows
    assert said[0] == said[1] and "short (mean)" in said[0] and "model says:" in said[0]  # shared, gathered, told once
    torchrun(2, "-m", "stts_mini.train", *flags, "--out", "half", "--steps=3", cwd=tmp_path)
    state = checkpoint.load(tmp_path / "half" / "checkpoint.pt")
    assert state["step"] == 3
    # three steps of three have another schedule than three of four: so against one process that did the same
    third = train(tiny(folder, data=str(folder / "data"), out=str(tmp_path / "third"), steps=3), False, CPU)
    for name, weight in third.state_dict().items():
        torch.testing.assert_close(state["model"][name], weight, rtol=1e-3, atol=1e-4)
    resumed = []
    for out in ("half", "third"):
        state = checkpoint.load(tmp_path / out / "checkpoint.pt")
        state["train_config"]["steps"] = 4
        torch.save(state, tmp_path / out / "checkpoint.pt")
        resumed.append(train(tiny(folder, data=str(folder / "data"), out=str(tmp_path / out)), True, CPU).state_dict())
    for name, weight in resumed[1].items():  # by one process, what two had begun
        torch.testing.assert_close(resumed[0][name], weight, rtol=1e-3, atol=1e-4)
    before = checkpoint.load(tmp_path / "half" / "checkpoint.pt")["model"]
    assert any(not torch.equal(before[name], state["model"][name]) for name in before)


def test_results_of_several_processes_are_one(folder):
    config = tiny(folder)
    model = build_model(config, CPU)
    clips = load_clips(prepare(folder / "data", "val", {"short": 5}, 48))
    whole = evaluate(model, clips, Reader(4, 48), 0.5)
    shares = []
    for i in range(2):
        part = evaluate(model, [c for n, c in enumerate(clips) if n % 2 == i], Reader(4, 48), 0.5)
        for tasks in part.correct.values():
            for task, answers in tasks.items():
                tasks[task] = [(2 * n + i, right) for n, right in answers]
        part.said = [answer._replace(clip=2 * answer.clip + i) for answer in part.said]
        shares.append(part)
    joined = merged(shares)
    assert joined.correct == whole.correct and joined.evidence == whole.evidence
    assert joined.said == whole.said and len(whole.said) == 5 * 6
    assert (joined.kept, joined.cells) == (whole.kept, whole.cells)
    assert joined.health.tolist() == pytest.approx(whole.health.tolist()) and whole.health[0] > 0


def test_a_single_process_needs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.processes(CPU) as device, distributed.first() as here:
        assert device is CPU and here and distributed.world_size() == 1 and distributed.rank() == 0
        assert distributed.total(1, 2.5) == [1, 2.5] and distributed.gather("a") == ["a"]


def test_a_group_of_one_adds_up_and_gathers(tmp_path):
    """With torch's own group: sums are float64, whatever goes in."""
    distributed.dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.total(1, 2.5, 2**40 + 0.5) == [1, 2.5, 2**40 + 0.5] and distributed.gather("a") == ["a"]
        assert distributed.totals([1, 2.5], [], (3,)) == [[1, 2.5], [], [3]]
        assert distributed.in_turn(lambda: "made") == "made"
    finally:
        distributed.dist.destroy_process_group()


def test_a_second_process_is_silent_waits_for_the_first_and_leaves_with_it(monkeypatch, capsys):
    """As it looks to process 1 of 2, by a group that only notes what it is asked for."""
    asked, monkey = [], monkeypatch.setattr
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkey(distributed.dist, name, lambda *args, name=name, **options: asked.append((name, *args, options)))
    monkey(distributed.dist, "is_initialized", lambda: True)
    monkey(distributed.dist, "get_rank", lambda: 1)
    monkey(distributed.dist, "get_world_size", lambda: 2)
    monkey(distributed.dist, "all_gather_object", lambda values, value: values.__setitem__(0, f"not {value}"))
    with pytest.raises(ZeroDivisionError), distributed.processes(CPU) as device:
        print("said")
        assert device == CPU and distributed.gather("a") == ["not a", "a"]
        assert distributed.in_turn(lambda: asked.append("made") or 7) == 7
        raise ZeroDivisionError
    print("heard")
    assert capsys.readouterr().out == "heard\n"
    start, *rest = asked
    assert start == ("init_process_group", "gloo", dict(timeout=timedelta(hours=2)))
    assert rest == [("barrier", {}), "made", ("destroy_process_group", {})]  # it makes when the first has made
    with distributed.processes(CPU):
        pass
    assert [name for name, *_ in asked[-3:]] == ["init_process_group", "barrier", "destroy_process_group"]


def test_more_parts_than_clips_are_refused(folder, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 5)
    with pytest.raises(ValueError, match="batch_size 4 cannot be cut into 5 parts"):
        train(tiny(folder), False, CPU)


@pytest.mark.slow
def test_two_processes_with_broken_clips_and_a_scorer_of_ones_own(tmp_path):
    """A scorer whose weights get no gradient; a clip that one of the two finds broken."""
    index = write_own_clips(tmp_path / "clips", 5)
    lines = index.read_text().splitlines()
    lines[1] = lines[1].replace("1.mp4", "missing.mp4")
    index.write_text("\n".join(lines))
    (tmp_path / "mine.py").write_text(MINE)
    flags = flags_of(data=index, val=index, scorer="mine.py:Mine", steps=4)
    said = torchrun(2, "-m", "stts_mini.train", *flags, "--out", "run", cwd=tmp_path)
    assert said.count("all done") == 1 and "missing.mp4" in said and (tmp_path / "run" / "result.json").exists()
