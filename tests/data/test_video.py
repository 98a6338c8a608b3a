"""Reading real files: the sampling rule, against a full linear decode; every kind of broken file."""

import os
import struct
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from hypothesis import example, given
from hypothesis import strategies as st

from stts_mini.data import video as video_module
from stts_mini.data.video import VideoError, read_video, sample_times, thinned, write_video


def moving_square(T=17, height=48, width=48):
    """Frame t has its own brightness, so that a wrong frame shows."""
    frames = np.full((T, height, width, 3), 40, np.uint8)
    for t in range(T):
        frames[t] += np.uint8(10 * (t % 20))
        frames[t, 10:20, (2 * t) % 30 : (2 * t) % 30 + 10] = (220, 40, 40)
    return frames


def add_silence(container):
    """A sound track."""
    sound = container.add_stream("aac", rate=8000)
    samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    samples.rate, samples.pts = 8000, 0
    container.mux(sound.encode(samples))
    container.mux(sound.encode())


def write(path, frames, pts, time_base=Fraction(1, 1000), codec="libx264", pix_fmt="yuv420p", audio=False, **options):
    """An encoder of our own for odd time stamps: pts in units of time_base."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if audio:
            add_silence(container)
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
    assert video.skipped == 0
    for a, b in zip(video.frames, frames, strict=True):
        assert np.array_equal(a, b)
    return video


@example(Fraction(17, 10), 5, 2)  # as many as may be: still on the grid
@example(Fraction(60), 2, 2)  # both ends
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
    with pytest.raises(ValueError, match=f"{next(iter(bad))} = .*: give"):
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

    monkeypatch.setattr("stts_mini.data.video.os.replace", fail)
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
    video = check_against_oracle(path, max_frames)
    assert video.duration == pytest.approx((pts[-1] - pts[0]) / 1000)


def test_b_frames_and_a_start_that_is_not_zero(tmp_path):
    path = write(tmp_path / "a.ts", moving_square(60), range(5000, 5000 + 60 * 33, 33), bf="3", g="20")
    with av.open(str(path)) as container:
        assert any(f.pict_type == PictureType.B for f in container.decode(video=0))
    assert check_against_oracle(path).times[0] == 0


def test_first_time_stamps_below_zero(tmp_path):
    """An edit list, as telephones write them, cuts 0.35 s off the beginning: the frames before it are there,
    with stamps below zero, but are not part of the clip."""
    path = write(tmp_path / "a.mp4", moving_square(20), range(0, 2000, 100), bf="2", g="5")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"elst") + 16  # the first entry's media time, in the stream's own clock
    with av.open(str(path)) as container:
        cut = struct.unpack_from(">i", raw, at)[0] + container.streams.video[0].time_base.denominator * 35 // 100
    struct.pack_into(">i", raw, at, cut)
    path.write_bytes(raw)
    assert video_module._packet_times(path)[:2] == (0, Fraction(3, 2))  # what is cut off does not count
    with av.open(str(path)) as container:
        stamps = [(p.pts, p.is_discard) for p in container.demux(video=0) if p.size]
    assert sum(pts < 0 for pts, _ in stamps) == 4 and all(gone == (pts < 0) for pts, gone in stamps)
    video = check_against_oracle(path)
    assert video.times == [0, 0.5, 1.0, 1.5] and video.duration == 1.5
    brightness = video.frames[:, 0, 0, 0].astype(int)
    assert np.abs(brightness - (40 + 10 * np.array([4, 9, 14, 19]))).max() < 4  # frame 4 is the first


@pytest.mark.parametrize("height, width", [(50, 34), (48, 130)])
def test_odd_shapes_and_resizing(height, width, tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(5, height, width), range(0, 2500, 500))
    assert check_against_oracle(path).frames.shape == (5, height, width, 3)
    for size in (24, 1):
        assert read_video(path, 16, size=size).frames.shape == (5, size, size, 3)


def test_ten_bit_and_sound(tmp_path):
    ten_bit = write(tmp_path / "a.mp4", moving_square(6), range(0, 3000, 500), pix_fmt="yuv420p10le")
    with_sound = write(tmp_path / "b.mp4", moving_square(6), range(0, 3000, 500), audio=True)
    with av.open(str(ten_bit)) as a, av.open(str(with_sound)) as b:  # they are what they are called
        assert a.streams.video[0].pix_fmt == "yuv420p10le" and len(b.streams.audio) == 1
    assert check_against_oracle(ten_bit).times == check_against_oracle(with_sound).times == [i / 2 for i in range(6)]


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
        add_silence(container)
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


CONTAINERS = {"a.mp4": {}, "a.mkv": {}, "a.ts": {}, "a.avi": {"codec": "mpeg4"}}


def container_file(folder, name, T=30):
    """A small clip with frequent key frames, in the container that the name asks for."""
    frames = moving_square(T)
    if name.endswith(".avi"):  # its clock is the frame rate
        return write(folder / name, frames, range(T), Fraction(1, 10), **CONTAINERS[name])
    return write(folder / name, frames, range(0, 100 * T, 100), g="10", **CONTAINERS[name])


def read_or_refuse(path):
    """The video, whole and in order, or None for one clear error that names the file."""
    try:
        video = read_video(path, 8)
    except VideoError as error:
        assert path.name in str(error) and "\n" not in str(error)
        return None
    assert 1 <= len(video.frames) == len(video.times) <= 8 and video.frames.dtype == np.uint8
    assert video.times == sorted(video.times) and video.times[0] == 0 and video.times[-1] <= video.duration
    return video


@pytest.mark.parametrize("name", CONTAINERS)
def test_truncated_at_every_tenth(name, tmp_path):
    """What is left is read: every frame shown is the frame of the whole file at that time."""
    path = container_file(tmp_path, name)
    raw, whole = path.read_bytes(), read_video(path, 100, fps=10)
    frame_at = {round(t, 3): frame for t, frame in zip(whole.times, whole.frames, strict=True)}
    read = []
    for tenth in range(1, 10):
        path.write_bytes(raw[: len(raw) * tenth // 10])
        video = read_or_refuse(path)
        read.append(0 if video is None else len(video.frames))
        if video is not None and video.skipped == 0:
            for t, frame in zip(video.times, video.frames, strict=True):
                assert np.abs(frame.astype(int) - frame_at[round(t, 3)]).mean() < 8, (tenth, t)
    if name == "a.mp4":  # its index comes last
        assert not any(read)
    else:
        assert read[-1] >= 5 and sum(n > 0 for n in read) >= 3  # an AVI begins with much empty room


@pytest.mark.parametrize(
    "name, cases", [("a.mp4", 220), pytest.param("a.mkv", 220, marks=pytest.mark.slow), ("a.ts", 30), ("a.avi", 30)]
)
def test_flipped_bytes_never_crash(name, cases, tmp_path):
    """500 damaged copies in all (those that take FFmpeg long to probe, fewer): frames in order, or one error."""
    path = container_file(tmp_path, name)
    good, rng, seen = path.read_bytes(), np.random.default_rng(0), []
    for case in range(cases):
        bad = bytearray(good)
        for at in rng.integers(len(bad) // 10 if case % 2 else 0, len(bad), int(rng.choice((1, 8, 64)))):
            bad[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        seen.append(read_or_refuse(path) is not None)
    assert sum(seen) > cases / 3


def test_a_container_that_tells_no_duration(tmp_path):
    whole = write(tmp_path / "a.mkv", moving_square(20), range(100, 5100, 250)).read_bytes()
    at = whole.index(bytes.fromhex("4489"))  # the element Duration: replaced by Void of the same size
    (tmp_path / "b.mkv").write_bytes(whole[:at] + bytes.fromhex("ec89") + whole[at + 2 :])
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert container.streams.video[0].duration is None
    assert check_against_oracle(tmp_path / "b.mkv").duration == 4.75


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(3))
    (tmp_path / "a.mp4").chmod(0)
    with pytest.raises(VideoError, match="no permission to read"):
        read_video(tmp_path / "a.mp4", 4)


@pytest.mark.parametrize("height, width", [(33, 47), (1, 48), (47, 2)])
def test_odd_sizes_as_no_encoder_of_ours_writes_them(height, width, tmp_path):
    frames = moving_square(6, 48, 48)[:, :height, :width]
    path = write(tmp_path / "a.mkv", frames, range(0, 3000, 500), codec="ffv1", pix_fmt="bgr0")
    assert check_against_oracle(path).frames.shape == (6, height, width, 3)


@pytest.mark.parametrize("pix_fmt, codec", [("gray", "ffv1"), ("yuva420p", "ffv1"), ("yuv444p10le", "libx264")])
def test_other_pixel_formats(pix_fmt, codec, tmp_path):
    path = write(tmp_path / "a.mkv", moving_square(6), range(0, 3000, 500), codec=codec, pix_fmt=pix_fmt)
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == pix_fmt
    assert check_against_oracle(path).times == [i / 2 for i in range(6)]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_two_hours_need_no_more_memory_than_the_frames_asked_for(tmp_path):
    """7,200 frames, 200 MB if they were all kept; in a process of its own."""
    path = tmp_path / "long.mp4"
    write(path, np.broadcast_to(np.uint8(90), (7200, 96, 96, 3)), range(7200), Fraction(1), preset="ultrafast")
    code = (
        "import re, sys; from stts_mini.data.video import read_video\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "read_video(sys.argv[1], 1); before = peak()\n"
        "video = read_video(sys.argv[1], 64)\n"
        "print(len(video.frames), video.duration, (peak() - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    shown, duration, megabytes = map(float, done.stdout.split())
    assert (shown, duration) == (64, 7199) and megabytes < 60, done.stdout


def test_nothing_stays_open(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(5))
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:500])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    for _ in range(20):
        read_video(tmp_path / "a.mp4", 4)
        with pytest.raises(VideoError):
            read_video(tmp_path / "bad.mp4", 4)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_arguments_that_cannot_be_are_refused(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(3))
    for size in (0, -4):
        with pytest.raises(ValueError, match=f"size = {size}"):
            read_video(tmp_path / "a.mp4", 4, size=size)
    for fps in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fps = "):
            write_video(tmp_path / "b.mp4", moving_square(3), fps=fps)
    for value in (dict(duration=float("inf")), dict(fps=float("inf"))):
        with pytest.raises(ValueError, match=f"{next(iter(value))} = inf"):
            sample_times(**{"duration": 1, "max_frames": 4, **value})
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        read_video(tmp_path / "pipe.mp4", 4)
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "pipe.mp4"]


def test_a_codec_that_nobody_knows_is_refused(tmp_path):
    raw = write(tmp_path / "a.mkv", moving_square(5), range(0, 2500, 500)).read_bytes()
    assert raw.count(b"V_MPEG4/ISO/AVC") == 1
    (tmp_path / "b.mkv").write_bytes(raw.replace(b"V_MPEG4/ISO/AVC", b"V_XXXXX/XXX/XXX"))
    with pytest.raises(VideoError, match=r"b\.mkv has a video stream in an unknown codec"):
        read_video(tmp_path / "b.mkv", 4)


@pytest.mark.parametrize("name", [*CONTAINERS, "b.mp4", "sound.mkv"])
def test_the_packets_tell_when_a_clip_begins_and_ends(name, tmp_path, monkeypatch):
    """Without decoding; so a whole file is decoded once, at the right times."""
    if name == "b.mp4":  # the last packet is not the last picture
        path = write(tmp_path / name, moving_square(25), range(0, 2500, 100), bf="3", b_strategy="0")
        with av.open(str(path)) as container:
            stamps = [p.pts for p in container.demux(video=0) if p.size]
        assert stamps[-1] < max(stamps)
    elif name == "sound.mkv":  # one that begins sooner, and ends sooner
        path = write(tmp_path / name, moving_square(24), range(500, 2900, 100), audio=True)
    else:
        path = container_file(tmp_path, name)
    with av.open(str(path)) as container:
        times = [f.pts * Fraction(f.time_base) for f in container.decode(video=0)]
    first, last, *_ = video_module._packet_times(path)
    assert (first, last) == (min(times), max(times)) and last - first > 2
    decode, calls = video_module._Pass, []
    monkeypatch.setattr(video_module, "_Pass", lambda *a: calls.append(a) or decode(*a))
    read_video(path, 8)
    assert len(calls) == 1


@pytest.fixture
def looked_at(monkeypatch):
    """Every frame that is decoded, by its time."""
    decode, times = video_module._Pass._decoded, []

    def decoded(self, container, stream):
        for frame in decode(self, container, stream):
            times.append(frame.pts * Fraction(frame.time_base))
            yield frame

    monkeypatch.setattr(video_module._Pass, "_decoded", decoded)
    return times


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("bf", ["0", "3"])
def test_a_pass_goes_to_the_keyframe_before_what_it_shows(name, bf, tmp_path, looked_at):
    stamps = range(300, 20300, 100)  # 200 frames, a keyframe every 10
    path = write(tmp_path / name, moving_square(200), stamps, g="10", sc_threshold="0", bf=bf)
    wanted, shown = oracle(path, 6)
    looked_at.clear()
    video = read_video(path, 6)
    assert video.times == wanted and (video.frames == shown).all()
    if name != "a.ts":  # there FFmpeg may land behind the keyframe, so the file is read through
        assert len(looked_at) < 80  # of 200
    part = read_video(path, 6, start=12.0, end=12.4)
    assert (part.frames[0] == read_video(path, 500, 10).frames[120]).all()


@pytest.mark.parametrize("codec, bf", [("mpeg1video", "2"), ("mpeg2video", "2"), ("mpeg2video", "0"), ("mpeg4", "2")])
@pytest.mark.parametrize("name", ["a.mpg", "a.vob", "a.mp4"])
def test_where_jumps_are_not_exact_the_file_is_read_through(codec, bf, name, tmp_path):
    """FFmpeg gives other stamps after a jump in a program stream; an MP4 may call every frame a keyframe."""
    path = write(tmp_path / name, moving_square(120), range(120), Fraction(1, 25), codec=codec, bf=bf, g="10")
    first, last, *_ = video_module._packet_times(path)
    through = list(video_module._Pass(path, [first + t for t in sample_times(last - first, 8)], None, []))
    video = read_video(path, 8)
    assert video.times == [float(t - first) for _, t in through] and video.skipped == 0
    assert all((a == b).all() for a, (b, _) in zip(video.frames, through, strict=True))


def test_what_lies_between_a_jump_and_its_keyframe_is_not_broken(monkeypatch):
    """Frames without a stamp, say, that a decoder gives before it finds its place."""
    stream = Stream(picture(0, 10), None, picture(50, 20), picture(60, 30))
    stream.seek = lambda *_, **__: setattr(stream, "parts", [None, None, picture(50, 20), None, picture(60, 30)])
    for part in (stream.parts[0], stream.parts[2]):
        part.pict_type, part.key_frame = PictureType.I, True
    monkeypatch.setattr(video_module, "_open", lambda _: (stream, stream))
    good = video_module._Pass("clip", [], None, [])
    assert [t for _, t in good._good_frames(stream, stream, Fraction(5))] == [5, 6]
    assert good.skipped == 1


def test_a_seek_that_fails_is_undone(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", moving_square(100), range(0, 10000, 100), g="10", sc_threshold="0")
    wanted = [Fraction(i) for i in range(10)]
    real = video_module._open

    class Stubborn:
        """A container that cannot seek."""

        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            closed.append(1)
            self.container.close()

        def seek(self, *_, **__):
            raise av.InvalidDataError(1, "no")

    opened, closed = [], []

    def open_stubborn(path):
        container, stream = real(path)
        opened.append(1)
        return Stubborn(container), stream

    through = list(video_module._Pass(path, wanted, None, []))
    keys = video_module._packet_times(path)[2]
    monkeypatch.setattr(video_module, "_open", open_stubborn)
    tried = video_module._Pass(path, wanted, None, keys)
    shown = list(tried)
    assert [t for _, t in shown] == [t for _, t in through] and tried.skipped == 0
    assert len(opened) == len(closed) == 2


def test_a_jump_to_the_wrong_place_is_undone(tmp_path, looked_at):
    """Whatever the keyframes are said to be."""
    path = write(tmp_path / "a.mp4", moving_square(100), range(0, 10000, 100), g="30", sc_threshold="0")
    first, last, keys, *_ = video_module._packet_times(path)
    assert keys == [Fraction(3 * i) for i in range(4)]
    wanted = [Fraction(i) for i in range(10)]
    through = list(video_module._Pass(path, wanted, None, []))
    assert len(looked_at) == 92  # to the frame after the last
    for wrong in ([Fraction(i, 2) for i in range(20)], [Fraction(5)], [Fraction(99, 10)], [Fraction(-7), Fraction(8)]):
        shown = list(video_module._Pass(path, wanted, None, wrong))
        assert [t for _, t in shown] == wanted
        assert all((a == b).all() for (a, _), (b, _) in zip(shown, through, strict=True))


def test_a_broken_keyframe_is_not_jumped_to(tmp_path):
    """Reading through shows the good frame before it; a pass that jumped there would show one after it."""
    path = write(tmp_path / "a.mkv", moving_square(60), range(0, 6000, 100), g="10", sc_threshold="0")
    raw = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        key = bytes(next(p for p in packets if p.is_keyframe and p.pts * p.time_base == 4))
    at = raw.index(key)
    raw[at + len(key) // 2 : at + len(key)] = bytes(len(key) - len(key) // 2)
    path.write_bytes(raw)
    wanted = [Fraction(0), Fraction(4), Fraction(59, 10)]
    keys = video_module._packet_times(path)[2]
    assert Fraction(4) in keys
    jumped, through = (list(video_module._Pass(path, wanted, None, k)) for k in (keys, []))
    assert [t for _, t in jumped] == [t for _, t in through] and through[1][1] < 4
    assert all((a == b).all() for (a, _), (b, _) in zip(jumped, through, strict=True))


class Stream:
    """A container, its stream and its codec in one: parts are frames, None for a broken packet, or an error at
    which the container breaks off."""

    time_base = Fraction(1, 10)
    name, flags, frames = "mov,mp4,m4a,3gp,3g2,mj2", 0, 0

    def __init__(self, *parts):
        self.parts, self.codec_context, self.format = parts, self, self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def demux(self, _):
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            fields = {"decode": staticmethod(lambda part=part: self.decode(part)), "pts": None, "dts": None, "size": 9}
            yield type("Packet", (), fields)

    def decode(self, part):
        if part is None and self.parts[-1] is not None:
            raise av.InvalidDataError(1, "broken")
        return [part] if part is not None else []


def picture(pts, shade, side=16):
    """A frame that is `shade` bright; "no clock": without a time base."""
    frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), shade, np.uint8), format="rgb24")
    if pts == "no clock":
        frame.pts = 7
    else:
        frame.pts, frame.time_base = pts, Stream.time_base
    return frame


@pytest.mark.parametrize(
    "stamps, shown, skipped",  # shown: by place in the list
    [
        ([0, 5, 10], [0, 1, 2], 0),
        ([0, None, None, "no clock", 5, 10], [0, 4, 5], 3),  # without a stamp, a frame has no place
        ([0, "broken", 5, "broken", "broken", 10], [0, 2, 5], 3),
        ([0, 5, 3, 5, 4, 10], [0, 4, 5], 1),  # stamps that run backwards (by more than 0.1 s), or stand still
        ([0, 5, 7, 10, "end"], [0, 1, 3], 1),
        ([2, "broken", None, 9, 11, "end"], [0, 0, 3], 2),  # wanted before the first good frame: that one
    ],
)
def test_what_is_shown_and_what_is_counted_as_broken(stamps, shown, skipped, monkeypatch):
    odd = {"broken": None, "end": av.InvalidDataError(1, "x")}
    parts = [odd[s] if s in odd else picture(s, 10 * i) for i, s in enumerate(stamps)]
    stream = Stream(*parts, *([] if "end" in stamps else [picture(20, 200)]))
    monkeypatch.setattr(video_module, "_open", lambda _: (stream, stream))
    wanted = [Fraction(0), Fraction(1, 2), Fraction(1)]
    decoded = video_module._Pass("clip", wanted, None, [])
    frames = list(decoded)
    assert [round(int(f[0, 0, 0]) / 10) for f, _ in frames] == shown
    assert [10 * t for _, t in frames] == [max(s for s in stamps[: i + 1] if isinstance(s, int)) for i in shown]
    good = [s for s in stamps if isinstance(s, int)]
    assert decoded.first == Fraction(good[0], 10)
    assert decoded.last == (Fraction(good[-1], 10) if good[-1] <= 10 and "end" in stamps else None)
    assert decoded.skipped == skipped


def test_a_stream_may_change_its_size(monkeypatch):
    stream = Stream(picture(0, 10), picture(5, 20, side=32), picture(10, 30, side=8))
    monkeypatch.setattr(video_module, "_open", lambda _: (stream, stream))
    frames = list(video_module._Pass("clip", [Fraction(0), Fraction(1, 2), Fraction(1)], None, []))
    assert [f.shape for f, _ in frames] == [(16, 16, 3)] * 3  # all as the first


def test_a_container_that_breaks_off_ends_there(monkeypatch):
    stream = Stream(av.InvalidDataError(1, "x"))
    monkeypatch.setattr(video_module, "_open", lambda _: (stream, stream))
    with pytest.raises(VideoError, match="no frame with a time stamp"):
        video_module._packet_times("clip")


def test_a_clip_ends_with_its_last_good_frame(tmp_path):
    path = write(tmp_path / "a.mkv", moving_square(20), range(0, 2000, 100), g="1")
    raw = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    for packet in (packets[0], *packets[-3:]):
        raw[(at := raw.index(packet)) : at + len(packet)] = bytes(len(packet))
    path.write_bytes(raw)
    video = read_video(path, 100, fps=10)
    assert video.skipped >= 3 and video.duration == 1.5 and video.times == [i / 10 for i in range(16)]
    assert abs(int(video.frames[0, 0, 0, 0]) - 50) < 4 and abs(int(video.frames[-1, 0, 0, 0]) - 200) < 4


def test_broken_parts_are_counted(tmp_path):
    """Where a file has lost its last key frame's packet, what hangs on it is counted."""
    path = container_file(tmp_path, "a.mkv")
    raw = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][15]
        at = raw.index(bytes(packet))
    raw[at : at + packet.size] = bytes(packet.size)
    path.write_bytes(raw)
    assert read_video(path, 100, fps=10).skipped == 1


