"""What a GPU must give: the CPU's numbers, in float32 closely, in bfloat16 nearly; and training that runs.

Where a test makes sense on a CPU, it runs there, too: so what is skipped without a GPU is not untried.
"""

from functools import partial

import pytest
import torch

from stts_mini.lab.bench import Uneven
from stts_mini.train import train
from stts_mini.vit import attend
from tests.test_model import batch_of, build
from tests.tiny import tiny

CPU = torch.device("cpu")
cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
devices = pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=cuda_only)])


def judged(device, dtype=None, k=0.5):
    """A pruned batch with uneven scores: kept cells, tokens, and every gradient, as float32 on the CPU."""
    model = build(w=3, side=3, depth=6).float()
    batch = batch_of(model, [7, 4, 1])
    batch.frames = batch.frames.float() if batch.frames.is_floating_point() else batch.frames
    scorer = Uneven(model.scorer, 3, 7, model.config.cells).to(device)
    model, batch = model.to(device), batch.to(device)
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


@devices
@pytest.mark.parametrize("options", [dict(), dict(recompute=True), dict(compile=True)], ids=str)
def test_every_stage_of_training_runs(name, options, tmp_path):
    """Single frames, short clips, saliency, pruned; then the exam. Compiled: see test_train.py for the CPU."""
    if options.get("compile") and name == "cpu":
        pytest.skip("half a minute, and done elsewhere")
    device = torch.device(name)
    model = train(tiny(tmp_path, device=name, saliency_steps=1, llm_depth=2, steps=6, **options), False, device)
    assert next(model.parameters()).device.type == name and all(p.isfinite().all() for p in model.parameters())
    losses = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(losses) == 7 and "nan" not in "".join(losses)
