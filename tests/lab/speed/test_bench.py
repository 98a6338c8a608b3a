"""The benchmark's parts under a clock of our own: what is timed, in which order, and to which stage it is put down."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch

import stts_mini.model
from stts_mini.lab.speed import bench, flops
from stts_mini.lab.speed.bench import Shape, Stopwatch, Uneven, build, in_turns, job, pays_from, speedups, stages, work
from stts_mini.lab.speed.page import STAGES, draw, page
from stts_mini.llm import LLMConfig
from stts_mini.model import VLMConfig
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


@pytest.mark.parametrize("device, warm", [("cpu", [0.0]), ("cuda", [0.0, 0.5])])
def test_turns_are_taken_in_both_directions_after_warming_up(device, warm):
    clock, order = Clock(), []

    def run(k):
        order.append(k)
        clock.pass_(100 if len(order) <= len(warm) else 1 + k)

    ks = (0.0, 0.5)
    seconds = in_turns(run, ks, 3, clock, bench.to_warm(ks, torch.device(device)))
    assert order == [*warm, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5]
    assert seconds == {0.0: [1.0] * 3, 0.5: [1.5] * 3}


@pytest.mark.parametrize("what", ["training", "inference"])
def test_stages_leave_warming_up_out(what, monkeypatch):
    clock, runs = Clock(), []
    task = job(build(TINY, CPU), TINY, 1, 2, CPU)

    def run(k, new_tokens=1):
        runs.append(k)
        clock.pass_(100 if len(runs) == 1 else 1 + k)

    monkeypatch.setattr(task, "train" if what == "training" else "infer", run)
    plain, pruned = stages(task, TINY, what, (0.0, 0.5), 2, clock)
    assert (plain["seconds"]["stem"], pruned["seconds"]["stem"]) == (1.0, 1.5) and len(runs) == 5


def test_a_speedup_is_the_median_of_ratios_beside_the_counted_limit(monkeypatch):
    """Whole rounds are slow now and then: their ratios are not."""
    clock, task = Clock(), job(build(TINY, CPU), TINY, 2, 4, CPU)
    slow = iter([9, 1, 1, 50, 50, 2, 2])
    monkeypatch.setattr(task, "train", lambda k: clock.pass_(next(slow) * (2 if k else 6)))
    plain, pruned = speedups(task, TINY, "training", (0.0, 0.5), 3, clock)
    assert plain["speedup"] == plain["limit"] == plain["reached"] == 1
    assert pruned["speedup"] == pytest.approx(3) == pruned["lowest"] == pruned["highest"]
    total = lambda k: sum(
        flops.multiply_adds(TINY.config, work(TINY, task.encoded(k), k, training=True), backward=True).values()
    )
    assert pruned["limit"] == pytest.approx(total(0.0) / total(0.5)) and pruned["limit"] > 1.2
    assert pruned["reached"] == pytest.approx(3 / pruned["limit"])
    assert (plain["rows"], plain["least_rows"]) == (8, 8) and pruned["least_rows"] == 4 <= pruned["rows"]


def test_what_does_not_fit_is_told(monkeypatch):
    task = job(build(TINY, CPU), TINY, 1, 2, CPU)

    def full(k):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(task, "train", full)
    rows = speedups(task, TINY, "training", (0.0, 0.5), 1, Clock())
    assert [row["seconds"] for row in rows] == [None, None]
    assert stages(task, TINY, "training", (0.0, 0.5), 1, Clock()) == []
    lines = page({**REPORT, "stages": REPORT["stages"][2:]}).splitlines()
    assert not any(line.startswith("Stages of training") for line in lines)
    assert any(line.startswith("Stages of inference") for line in lines)


def test_a_shape_that_recomputes_is_held_against_that_limit():
    """Every block of the backward pass computes its forward once more: so does the limit; no floor of memory."""
    again, limits = dataclasses.replace(TINY, recompute=True), []
    now = bench.stop_clock(CPU, cpu_time=False)
    for shape in (TINY, again):
        task, calls = job(build(shape, CPU), shape, 2, 4, CPU), []
        task.model.vit.blocks[0].attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rows = {w: speedups(task, shape, w, (0.0, 0.5), 1, now)[1] for w in ("training", "inference")}
        calls.clear()
        task.train(0.5)
        assert len(calls) == 1 + shape.recompute
        limits.append([rows[w]["multiply_adds"] for w in ("training", "inference")])
        assert stages(task, shape, "training", (0.0,), 1, now)[0]["multiply_adds"]["packed"] > 0
    assert limits[1][0] > 1.2 * limits[0][0] and limits[1][1] == limits[0][1]


def test_pruning_pays_from_where_it_always_does():
    row = lambda frames, speedup, k=0.5, videos=1, what="training": dict(
        what=what, videos=videos, k=k, frames=frames, speedup=speedup
    )
    rows = [row(8, 1.2), row(16, 0.9), row(32, 1.1), row(64, 1.3), row(16, 2.0, k=0.3), row(16, 2.0, videos=2)]
    assert pays_from(rows, "training", 0.5) == 32 and pays_from(rows, "training", 0.3) == 16
    assert pays_from([row(8, 0.9)], "training", 0.5) is None and pays_from(rows, "inference", 0.5) is None


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
    must = work(TINY, task.encoded(0.5), 0.5, training)
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
    clock, task = Clock(), job(build(TINY, CPU), TINY, 2, 4, CPU)
    task.model.get_submodule(place).register_forward_hook(lambda _, args, y: Slow.apply(y, clock))
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in task.model.modules())
    before = hooks()
    with Stopwatch(task.model, clock) as watch:
        task.train(0.5)
    assert {s: t for s, t in watch.seconds.items() if t} == {stage: 3}
    assert hooks() == before


@pytest.mark.parametrize("stage, name", [("select", "select"), ("select", "attention_bias"), ("pack", "pack")])
def test_time_between_modules_too(stage, name, monkeypatch):
    clock, task, own = Clock(), job(build(TINY, CPU), TINY, 2, 4, CPU), getattr(stts_mini.model, name)

    def slow(*args, **options):
        clock.pass_(1)
        y = own(*args, **options)
        return Slow.apply(y, clock) if name == "attention_bias" else y

    monkeypatch.setattr(stts_mini.model, name, slow)
    with Stopwatch(task.model, clock) as watch:
        task.train(0.5)
    assert {s: t for s, t in watch.seconds.items() if t} == {stage: 4 if name == "attention_bias" else 1}


def test_decoding_is_by_the_token():
    clock, task = Clock(), job(build(TINY, CPU), TINY, 2, 4, CPU)
    task.model.llm.layers[0].register_forward_hook(lambda _, args, y: clock.pass_(1 if y.shape[1] > 1 else 10))
    plain, pruned = stages(task, TINY, "inference", (0.0, 0.5), 1, clock)
    assert plain["seconds"]["llm"] == 1 and plain["seconds"]["decode"] == 10  # all that is read; a token
    assert pruned["multiply_adds"]["decode"] < plain["multiply_adds"]["decode"]
    assert plain["overhead"] == pruned["overhead"] == 0


REPORT = dict(
    shape="tiny", device="cpu", threads=1, torch="2", commit="c0ffee", clock="wall", started_under_load=0.5,
    reading=dict(frames=4, clip_seconds=2, side=8, seconds={"read_video": 0.25}), outside_operations=0.042,
    pays_from={"training": {0.3: None, 0.5: 8}},
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
            what=what, videos=1, frames=8, k=k, overhead=k / 10, seconds=dict.fromkeys(STAGES, 0.002 - k / 1000),
            multiply_adds=dict(stem=8, llm=8 - 8 * k),
        )
        for what in ("training", "inference") for k in (0.0, 0.5)
    ],
)  # fmt: skip


def test_the_page():
    text = page(REPORT)
    assert "| training | 1 × 16 | 0.5 | 2.000 | 1.50 | 1.00–2.00 (4) | 2.50 | 0.90 | 8 (7) |" in text
    assert "- training, k = 0.3: nowhere measured" in text and "- training, k = 0.5: 8 frames" in text
    assert "| llm | 2.00 | 1.50 | 1.33 | 2.00 |" in text and "5.0% of the time of the unpruned pass" in text
    assert "| 1 × 8 frames | 0 | did not fit | 3 | |" in text and "| 0.5 | 4 | 2 | 2.00 |" in text
    assert "| 0.5 | 4 | – | |" in page({**REPORT, "memory": [{**REPORT["memory"][1], "floor": None}]})
    out = {**REPORT, "speed": [dict(what="training", videos=1, frames=8, k=0.0, seconds=None)]}
    assert "| training | 1 × 8 | 0 | out of memory |" in page(out)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw(REPORT, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    monkeypatch.setattr(bench, "memory", lambda name, videos, frames, ks, device, varlen: REPORT["memory"])
    monkeypatch.setattr(bench, "reading", lambda size, now: REPORT["reading"])
    monkeypatch.setattr(bench, "outside_operations", lambda: 0.042)
    monkeypatch.setattr(bench, "rounds_of", lambda rounds, frames: (rounds * 100 + frames) // 5)
    timed, real = [], bench.stages
    monkeypatch.setattr(bench, "stages", lambda *args: timed.append(args[4]) or real(*args))
    bench.main(
        ["--shape", "toy", "--load", "2x3", "--ladder", "2,4", "--k", "0,0.5", "--rounds", "1", "-o",
         str(tmp_path / "b.json")]
    )  # fmt: skip
    assert timed == [21, 21]  # the stages of the first load
    report = json.loads((tmp_path / "b.json").read_text())
    ran = {(r["what"], r["videos"], r["frames"], r["k"]) for r in report["speed"]}
    assert ran == {(w, *l, k) for w in ("training", "inference") for l in ((2, 3), (1, 2), (1, 4)) for k in (0.0, 0.5)}
    assert {(r["videos"] * r["frames"], r["rounds"]) for r in report["speed"]} == {(6, 21), (2, 20), (4, 20)}
    assert report["config"]["vit"]["depth"] == 5 and report["threads"] == torch.get_num_threads()
    assert "| training | 2 × 3 | 0.5 |" in capsys.readouterr().out


@pytest.mark.parametrize("words, what", [(["--k", "0.5"], "give 0 first"), (["--k", "0,50"], "did you mean 0.5")])
def test_bad_flags_are_refused(words, what, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "toy", TINY)
    with pytest.raises(SystemExit, match=what):
        bench.main(["--shape", "toy", "--load", "1x2", "--ladder", "2", "--rounds", "1", *words])


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without CUDA is told")
def test_real_geometry_needs_cuda(capsys):
    bench.main(["--shape", "so400m"])
    assert "so400m needs CUDA" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the bfloat16 path is not run")
def test_bfloat16_on_cuda():
    cuda = torch.device("cuda")
    shape = dataclasses.replace(bench.SHAPES["so400m"], stamp=1)
    rows = speedups(
        job(build(shape, cuda), shape, 1, 8, cuda), shape, "training", (0.0, 0.5), 1, bench.stop_clock(cuda, False)
    )
    assert rows[1]["speedup"] > 0.8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is measured cleanly on Linux only")
def test_memory_is_a_step_of_its_own():
    plain, pruned = bench.memory("toy", 1, 32, (0.0, 0.5), CPU)
    assert plain["bytes"] > pruned["bytes"] > 0.9 * pruned["floor"] and pruned["bytes"] < 3 * pruned["floor"]


def test_memory_is_that_of_tensors_and_each_k_has_a_process(monkeypatch):
    calls = []

    def answer(command, env, **_):
        calls.append((command[-1], env["MALLOC_MMAP_THRESHOLD_"]))
        return subprocess.CompletedProcess(command, 0, stdout="7", stderr="")

    monkeypatch.setattr(bench.subprocess, "run", answer)
    rows = bench.memory("toy", 1, 32, (0.0, 0.5), CPU)
    assert calls == [("0.0", "131072"), ("0.5", "131072")] and [row["bytes"] for row in rows] == [7, 7]
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1")  # yours goes first
    bench.memory("toy", 1, 32, (0.0,), CPU)
    assert calls[-1] == ("0.0", "1")
    bench.memory("toy", 1, 32, (0.0,), CPU, varlen=True)
    assert calls[-1] == ("--varlen", "1")


def test_reading_reads():
    told = bench.reading(16, bench.stop_clock(CPU, cpu_time=True), frames=5, seconds=4, side=16, rounds=2)
    assert list(told["seconds"])[:2] == ["read_video", "read_video, without jumps"]
    assert min(told["seconds"].values()) > 0


@pytest.mark.slow
def test_some_of_a_step_passes_outside_operations():
    assert 0 < bench.outside_operations(steps=2) < 0.5


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
    assert len(lines) == 4 and lines[2].startswith("a ViT") and lines[3].startswith("an LLM")
    pair = backbones.vit_pair("a ViT", vit, 2)
    order = []
    turns = backbones.Pair("", lambda: order.append("ours"), lambda: order.append("theirs"))
    assert len(backbones.ratios(turns, lambda run: run(), 4)) == 4
    assert order == ["theirs", "ours", "ours", "theirs"] * 3
    other = backbones.Pair("a ViT", pair.ours, lambda: pair.theirs() + 1)
    with pytest.raises(RuntimeError, match="a ViT: the two outputs differ by 1"):
        other.check()
