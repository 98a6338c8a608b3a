"""Reading real files: the sampling rule, against a full linear decode; every kind of broken file."""

import os
import struct
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from hypothesis import given
from hypothesis import strategies as st

from stts_mini.video import VideoError, read_video, sample_times, write_video


def moving_square(T=17, height=48, width=48):
    """Frame t has its own brightness, so that a wrong frame shows."""
    frames = np.full((T, height, width, 3), 40, np.uint8)
    for t in range(T):
        frames[t] += np.uint8(10 * (t % 20))
        frames[t, 10:20, (2 * t) % 30 : (2 * t) % 30 + 10] = (220, 40, 40)
    return frames


def write(path, frames, pts, time_base=Fraction(1, 1000), codec="libx264", pix_fmt="yuv420p", audio=False, **options):
    """An encoder of our own for odd time stamps: pts in units of time_base."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if audio:
            sound = container.add_stream("aac", rate=8000)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.rate, samples.pts = 8000, 0
            container.mux(sound.encode(samples))
            container.mux(sound.encode())
        for picture, stamp in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(stamp), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _rgb(frame):
    return frame.to_ndarray(format="rgb24", interpolation="BICUBIC")


def oracle(path, max_frames, fps=2.0):
    """Decode everything, then look frames up by their time."""
    with av.open(str(path)) as container:
        decoded = [(f.pts * Fraction(f.time_base), _rgb(f)) for f in container.decode(video=0)]
    first, last = decoded[0][0], decoded[-1][0]
    shown = []
    for t in sample_times(last - first, max_frames, fps):
        shown.append(max((time, i) for i, (time, _) in enumerate(decoded) if time - first <= t))
    return [float(time - first) for time, _ in shown], [decoded[i][1] for _, i in shown]


def check_against_oracle(path, max_frames=16):
    video = read_video(path, max_frames)
    times, frames = oracle(path, max_frames)
    assert video.times == times and len(video.frames) == len(times) <= max_frames
    for a, b in zip(video.frames, frames, strict=True):
        assert np.array_equal(a, b)
    return video


@given(st.fractions(0, 200, max_denominator=90000), st.integers(1, 40), st.sampled_from([0.5, 1, 2, 2.5, 29.97]))
def test_sample_times_follow_the_rule(duration, max_frames, fps):
    times = sample_times(duration, max_frames, fps)
    step = 1 / Fraction(str(fps))
    on_grid = [i * step for i in range(int(duration / step) + 1)]
    expected = on_grid if on_grid[-1] == duration else [*on_grid, duration]
    if len(expected) > max_frames:
        assert len(times) == max_frames and times[0] == 0
        gaps = {b - a for a, b in pairwise(times)}
        assert len(gaps) <= 1 and (max_frames == 1 or times[-1] == duration)
    else:
        assert times == expected


@pytest.mark.parametrize("bad", [dict(max_frames=0), dict(fps=0), dict(duration=-1), dict(duration=float("nan"))])
def test_sample_times_refuse(bad):
    with pytest.raises(ValueError, match="give ≥ 1"):
        sample_times(**{"duration": 1, "max_frames": 4, **bad})


def test_write_then_read(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "a.mp4", frames, fps=4)
    assert os.listdir(tmp_path) == ["a.mp4"]
    video = check_against_oracle(tmp_path / "a.mp4")
    assert video.times == [i / 2 for i in range(9)] and video.stamps[3] == "1.5" and video.duration == 4.0
    assert np.abs(video.frames.astype(int) - frames[::2]).mean() < 4 and video.skipped == 0


@pytest.mark.parametrize("shape", [(2, 47, 48, 3), (2, 48, 48), (0, 48, 48, 3)])
def test_write_refuses(shape, tmp_path):
    with pytest.raises(ValueError, match=r"even|give uint8"):
        write_video(tmp_path / "a.mp4", np.zeros(shape, np.uint8))
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", moving_square(3))
    before = (tmp_path / "a.mp4").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("stts_mini.video.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "a.mp4", moving_square(5))
    assert (tmp_path / "a.mp4").read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("T", [1, 2, 3, 40])
def test_any_number_of_frames(T, tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(T), range(0, T * 40, 40))
    assert len(check_against_oracle(path).frames) == min(16, len(sample_times(Fraction((T - 1) * 40, 1000), 99)))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 2000))
def test_variable_frame_rate(tmp_path_factory, gaps, max_frames, start):
    pts = np.cumsum([start, *gaps])
    path = write(tmp_path_factory.mktemp("vfr") / "a.mkv", moving_square(len(pts)), pts, preset="ultrafast")
    check_against_oracle(path, max_frames)


def test_b_frames_and_a_start_that_is_not_zero(tmp_path):
    path = write(tmp_path / "a.ts", moving_square(60), range(5000, 5000 + 60 * 33, 33), bf="3", g="20")
    with av.open(str(path)) as container:
        assert any(f.pict_type == PictureType.B for f in container.decode(video=0))
    assert check_against_oracle(path).times[0] == 0


@pytest.mark.parametrize("height, width", [(50, 34), (48, 130)])
def test_odd_shapes_and_resizing(height, width, tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(5, height, width), range(0, 2500, 500))
    assert check_against_oracle(path).frames.shape == (5, height, width, 3)
    assert read_video(path, 16, size=24).frames.shape == (5, 24, 24, 3)


def test_ten_bit_and_sound(tmp_path):
    check_against_oracle(write(tmp_path / "a.mp4", moving_square(6), range(0, 3000, 500), pix_fmt="yuv420p10le"))
    check_against_oracle(write(tmp_path / "b.mp4", moving_square(6), range(0, 3000, 500), audio=True))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_is_applied(degrees, tmp_path):
    """Written by hand into the MP4's track header: the matrix of a turn by `degrees`, clockwise."""
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, :16, :24] = (220, 40, 40)  # red at the top left
    path = write(tmp_path / "a.mp4", frames, (0, 500, 1000), crf="5")
    raw = path.read_bytes()
    one = 1 << 16
    matrix = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", matrix[0], matrix[1], 0, matrix[2], matrix[3], 0, 0, 0, 1 << 30)
    at = raw.index(plain, raw.index(b"tkhd"))
    path.write_bytes(raw[:at] + turned + raw[at + 36 :])
    video = read_video(path, 4)
    expected = np.rot90(frames[0], -degrees // 90)
    assert video.frames[0].shape == expected.shape
    assert np.abs(video.frames[0].astype(int) - expected).mean() < 12
    small = read_video(path, 4, size=32).frames[0]
    red = np.argwhere((small[..., 0] > 120) & (small[..., 1] < 120)).mean(0)
    assert np.abs(red - {90: (7.5, 23.5), 180: (23.5, 23.5), 270: (23.5, 7.5)}[degrees]).max() < 2


def test_what_is_no_video_is_refused_clearly(tmp_path):
    (tmp_path / "text.mp4").write_text("this is a text file\n" * 50)
    (tmp_path / "text.txt").write_text("this is a text file\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.rate, samples.pts = 8000, 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    expected = {
        "text.mp4": "not a video",
        "text.txt": "not a video|no video stream",
        "empty.mp4": "empty",
        "folder.mp4": "directory",
        "sound.mp4": r"no video stream \(it holds: audio",
        "missing.mp4": "no such file",
    }
    for name, message in expected.items():
        with pytest.raises(VideoError, match=message) as caught:
            read_video(tmp_path / name, 4)
        assert name in str(caught.value)


def test_truncated_files_give_their_good_frames_or_one_error(tmp_path):
    whole = write(tmp_path / "a.mkv", moving_square(40), range(0, 4000, 100), g="10").read_bytes()
    index_last = write(tmp_path / "b.mp4", moving_square(40), range(0, 4000, 100)).read_bytes()
    outcomes = []
    for tenth in range(1, 10):
        (tmp_path / "cut.mp4").write_bytes(index_last[: len(index_last) * tenth // 10])
        with pytest.raises(VideoError, match=r"cut off before its index|none of its frames"):
            read_video(tmp_path / "cut.mp4", 16)
        cut = tmp_path / "cut.mkv"
        cut.write_bytes(whole[: len(whole) * tenth // 10])
        try:
            outcomes.append(len(read_video(cut, 16).frames))
        except VideoError as error:
            assert "cut.mkv" in str(error)
    assert outcomes and outcomes == sorted(outcomes)


def test_flipped_bytes_never_crash(tmp_path):
    good = bytearray(write(tmp_path / "a.mkv", moving_square(30), range(0, 3000, 100), g="10").read_bytes())
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        bad = bytearray(good)
        for at in rng.integers(len(bad) // 10, len(bad), 8):
            bad[at] ^= int(rng.integers(1, 256))
        (tmp_path / "b.mkv").write_bytes(bad)
        try:
            video = read_video(tmp_path / "b.mkv", 8)
            assert len(video.frames) == len(video.times) >= 1 and video.times == sorted(video.times)
            seen.add("read")
        except VideoError:
            seen.add("refused")
    assert "read" in seen


def test_nothing_stays_open(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(5))
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:500])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    for _ in range(20):
        read_video(tmp_path / "a.mp4", 4)
        with pytest.raises(VideoError):
            read_video(tmp_path / "bad.mp4", 4)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
