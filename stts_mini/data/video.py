"""Video files in and out: real decoding, by presentation time.

    sample_times(duration)   2 times a second, the last frame included; too many: uniformly spaced
    frame shown at t         the latest one with presentation time ≤ t, counted from the clip's first

A first pass reads the packets' time stamps without decoding. A second pass decodes. It jumps to the keyframe before the
next frame that is shown, and converts only frames that are shown. So memory is bounded by the frames asked for, not by
the clip. Times are exact fractions, so that no rounding error misses a frame. A clock that starts again continues from
where it was. Where stamps give only the order of decoding, frames are shown in the order in which the decoder gives
them. Source: paper §4, with Molmo2's sampling rule.

What this file does not do: guess times from frame numbers, read audio, or write anything but H.264 MP4.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from stts_mini.data.files import printable, replacing, require
from stts_mini.data.pictures import best_stream, cut_off, to_rgb, why_not

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # FFmpeg's names of MP4 and MOV, of MKV and WebM
BACK = Fraction(1, 10)  # a stamp may run backwards by so many seconds, as for the ffmpeg command
MOST_FRAMES = 1_000_000  # that `read_chunks` plans: six days at two a second


class VideoError(ValueError):
    """A file that cannot be read as a video. The message names the file and says why, in one printable line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Video:
    """Sampled frames of one clip.

    frames    (T, H, W, 3) uint8, RGB
    times     T presentation times of those very frames, in seconds from the clip's first frame
    duration  presentation time of the clip's last frame, in seconds
    skipped   packets and frames that were left out, because they were broken or missing
    still     whether these are several pictures, with numbers instead of times
    """

    frames: np.ndarray
    times: list[float]
    duration: float
    skipped: int = 0
    still: bool = False

    @property
    def stamps(self) -> list[str]:
        """The frames' time stamps as text, with one decimal. Pictures have numbers from 1."""
        if self.still:
            return [str(i + 1) for i in range(len(self.times))]
        return [f"{t:.1f}" for t in self.times]


def sample_times(duration: float | Fraction, max_frames: int, fps: float = 2.0) -> list[Fraction]:
    """When to look at a clip whose last frame is shown at `duration` seconds: at 0, 1/fps, 2/fps, … and at `duration`.
    If those are more than `max_frames`, at `max_frames` times with equal spaces, from 0 to `duration`. A single one is
    at 0. Raises ValueError for max_frames < 1, fps ≤ 0, duration < 0.

    >>> [float(t) for t in sample_times(1.7, max_frames=8)]
    [0.0, 0.5, 1.0, 1.5, 1.7]
    >>> [float(t) for t in sample_times(60, max_frames=4)]
    [0.0, 20.0, 40.0, 60.0]
    """
    require(max_frames >= 1, "max_frames = {}: give at least 1", max_frames)
    require(0 < fps < math.inf, "fps = {}: give more than 0", fps)
    require(0 <= duration < math.inf, "duration = {} s: give 0 or more", duration)
    duration, step = Fraction(duration), 1 / Fraction(str(fps))
    count = math.floor(duration / step) + 1
    on_grid = (count - 1) * step == duration
    if count + (not on_grid) > max_frames:
        return [duration * i / max(max_frames - 1, 1) for i in range(max_frames)]
    return [i * step for i in range(count)] + [duration] * (not on_grid)


