"""The rows that the LLM reads, written out."""

import pytest
import torch

from stts_mini.data.tokenizer import END, FRAME_END, FRAME_START
from stts_mini.sequence import CELL, Batch, Layout, check_prompts, prefix_ids

S, E = FRAME_START, FRAME_END


def test_a_prefix_is_stamp_start_cells_end_for_every_frame():
    shown = torch.tensor([[True, True, True], [True, False, False]])
    kept = torch.tensor([[2, 0, 1], [4, 0, 0]])
    prefixes = prefix_ids([[[20, 21], [22], [23]], [[24]]], kept, shown)
    assert prefixes == [[20, 21, S, CELL, CELL, E, 22, S, E, 23, S, CELL, E], [24, S, CELL, CELL, CELL, CELL, E]]
    assert prefix_ids([[[20], [21]]], torch.zeros(1, 2).long(), torch.zeros(1, 2).bool()) == [[]]  # blind


@pytest.mark.parametrize("stamps", [[[20]], [[20], [21], [22]], []])
def test_a_frame_without_a_stamp_or_a_stamp_without_a_frame_is_refused(stamps):
    with pytest.raises(ValueError, match=f"video 0 has {len(stamps)} time stamps and 2 frames"):
        prefix_ids([stamps], torch.ones(1, 2).long(), torch.ones(1, 2).bool())


def test_stamps_stay_with_their_frames_when_some_are_not_shown():
    shown, kept = torch.tensor([[False, True, False, True, False]]), torch.tensor([[0, 1, 0, 0, 0]])
    stamps = [[20], [21], [22], [23]]  # the fifth is padding
    assert prefix_ids([stamps], kept, shown) == [[21, S, CELL, E, 23, S, E]]
    with pytest.raises(ValueError, match="video 0 has 3 time stamps"):
        prefix_ids([stamps[:3]], kept, shown)


def test_a_mark_in_a_question_is_text():
    """It sees nothing later, and no frame sees it; a real tokenizer may well write one."""
    prefix = [20, S, CELL, E]
    marked, plain = (
        Layout.build([prefix], [[(prompt, [9]), (prompt, [])]], torch.device("cpu")).mask
        for prompt in ([7, S, 8, E], [7, 7, 8, 8])
    )
    assert torch.equal(marked, plain)


def test_questions_without_a_prompt_are_refused():
    check_prompts([[([4], [])], []])
    with pytest.raises(ValueError, match="without any question"):
        check_prompts([[], []])
    with pytest.raises(ValueError, match="video 1, question 1 has an empty prompt"):
        check_prompts([[([4], [])], [([4], [5]), ([], [5])]])


@pytest.mark.parametrize("prompt, answer, least", [([4, CELL], [5], -1), ([4], [5, -2], -2)])
def test_negative_ids_are_refused_because_they_would_be_cells(prompt, answer, least):
    with pytest.raises(ValueError, match=f"video 1, question 0 has the token id {least}: give ids from 0 on"):
        check_prompts([[([0], [])], [(prompt, answer)]])
    with pytest.raises(ValueError, match="video 1 has a time stamp with a negative token id"):
        prefix_ids([[[0]], [[20], [20, least]]], torch.zeros(2, 2).long(), torch.tensor([[1, 0], [1, 1]]).bool())


def test_layout_written_out():
    """Two frames, the first without a cell, then a branch 7 8 → 9 and a branch 5 → nothing but the end; and a
    video without any prefix."""
    prefixes = [[20, S, E, 21, S, CELL, E], []]
    layout = Layout.build(prefixes, [[([7, 8], [9]), ([5], [])], [([7], [6])]], torch.device("cpu"))
    assert layout.ids.tolist() == [[20, S, E, 21, S, CELL, E, 7, 8, 9, 5], [7, 6, *[0] * 9]]
    assert layout.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7], [0, 1, *[0] * 9]]
    assert layout.segment.tolist() == [[0] * 7 + [1, 1, 1, 2], [1, 1] + [-1] * 9]
    sees = [
        "10000000000",
        "11101110000",  # a marker sees what is before it, and cells and markers after it, but no later stamp
        "11101110000",
        "11110000000",  # a stamp is text: it sees what is before it
        "11111110000",
        "11111110000",
        "11111110000",
        "11111111000",
        "11111111100",
        "11111111110",
        "11111110001",  # the second branch does not see the first
    ]
    assert ["".join(map(str, row)) for row in layout.mask[0, 0].int().tolist()] == sees
    assert layout.mask[1, 0].any(1).all() and not layout.mask[1, 0, :2, 2:].any()  # nobody sees nothing, or padding
    row, column, token, number = layout.answers.tolist()
    assert list(zip(row, column, strict=True)) == [(0, 8), (0, 9), (0, 10), (1, 0), (1, 1)]
    assert token == [9, END, END, 6, END] and number == [0, 0, 1, 2, 2]
    assert layout.tokens == 11 + 2


def test_a_batch_moves_with_its_frames():
    batch = Batch(torch.zeros(1, 1, 3, 2, 2), torch.tensor([1]), [[[20]]], [[([4], [5])]])
    moved = batch.to("meta")
    assert moved.frames.is_meta and moved.num_frames is batch.num_frames and moved.branches is batch.branches


def test_everything_is_made_where_it_is_wanted():
    layout = Layout.build([[20, S, CELL, E]], [[([7], [8])]], torch.device("meta"))
    assert layout.ids.is_meta and layout.positions.is_meta and layout.mask.is_meta and layout.answers.is_meta


def test_rows_without_anything_are_whole_numbers_too():
    layout = Layout.build([[], []], [[], []], torch.device("cpu"))
    assert layout.ids.shape == (2, 0) and layout.answers.shape == (4, 0) and layout.tokens == 0
    assert layout.ids.dtype == layout.answers.dtype == torch.long


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        prefix_ids([[[20]]], torch.ones(2, 1).long(), torch.ones(2, 1).bool())
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Layout.build([[20], [21]], [[]], torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: nothing to be pinned for")
def test_frames_reach_the_gpu():
    frames = torch.randint(256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(frames, torch.tensor([3, 2]), [[[5]] * 3, [[5]] * 2], [[], []])
    there = batch.to("cuda")
    assert there.frames.is_cuda and torch.equal(there.frames.cpu(), frames) and there.to("cuda").frames.is_cuda
