"""Chunked encoding against encoding in one piece; the decoder in chunks; the command."""

import dataclasses
import gc
import json

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from stts_mini import scorer
from stts_mini.data.clips import WORLD_ID
from stts_mini.data.video import read_chunks, read_video, write_video
from stts_mini.lab import explore, long
from stts_mini.lab.long import encode_long, within_budget
from stts_mini.model import Encoded, VLMConfig
from stts_mini.packing import num_removed, select
from stts_mini.scorer import CosineScorer
from stts_mini.train import build_model
from stts_mini.training import checkpoint
from tests.test_model import batch_of, build
from tests.tiny import slow_but, tiny


def cut(frames, sizes):
    """Chunks of these sizes, the last ones as large as what is left."""

    def chunks():
        start = 0
        while start < len(frames):
            size = sizes[min(len(calls), len(sizes) - 1)]
            calls.append(size)
            yield frames[start : start + size]
            start += size

    calls = []
    return chunks


@given(
    st.integers(1, 9), st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.8, 0.95]), st.lists(st.integers(1, 4), min_size=1),
    st.booleans(), st.integers(0, 1), st.sampled_from([0.0, 0.7]), st.integers(0, 2**31),
)  # fmt: skip
@settings(deadline=None, phases=(Phase.explicit, Phase.generate))  # to shrink a failure takes minutes
@pytest.mark.parametrize("bias", slow_but(["log", "rescaled", "none"], "log"))
def test_in_chunks_is_in_one_piece(bias, T, k, sizes, cosine, score_after, spread, seed):
    model = build(depth=5, score_after=score_after, bias=bias, spread=spread, seed=seed)
    if cosine:
        model.scorer = CosineScorer(model.config.scorer)
    size = model.config.vit.image_size
    frames = torch.randn(T, 3, size, size, dtype=torch.float64)
    whole, parts = model.encode_video(frames[None], None, k), encode_long(model, cut(frames, sizes), k)
    assert torch.equal(parts.keep, whole.keep) and torch.equal(parts.place, whole.place)
    assert torch.equal(parts.kept, whole.kept) and torch.equal(parts.shown, whole.shown)
    torch.testing.assert_close(parts.tokens, whole.tokens, rtol=1e-9, atol=1e-11)
    if whole.scores is not None:
        torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("one_pass", [False, True])
def test_what_is_held_does_not_grow_with_the_clip(one_pass):
    """Between two chunks: scores, places and kept tokens, and never the tokens of the frames that went by."""
    model, n = build(), 4
    size, width = model.config.vit.image_size, model.config.vit.width

    def held():
        """Bytes of all tensors there are, each storage once."""
        storages = (t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor)
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def chunks():
        for _ in range(30):
            taken.append(held())
            yield torch.randn(n, 3, size, size, dtype=torch.float64)

    taken = []
    gc.freeze()  # what is there already does not count, and need not be looked at
    encode_long(model, chunks, 0.9, one_pass)
    gc.unfreeze()
    chunk = 8 * n * (model.config.vit.num_patches * width + 3 * size**2)  # its tokens and its pixels
    assert max(taken) - min(taken) < 4 * chunk, taken


@pytest.mark.parametrize("k", [0.0, 0.3, 0.8, 0.95])
def test_one_pass_spends_the_same_budget_chunk_by_chunk(k):
    model = build(seed=3)
    size = model.config.vit.image_size
    frames = torch.randn(11, 3, size, size, dtype=torch.float64)
    calls = []

    def chunks():
        calls.append(1)
        return frames.split(4)

    one = encode_long(model, chunks, k, one_pass=True)
    C = model.config.cells
    most = C * 10
    assert len(calls) == 1 and one.keep[0, 0].all()
    assert (~one.keep).sum() == min(num_removed(k, C, 11), most)
    for end in (4, 8):
        assert (~one.keep[0, :end]).sum() == min(num_removed(k, C, end), C * (end - 1))
    for bias, spread in (("log", 0.0), ("none", 0.0), ("rescaled", 0.7)):
        model = build(seed=3, bias=bias, spread=spread)
        in_one = encode_long(model, lambda: [frames], k, one_pass=True)  # a single chunk is the whole
        whole = model.encode_video(frames[None], None, k)
        assert torch.equal(in_one.keep, whole.keep)
        torch.testing.assert_close(in_one.tokens, whole.tokens, rtol=1e-9, atol=1e-11)


