"""Our Muon against torch's, and against what orthogonal means."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from stts_mini.training.config import TrainConfig
from stts_mini.training.optim import Muon, build_optimizers, orthogonalise


@given(st.integers(1, 12), st.integers(1, 12))
def test_orthogonalise_makes_all_singular_values_about_one(rows, columns):
    torch.manual_seed(rows * 13 + columns)
    x = torch.randn(3, rows, columns)
    if (torch.linalg.svdvals(x) / torch.linalg.svdvals(x)[:, :1]).min() < 0.02:
        assume(False)  # a nearly singular one takes more than five steps
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5 and values.max() < 1.3
    one = orthogonalise(x[1:2])[0]
    torch.testing.assert_close(one, orthogonalise(x)[1], rtol=1e-4, atol=1e-5)


def test_muon_does_what_torch_does():
    """Same rule, theirs in bfloat16: the paths stay within its rounding for a few steps."""
    torch.manual_seed(0)
    shapes = [(8, 8), (16, 4), (4, 16), (8, 8)]
    start = [torch.randn(s) for s in shapes]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    a, b = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        moved = (q - s).norm()
        assert moved > 0.05 and (p - q).norm() < 0.03 * moved


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    for wrong in (dict(lr=-1.0), dict(lr=float("nan")), dict(momentum=1.0), dict(momentum=-0.1)):
        with pytest.raises(ValueError, match="give lr ≥ 0 and 0 ≤ momentum < 1"):
            Muon([torch.nn.Parameter(torch.zeros(3, 3))], **wrong)
    Muon([torch.nn.Parameter(torch.zeros(3, 3))], lr=0.0, momentum=0.0)


def test_of_any_size_and_type_the_direction_is_the_same():
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(1e-5 * x), orthogonalise(x), rtol=1e-3, atol=1e-4)
    assert orthogonalise(x.double()).dtype == torch.float64 and orthogonalise(0 * x).abs().sum() == 0


def test_ends_and_vectors_are_adamws_and_each_part_has_its_rate():
    matrices = ["llm.embed_tokens", "llm.lm_head", "vit.position_embedding", "vit.patch_embedding", "scorer.last"]
    hidden = ["llm.layers.0.q_proj", "vit.blocks.0.up", "connector.down", "scorer.mlp.0"]
    every = {name: torch.nn.Parameter(torch.zeros(1 if "last" in name else 2, 2)) for name in (*matrices, *hidden)}
    every |= {"llm.norm": torch.nn.Parameter(torch.zeros(2))}
    model = SimpleNamespace(named_parameters=every.items)
    config = TrainConfig(lr=2.0, muon_lr=3.0, scorer_lr_ratio=0.5, vision_lr_ratio=0.25)
    found = {}
    for optimizer in build_optimizers(model, config):
        for group in optimizer.param_groups:
            assert group["lr"] == group["peak_lr"]
            found |= {id(p): (type(optimizer) is Muon, group["lr"]) for p in group["params"]}
    ratio = {"llm": 1.0, "vit": 0.25, "connector": 0.25, "scorer": 0.5}
    for name, p in every.items():
        assert found[id(p)] == (name in hidden, (3.0 if name in hidden else 2.0) * ratio[name.split(".")[0]])


def test_a_step_by_hand():
    """Of the identity the nearest orthogonal matrix is the identity, whatever its size; what has no gradient stays."""
    p, still = (torch.nn.Parameter(torch.zeros(4, 2)) for _ in range(2))
    optimizer = Muon([dict(params=[p, still], lr=0.5)])
    p.grad = 3 * torch.eye(4, 2)
    optimizer.step()
    assert still.abs().sum() == 0 and "momentum" not in optimizer.state[still]
    torch.testing.assert_close(optimizer.state[p]["momentum"], 0.05 * p.grad)
    step = p / (-0.5 * 2**0.5)  # √(rows/columns)
    assert (step - torch.eye(4, 2)).abs().max() < 0.3 and step.abs()[2:].max() < 1e-6
