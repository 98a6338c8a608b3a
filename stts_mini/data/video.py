"""Video files in and out: real decoding, by presentation time.

    sample_times(duration)   2 times a second, the last frame included; too many: uniformly spaced
    frame shown at t         the latest one with presentation time ≤ t, counted from the clip's first

A first pass reads the packets' time stamps without decoding. A second pass decodes what it must, jumping to
the keyframe before the next frame that is shown, and converts only those that are: memory is bounded by the
frames asked for, not by the clip. Times are exact fractions: no frame is missed by a rounding error. Paper §4;
the sampling rule is Molmo2's.

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

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from stts_mini.data.files import printable, replacing, require

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # FFmpeg's names of MP4 and MOV, of MKV and WebM


class VideoError(ValueError):
    """A file that cannot be read as a video; the message names the file and says why, in one printable line."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Video:
    """Sampled frames of one clip.

    frames    (T, H, W, 3) uint8, RGB
    times     T presentation times of those very frames, in seconds from the clip's first frame
    duration  presentation time of the clip's last frame, in seconds
    skipped   packets and frames that were broken and left out
    still     these are several pictures, not a clip: they have numbers instead of times
    """

    frames: np.ndarray
    times: list[float]
    duration: float
    skipped: int = 0
    still: bool = False

    @property
    def stamps(self) -> list[str]:
        """The frames' time stamps as text, one decimal; of pictures, their numbers from 1."""
        if self.still:
            return [str(i + 1) for i in range(len(self.times))]
        return [f"{t:.1f}" for t in self.times]


def sample_times(duration: float | Fraction, max_frames: int, fps: float = 2.0) -> list[Fraction]:
    """When to look at a clip whose last frame is shown at `duration` seconds: at 0, 1/fps, 2/fps, …
    and at `duration`; if that is more than `max_frames`, at `max_frames` times from 0 to `duration`,
    uniformly spaced (a single one: at 0). Raises ValueError for max_frames < 1, fps ≤ 0, duration < 0.

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
) -> Video:
    """Decode the frames shown at `sample_times`; T ≤ max_frames.

    start, end: look only at this part, in seconds from the video's first frame; what ends later ends with the
    video. Times, stamps and duration then count from `start`.

    size: resize every frame to size × size pixels (bicubic, aspect ratio not kept, as SigLIP does);
    None: keep the size of the first frame shown. Rotation metadata is applied; pixels are taken as stored,
    whatever their own aspect ratio. A frame shown at two times comes twice. Broken packets are skipped and
    counted; if the first or last frame is broken, the clip begins or ends with the first or last good one.
    Raises VideoError: no such file, a directory, no permission, not a video, no video stream, no
    frame that can be decoded, nothing there at `start`.
    """
    path, begin = Path(path), Fraction(str(start or 0.0))
    until = math.inf if end is None else Fraction(str(end))
    require(0 <= begin <= until, "start = {}, end = {}: give seconds, 0 ≤ start ≤ end", start, end)
    require(size is None or size >= 1, "size = {}: give at least 1 pixel, or None to keep the size", size)

    def wanted(length: Fraction) -> list[Fraction]:
        if begin > min(length, until):
            raise VideoError(f"{path} ends at {float(length):.1f} s: it has nothing at start = {start}")
        return [begin + t for t in sample_times(min(length, until) - begin, max_frames, fps)]

    shown, decoded = _decode(path, wanted, size)
    frames, stamps = zip(*shown, strict=True)
    times = [float(max(t - decoded.first - begin, 0)) for t in stamps]  # what is shown at `start` may have begun before
    duration = float(min(decoded.last - decoded.first, until) - begin)
    return Video(np.stack(frames), times, duration, decoded.skipped)


def read_chunks(path: str | os.PathLike, chunk: int, fps: float = 2.0, size: int | None = None) -> Iterator[Video]:
    """The frames of `read_video` without a limit to their number, at most `chunk` at a time: for clips that memory
    does not hold. Times and duration count from the clip's first frame; `skipped` counts what was broken so far.
    Raises as `read_video` does.
    """
    require(chunk >= 1, "chunk = {}: give at least 1 frame", chunk)
    _, ends = _decode(Path(path), lambda length: [Fraction(0), length], size)
    duration = ends.last - ends.first
    times = [ends.first + t for t in sample_times(duration, sys.maxsize, fps)]
    decoded = _Pass(ends.path, times, size, ends.keys)
    shown = iter(decoded)
    while part := list(itertools.islice(shown, chunk)):
        frames, stamps = zip(*part, strict=True)
        yield Video(np.stack(frames), [float(t - ends.first) for t in stamps], float(duration), decoded.skipped)


def thinned(video: Video, max_frames: int, fps: float) -> Video:
    """A sampled clip looked at less often: its frames shown at its own `sample_times`; none comes twice.

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
    except (OSError, ValueError) as error:  # a folder without permission, a name too long, or with a zero in it
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
    """The opened container and its video stream (cover pictures do not count)."""
    try:
        # the "file:" prefix keeps names like "a:b.mp4" or "-.mp4" from being taken for anything else
        container = av.open(f"file:{path}")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} is not a video, or is cut off before its index ({error})") from error
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams or container.format.name == "tty":  # FFmpeg would play a text file as a terminal
        kinds = sorted({s.type for s in container.streams})
        name = container.format.name
        container.close()
        held = f"it holds: {', '.join(kinds) or 'nothing'}; format {name}"
        cut = "" if {"audio", "subtitle", "video"} & set(kinds) else ", or it is cut off before its index"
        raise VideoError(f"{path} has no video stream ({held}){cut}")
    stream = streams[0]
    if stream.codec_context is None or not stream.time_base:
        container.close()
        raise VideoError(f"{path} has a video stream in an unknown codec, or without a clock: re-encode it")
    stream.thread_type = "AUTO"
    return container, stream


