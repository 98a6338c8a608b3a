"""What our own functions refuse, and a module of your own need not: so no grader asks for it."""

import pytest

from stts_mini.packing import num_removed
from stts_mini.scorer import CellPooler


def test_a_video_without_frames_is_refused():
    with pytest.raises(ValueError, match="a video of 0 frames"):
        num_removed(0.5, cells=9, frames=0)


@pytest.mark.parametrize("heads", [0, -2])
def test_a_pooler_without_heads_is_refused(heads):
    with pytest.raises(ValueError, match="not a multiple"):
        CellPooler(6, 8, heads=heads)
