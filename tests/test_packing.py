"""Properties of select, first_fit_descending, pack and block_mask, against slow and obvious oracles."""

import math
import sys
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from stts_mini.packing import block_mask, first_fit_descending, frame_counts, num_removed, pack, scaled_frames, select
from stts_mini.vit import Block, ViTConfig

ks = st.one_of(st.integers(0, 99).map(lambda n: n / 100), st.floats(0, 1, exclude_max=True, allow_subnormal=False))


@st.composite
def score_batches(draw):
    """Scores (B, T, C) from a few values, so that ties are common; ragged num_frames."""
    B, T, C = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    value = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0, math.inf])
    values = draw(st.lists(value, min_size=B * T * C, max_size=B * T * C))
    return torch.tensor(values).view(B, T, C), torch.tensor(draw(st.lists(st.integers(1, T), min_size=B, max_size=B)))


def select_oracle(scores, k, num_frames):
    """One video after another, one cell after another, in decimal."""
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    for b, frames in enumerate(num_frames.tolist()):
        cells = scores.shape[2]
        budget = int(Decimal(str(k)) * cells * frames)
        candidates = [(float(scores[b, t, c]), t, c) for t in range(1, frames) for c in range(cells)]
        keep[b, :frames] = True
        for _, t, c in sorted(candidates)[:budget]:
            keep[b, t, c] = False
    return keep


@given(score_batches(), ks)
@example((torch.zeros(1, 10, 9), torch.tensor([10])), 0.3)  # 27 in decimal, 26.99… in binary
def test_select_is_the_oracle(batch, k):
    scores, num_frames = batch
    assert torch.equal(select(scores, k, num_frames), select_oracle(scores, k, num_frames))


@given(score_batches(), ks)
def test_select_counts_and_frame_0(batch, k):
    scores, num_frames = batch
    keep = select(scores, k, num_frames)
    for b, frames in enumerate(num_frames.tolist()):
        assert keep[b, 0].all() and not keep[b, frames:].any()
        assert int((~keep[b, :frames]).sum()) == num_removed(k, scores.shape[2], frames)
        assert torch.equal(keep[b : b + 1, :frames], select(scores[b : b + 1, :frames], k))  # alone = in a batch


@given(score_batches(), ks)
def test_select_knows_only_the_order(batch, k):
    scores, num_frames = batch
    keep = select(scores, k, num_frames)
    for monotone in (lambda s: s * 8 + 3, torch.atan, lambda s: s.double().sigmoid()):
        assert torch.equal(select(monotone(scores), k, num_frames), keep)


def test_select_limits():
    scores = torch.rand(2, 4, 9)
    assert select(scores, 0.0).all()
    assert select(scores[:, :1], 0.99).all()
    for nearly_one in (0.999, math.nextafter(1, 0)):
        keep = select(scores, nearly_one)
        assert keep[:, 0].all() and not keep[:, 1:].any()


def test_select_ties_go_by_place_and_bfloat16_is_compared_in_float32():
    keep = select(torch.zeros(1, 3, 2), 0.5)
    assert keep.int().tolist() == [[[1, 1], [0, 0], [0, 1]]]
    scores = torch.rand(1, 8, 50).bfloat16()
    assert torch.equal(select(scores, 0.4), select(scores.float(), 0.4))


def test_nan_counts_as_the_highest_score():
    scores = torch.tensor([[[0.1, 0.2], [math.nan, 0.9], [0.3, math.nan]]])
    assert select(scores, 0.5).int().tolist() == [[[1, 1], [0, 0], [0, 1]]]  # 0.3, 0.9, then the first NaN


@pytest.mark.parametrize("F, k", [(64, 0.3), (64, 0.5), (16, 0.9), (90, 0.1), (7, 0.0)])
def test_scaled_frames_are_taken_in_decimal(F, k):
    assert scaled_frames(F, k) == int((Decimal(F) / (1 - Decimal(str(k)))).to_integral_value(ROUND_CEILING))


BLIND = "; to see no video at all, evaluate or train blind"