def test_a_clip_looked_at_less_often():
    clip = video_module.Video(
        np.arange(9, dtype=np.uint8).repeat(12).reshape(9, 2, 2, 3), [i / 4 for i in range(9)], 2.2, 3
    )
    for most, fps, kept in (
        (9, 4, range(9)),
        (5, 4, range(0, 9, 2)),
        (9, 1, (0, 4, 8)),
        (1, 4, (0,)),
        (40, 10, range(9)),
    ):
        thin = thinned(clip, most, fps)
        assert thin.frames[:, 0, 0, 0].tolist() == list(kept) and thin.times == [i / 4 for i in kept]
        assert thin.duration == 2.2 and thin.skipped == 3


# ------------------------------------------------------------------------ what real files and machines showed


def numbered(T, first=0):
    """Frames that say their number, as eight bars."""
    frames = np.full((T, 32, 128, 3), 20, np.uint8)
    for t in range(T):
        for bit in range(8):
            frames[t, :, 16 * bit : 16 * bit + 16] = 235 if (first + t) >> bit & 1 else 20
    return frames


def numbers(video):
    """What the shown frames say."""
    bars = video.frames[:, 8:24, :, 0].reshape(-1, 16, 8, 16)[..., 4:12].mean((1, 3)) > 128
    return (bars << np.arange(8)).sum(1).tolist()