def read_video(
    path: str | os.PathLike,
    max_frames: int,
    fps: float = 2.0,
    size: int | None = None,
    start: float | None = None,
    end: float | None = None,
    thorough: bool = False,
) -> Video:
    """Decode the frames shown at `sample_times`, T ≤ max_frames of them.

    start, end  look only at this part, in seconds from the video's first frame. A part that ends later ends with the
                video. Times, stamps and duration then count from `start`.
    size        resize every frame to size × size pixels (bicubic, aspect ratio not kept, as SigLIP does). None: keep
                the size of the first frame shown.
    thorough    also decode what lies between the frames shown, so that everything broken is counted

    Frames are turned and mirrored as the file says. What is transparent shows white, except in VP8 and VP9, whose
    transparency FFmpeg does not decode. Pixels count as square. A frame shown at two times comes twice. Broken packets
    are skipped and counted. If the first or last frame is broken, the clip begins or ends with the first or last good
    one.
    Raises VideoError: no such file, a directory, no permission, not a video, no video stream, no frame that can be
    decoded, nothing there at `start`, a picture in parts, an odd angle.
    """
    real = all(x is None or (math.isfinite(x) and not isinstance(x, bool)) for x in (start, end))
    require(real and (start or 0) >= 0, "start = {}, end = {}: give seconds, 0 ≤ start ≤ end", start, end)
    path, begin = Path(path), Fraction(str(start or 0.0))
    until = math.inf if end is None else Fraction(str(end))
    require(begin <= until, "start = {}, end = {}: give seconds, 0 ≤ start ≤ end", start, end)
    require(size is None or size >= 1, "size = {}: give at least 1 pixel, or None to keep the size", size)

    def wanted(length: Fraction, shown: Fraction) -> list[Fraction]:
        if begin > length and begin >= length + shown:
            raise VideoError(f"{path} ends at {float(length + shown):.1f} s: it has nothing at start = {start}")
        return [begin + t for t in sample_times(max(min(length, until) - begin, 0), max_frames, fps)]

    shown, decoded = _decode(path, wanted, size, thorough)
    frames, stamps = zip(*shown, strict=True)
    times = [float(max(t - decoded.first - begin, 0)) for t in stamps]  # the frame at `start` may have begun before it
    length = decoded.last - decoded.first
    skipped = decoded.skipped + decoded.lost * (until >= length)
    return Video(np.stack(frames), times, float(max(min(length, until) - begin, 0)), skipped)


def read_chunks(path: str | os.PathLike, chunk: int, fps: float = 2.0, size: int | None = None) -> Iterator[Video]:
    """The frames of `read_video` without a limit to their number, at most `chunk` at a time, for clips too long for
    memory. Times and duration count from the clip's first frame. `skipped` counts what was broken so far. Raises
    errors as `read_video` does, and ValueError for more than a million frames.
    """
    require(chunk >= 1, "chunk = {}: give at least 1 frame", chunk)
    _, ends = _decode(Path(path), lambda length, _: [Fraction(0), length], size)
    duration = ends.last - ends.first
    many = "{} lasts {:.0f} s: at fps = {} that is more than {} frames, give less"
    require(duration * Fraction(str(fps)) <= MOST_FRAMES, many, path, float(duration), fps, MOST_FRAMES)
    times = [ends.first + t for t in sample_times(duration, sys.maxsize, fps)]
    decoded = _Pass(ends.path, times, size, ends.keys, ends.order, ends.by_order)
    shown = iter(decoded)
    while part := list(itertools.islice(shown, chunk)):
        frames, stamps = zip(*part, strict=True)
        skipped = decoded.skipped + ends.lost
        yield Video(np.stack(frames), [float(t - ends.first) for t in stamps], float(duration), skipped)


def thinned(video: Video, max_frames: int, fps: float) -> Video:
    """A sampled clip looked at less often: its frames shown at `sample_times`, none of them twice.

    >>> clip = Video(np.zeros((5, 2, 2, 3), np.uint8), [0.0, 0.5, 1.0, 1.5, 2.0], 2.0)
    >>> thinned(clip, max_frames=3, fps=2).times, thinned(clip, max_frames=9, fps=1.25).times
    ([0.0, 1.0, 2.0], [0.0, 0.5, 1.5, 2.0])
    """
    if video.still:
        return video
    wanted = [float(t) + 1e-6 for t in sample_times(video.times[-1], max_frames, fps)]
    shown = np.unique(np.searchsorted(video.times, wanted) - 1)
    return Video(video.frames[shown], [video.times[i] for i in shown], video.duration, video.skipped)