@pytest.mark.parametrize(
    "k, hint",
    [(50, "; did you mean 0.5?"), (99.5, "; did you mean 0.995?"), (2, "; did you mean 0.02?"), (1.5, ""), (1, BLIND),
     (100, BLIND), (101, ""), (100.5, ""), (-0.1, ""), (math.nan, "")],
)  # fmt: skip
def test_a_k_that_cannot_be_is_refused(k, hint):
    with pytest.raises(ValueError) as caught:
        select(torch.rand(1, 2, 4), k)
    assert str(caught.value) == f"k = {k} is not in [0, 1): k is the share of cells to remove{hint}"


def test_a_batch_without_anything_is_refused():
    for B, T in ((0, 3), (2, 0)):
        with pytest.raises(ValueError, match=f"a batch of {B} videos of {T} frames: give at least 1 of each"):
            frame_counts(None, B, T)
    with pytest.raises(ValueError, match="num_frames = 3: give 2 whole numbers from 1 to 3"):
        frame_counts(torch.tensor(3), 2, 3)


def test_everything_is_made_where_the_input_lies():
    """On the device without memory: whatever is made elsewhere fails to meet it."""
    scores = torch.empty(2, 4, 9, device="meta")
    assert select(scores, 0.5, torch.tensor([4, 3])).is_meta
    packed = pack(torch.empty(3, 5, 2, device="meta"), torch.rand(3, 5) < 0.5)
    assert packed.x.is_meta and packed.frame.is_meta and packed.slot.is_meta and block_mask(packed.frame).is_meta


def test_select_refuses_shapes():
    with pytest.raises(ValueError, match="give floats"):
        select(torch.zeros(1, 2, 4, dtype=torch.long), 0.5)
    with pytest.raises(ValueError, match="from 1 to 2"):
        select(torch.rand(1, 2, 4), 0.5, torch.tensor([3]))
    for wrong in (torch.tensor([2, 2]), torch.tensor([1.5]), torch.tensor([0])):
        with pytest.raises(ValueError, match="give 1 whole numbers"):
            select(torch.rand(1, 2, 4), 0.5, wrong)


# ------------------------------------------------------------------------------------- first fit


@st.composite
def segments(draw):
    capacity = draw(st.integers(1, 40))
    return draw(st.lists(st.integers(0, capacity), max_size=60)), capacity


def ffd_oracle(lengths, capacity):
    rows, place = [], {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i]:
            r = next((r for r, used in enumerate(rows) if used + lengths[i] <= capacity), len(rows))
            if r == len(rows):
                rows.append(0)
            place[i] = (r, rows[r])
            rows[r] += lengths[i]
    return place, len(rows)


def optimum(lengths, capacity):
    """The fewest rows, by trying: for few segments only."""
    lengths = sorted((n for n in lengths if n), reverse=True)

    def fits(rest, rooms):
        if not rest:
            return True
        tried = set()
        for i, room in enumerate(rooms):
            if room >= rest[0] and room not in tried:
                tried.add(room)
                if fits(rest[1:], rooms[:i] + (room - rest[0],) + rooms[i + 1 :]):
                    return True
        return False

    return next(m for m in range(len(lengths) + 1) if fits(lengths, (capacity,) * m))


@given(segments())
def test_first_fit_is_the_oracle(case):
    lengths, capacity = case
    row, offset, num_rows = first_fit_descending(lengths, capacity)
    place, expected_rows = ffd_oracle(lengths, capacity)
    assert num_rows == expected_rows
    for i, n in enumerate(lengths):
        assert (int(row[i]), int(offset[i])) == (place[i] if n else (-1, 0))
    as_tensor = first_fit_descending(torch.tensor(lengths, dtype=torch.long), capacity)
    assert torch.equal(as_tensor[0], row) and torch.equal(as_tensor[1], offset) and as_tensor[2] == num_rows