@pytest.mark.parametrize(
    "name, codec", [("a.avi", "libx264"), ("a.asf", "libx264"), ("a.avi", "mpeg4"), ("a.mp4", "libx264")]
)
@pytest.mark.parametrize("T", [2, 5, 60])
def test_frames_come_in_the_decoders_order(name, codec, T, tmp_path):
    """AVI and ASF only know the order of decoding: their stamps run backwards where there are B-frames."""
    options = dict(bf="3", b_strategy="0") if codec == "libx264" else dict(bf="2")
    path = write(tmp_path / name, numbered(T), range(T), Fraction(1, 10), codec=codec, g="30", **options)
    video = read_video(path, T, fps=10)
    assert numbers(video) == list(range(T)) and video.skipped == 0
    assert video.times == pytest.approx([t / 10 for t in range(T)])
    chunks = list(video_module.read_chunks(path, 7, fps=10))
    assert [n for chunk in chunks for n in numbers(chunk)] == list(range(T))


def test_the_decoders_order_with_odd_times_and_a_broken_packet(tmp_path):
    """Stamps of a Matroska file that was made from an AVI: those of decoding, at odd times."""
    stamps = np.cumsum([0, *np.random.default_rng(0).integers(20, 200, 39)]).tolist()
    path = write(tmp_path / "a.mkv", numbered(40), stamps, bf="3", b_strategy="0", g="20", sc_threshold="0")
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet, stamp in zip([p for p in source.demux(video=0) if p.size], stamps, strict=True):
            packet.pts = packet.dts = stamp
            packet.stream = stream
            target.mux(packet)
    packets = video_module._packet_times(tmp_path / "b.mkv")
    assert packets.order and not packets.keys
    video = read_video(tmp_path / "b.mkv", 1000, fps=1000)
    seen = dict(zip(video.times, numbers(video), strict=True))
    assert seen == {stamp / 1000: i for i, stamp in enumerate(stamps)} and video.skipped == 0
    raw = bytearray((tmp_path / "b.mkv").read_bytes())
    with av.open(str(tmp_path / "b.mkv")) as container:
        lost = bytes([p for p in container.demux(video=0) if p.size][10])
    raw[(at := raw.index(lost)) : at + len(lost)] = bytes(len(lost))
    (tmp_path / "b.mkv").write_bytes(raw)
    broken = read_video(tmp_path / "b.mkv", 1000, fps=1000)
    after = {t: n for t, n in zip(broken.times, numbers(broken), strict=True) if t >= stamps[20] / 1000}
    assert broken.skipped >= 1 and after == {stamp / 1000: i for i, stamp in enumerate(stamps) if i >= 20}