def check_file(path: Path) -> None:
    """Raise VideoError unless this is a file that can be opened."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise VideoError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # a folder without permission, a name that is too long or has a zero byte
        raise VideoError(f"{path} cannot be looked at: {error}") from None
    for wrong, why in (
        (path.is_dir(), "is a directory: give one video file"),
        (not os.access(path, os.R_OK), "cannot be opened: no permission to read it"),
        (not path.is_file(), "is not a regular file: copy the video into one"),
        (size == 0, "is empty (0 bytes)"),
    ):
        if wrong:
            raise VideoError(f"{path} {why}")


def _open(path: Path):
    """The opened container and its video stream (`best_stream`)."""
    try:
        # with the prefix "file:", names like "a:b.mp4" or "-.mp4" are read as names of files, and so are "a%d.png"
        container = av.open(f"file:{path}", options={"pattern_type": "none"}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} is not a video, or is cut off before its index ({error})") from error
    stream = best_stream(container)
    if why := why_not(path, container, stream):
        container.close()
        raise VideoError(f"{path} {why}")
    if stream is None or container.format.name == "tty":  # FFmpeg would play a text file as a terminal
        kinds = sorted({s.type for s in container.streams})
        name = container.format.name
        container.close()
        held = f"it holds: {', '.join(kinds) or 'nothing'}; format {name}"
        cut = "" if {"audio", "subtitle", "video"} & set(kinds) else ", or it is cut off before its index"
        raise VideoError(f"{path} has no video stream ({held}){cut}")
    if stream.codec_context is None or not stream.time_base:
        container.close()
        raise VideoError(f"{path} has a video stream in an unknown codec, or without a clock: re-encode it")
    # With more threads FFmpeg hides some of the damage, and the rest differs from machine to machine and even from run
    # to run. One thread is enough, because many processes read many clips.
    codec = stream.codec_context
    codec.thread_count = 1
    if (codec.name, codec.pix_fmt, codec.codec_tag) == ("rawvideo", "bgra", "\0\0\0\0"):  # BI_RGB has no alpha
        codec.pix_fmt = "bgr0"
    if codec.name == "mjpeg" and container.format.name in ("image2", "jpeg_pipe"):
        codec.options = {"err_detect": "explode"}  # half a JPEG is an error, like half a PNG
    return container, stream


def _packets(container, stream, leaps: list | None = None):
    """The stream's packets, on one clock. If it starts again or leaps, it continues from where it was, and the leap is
    added to `leaps`. A leap is more than 10 s where the format expects leaps, else 30 h, as for the ffmpeg command. But
    if two frames are so far apart, the next two may be, too. Yields None where a container breaks off, and ends there.
    """
    breaks = container.format.flags & av.format.Flags.ts_discont.value
    name, most, back = container.format.name, 10 if breaks else 30 * 3600, BACK
    if name == SEEKABLE[0] and stream.frames:  # one index, one clock; parts of an edit list may begin before their time
        back = most
    elif name == SEEKABLE[1]:  # holds no times of decoding, and what FFmpeg guesses is wrong by a few frames
        back = 1
    most, back = (int(seconds / Fraction(stream.time_base)) for seconds in (most, back))
    shift, step, last, due, top = 0, 0, None, None, 0  # top: the highest time of showing
    try:
        for packet in container.demux(stream):
            if packet.dts is not None:
                farthest, step = max(most, 2 * step), 0 if last is None else packet.dts + shift - last
                # of MKV, the times of decoding say little: a keyframe that is not shown last begins anew
                stamped = name == SEEKABLE[1] and packet.is_keyframe and packet.pts is not None
                again = stamped and packet.pts + shift <= top
                if last is not None and (again or not last - back <= packet.dts + shift <= due + farthest):
                    shift = due - packet.dts
                    if packet.pts is not None:
                        shift = max(shift, top + (packet.duration or 1) - packet.pts)
                    if leaps is not None:
                        leaps.append(shift)
                last = packet.dts + shift
                due = last + (packet.duration or max(min(step, most), 1))
            if shift and packet.size:
                packet.pts, packet.dts = (None if t is None else t + shift for t in (packet.pts, packet.dts))
            if None not in (packet.pts, due) and abs(packet.pts - due) > most:
                packet.pts = due  # this stamp is wrong
            top = max(top, packet.pts or 0)
            yield packet
    except (av.FFmpegError, ValueError):
        yield None


class _Packets(NamedTuple):
    """What the packets say without decoding, in seconds.

    first, last  presentation times
    keys         times of keyframes. Empty where a jump to them is not exact: in containers other than `SEEKABLE`,
                 FFmpeg may land elsewhere, or give other stamps after a jump than before
    shown        how long the last frame is shown
    lost         packets that the file promises and does not hold
    order        all stamps, and {when a packet is due for decoding: its place among them}, in the stream's clock. None
                 unless the stamps rise with the packets. If they do, they may give only the order of decoding
    """

    first: Fraction
    last: Fraction
    keys: list[Fraction]
    shown: Fraction
    lost: int
    order: tuple[list[int], dict[int, int]] | None


def _packet_times(path: Path) -> _Packets:
    """Read a file's packets, without decoding."""
    container, stream = _open(path)
    indexed = container.format.name == SEEKABLE[0]
    stamps, keys, leaps, places, flat, count = [], [], [], {}, True, 0  # in the stream's clock: fractions are slow
    with container:
        for packet in _packets(container, stream, leaps):
            if packet is None or (packet.size == 0 and packet.dts is None):
                continue
            count += 1
            if packet.size == 0 or packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                # an MP4 with two different stamps for a packet can be trusted
                flat = flat and (not stamps or stamp > stamps[-1]) and not (indexed and stamp != packet.dts)
                if flat and packet.dts is not None:
                    places[packet.dts] = len(stamps)
                stamps.append(stamp)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(stamp)
                duration = packet.duration or 0
        if not stamps:
            remedy = "re-mux it into MP4, or save the picture as PNG"
            raise VideoError(f"{path} has a video stream but no frame with a time stamp: {remedy}")
        exact = container.format.name in SEEKABLE and not leaps and not (flat and stream.codec_context.has_b_frames)
        cut = cut_off(path)
        promised = len(stream.index_entries) if indexed else stream.frames * cut
    clock, stamps = Fraction(stream.time_base), sorted(stamps)
    shown = duration or stamps[-1] - stamps[-2:][0]
    keys = [key * clock for key in sorted(keys)] if exact else []
    first, last, lost = stamps[0] * clock, stamps[-1] * clock, max(promised - count, cut)
    return _Packets(first, last, keys, shown * clock, lost, (stamps, places) if flat else None)