@given(segments())
def test_first_fit_places_each_once_without_overflow(case):
    lengths, capacity = case
    row, offset, num_rows = first_fit_descending(lengths, capacity)
    used = torch.zeros(num_rows, capacity)
    for r, o, n in zip(row.tolist(), offset.tolist(), lengths, strict=True):
        if n:
            assert o + n <= capacity
            used[r, o : o + n] += 1
    assert not (used > 1).any() and used.sum() == sum(lengths)
    assert num_rows >= math.ceil(sum(lengths) / capacity)


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(12, 14))
@example([6, 5, 4, 3, 2, 2, 2], 12)
def test_first_fit_is_within_eleven_ninths_of_the_optimum(lengths, capacity):
    best = optimum(lengths, capacity)
    assert best <= first_fit_descending(lengths, capacity)[2] <= 11 / 9 * best + 6 / 9


@pytest.mark.parametrize("lengths, capacity", [([3, 5], 4), ([-1], 4), ([1], 0)])
def test_first_fit_refuses(lengths, capacity):
    with pytest.raises(ValueError, match=r"does not fit a row|must hold"):
        first_fit_descending(lengths, capacity)


def test_first_fit_takes_no_quadratic_number_of_steps():
    """Counted, not timed: the lines of Python that run, for twice the segments."""
    steps = {}
    for count in (512, 1024, 2048):
        steps[count] = 0

        def trace(frame, event, arg, count=count):
            steps[count] += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            first_fit_descending([300 + i % 429 for i in range(count)], 729)
        finally:
            sys.settrace(before)
    assert steps[1024] > 1024 and steps[1024] < 2.5 * steps[512] and steps[2048] < 2.5 * steps[1024]


def test_two_hours_of_frames_waste_next_to_nothing():
    """14,400 frames of 0 to 729 tokens: within 1% of ⌈Σ/N⌉, and every row filled as the places say."""
    lengths = torch.randint(730, (14_400,), generator=torch.Generator().manual_seed(0))
    row, offset, num_rows = first_fit_descending(lengths, 729)
    least = math.ceil(int(lengths.sum()) / 729)
    assert least <= num_rows <= 1.01 * least
    ends = torch.zeros(num_rows).long().scatter_reduce(0, row.clamp(min=0), offset + lengths, "amax")
    filled = torch.zeros(num_rows).long().index_add(0, row.clamp(min=0), lengths)
    assert torch.equal(ends, filled) and filled.max() <= 729


# ------------------------------------------------------------------------------------------ pack


@st.composite
def keeps(draw):
    F, N = draw(st.integers(0, 7)), draw(st.integers(1, 9))
    kinds = st.one_of(st.just([True] * N), st.just([False] * N), st.lists(st.booleans(), min_size=N, max_size=N))
    keep = torch.tensor(draw(st.lists(kinds, min_size=F, max_size=F)), dtype=torch.bool).view(F, N)
    return torch.randn(F, N, 3, dtype=torch.float64), keep


@given(keeps())
def test_pack_and_unpack_are_a_round_trip(case):
    x, keep = case
    packed = pack(x, keep)
    assert torch.equal(packed.unpack(packed.x), x[keep])
    other = torch.randn(*packed.frame.shape, 2)  # any y, not only x
    assert packed.unpack(other).shape == (int(keep.sum()), 2)


@given(keeps())
def test_pack_keeps_a_frame_together_in_order_and_nothing_else(case):
    x, keep = case
    F, N = keep.shape
    packed = pack(x, keep)
    assert packed.x.shape == (packed.frame.shape[0], N, 3) and packed.frame.shape[1] == N
    assert packed.frame.shape[0] == first_fit_descending(keep.sum(1), N)[2] <= F
    assert packed.frame.shape[0] >= math.ceil(int(keep.sum()) / N)
    for f in range(F):
        where = (packed.frame == f).nonzero()
        assert len(where) == keep[f].sum()
        if len(where):
            assert (where[:, 0] == where[0, 0]).all()  # in one row
            assert all(b - a == 1 for a, b in pairwise(where[:, 1].tolist()))  # side by side
            assert torch.equal(packed.x[packed.frame == f], x[f][keep[f]])  # in order
    assert (packed.x[packed.frame == -1] == 0).all()


@given(keeps())
def test_pack_passes_gradients_to_the_kept_tokens_only(case):
    x, keep = case
    x.requires_grad_()
    packed = pack(x, keep)
    weight = torch.randn(int(keep.sum()), 3, dtype=x.dtype)
    (packed.unpack(packed.x) * weight).sum().backward()
    expected = torch.zeros_like(x)
    expected[keep] = weight
    assert torch.equal(x.grad, expected)