@pytest.mark.parametrize("name, codec", [("ts", "libx264"), ("ts", "mpeg2video"), ("vob", "mpeg2video")])
@pytest.mark.parametrize("later", [0, 3600])
def test_a_clock_that_starts_again_or_leaps_goes_on(name, codec, later, tmp_path):
    parts = [
        write(tmp_path / f"{i}.{name}", numbered(30, 100 * i), range(at, at + 30), Fraction(1, 25), codec=codec, bf="0")
        for i, at in enumerate((0, 25 * later))
    ]
    path = tmp_path / f"both.{name}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = read_video(path, 60, fps=25)
    assert numbers(video) == [*range(30), *range(100, 130)] and video.skipped == 0
    assert video.times == pytest.approx([t / 25 for t in range(60)], abs=1e-3)
    assert numbers(read_video(path, 2, start=1.2, end=1.24)) == [100, 101]


@pytest.mark.parametrize("length", [6, 60])
@pytest.mark.parametrize("bf", ["0", "3"])
def test_one_matroska_file_after_the_other(bf, length, tmp_path):
    """It holds no times of decoding, and FFmpeg's guesses run backwards by more than a frame."""
    stamps = range(0, 100 * length, 100)
    parts = [write(tmp_path / f"{i}.mkv", numbered(length, 100 * i), stamps, bf=bf) for i in range(2)]
    (tmp_path / "a.mkv").write_bytes(b"".join(part.read_bytes() for part in parts))
    video = read_video(tmp_path / "a.mkv", 400, fps=10)
    assert sorted({*numbers(video)}) == [*range(length), *range(100, 100 + length)] and video.skipped == 0
    assert video.duration == pytest.approx(length / 5 - 0.1, abs=0.11)


