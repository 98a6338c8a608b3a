"""What a GPU must give: the CPU's numbers, in float32 closely, in bfloat16 nearly; and training that runs.

Where a test makes sense on a CPU, it runs there, too: so what is skipped without a GPU is not untried.
"""

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.lab.paper.train import PaperConfig
from stts_mini.lab.speed.passes import Uneven
from stts_mini.packing import Segments, check_varlen, pack
from stts_mini.train import build_model, build_optimizers, one_step, train
from stts_mini.vit import attend
from tests.test_model import batch_of, build
from tests.test_train import make_sampler
from tests.tiny import tiny
from tests.waits import GPU, Waits

CPU = torch.device("cpu")
cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
devices = pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=cuda_only)])


def kernel_of_the_equation(q, k, v, ends, ends_of_keys, longest, longest_keys):
    """What `varlen_attn` says that it computes, over (T, heads, d), run by run."""
    assert torch.equal(ends, ends_of_keys) and ends.dtype == torch.int32 and ends[-1] == len(q)
    lengths = ends.diff().tolist()
    assert max(lengths) <= longest == longest_keys and min(lengths) > 0
    runs = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    weights = lambda q, k: (torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.cat([torch.einsum("hij,jhd->ihd", weights(q, k), v) for q, k, v in runs])


def judged(device, dtype=None, k=0.5, varlen=False):
    """A pruned batch with uneven scores: kept cells, tokens, and every gradient, as float32 on the CPU."""
    model = build(w=3, side=3, depth=6, width=16).float()  # heads of 8, as CUDA's kernel wants them
    batch = batch_of(model, [7, 4, 1])
    batch.frames = batch.frames.float() if batch.frames.is_floating_point() else batch.frames
    scorer = Uneven(model.scorer, 3, 7, model.config.cells).to(device)
    model, batch = model.to(device), batch.to(device)
    model.varlen = varlen
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        output = model(batch, k, partial(model.encode_video, scorer=scorer))
        loss = output.task_loss + output.sim_loss
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return output.encoded.keep.cpu(), output.encoded.tokens.detach().float().cpu(), gradient.float().cpu()


@cuda_only
def test_float32_gives_the_cpus_numbers():
    (keep, tokens, gradient), (keep_there, tokens_there, gradient_there) = judged(CPU), judged(torch.device("cuda"))
    assert torch.equal(keep, keep_there)
    torch.testing.assert_close(tokens_there, tokens, rtol=1e-3, atol=1e-3)
    assert torch.cosine_similarity(gradient_there, gradient, 0) > 0.9999


@devices
def test_bfloat16_gives_nearly_the_same(name):
    keep, tokens, gradient = judged(CPU)
    kept, rounded, rough = judged(torch.device(name), torch.bfloat16)
    assert torch.equal(keep, kept)
    assert torch.cosine_similarity(rounded, tokens, dim=1).min() > 0.99
    assert torch.cosine_similarity(rough, gradient, 0) > 0.98 and not torch.equal(rough, gradient)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_begin_with_what_training_finds_likeliest(name, dtype):
    """`generate` against `forward` on the same prompts, and one token against four."""
    device, model = torch.device(name), build(w=3, side=3, depth=6, width=16).float()
    batch = batch_of(model, [7, 4, 1])
    batch.branches = [[([4, 10 + q, 6], []) for q in range(3)] for _ in range(3)]
    model, batch.frames = model.to(device), batch.frames.float().to(device)
    with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16), torch.no_grad():
        logits = model(batch, 0.5).logits  # (9, V): after every prompt
        first = model.generate(batch, 0.5, 1)
        said = model.generate(batch, 0.5, 4)
    best = logits.argmax(1).view(3, 3).tolist()
    ended = [[[] if token == model.config.marks.end else [token] for token in video] for video in best]
    assert first == ended == [[new[:1] for new in video] for video in said]
    assert max(len(new) for video in said for new in video) > 1


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [32, 72])  # 72: So400m's heads
def test_attention_of_packed_rows_and_of_biased_keys(name, dtype, d):
    """Against the equation in double precision; and no garbage for a query that may attend to nothing."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 40, d, generator=draw, dtype=torch.float64) for _ in range(3))
    frame = torch.arange(40).expand(2, 40) // torch.tensor([[13], [7]])
    frame = torch.where(torch.arange(40) < 35, frame, -1)
    allowed = (frame[:, None, :, None] == frame[:, None, None, :]) & (frame >= 0)[:, None, None, :]
    mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    bias = torch.rand(2, 40, generator=draw, dtype=torch.float64).log()
    error = 1e-5 if dtype == torch.float32 else 3e-2
    for options in (dict(mask=mask), dict(key_bias=bias)):
        there = {key: x.to(name, dtype if key == "mask" else torch.float32) for key, x in options.items()}
        got = attend(*(x.to(name, dtype) for x in (q, k, v)), **there).double().cpu()
        added = options["mask"] if "mask" in options else bias[:, None, None, :]
        weights = (q @ k.transpose(2, 3) / d**0.5 + added).softmax(-1).nan_to_num(0)
        torch.testing.assert_close(got, weights @ v, rtol=error, atol=error)


def test_runs_of_any_length_are_the_packed_rows(monkeypatch):
    """The model's part of --varlen, with the equation instead of CUDA's kernel: where runs begin and end, and what
    becomes of the result. In every packed block, and nowhere else."""
    varlen, called = pytest.importorskip("torch.nn.attention.varlen"), []
    kernel = lambda *words: called.append(len(words[3])) or kernel_of_the_equation(*words)
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr("stts_mini.model.in_half_precision", lambda x: True)
    (keep, tokens, gradient), (kept, same, slope) = judged(CPU), judged(CPU, varlen=True)
    assert len(called) == 4 and torch.equal(keep, kept)  # of six blocks: one scores, one has the bias
    torch.testing.assert_close(same, tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope, gradient, rtol=1e-3, atol=1e-5)
    judged(CPU, k=0.0, varlen=True)
    assert len(called) == 4  # nothing is packed
    monkeypatch.undo()
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    judged(CPU, varlen=True)
    assert len(called) == 4  # in single precision there is no such kernel: masks
    judged(CPU, torch.bfloat16, varlen=True)
    assert len(called) == 8


@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=7).filter(lambda x: any(map(any, x)))
)
def test_every_run_is_a_frame_whole_or_spare_room(kept):
    keep = torch.tensor(kept)
    packed = pack(torch.zeros(*keep.shape, 1), keep)
    ends = Segments.of(packed.frame).ends
    assert ends.dtype == torch.int32 and ends[0] == 0 and ends[-1] == packed.frame.numel() and (ends.diff() > 0).all()
    runs = [run.tolist() for run in packed.frame.flatten().tensor_split(ends[1:-1].long())]
    assert all(len(set(run)) == 1 for run in runs)
    frames = {run[0]: len(run) for run in runs if run[0] >= 0}
    assert frames == {i: n for i, n in enumerate(keep.sum(1).tolist()) if n}
    assert len(frames) == sum(run[0] >= 0 for run in runs)  # none comes twice


def test_the_kernels_signature_is_the_one_we_call():
    """PyTorch's own function, on tensors without contents: it takes what we give, and gives a shape and gradients."""
    pytest.importorskip("torch.nn.attention.varlen")
    q, k, v = (torch.empty(2, 4, 40, 32, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
    y = Segments(torch.empty(8, dtype=torch.int32, device="meta"))(q, k, v)
    assert y.shape == q.shape and y.dtype == q.dtype
    y.sum().backward()
    assert q.grad.shape == k.grad.shape == v.grad.shape == q.shape


@cuda_only
@pytest.mark.parametrize("d", [32, 72])
def test_the_kernel_for_runs_of_any_length_is_the_equation(d):
    """CUDA's, in bfloat16, with gradients."""
    pytest.importorskip("torch.nn.attention.varlen")
    assert largest_error(torch.device("cuda"), torch.bfloat16, d) < 6e-2


def test_the_stand_in_is_the_equation(monkeypatch):
    """What the tests of a CPU put in the kernel's place; and so the test above is known to run."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", kernel_of_the_equation)
    assert largest_error(CPU, torch.float64, 72) < 1e-10
    assert 0 < largest_error(CPU, torch.bfloat16, 32) < 6e-2


def largest_error(device, dtype, d):
    """Of values and gradients of packed rows by the kernel, against a mask in double precision."""
    draw = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, 4, 40, d, generator=draw, dtype=torch.float64) for _ in range(4))
    frame = torch.where(torch.arange(40) < 35, torch.arange(40).expand(2, 40) // torch.tensor([[13], [7]]), -1)
    frame[1] += 10 * (frame[1] >= 0)
    real = (frame >= 0)[:, None, :, None]
    masked = lambda *qkv: attend(*qkv, mask=frame[:, None, :, None] == frame[:, None, None, :])
    results = []
    for place, kind, attention in ((CPU, torch.float64, masked), (device, dtype, Segments.of(frame.to(device)))):
        own = [x.detach().clone().to(place, kind).requires_grad_() for x in (q, k, v)]
        y = attention(*own) * real.to(place)
        (y * weight.to(y)).sum().backward()
        results.append([x.detach().double().cpu() for x in (y, *(x.grad for x in own))])
    return max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))


@cuda_only
def test_a_model_by_the_kernel_is_nearly_the_same(monkeypatch):
    """And the kernel it is: counted."""
    varlen, called = pytest.importorskip("torch.nn.attention.varlen"), []
    kernel = varlen.varlen_attn
    monkeypatch.setattr(varlen, "varlen_attn", lambda *words: called.append(1) or kernel(*words))
    cuda = torch.device("cuda")
    keep, tokens, gradient = judged(cuda, torch.bfloat16)
    assert not called
    kept, same, slope = judged(cuda, torch.bfloat16, varlen=True)
    assert len(called) == 4 and torch.equal(keep, kept)
    assert torch.cosine_similarity(same, tokens, dim=1).min() > 0.99
    assert torch.cosine_similarity(slope, gradient, 0) > 0.98


def test_varlen_is_refused_where_it_cannot_be(tmp_path, monkeypatch):
    train(tiny(tmp_path), False, CPU)
    with pytest.raises(ValueError, match="--varlen is for CUDA, and the device is cpu"):
        train(tiny(tmp_path, varlen=True), False, CPU)
    assert (tmp_path / "run" / "checkpoint.pt").exists() and not (
        tmp_path / "run.1"
    ).exists()  # nothing was moved aside
    with pytest.raises(ValueError, match="varlen and compile"):
        tiny(tmp_path, varlen=True, compile=True)
    cuda = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    check_varlen(cuda, 72)
    for width in (4, 36, 264):
        with pytest.raises(ValueError, match=f"takes heads of 8, 16, … 256, and the ViT's are {width} wide"):
            check_varlen(cuda, width)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match="needs an Ampere GPU or newer, not Tesla T4"):
        check_varlen(cuda, 72)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torch 2\.10 or later, and this is"):
        check_varlen(cuda, 72)


@devices
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler gives some
@pytest.mark.parametrize(
    "options",
    [dict(), dict(recompute=True), dict(compile=True), dict(varlen=True, vit_width=16), dict(workers=2)],
    ids=str,
)
def test_every_stage_of_training_runs(name, options, tmp_path):
    """Single frames, short clips, saliency, pruned; then the exam. Compiled: see test_train.py for the CPU."""
    if options.get("compile") and name == "cpu":
        pytest.skip("half a minute, and done elsewhere")
    if options.get("varlen") and name == "cpu":
        pytest.skip("CUDA only")
    device = torch.device(name)
    model = train(
        tiny(tmp_path, PaperConfig, device=name, saliency_steps=1, llm_depth=2, steps=6, **options), False, device
    )
    assert next(model.parameters()).device.type == name and all(p.isfinite().all() for p in model.parameters())
    losses = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(losses) == 7 and "nan" not in "".join(losses)


def a_step(tmp_path, step, device):
    """One training step, ready to be made again and again; and its model."""
    config = tiny(tmp_path)
    model = build_model(config, device)
    optimizers = build_optimizers(model, config)
    batch = next(batch for batch in map(make_sampler(config), range(9)) if batch.num_frames.max() > 1)
    return lambda: one_step(model, optimizers, batch, step, config, device, None, model), model


NUMBERS = ["forward_backward: cpu", "one_step: _local_scalar_dense"]  # for the log, and whether they are any
WAITS = [(1, NUMBERS), (3, ["encode_video: cpu", *NUMBERS])]  # of an unpruned step, and of a pruned one


@pytest.mark.parametrize("step, waits", WAITS)
def test_what_a_step_waits_for(step, waits, tmp_path):
    """Each wait is an end to all that is queued, and the GPU stands still until Python has sent it more."""
    run, model = a_step(tmp_path, step, GPU)
    with Waits() as seen:
        seen.put(list(model.parameters()))
        run()
    assert seen.found == waits


@cuda_only
@pytest.mark.parametrize("step, waits", WAITS)
def test_what_a_step_waits_for_by_torchs_own_count(step, waits, tmp_path):
    run, _ = a_step(tmp_path, step, torch.device("cuda"))
    run()  # whatever is set up once
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroniz" in str(w.message)]
    assert len(places) == len(waits), places