def _packets(container, stream):
    """The stream's packets; a container that breaks off simply ends here. Yields None for each break."""
    try:
        yield from container.demux(stream)
    except (av.FFmpegError, ValueError):
        yield None


def _packet_times(path: Path) -> tuple[Fraction, Fraction, list[Fraction]]:
    """Presentation times of the first packet, of the last and of all keyframes, in seconds, without decoding.

    Of keyframes only where a jump to them is exact: in other containers than `SEEKABLE`, FFmpeg may land elsewhere, or
    give other stamps after a jump than before.
    """
    container, stream = _open(path)
    seekable = container.format.name in SEEKABLE
    stamps, keys = [], []  # in the stream's own clock: fractions are slow
    with container:
        for packet in _packets(container, stream):
            if packet is None or packet.size == 0 or packet.is_discard:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                stamps.append(stamp)
                if seekable and packet.is_keyframe and packet.pts is not None:
                    keys.append(stamp)
    if not stamps:
        raise VideoError(f"{path} has a video stream but no frame with a time stamp: re-mux it, say into MP4")
    clock = Fraction(stream.time_base)
    return min(stamps) * clock, max(stamps) * clock, [key * clock for key in sorted(keys)]


class _Pass:
    """A pass through a file: iterate for (frame (H, W, 3), its time), the frame shown at each wanted time.

    wanted  times in rising order; one before the first good frame shows that frame
    keys    times of keyframes: if one lies ahead, and not beyond the next wanted time, the pass goes there at once. A
            jump that lands on no keyframe, or after the one it aimed at, is undone: the file is read from the start.
    Afterwards: first, last (times of the first good frame and of the last; last is None if there are others after the
    last one shown), skipped (broken parts met on the way).
    """

    def __init__(self, path: Path, wanted: list[Fraction], size: int | None, keys: list[Fraction]):
        self.path, self.wanted, self.size, self.keys = path, wanted, size, keys
        self.first = self.last = None
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, Fraction]]:
        with ExitStack() as files:
            container, stream = _open(self.path)
            files.enter_context(container)
            convert = VideoReformatter()  # one for all frames: setting it up costs more than using it
            latest = picture = shape = None  # the frame to show, with its time; as pixels; their shape
            frames, known = self._good_frames(container, stream), frozenset(self.keys)
            ahead = next(frames, None)  # decoded, and not to be shown yet
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
                        ahead = next(frames, None)
                while ahead is not None and (latest is None or ahead[1] <= time):
                    if latest is None or ahead[1] > latest[1]:  # of stamps that run backwards, the later stays
                        latest, picture = ahead, None
                    ahead = next(frames, None)
                if latest is None:
                    broken = f"none of its frames can be decoded ({self.skipped} broken)"
                    raise VideoError(f"{self.path} has a video stream, but {broken}")
                if picture is None:  # a frame shown at two times is converted once
                    picture = _to_rgb(convert, latest[0], self.size, shape)
                    shape = picture.shape
                yield picture, latest[1]
            self.last = latest[1] if ahead is None else None

    def _good_frames(self, container, stream, key: Fraction | None = None) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Frames that decode, with their times, from the keyframe at `key` on; counts what is broken, but not what
        lies between a jump and its keyframe."""
        before = self.skipped
        if key is not None:
            try:
                container.seek(int(key / stream.time_base), stream=stream)
            except av.FFmpegError:
                return
        for frame in self._decoded(container, stream):
            if frame.pts is None or not frame.time_base or frame.is_corrupt:
                self.skipped += 1
            else:
                if key is not None:
                    self.skipped, key = before, None
                yield frame, frame.pts * Fraction(frame.time_base)

    def _decoded(self, container, stream) -> Iterator[av.VideoFrame]:
        """Whatever the decoder gives."""
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


def _decode(path: Path, wanted: Callable[[Fraction], list[Fraction]], size: int | None) -> tuple[list, _Pass]:
    """What is shown at the times wanted(length), counted from the first frame, as pairs (frame, its time), and the
    pass that found it, with `first` and `last` set. The packets may promise a first or a last frame that does not
    decode. Then the clip lasts from the first good frame to the last good one, and `wanted` is asked again."""
    check_file(path)
    first, last, keys = _packet_times(path)
    while True:
        decoded = _Pass(path, [first + t for t in wanted(last - first)], size, keys)
        shown = list(decoded)
        decoded.last = last if decoded.last is None else decoded.last
        if (decoded.first, decoded.last) == (first, last):
            return shown, decoded
        first, last = decoded.first, decoded.last


def _to_rgb(convert: VideoReformatter, frame: av.VideoFrame, size: int | None, shape: tuple | None) -> np.ndarray:
    """One decoded frame as (H, W, 3) uint8, upright; `shape`: that of the frames before it."""
    turns = round(frame.rotation / 90) % 4  # quarter turns, counter-clockwise
    width, height = frame.width, frame.height
    if size is not None:
        width = height = size
    elif shape is not None:  # a stream may change its size on the way
        height, width = shape[:2] if turns % 2 == 0 else shape[1::-1]
    picture = convert.reformat(frame, width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, turns))


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: float = 4.0, crf: int = 18) -> None:
    """Write frames (T, H, W, 3) uint8 as an H.264 MP4, frame i shown at i/fps seconds.

    The file appears only when it is whole. Raises ValueError for anything but uint8 RGB with even
    height and width (4:2:0 colour needs pairs of pixels).
    """
    frames = np.asarray(frames)
    good = frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == np.uint8 and 0 not in frames.shape
    require(good, "frames are {} {}: give uint8 (T, H, W, 3) with T ≥ 1", frames.dtype, frames.shape)
    require(0 < fps < math.inf, "fps = {}: give more than 0", fps)
    height, width = frames.shape[1:3]
    even = height % 2 == width % 2 == 0
    require(even, "frames are {}×{} pixels: H.264 needs an even height and width", height, width)
    with replacing(path) as partial, av.open(f"file:{partial}", "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=Fraction(str(fps)), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1  # small clips, many processes
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
