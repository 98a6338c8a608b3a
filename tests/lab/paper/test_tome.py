"""Merging against a loop over pairs, and against the unpruned model where nothing is merged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.lab.paper.rivals.tome import ToMe, merge, shares
from stts_mini.model import VLM, VLMConfig
from stts_mini.packing import num_removed
from stts_mini.vit import ViTConfig
from tests.test_model import LLM_SMALL

CONFIG = VLMConfig(
    ViTConfig(8, 2, 8, 4, 2, 12), LLM_SMALL, w=2, scorer_heads=2, scorer_mlp=8, connector_mlp=8, taps=(-1,)
)


@given(st.integers(1, 3), st.integers(2, 5), st.data())
def test_merging_is_the_loop_over_pairs(F, C, data):
    torch.manual_seed(F + 10 * C)
    x = torch.randn(F, C, 2, 3, dtype=torch.float64)
    removed = torch.tensor(data.draw(st.lists(st.integers(0, C - 1), min_size=F, max_size=F)))
    fast, size = merge(x, removed)
    for f in range(F):
        cells = {c: (x[f, c], 1) for c in range(C)}
        for _ in range(int(removed[f])):
            pairs = [(a, b) for a in cells for b in cells if a < b]
            alike = lambda p: torch.cosine_similarity(cells[p[0]][0].flatten(), cells[p[1]][0].flatten(), dim=0)  # noqa: B023
            a, b = max(pairs, key=alike)
            (xa, na), (xb, nb) = cells[a], cells.pop(b)
            cells[a] = (na * xa + nb * xb) / (na + nb), na + nb
        assert size[f].tolist() == [cells[c][1] if c in cells else 0 for c in range(C)]
        for c, (mean, _) in cells.items():
            torch.testing.assert_close(fast[f, c], mean)


@given(st.floats(0, 0.99), st.integers(2, 9), st.integers(1, 40))
def test_shares_are_the_budget(k, cells, frames):
    lost = shares(k, cells, frames)
    assert len(lost) == frames and lost[0] == 0 and max(lost) <= cells - 1
    assert sum(lost) == min(num_removed(k, cells, frames), (cells - 1) * (frames - 1))
    assert max(lost[1:], default=0) - min(lost[1:], default=0) <= 1


def test_nothing_merged_is_the_unpruned_model():
    torch.manual_seed(0)
    model = VLM(CONFIG).double()
    frames, counts = torch.rand(2, 3, 3, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    a, b = ToMe(model)(frames, counts, 0.0), model.encode_video(frames, counts, 0.0)
    torch.testing.assert_close(a.tokens, b.tokens)
    assert torch.equal(a.place, b.place) and torch.equal(a.kept, b.kept)


def test_merged_cells_count_as_many_keys_as_they_hold():
    """Cells that are equal: to merge them changes nothing for the others."""
    torch.manual_seed(0)
    model = VLM(CONFIG).double()
    model.vit.position_embedding.data.zero_()
    frames = torch.rand(1, 2, 3, 8, 8, dtype=torch.float64)
    frames[:, 1, :, :, 4:] = frames[:, 1, :, :, :4]  # frame 1: left and right half alike
    merged, whole = ToMe(model)(frames, None, 0.25), model.encode_video(frames, None, 0.0)
    assert merged.kept.tolist() == [[4, 2]]
    torch.testing.assert_close(merged.tokens[:4], whole.tokens[:4])
    torch.testing.assert_close(merged.tokens[4:], whole.tokens[[4, 6]])
    merged.tokens.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.vit.blocks.parameters())


@pytest.mark.parametrize("k", [0.5, 0.8])
def test_the_budget_is_that_of_pruning(k):
    model = VLM(CONFIG)
    frames = torch.rand(2, 6, 3, 8, 8)
    kept = ToMe(model)(frames, None, k).kept.sum().item()
    assert kept == max(model.encode_video(frames, None, k).kept.sum().item(), 2 * (4 + 5))  # a cell a frame stays
