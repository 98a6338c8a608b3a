"""The benchmark's parts under a clock of our own: what is timed, in which order, and to which stage it is put down."""

import dataclasses
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import stts_mini.model
from stts_mini.lab.speed import bench, flops, machine
from stts_mini.lab.speed.bench import speedups, stages, stopwatch
from stts_mini.lab.speed.machine import in_own_process
from stts_mini.lab.speed.page import OVERHEAD, STAGES, break_even, draw, page
from stts_mini.lab.speed.passes import Shape, Uneven, build, job
from stts_mini.llm import LLMConfig
from stts_mini.model import VLMConfig
from stts_mini.scorer import find_scorer
from stts_mini.vit import ViTConfig

CPU = torch.device("cpu")
TINY = Shape(
    VLMConfig(
        ViTConfig(8, 2, 8, 5, 2, 12), LLMConfig(24, 12, 1, 2, 1, 6, 16), w=2, score_after=1, scorer_heads=2,
        scorer_mlp=8, connector_mlp=8, taps=(-2, -1),
    )
)  # fmt: skip


class Clock:
    """Time stands still but for `pass_`."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time

    def pass_(self, seconds):
        self.time += seconds


def clocked(shape, videos, frames):
    """A job, and the clock that it is timed by."""
    task, clock = job(build(shape, CPU), shape, videos, frames, CPU), Clock()
    task.now = clock
    return task, clock


@pytest.mark.parametrize("device, warm", [("cpu", [0.0]), ("cuda", [0.0, 0.5])])
def test_turns_are_taken_in_both_directions_after_warming_up(device, warm):
    (task, clock), order = clocked(TINY, 1, 2), []
    task.device = torch.device(device)

    def run(k):
        order.append(k)
        clock.pass_(100 if len(order) <= len(warm) else 1 + k)

    seconds = task.turns(run, (0.0, 0.5), 3)
    assert order == [*warm, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5]
    assert seconds == {0.0: [1.0] * 3, 0.5: [1.5] * 3}
    order.clear()
    task.turns(run, (0.0, 0.5), 1)
    assert order == [*(warm if device == "cuda" else []), 0.0, 0.5]  # a CPU is warm now; another pass has other kernels


def test_work_is_encoded_once(monkeypatch):
    """Training, inference and stages count the same work."""
    (task, clock), ks, real = clocked(TINY, 1, 4), [], stts_mini.model.VLM.encode_video
    monkeypatch.setattr(task, "encode", lambda *args: ks.append(args[2]) or real(task.model, *args))
    for what in ("train", "infer"):
        monkeypatch.setattr(task, what, lambda *_: clock.pass_(1))
    for what in ("training", "inference"):
        speedups(task, what, (0.0, 0.5), 1)
        stages(task, what, (0.0, 0.5), 1)
    assert ks == [0.0, 0.5]


@pytest.mark.parametrize("what", ["training", "inference"])
def test_stages_leave_warming_up_out(what, monkeypatch):
    (task, clock), runs = clocked(TINY, 1, 2), []

    def run(k, new_tokens=1):
        runs.append(k)
        clock.pass_(100 if len(runs) == 1 else 1 + k)

    monkeypatch.setattr(task, "train" if what == "training" else "infer", run)
    plain, pruned = stages(task, what, (0.0, 0.5), 2)
    assert (plain["seconds"]["stem"], pruned["seconds"]["stem"]) == (1.0, 1.5) and len(runs) == 5


def test_a_speedup_is_the_median_of_ratios_beside_the_counted_limit(monkeypatch):
    """Whole rounds are slow now and then: their ratios are not."""
    task, clock = clocked(TINY, 2, 4)
    slow = iter([9, 1, 1, 50, 50, 2, 2])
    monkeypatch.setattr(task, "train", lambda k: clock.pass_(next(slow) * (2 if k else 6)))
    plain, pruned = speedups(task, "training", (0.0, 0.5), 3)
    assert plain["speedup"] == plain["limit"] == plain["reached"] == 1
    assert pruned["speedup"] == pytest.approx(3) == pruned["lowest"] == pruned["highest"]
    work = lambda k: task.work(task.encoded(k), k, "training")
    total = lambda k: sum(flops.multiply_adds(TINY.config, work(k), backward=True).values())
    assert pruned["limit"] == pytest.approx(total(0.0) / total(0.5)) and pruned["limit"] > 1.2
    assert pruned["reached"] == pytest.approx(3 / pruned["limit"])
    assert (plain["rows"], plain["least_rows"]) == (8, 8) and pruned["least_rows"] == 4 <= pruned["rows"]


def test_what_does_not_fit_is_said(monkeypatch):
    task = job(build(TINY, CPU), TINY, 1, 2, CPU)

    def full(k):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(task, "train", full)
    rows = speedups(task, "training", (0.0, 0.5), 1)
    assert [row["seconds"] for row in rows] == [None, None]
    assert stages(task, "training", (0.0, 0.5), 1) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.model.modules())
    lines = page({**REPORT, "stages": REPORT["stages"][2:]}).splitlines()
    assert not any(line.startswith("Stages of training") for line in lines)
    assert any(line.startswith("Stages of inference") for line in lines)


def test_a_shape_that_recomputes_is_compared_with_that_limit():
    """Every block of the backward pass computes its forward once more: so does the limit; no floor of memory."""
    again, limits = dataclasses.replace(TINY, recompute=True), []
    for shape in (TINY, again):
        task, calls = job(build(shape, CPU), shape, 2, 4, CPU), []
        task.model.vit.blocks[0].attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rows = {w: speedups(task, w, (0.0, 0.5), 1)[1] for w in ("training", "inference")}
        calls.clear()
        task.train(0.5)
        assert len(calls) == 1 + shape.recompute
        limits.append([rows[w]["multiply_adds"] for w in ("training", "inference")])
        assert stages(task, "training", (0.0,), 1)[0]["multiply_adds"]["packed"] > 0
    assert limits[1][0] > 1.2 * limits[0][0] and limits[1][1] == limits[0][1]


def test_pruning_pays_from_where_it_always_does():
    row = lambda frames, speedup, k=0.5, videos=1, what="training": dict(
        what=what, videos=videos, k=k, frames=frames, speedup=speedup
    )
    rows = [row(8, 1.2), row(16, 0.9), row(32, 1.1), row(64, 1.3), row(16, 2.0, k=0.3), row(16, 2.0, videos=2)]
    rows += [row(8, 0.9, k=0.3), row(8, 0.8, what="inference"), dict(row(16, 0, what="inference"), seconds=None)]
    del rows[-1]["speedup"]  # did not fit into memory
    said = "Pruning pays, one video:\n- training, k = 0.5: from 32 frames on\n- training, k = 0.3: from 16 frames on\n"
    assert break_even(rows) == said + "- inference, k = 0.5: at none of 8 frames"


def test_drawn_scores_with_the_scorers_own_gradient():
    own = build(TINY, CPU).scorer
    uneven = Uneven(own, 2, 3, 4)
    x = torch.rand(2, 3, 16, 8)
    scores = uneven(x)
    torch.testing.assert_close(scores, uneven.drawn)
    weight = torch.rand_like(scores)
    got = torch.autograd.grad((scores * weight).sum(), list(own.parameters()))
    expected = torch.autograd.grad((own(x) * weight).sum(), list(own.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_frames_are_kept_unevenly():
    task = job(build(TINY, CPU), TINY, 1, 64, CPU)
    assert task.encoded(0.5).kept[0, 1:].float().std() > 0.5


@pytest.mark.parametrize("training", [True, False])
def test_answers_have_their_length(training):
    """What the count takes for granted of the batch: tokens of the LLM, and that no answer ends early."""
    task = job(build(TINY, CPU), TINY, 2, 3, CPU)
    must = task.work(task.encoded(0.5), 0.5, "training" if training else "inference")
    if training:
        output = task.model(task.batch, 0.5, task.encode)
        assert must.tokens == output.tokens and must.logits == len(output.targets)
    else:
        calls = []
        task.model.llm.register_forward_hook(lambda _, args, y: calls.append(args[0].shape[:2]))
        task.infer(0.5, 1 + 3)
        assert math.prod(calls[0]) == must.tokens and calls[1:] == [(2, 1)] * 3  # the prompts behind their videos


class Slow(torch.autograd.Function):
    """The identity, that takes a second forward and two backward."""

    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock = clock
        clock.pass_(1)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.pass_(2)
        return gradient, None


PLACES = {
    "stem": ("vit.blocks.0", "vit.blocks.1", "vit.blocks.2"), "score": ("scorer.pooler",),
    "packed": ("vit.blocks.3", "vit.blocks.4"), "connector": ("connector.pooler",), "llm": ("llm.layers.0",),
}  # fmt: skip


@pytest.mark.parametrize("stage, place", [(stage, place) for stage, places in PLACES.items() for place in places])
def test_time_is_put_down_to_its_stage(stage, place):
    task, clock = clocked(TINY, 2, 4)
    task.model.get_submodule(place).register_forward_hook(lambda _, args, y: Slow.apply(y, clock))
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in task.model.modules())
    before = hooks()
    with stopwatch(task.model, clock) as seconds:
        task.train(0.5)
    assert {s: t for s, t in seconds.items() if t} == {stage: 3}
    assert hooks() == before


@pytest.mark.parametrize("stage, name", [("select", "select"), ("select", "attention_bias"), ("pack", "pack")])
def test_time_between_modules_too(stage, name, monkeypatch):
    clock, task, own = Clock(), job(build(TINY, CPU), TINY, 2, 4, CPU), getattr(stts_mini.model, name)

    def slow(*args, **options):
        clock.pass_(1)
        y = own(*args, **options)
        return Slow.apply(y, clock) if name == "attention_bias" else y

    monkeypatch.setattr(stts_mini.model, name, slow)
    with stopwatch(task.model, clock) as seconds:
        task.train(0.5)
    assert {s: t for s, t in seconds.items() if t} == {stage: 4 if name == "attention_bias" else 1}


def test_decoding_is_by_the_token():
    task, clock = clocked(TINY, 2, 4)
    task.model.llm.layers[0].register_forward_hook(lambda _, args, y: clock.pass_(1 if y.shape[1] > 1 else 10))
    plain, pruned = stages(task, "inference", (0.0, 0.5), 1)
    assert plain["seconds"]["llm"] == 1 and plain["seconds"]["decode"] == 10  # all that is read; a token
    assert pruned["multiply_adds"]["decode"] < plain["multiply_adds"]["decode"]
    assert not any(row["seconds"][stage] for row in (plain, pruned) for stage in OVERHEAD)


REPORT = dict(
    shape="tiny", device="cpu", threads=1, torch="2", commit="c0ffee", started_under_load=0.5,
    varlen=False, config=dict(scored_by="stts"),
    memory=[
        dict(k=0.0, videos=1, frames=8, bytes=None, floor=3e6), dict(k=0.5, videos=1, frames=8, bytes=4e6, floor=2e6)
    ],
    speed=[
        dict(
            what=what, videos=1, frames=frames, k=k, seconds=2.0, speedup=1 + k, lowest=1.0, highest=1 + 2 * k,
            limit=1 + 3 * k, reached=0.9, rows=8, least_rows=7, rounds=4,
        )
        for what in ("training", "inference") for frames in (8, 16) for k in (0.0, 0.5, 0.8)
    ],
    stages=[
        dict(
            what=what, videos=1, frames=8, k=k, seconds=dict.fromkeys(STAGES, 0.002 - k / 1000),
            multiply_adds=dict(stem=8, llm=8 - 8 * k),
        )
        for what in ("training", "inference") for k in (0.0, 0.5)
    ],
)  # fmt: skip


def test_the_page():
    text = page(REPORT)
    assert "| training | 1 × 16 | 0.5 | 2.000 | 1.50 | 1.00–2.00 (4) | 2.50 | 0.90 | 8 (7) |" in text
    assert (
        "- training, k = 0.8: from 8 frames" in text
        and "- inference, k = 0.5: from 8 frames" in text
        and "k = 0:" not in text
    )
    assert "| llm | 2.00 | 1.50 | 1.33 | 2.00 |" in text
    assert "take 30.0% of the time of the unpruned pass" in text  # 4 of 10 stages, at three quarters of their time
    assert "| 1 × 8 frames | 0 | did not fit | 3 | |" in text and "| 0.5 | 4 | 2 | 2.00 |" in text
    assert "| 0.5 | 4 | – | |" in page({**REPORT, "memory": [{**REPORT["memory"][1], "floor": None}]})
    out = {**REPORT, "speed": [dict(what="training", videos=1, frames=8, k=k, seconds=None) for k in (0.0, 0.3)]}
    assert "| training | 1 × 8 | 0 | out of memory | | | | | |\n" in page(out)
    assert "- training, k = 0.3: nowhere measured" in page(out)
    mine = {**REPORT, "config": dict(scored_by="mine.py:Mine"), "varlen": True, "compile": True}
    assert page(mine).splitlines()[0].endswith(", --varlen, --compile, scored by mine.py:Mine")


def test_the_page_of_what_was_measured():
    report = json.loads((Path(__file__).parents[3] / "tutorials" / "results" / "bench.json").read_text())
    assert "| training | 2 × 64 | 0.5 | 1.121 | 1.79 | 1.17–2.14 (6) | 1.76 | 1.02 | 65 (64) |" in page(report)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw(REPORT, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "words, base, weighed", [([], 1, (2, 3)), pytest.param(["--thorough"], 3, (1, 4), marks=pytest.mark.slow)]
)
def test_the_command(words, base, weighed, tmp_path, monkeypatch, capsys):
    loads = []
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    monkeypatch.setattr(bench, "memory", lambda shape, *load: loads.append(load[:2]) or REPORT["memory"])
    monkeypatch.setattr(bench, "rounds_of", lambda rounds, frames: rounds + frames // 2)
    timed, real = [], bench.stages
    monkeypatch.setattr(bench, "stages", lambda *args: timed.append(args[3]) or real(*args))
    bench.main(
        ["--shape", "toy", "--load", "2x3", "1x2", "1x4", "--k", "0,0.5", "--rounds", "1", "-o",
         str(tmp_path / "b.json"), *words]
    )  # fmt: skip
    assert timed == [base + 3] * 2 and loads == [weighed]  # the stages of the first load
    report = json.loads((tmp_path / "b.json").read_text())
    ran = {(r["what"], r["videos"], r["frames"], r["k"]) for r in report["speed"]}
    assert ran == {(w, *l, k) for w in ("training", "inference") for l in ((2, 3), (1, 2), (1, 4)) for k in (0.0, 0.5)}
    rounds = {(r["videos"] * r["frames"], r["rounds"]) for r in report["speed"]}
    assert rounds == {(frames, base + frames // 2) for frames in (6, 2, 4)}
    assert report["config"]["vit"]["depth"] == 5 and report["threads"] == torch.get_num_threads()
    assert "| training | 2 × 3 | 0.5 |" in capsys.readouterr().out


def test_compiled_blocks_are_timed_in_training_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    monkeypatch.setattr(bench, "memory", lambda shape, *_: REPORT["memory"])
    monkeypatch.setattr(bench, "rounds_of", lambda rounds, frames: 1)
    made = []
    monkeypatch.setattr("torch.compile", lambda forward, dynamic: made.append(dynamic) or forward)
    words = ["--shape", "toy", "--load", "1x2", "--k", "0,0.5", "--rounds", "1", "-o", str(tmp_path / "b.json")]
    bench.main([*words, "--compile"])
    report = json.loads((tmp_path / "b.json").read_text())
    assert made == [True] * (5 + 1) and report["compile"] and {row["what"] for row in report["speed"]} == {"training"}
    bench.main(words)
    assert len(made) == 6 and not json.loads((tmp_path / "b.json").read_text())["compile"]


@pytest.mark.parametrize(
    "words, what",
    [
        (["--k", "0.5"], "give 0 first"),
        (["--k", "0,0.5,0.5"], "give each once, and one above 0"),
        (["--k", "0"], "give each once, and one above 0"),
        (["--k", "0,50"], "did you mean 0.5"),
        (["--varlen"], "--varlen is for CUDA"),
        (["--varlen", "--compile"], "give one of the two"),
        (["--threads", "0"], "--threads 0: give 1 or more"),
        (["--scorer", "mine.py:S", "-o", "mine.py"], "mine.py is also an input"),
        (["--k", "0,x"], "--k: '0,x': give numbers, such as 0,0.5"),
        (["--load", "1x"], "--load: '1x': give numbers, such as 2x64"),
    ],
)
def test_bad_flags_are_refused(words, what, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--shape", "toy", "--load", "1x2", "--rounds", "1", *words])
    assert what in f"{stopped.value}{capsys.readouterr().err}"


def test_the_default_shape_has_the_papers_shares():
    """Of the multiply-adds of a training step on 2 × 64 frames."""

    def shares(config, stamp):
        task = flops.needed(config, [[config.cells] * 64] * 2, 0.0, [[(14, 2)]] * 2, stamp)
        count, vit = flops.multiply_adds(config, task, backward=True), config.vit
        whole = sum(count.values())
        pairs = 6 * config.llm.heads * config.llm.head_dim * config.llm.depth * task.seen
        inside = 2 * vit.num_patches / (4 * vit.width + 2 * vit.mlp + 2 * vit.num_patches)  # attention's, of a block
        return count["packed"] / whole, count["llm"] / whole, pairs / whole, inside

    paper, ours = shares(flops.PAPER, 4), shares(bench.SHAPES["scaled"].config, 1)
    assert ours[:3] == pytest.approx(paper[:3], abs=0.02)
    assert (round(paper[3], 2), round(ours[3], 2)) == (0.10, 0.18)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what the command says without CUDA")
def test_real_geometry_needs_cuda(capsys):
    bench.main(["--shape", "so400m"])
    assert "so400m needs CUDA" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the bfloat16 path is not run")
def test_bfloat16_on_cuda():
    cuda = torch.device("cuda")
    shape = dataclasses.replace(bench.SHAPES["so400m"], stamp=1)
    rows = speedups(job(build(shape, cuda), shape, 1, 8, cuda), "training", (0.0, 0.5), 1)
    assert rows[1]["speedup"] > 0.8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is measured cleanly on Linux only")
def test_memory_is_a_step_of_its_own():
    plain, pruned = bench.memory(bench.SHAPES["toy"], 1, 32, (0.0, 0.5), CPU)
    assert plain["bytes"] > pruned["bytes"] > 0.9 * pruned["floor"] and pruned["bytes"] < 3 * pruned["floor"]


def with_setting(work, *given):
    """What work(*given) returns, and where it runs."""
    return work(*given), os.getpid(), os.environ["MALLOC_MMAP_THRESHOLD_"], torch.get_num_threads()


def test_your_own_threshold_goes_first(monkeypatch):
    monkeypatch.setattr(machine, "ProcessPoolExecutor", ThreadPoolExecutor)  # a process takes seconds
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1")
    assert in_own_process(with_setting, max, 1, 2) == (2, os.getpid(), "1", torch.get_num_threads())


def test_each_k_has_a_process(monkeypatch):
    calls = []
    monkeypatch.setattr(bench, "in_own_process", lambda work, *given: calls.append((work, *given)) or 7)
    rows = bench.memory(TINY, 1, 32, (0.0, 0.5), CPU)
    assert calls == [(bench.step_memory, TINY, 1, 32, k, CPU) for k in (0.0, 0.5)]
    assert [row["bytes"] for row in rows] == [7, 7]


MINE = """
import torch
class Mine(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w = config.w
    def forward(self, x, num_frames=None):
        self.calls = getattr(self, "calls", 0) + 1
        return 1e9 * torch.rand(*x.shape[:2], x.shape[2] // self.w**2 + {extra})
class Biased(Mine):
    injects_bias = True
"""


@pytest.mark.parametrize("name, target", [("Mine", 0), ("Biased", 1)])
def test_a_scorer_of_ones_own_is_timed(name, target, tmp_path):
    """It runs, its cost is its stage's, and the cells that are kept are drawn, whatever it says."""
    (tmp_path / "mine.py").write_text(MINE.format(extra=0))
    found = f"{tmp_path / 'mine.py'}:{name}"
    find_scorer(found)
    own = dataclasses.replace(TINY, config=dataclasses.replace(TINY.config, scored_by=found))
    task, clock = clocked(own, 2, 4)
    task.model.scorer.register_forward_hook(lambda *_: clock.pass_(1))
    assert stages(task, "training", (0.0, 0.5), 1)[1]["seconds"]["score"] == 1
    usual = job(build(TINY, CPU), TINY, 2, 4, CPU).encoded(0.5)
    assert torch.equal(task.encoded(0.5).keep, usual.keep)
    assert (task.encoded(0.5).sim_loss != 0) == target
    assert task.counted(task.work(usual, 0.5, "training"), "training")["score"] == 0


@pytest.mark.slow
def test_the_command_takes_a_scorer_of_ones_own(tmp_path, monkeypatch, capsys):
    """So does the process that measures memory, which is one of its own and holds what tensors hold."""
    ran = []

    def once(work, *given):
        """For k = 0 it is left out, because a process takes seconds to start."""
        if given[3]:
            ran.append(in_own_process(with_setting, work, *given))
        return ran[-1][0] if given[3] else 7

    monkeypatch.setattr(bench, "in_own_process", once)
    monkeypatch.setattr(bench, "rounds_of", lambda rounds, frames: 1)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    (tmp_path / "mine.py").write_text(MINE.format(extra=0))
    found = f"{tmp_path / 'mine.py'}:Mine"
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    bench.main(["--shape", "toy", "--scorer", found, "--load", "1x3", "--k", "0,0.5", "--rounds", "1"])
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith(f"scored by {found}") and "| 1 × 3 frames | 0.5 |" in text
    ((_, process, threshold, threads),) = ran
    assert process != os.getpid() and (threshold, threads) == ("131072", torch.get_num_threads())


def test_a_scorer_that_cannot_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    monkeypatch.setattr(bench, "memory", lambda *_: REPORT["memory"])
    (tmp_path / "wide.py").write_text(MINE.format(extra=1))
    for name, message in (
        (f"{tmp_path / 'wide.py'}:Mine", r"give \(B, T, C\)"),
        ("nobody", "know stts, cosine, random"),
    ):
        with pytest.raises(SystemExit, match=message):
            bench.main(["--shape", "toy", "--scorer", name, "--load", "1x3", "--rounds", "1"])


def test_backbones_take_turns_with_hugging_faces(capsys, monkeypatch):
    pytest.importorskip("transformers")
    from stts_mini.lab.speed import backbones
    from stts_mini.llm import LLMConfig
    from stts_mini.vit import ViTConfig

    vit, llm = ViTConfig(8, 2, 8, 1, 2, 12), LLMConfig(31, 12, 2, 2, 2, 8, 20)
    monkeypatch.setattr(backbones, "VITS", {"a ViT": (vit, 2)})
    monkeypatch.setattr(backbones, "LLMS", {"an LLM": (llm, 2, 5)})
    backbones.main(["--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[4].startswith("| a ViT |") and lines[5].startswith("| an LLM |")
    pair = backbones.vit_pair(vit, 2)
    order = []
    turns = dict(ours=lambda: order.append("ours"), theirs=lambda: order.append("theirs"))
    assert backbones.ratio(turns, lambda run: run(), 4).count(".") == 3
    assert order == ["theirs", "ours"] * 2 + ["theirs", "ours", "ours", "theirs"] * 2
    pair["theirs"] = lambda: pair["ours"]() + 1
    with pytest.raises(RuntimeError, match="a ViT: the two outputs differ by 1"):
        backbones.check("a ViT", pair)