@pytest.mark.parametrize("every", [9, 20])
def test_frames_far_apart_are_all_there(every, tmp_path):
    """A camera that sends a picture now and then: only the first gap of more than 10 s is taken for a leap."""
    path = write(tmp_path / "a.ts", numbered(10), range(0, 250 * every, 25 * every), Fraction(1, 25), bf="0", g="1")
    video = read_video(path, 1000, fps=1)
    assert sorted({*numbers(video)}) == [*range(10)] and video.skipped == 0
    assert video.duration == pytest.approx(every * (9 if every < 10 else 8), abs=1)


@pytest.mark.parametrize("bf", ["0", "2"])
@pytest.mark.parametrize("parts", [[(1, 0), (3, 3)], [(2, 0), (2, 4)], [(1, 4), (1, 0)]])
def test_an_edit_list_of_several_parts_is_one_clock(parts, bf, tmp_path):
    """Parts: (seconds, from which second of the film). Each begins with packets from before it."""
    path = write(tmp_path / "a.mp4", numbered(60), range(0, 6000, 100), bf=bf, g="20", sc_threshold="0")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"elst") - 4
    begin, clock = struct.unpack_from(">i", raw, at + 20)[0], struct.unpack_from(">I", raw, raw.index(b"mdhd") + 16)[0]
    entries = [struct.pack(">IiI", 1000 * length, begin + clock * start, 1 << 16) for length, start in parts]
    longer = struct.pack(">I4sII", 16 + 12 * len(parts), b"elst", 0, len(parts)) + b"".join(entries)
    raw[at : at + 28] = longer
    for kind in (b"edts", b"trak", b"moov"):  # after the pictures, so that these may grow
        size = raw.rindex(kind) - 4
        struct.pack_into(">I", raw, size, struct.unpack_from(">I", raw, size)[0] + len(longer) - 28)
    path.write_bytes(raw)
    with av.open(str(path)) as container:
        frames = [(_rgb(f), float(f.pts * f.time_base)) for f in container.decode(video=0)]
    expected = numbers(SimpleNamespace(frames=np.stack([pixels for pixels, _ in frames])))
    video = read_video(path, 400, fps=10)
    seen = dict(zip([round(t, 3) for t in video.times], numbers(video), strict=True))
    assert seen == {round(t - frames[0][1], 3): n for (_, t), n in zip(frames, expected, strict=True)}
    assert len(seen) == 10 * sum(seconds for seconds, _ in parts)
    assert video.skipped == 0