def test_pack_nothing_at_all_gives_zero_rows():
    packed = pack(torch.randn(4, 9, 3), torch.zeros(4, 9, dtype=torch.bool))
    assert packed.x.shape == (0, 9, 3) and packed.frame.shape == (0, 9)
    assert packed.unpack(packed.x).shape == (0, 3)
    assert block_mask(packed.frame).shape == (0, 1, 9, 9)


def test_pack_refuses_shapes():
    shapes = r"x \(4, 9, 3\), keep torch.bool \(4, 8\): give x \(F, N, D\)"
    with pytest.raises(ValueError, match=shapes):
        pack(torch.randn(4, 9, 3), torch.ones(4, 8, dtype=torch.bool))
    packed = pack(torch.randn(4, 9, 3), torch.ones(4, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="the rows are"):
        packed.unpack(torch.randn(3, 9, 3))


@given(keeps())
def test_block_mask_is_the_oracle(case):
    frame = pack(*case).frame
    mask = block_mask(frame)
    for r, row in enumerate(frame.tolist()):
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                assert bool(mask[r, 0, i, j]) == (a == b != -1)


# ----------------------------------------------------------------------------- packed attention


def small_block(seed=0):
    torch.manual_seed(seed)
    return Block(ViTConfig(image_size=6, patch_size=2, width=8, heads=2, mlp=16)).double()


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=6), st.integers(0, 10**6))
@example([[False] * 9] * 2, 0)
@example([[True] * 9, [False] * 9, [True] + [False] * 8], 1)
def test_packed_attention_is_every_frame_on_its_own(kept, seed):
    """Values, gradients of the input, gradients of all weights: against each frame alone, without mask."""
    keep = torch.tensor(kept)
    torch.manual_seed(seed)
    x = torch.randn(*keep.shape, 8, dtype=torch.float64)
    block, results = small_block(), []
    for way in ("packed", "alone"):
        inputs = x.clone().requires_grad_()
        if way == "packed":
            packed = pack(inputs, keep)
            y = packed.unpack(block(packed.x, mask=block_mask(packed.frame)))
        else:
            alone = [block(inputs[f, keep[f]][None])[0] for f in range(len(keep)) if keep[f].any()]
            y = torch.cat([inputs[0, :0], *alone])
        weight = torch.arange(1.0, 1 + y.numel(), dtype=y.dtype).view_as(y).cos()
        grads = torch.autograd.grad((y * weight).sum(), [inputs, *block.parameters()], materialize_grads=True)
        results.append([y.detach(), *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_padding_makes_no_nan_and_is_not_seen():
    """A fully masked query gives finite values and gradients; garbage in spare room changes nothing."""
    keep = torch.zeros(2, 9, dtype=torch.bool)
    keep[:, :3] = True
    packed = pack(torch.randn(2, 9, 8, dtype=torch.float64), keep)
    spare = packed.frame == -1
    assert spare.sum() == 3
    block, mask = small_block(), block_mask(packed.frame)
    outputs = []
    for garbage in (0.0, 1e3):
        x = packed.x.masked_fill(spare[..., None], garbage).requires_grad_()
        y = block(x, mask=mask)
        assert y.isfinite().all()
        packed.unpack(y).sum().backward()
        assert x.grad.isfinite().all() and (x.grad[spare] == 0).all()
        outputs.append(packed.unpack(y).detach())
    assert torch.equal(*outputs)


def test_changing_one_frame_changes_no_other():
    torch.manual_seed(0)
    keep = torch.rand(6, 9) < 0.4
    x = torch.randn(6, 9, 8)
    block = small_block().float()

    def run(x):
        packed = pack(x, keep)
        return packed.unpack(block(packed.x, mask=block_mask(packed.frame)))

    changed = x.clone()
    changed[2] += 1
    owner = torch.arange(6).repeat_interleave(keep.sum(1))
    before, after = run(x), run(changed)
    assert torch.equal(before[owner != 2], after[owner != 2])
    assert not torch.equal(before[owner == 2], after[owner == 2])