def test_one_pass_scores_and_encodes_what_it_keeps_as_two_passes_would(monkeypatch):
    """The second chunk, too, has its place in time and its bias: given the same choice, the tokens are the same."""
    model = build(seed=3, spread=0.7)
    size = model.config.vit.image_size
    frames = torch.randn(8, 3, size, size, dtype=torch.float64)
    chunks, ranked = lambda: frames.split(4), []
    two = encode_long(model, chunks, 0.5)

    def as_in_two(scores, k, start):
        ranked.append(scores)
        return two.keep[0, start : start + 4]

    monkeypatch.setattr(long, "within_budget", as_in_two)
    one = encode_long(model, chunks, 0.5, one_pass=True)
    torch.testing.assert_close(one.tokens, two.tokens, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(torch.cat(ranked)[None], scorer.spread(two.scores, 0.7))


def test_a_scorer_of_ones_own_is_called_as_by_encode_video():
    class Mine(torch.nn.Module):
        def __init__(self, extra=0):
            super().__init__()
            self.extra = extra

        def forward(self, x, num_frames):
            real = torch.arange(x.shape[1])[None] < num_frames[:, None]
            scores = x.unflatten(2, (-1, 4)).std((3, 4)) * real[..., None]
            return torch.nn.functional.pad(scores, (0, self.extra))

    model = build()
    size = model.config.vit.image_size
    frames = torch.randn(7, 3, size, size, dtype=torch.float64)
    model.scorer = Mine()
    whole, parts = model.encode_video(frames[None], None, 0.5), encode_long(model, lambda: frames.split(3), 0.5)
    assert torch.equal(parts.keep, whole.keep)
    model.scorer = Mine(extra=1)
    with pytest.raises(ValueError, match=r"the scorer gave \(1, 3, 5\): give \(B, T, C\) = \(1, 3, 4\)"):
        encode_long(model, lambda: frames.split(3), 0.5)
    model = build(spread=0.7)
    model.scorer = Mine()
    model.scorer.forward = lambda x, num_frames: x.new_full((1, x.shape[1], 4), 2.0)
    with pytest.raises(ValueError, match="from 2 to 2: give scores in"):
        encode_long(model, lambda: frames.split(3), 0.5)
    for one_pass in (False, True):
        with pytest.raises(ValueError, match="there are no frames"):
            encode_long(build(), lambda: [], 0.5, one_pass)


def test_nothing_gone_is_nothing_biased():
    model = build(seed=3)
    size = model.config.vit.image_size
    frames = torch.randn(4, 3, size, size, dtype=torch.float64)
    one, plain = encode_long(model, lambda: [frames], 0.02, True), model.encode_video(frames[None], None, 0.0)
    torch.testing.assert_close(one.tokens, plain.tokens, rtol=1e-9, atol=1e-11)


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(0, 2**31))
def test_the_first_chunk_loses_what_select_would_take(n, C, k, seed):
    scores = torch.randint(4, (n, C), generator=torch.Generator().manual_seed(seed)) / 4  # with ties
    assert torch.equal(within_budget(scores, k, 0), select(scores[None], k)[0])