@pytest.mark.parametrize("part", [dict(start=float("nan")), dict(end=float("inf")), dict(start=True), dict(start=-1)])
def test_a_part_is_given_in_seconds(part, tmp_path):
    with pytest.raises(ValueError, match="give seconds, 0 ≤ start ≤ end"):
        read_video(tmp_path / "a.mp4", 4, **part)


def test_a_clock_that_starts_again_is_not_jumped_into(tmp_path):
    """One Matroska file after the other: their keyframes have the same stamps."""
    parts = [
        write(tmp_path / f"{i}.mkv", numbered(60, 100 * i), range(0, 6000, 100), bf="0", g="5", sc_threshold="0")
        for i in range(2)
    ]
    (tmp_path / "a.mkv").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert (
        video_module._packet_times(tmp_path / "0.mkv").keys and not video_module._packet_times(tmp_path / "a.mkv").keys
    )
    whole = read_video(tmp_path / "a.mkv", 400, fps=30)
    seen = dict(zip(whole.times, numbers(whole), strict=True))
    assert list(seen.values()) == [*range(60), *range(100, 160)]
    for start in range(12):
        shown = max(t for t in seen if t <= start)
        assert numbers(read_video(tmp_path / "a.mkv", 1, start=start)) == [seen[shown]]