class _Pass:
    """A pass through a file. Iterate for (frame (H, W, 3), its time), the frame shown at each wanted time.

    wanted    times in rising order. A time before the first good frame shows that frame
    keys      times of keyframes. The pass jumps to the latest one that lies ahead and not beyond the next wanted time.
              A jump that lands on no keyframe, or after the right one, is undone, and the file is read from the start
    order     see `_Packets`. The pass stops where the frames' stamps run backwards: then they give only the order of
              decoding
    by_order  the frames take the stamps of `order`, one after the other
    Afterwards `first` and `last` are the times of the first and the last good frame. `last` is None if the pass ended
    before it. `skipped` counts broken parts. `stopped` says whether the stamps ran backwards.
    """

    def __init__(
        self,
        path: Path,
        wanted: list[Fraction],
        size: int | None,
        keys: list[Fraction],
        order: tuple[list[int], dict[int, int]] | None = None,
        by_order: bool = False,
    ):
        self.path, self.wanted, self.size, self.keys = path, wanted, size, keys
        self.order, self.by_order = order, by_order
        self.first = self.last = None
        self.skipped, self.lost, self.stopped = 0, 0, False

    def __iter__(self) -> Iterator[tuple[np.ndarray, Fraction]]:
        with ExitStack() as files:
            container, stream = _open(self.path)
            files.enter_context(container)
            convert = VideoReformatter()  # one for all frames, because setting it up costs more than using it
            latest = picture = shape = None  # the frame to show with its time, its pixels, their shape
            frames, known = self._good_frames(container, stream), frozenset(self.keys)
            ahead = next(frames, None)  # decoded, but its time has not come
            self.first = ahead and ahead[1]
            for time in self.wanted:
                key = bisect_right(self.keys, time) - 1
                if ahead is not None and key >= 0 and self.keys[key] > ahead[1]:
                    frames = self._good_frames(container, stream, self.keys[key])
                    ahead = next(frames, None)
                    landed = ahead is not None and ahead[0].key_frame and ahead[1] in known
                    if not landed or ahead[1] > self.keys[key]:
                        self.keys, self.skipped = [], 0
                        container, stream = _open(self.path)
                        files.enter_context(container)
                        frames = self._good_frames(container, stream)
                        ahead = next((f for f in frames if latest is None or f[1] > latest[1]), None)
                while ahead is not None and (latest is None or ahead[1] <= time):
                    stamp = ahead[1] if latest is None else max(ahead[1], latest[1])  # the decoder's order is right
                    self.skipped += ahead[1] < stamp - BACK
                    latest, picture = (ahead[0], stamp), None
                    ahead = next(frames, None)
                if self.stopped:
                    return
                if latest is None:
                    broken = f"none of its frames can be decoded ({self.skipped} broken)"
                    raise VideoError(f"{self.path} is no video or picture, or is damaged: {broken}")
                if picture is None:  # a frame shown at two times is converted once
                    try:
                        picture = to_rgb(convert, latest[0], self.size, shape)
                    except ValueError as error:
                        raise VideoError(f"{self.path} {error}") from None
                    shape = picture.shape
                yield picture, latest[1]
            self.last = latest[1] if ahead is None else None

    def _good_frames(self, container, stream, key: Fraction | None = None) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Frames that decode, with their times, from the keyframe at `key` on. Counts what is broken, except between a
        jump and its keyframe."""
        before = self.skipped
        if key is not None:
            try:
                container.seek(int(key / stream.time_base), stream=stream)
            except av.FFmpegError:
                return
        latest = None  # stamp of the frame before
        for frame in self._in_order(container, stream) if self.by_order else self._decoded(container, stream):
            if frame.is_corrupt or not frame.time_base:
                self.skipped += 1
                continue
            if self.order and not self.by_order:
                self.stopped = frame.pts is None or (latest is not None and frame.pts <= latest)
                if self.stopped:
                    return
            latest = frame.pts
            if frame.pts is None:
                self.skipped += 1
                continue
            if key is not None:
                self.skipped, key = before, None
            yield frame, frame.pts * Fraction(frame.time_base)

    def _in_order(self, container, stream) -> Iterator[av.VideoFrame]:
        """What the decoder gives, each frame with the stamp of its place. The place counts the packets that the decoder
        had read since the first frame. After the last packet it grows by one a frame."""
        (stamps, places), place, start = self.order, -1, None
        for frame in self._decoded(container, stream):
            place = places.get(frame.dts, place + 1)
            start = place if start is None else start
            frame.pts = stamps[min(max(place - start, 0), len(stamps) - 1)]
            yield frame

    def _decoded(self, container, stream) -> Iterator[av.VideoFrame]:
        """Whatever the decoder gives. A frame from a packet that is cut off is marked as corrupt."""
        for packet in _packets(container, stream):
            if packet is None:
                self.skipped += 1
                continue
            try:
                yield from packet.decode()
            except (av.FFmpegError, ValueError):
                self.skipped += 1
        with suppress(av.FFmpegError):  # raised if the last packet has emptied the decoder already
            yield from stream.codec_context.decode(None)  # a stream that broke off still holds frames


def _decode(
    path: Path, wanted: Callable[[Fraction, Fraction], list[Fraction]], size: int | None, thorough: bool = False
) -> tuple[list, _Pass]:
    """Pairs (frame, its time) at the wanted times, and the pass that found them, with `first`, `last` and `lost` set.

    wanted(length, how long the last frame is shown) gives times from the first frame on. The packets may promise a
    first or last frame that does not decode. Then the clip lasts from the first to the last good frame, and `wanted`
    is called again. thorough: no jumps."""
    check_file(path)
    packets = _packet_times(path)
    first, last, by_order = packets.first, packets.last, False
    while True:
        times = [first + t for t in wanted(last - first, packets.shown)]
        decoded = _Pass(path, times, size, [] if thorough else packets.keys, packets.order, by_order)
        shown = list(decoded)
        decoded.last = last if decoded.last is None else decoded.last
        decoded.lost = packets.lost
        if decoded.stopped:
            by_order = True
        elif (decoded.first, decoded.last) == (first, last):
            return shown, decoded
        else:
            first, last = decoded.first, decoded.last


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float = 4.0) -> None:
    """Write frames (T, H, W, 3) uint8 as an H.264 MP4, with frame i shown at i/fps seconds.

    The file appears only when it is whole. Raises ValueError unless the frames are uint8 RGB with even height and
    width, because 4:2:0 colour needs pairs of pixels.
    """
    frames = np.asarray(frames)
    good = frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == np.uint8 and 0 not in frames.shape
    require(good, "frames are {} {}: give uint8 (T, H, W, 3) with T ≥ 1", frames.dtype, frames.shape)
    require(0 < fps < math.inf, "fps = {}: give more than 0", fps)
    height, width = frames.shape[1:3]
    even = height % 2 == width % 2 == 0
    require(even, "frames are {}×{} pixels: H.264 needs an even height and width", height, width)
    with replacing(path) as partial, av.open(f"file:{partial}", "w", format="mp4") as container:
        options = {"crf": "18", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=Fraction(str(fps)), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1  # small clips, many processes
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