def test_a_frame_of_which_nothing_is_kept_is_not_encoded(monkeypatch):
    model, seen = build(), []
    stem = model.stem
    monkeypatch.setattr(model, "stem", lambda frames: seen.append(len(frames)) or stem(frames))
    size = model.config.vit.image_size
    frames = torch.randn(8, 3, size, size, dtype=torch.float64)
    encoded = encode_long(model, lambda: frames.split(4), 0.85)
    assert seen[:2] == [4, 4] and sum(seen[2:]) == int((encoded.kept > 0).sum()) < 8


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("fps", [2.0, 3.0])
def test_chunks_of_a_file_are_the_frames_of_the_file(tmp_path, chunk, fps):
    pictures = np.random.default_rng(0).integers(256, size=(41, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", pictures, fps=4)
    whole, parts = (
        read_video(tmp_path / "a.mp4", 10**6, fps, size=8),
        list(read_chunks(tmp_path / "a.mp4", chunk, fps, 8)),
    )
    assert [t for part in parts for t in part.times] == whole.times
    assert np.array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert all(len(part.frames) == chunk for part in parts[:-1]) and parts[0].duration == whole.duration
    with pytest.raises(ValueError, match="chunk = 0: give at least 1 frame"):
        next(read_chunks(tmp_path / "a.mp4", 0))


def test_a_model_that_prunes_more_than_once_is_refused(monkeypatch):
    model = build(depth=5)
    monkeypatch.setattr(VLMConfig, "stages", 2)
    with pytest.raises(ValueError, match=r"prunes in 2 stages: lab\.long knows one"):
        encode_long(model, lambda: [torch.zeros(1, 3, 8, 8)], 0.5)
    with pytest.raises(ValueError, match=r"prunes in 2 stages: lab\.speed and lab\.explore know one"):
        explore.level(model.config, [[9]], None, 0.5)


def test_what_is_encoded_in_chunks_can_be_asked(tmp_path):
    """An `Encoded` like any other: the LLM reads it."""
    model = build()
    batch = batch_of(model, [6])
    encoded = encode_long(model, lambda: batch.frames[0].split(4), 0.5)
    assert isinstance(encoded, Encoded)
    chunked = model(batch, 0.5, lambda *_: encoded)
    torch.testing.assert_close(chunked.logits, model(batch, 0.5).logits, rtol=1e-9, atol=1e-9)


MINE = """
import torch
class Mine(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w = config.w
    def forward(self, x, num_frames=None):
        if self.w:
            print("Mine scores")
            self.w, self.area = 0, self.w**2
        return torch.rand(*x.shape[:2], x.shape[2] // self.area)
"""


def test_the_command_on_a_file(tmp_path, capsys):
    config = tiny(tmp_path)
    made = dict(step=0, world=WORLD_ID, train_config=dataclasses.asdict(config))
    checkpoint.save(tmp_path / "a.pt", build_model(config, torch.device("cpu")), **made)
    write_video(tmp_path / "a.mp4", np.zeros((9, 48, 48, 3), np.uint8), fps=2)
    words = [str(tmp_path / "a.mp4"), "--checkpoint", str(tmp_path / "a.pt"), "--k", "0.5", "--chunk", "4"]
    long.main(words)
    assert "9 frames, 41 of 81 cells kept, in two passes of 4 frames at a time" in capsys.readouterr().out
    long.main([*words, "--one-pass"])
    assert "9 frames, 41 of 81 cells kept, in one pass of 4 frames at a time" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "a.pt")
    state["train_config"]["k"] = 0.8
    torch.save(state, tmp_path / "a.pt")
    long.main(words[:3])
    assert (
        f"9 frames, {81 - num_removed(0.8, 9, 9)} of 81 cells kept, in two passes of 64 frames at a time, k = 0.8"
        in (capsys.readouterr().out)
    )
    (tmp_path / "mine.py").write_text(MINE)
    long.main([*words, "--scorer", f"{tmp_path / 'mine.py'}:Mine"])
    assert capsys.readouterr().out.startswith("Mine scores\n")
    (tmp_path / "nan.py").write_text(MINE.replace("return torch.rand", "return torch.nan * torch.rand"))
    with pytest.raises(SystemExit, match="give no NaN"):
        long.main([*words, "--scorer", f"{tmp_path / 'nan.py'}:Mine"])
    for wrong, message in (
        ([], "give a video, or --curve out.json"),
        ([*words, "--chunk", "0"], "--chunk 0: give"),
        ([*words, "--threads", "0"], "--threads 0: give 1 or more"),
        ([*words, "--fps", "nan"], "--fps nan: give more than 0"),
        ([*words, "--curve", str(tmp_path / "c.json")], "video, checkpoint has no effect with --curve"),
        (["--one-pass", "--fps", "1", "--curve", "c.json"], "fps, one-pass has no effect with --curve"),
        ([*words, "--frames", "8"], "frames has no effect with a video: leave it out"),
    ):
        with pytest.raises(SystemExit, match=message):
            long.main(wrong)
    with pytest.raises(SystemExit):
        long.main(["--curve", "c.json", "--frames", "8,,8"])
    assert "--frames: '8,,8': give numbers, such as 8,64" in capsys.readouterr().err


@pytest.mark.slow
def test_the_curve_measures_each_way(tmp_path, capsys, monkeypatch):
    """Seconds of this process, bytes of another."""
    asked = []

    def process(work, way, frames, *given):
        asked.append((way, frames, *given))
        return {**work(way, frames, *given), "seconds": 1e6, "bytes": 5e6}

    monkeypatch.setattr(long, "in_own_process", process)
    monkeypatch.setattr(long, "WHOLE_UP_TO", 2)
    path = tmp_path / "curve.json"
    long.main(["--curve", str(path), "--frames", "2,4", "--k", "0.8", "--chunk", "3"])
    report = json.loads(path.read_text())
    ways = [("two passes", 2), ("two passes", 4), ("one pass", 2), ("one pass", 4), ("whole", 2)]
    assert [(run["way"], run["frames"]) for run in report["encoded"]] == ways
    assert asked == [(*way, 0.8, 3) for way in ways]
    assert all(run["kept"] == 9 * run["frames"] - num_removed(0.8, 9, run["frames"]) for run in report["encoded"])
    assert all(run["seconds"] < 1e3 and run["bytes"] == 5e6 for run in report["encoded"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| 4 | 0.") and line.endswith("s, 5 MB | | 21 |")  # 9 cells; stamps and markers