@pytest.mark.parametrize("bf", ["0", "3"])
def test_a_stamp_in_the_far_future_is_no_part_of_the_clip(bf, tmp_path):
    stamps = [*range(0, 1900, 100), 10**10]
    path = write(tmp_path / "a.mkv", numbered(20), stamps, bf=bf)
    video = read_video(path, 6)
    assert 1.7 < video.duration < 2 and numbers(video) == [0, 5, 10, 15, 19] and video.skipped == 0
    with pytest.raises(ValueError, match=r"lasts 2 s: at fps = 1000000.0 that is more than 1000000 frames, give less"):
        list(video_module.read_chunks(path, 8, fps=1e6))


def test_a_gap_of_hours_is_believed(tmp_path):
    path = write(tmp_path / "a.mkv", numbered(3), [0, 500, 4 * 3600 * 1000])
    assert read_video(path, 9).duration == 4 * 3600


@pytest.mark.parametrize("name, more", [("a.mp4", {}), ("a.mkv", {}), ("a.avi", {})])
def test_what_a_broken_download_lacks_is_counted(name, more, tmp_path):
    """Half of an MP4 whose index comes first: the index tells how many packets there should be."""
    path = write(tmp_path / name, numbered(100), range(100), Fraction(1, 10), codec="mpeg4", g="10")
    if name == "a.mp4":
        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as to,
        ):
            stream = to.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    to.mux(packet)
        os.replace(tmp_path / "b.mp4", path)
    assert read_video(path, 9).skipped == 0
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 6 // 10])
    video = read_video(path, 9)
    held = round(video.duration * 10) + 1
    assert 20 < held < 80 and video.skipped == (1 if name == "a.mkv" else 100 - held)
    assert read_video(path, 9, end=0.5).skipped == 0  # of this part nothing is missing


def test_start_within_the_last_frames_time(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, numbered(20), fps=10)
    for start in (1.9, 1.95, 1.999):
        video = read_video(path, 8, start=start, end=5)
        assert (numbers(video), video.times, video.duration) == ([19], [0.0], 0.0)
    for start in (2.0, 3.0):
        with pytest.raises(VideoError, match=rf"a\.mp4 ends at 2\.0 s: it has nothing at start = {start}"):
            read_video(path, 8, start=start)


def streams_of(path, streams, T=10):
    """A file of several streams: (first number, frames, side, disposition)."""
    with av.open(str(path), "w") as container:
        made = []
        for first, count, wide, disposition in streams:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, wide, "yuv420p"
            stream.disposition = av.stream.Disposition[disposition] if disposition else 0
            made.append((stream, numbered(count, first).repeat(wide // 128, 2)))
        for t in range(T):
            for stream, frames in made:
                if t < len(frames):
                    frame = av.VideoFrame.from_ndarray(frames[t], format="rgb24")
                    frame.pts, frame.time_base = t, Fraction(1, 10)
                    container.mux(stream.encode(frame))
        for stream, _ in made:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "name, streams, wide",
    [
        ("a.mkv", [(50, 1, 256, None), (0, 10, 128, "default")], 128),
        ("a.mkv", [(50, 10, 128, None), (0, 10, 256, None)], 256),
        ("a.mkv", [(50, 10, 128, "default"), (0, 10, 256, "default"), (9, 10, 256, "default")], 256),
        ("a.mp4", [(50, 1, 256, "default"), (0, 10, 128, "default")], 128),  # a still
    ],
)
def test_the_film_is_read_of_several_streams(name, streams, wide, tmp_path):
    video = read_video(streams_of(tmp_path / name, streams), 10, fps=10)
    assert video.frames.shape == (10, 32, wide, 3)
    narrow = video_module.Video(video.frames[:, :, :: wide // 128], video.times, video.duration)
    assert numbers(narrow) == list(range(10))


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_a_title_may_be_no_text(name, codec, tmp_path):
    with av.open(str(tmp_path / name), "w") as container:
        container.metadata["title"] = "AAAABBBB"
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 128, "yuv420p"
        for picture in numbered(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    raw = (tmp_path / name).read_bytes()
    assert b"AAAABBBB" in raw
    (tmp_path / name).write_bytes(raw.replace(b"AAAABBBB", b"Caf\xe9 \xfc\xf6."))
    assert numbers(read_video(tmp_path / name, 4, fps=10)) == [0, 1, 2, 3]


def with_a_hole(path):
    """Frames 20 to 60 of 80 are destroyed."""
    write(path, numbered(80), range(0, 8000, 100), g="10", sc_threshold="0")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    raw = bytearray(path.read_bytes())
    for at, size in packets[20:60]:
        raw[at + 4 : at + size] = bytes(size - 4)
    path.write_bytes(raw)
    return path


def test_thorough_finds_what_a_jump_leaves_out(tmp_path):
    path = with_a_hole(tmp_path / "a.mp4")
    assert not video_module._packet_times(path).order and read_video(path, 2).skipped == 0
    video = read_video(path, 2, thorough=True)
    assert video.skipped == 40 and numbers(video) == [0, 79]
    assert numbers(read_video(path, 5)) == [0, 19, 19, 19, 79]


def test_damage_looks_alike_on_every_machine(tmp_path, monkeypatch):
    """One thread: with more, FFmpeg hides damage in the last frames, and conceals by what other threads have done."""
    path = container_file(tmp_path, "a.mkv")
    raw, rng = bytearray(path.read_bytes()), np.random.default_rng(1)
    for at in rng.integers(len(raw) // 3, len(raw), 12):
        raw[at] ^= 0x55
    path.write_bytes(raw)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        decoded = []
        for packet in container.demux(stream):
            with suppress(av.FFmpegError):
                decoded += [f for f in packet.decode() if not f.is_corrupt]
        shown = {float(f.pts * f.time_base): _rgb(f) for f in decoded}
    video = read_video(path, 100, fps=10)
    assert video.skipped and len(set(video.times)) > 5
    first = min(shown)
    assert all((frame == shown[round(first + t, 3)]).all() for t, frame in zip(video.times, video.frames, strict=True))
    container, stream = video_module._open(path)
    with container:
        assert stream.codec_context.thread_count == 1
