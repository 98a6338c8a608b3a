"""From a decoded frame to pixels: upright, on white, of one size. And which pictures are not read, and why.

Pictures come through `video.py` as clips of one frame. FFmpeg decodes them, but does not turn them and does not fill
what is transparent. This file does.

What this file does not do: put the tiles of HEIC, AVIF and TIFF together, or look for transparency in a second picture.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

NEW_SIDE_DATA = range(28, 32)  # FFmpeg's kinds that PyAV cannot name; 31 is EXIF
NO_SCREEN = ("attached_pic", "timed_thumbnails", "dependent", "still_image")  # covers, previews, tiles


def best_stream(container):
    """The video stream that is the film or the picture, or None. A film comes before a still. After that the choice is
    FFmpeg's: the default stream, then the largest."""
    hidden = sum(av.stream.Disposition[name] for name in NO_SCREEN)
    streams = [s for s in container.streams.video if not s.disposition & hidden]
    default = av.stream.Disposition.default

    def rank(stream) -> tuple:
        """The better stream has the higher rank."""
        codec = stream.codec_context
        return stream.frames != 1, bool(stream.disposition & default), codec.width * codec.height if codec else 0

    return max(streams, key=rank, default=None)


def why_not(path: Path, container, stream) -> str | None:
    """Why a picture cannot be shown properly, and what to do, or None if it can. HEIC, AVIF and TIFF may hold a picture
    in parts. FFmpeg does not name what it leaves out."""
    whole, head = None, b""
    if "mif1" in container.metadata.get("compatible_brands", "") or container.format.name in ("image2", "webp_pipe"):
        with path.open("rb") as file:
            head = file.read(1 << 20)
    if head[12:16] == b"VP8X" and int.from_bytes(head[20:21], "big") & 2:
        return "is an animated WebP, which FFmpeg does not decode: convert it to GIF or MP4"
    if container.format.name == "tiff_pipe" or head[:4] in (b"II*\0", b"MM\0*"):
        whole = tiff_in_parts(path)
    elif head[4:8] == b"ftyp" and (stream is None or stream.frames <= 1):  # an animation is an ordinary film
        if stream is None or not stream.disposition & av.stream.Disposition.default:
            whole = "made of tiles or other parts"
        elif b"auxiliary:alpha" in head or b"hevc:2015:auxid:1\0" in head:
            whole = "that keeps its transparency in a second one"
        else:
            coded = [s.codec_context for s in container.streams.video]
            sizes = [struct.pack(">II", codec.width, codec.height) for codec in coded]
            if b"clap" in head or not all(part[4:12] in sizes for part in head.split(b"ispe")[1:]):
                whole = "that has to be cropped"
    return whole and f"is a picture {whole}: convert it to PNG or JPEG"


def tiff_in_parts(path: Path) -> str | None:
    """What FFmpeg would decode wrongly, without an error, in the first picture of a TIFF. None: nothing."""
    with path.open("rb") as file:
        order = "<" if file.read(4)[:2] == b"II" else ">"
        file.seek(struct.unpack(f"{order}I", file.read(4).ljust(4, b"\0"))[0])
        count = struct.unpack(f"{order}H", file.read(2).ljust(2, b"\0"))[0]
        entries = file.read(12 * count)
    tags = {}  # each tag's first value, if it has 16 bits
    for at in range(0, len(entries) - 11, 12):
        tag, value = struct.unpack_from(f"{order}H6xH", entries, at)
        tags[tag] = value
    if {322, 324} & tags.keys():
        return "made of tiles"
    if tags.get(259) in (6, 7):
        return "of JPEGs in a TIFF"
    extra = tags.get(262) == 2 and tags.get(277) == 4 and tags.get(338) not in (1, 2)
    return "with a fourth band that is no transparency" if extra else None


def cut_off(path: Path) -> bool:
    """Whether a file is shorter than it says itself (AVI, MKV, WebM), or lacks its end mark (GIF)."""
    size = os.path.getsize(path)
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(-min(size, 16), os.SEEK_END)
        tail = file.read()
    if head.startswith(b"GIF8"):
        return not tail.rstrip(b"\0\r\n").endswith(b";")
    if head.startswith(b"RIFF"):  # one after the other: an AVI of more than a gigabyte has several
        at = 0
        with path.open("rb") as file:
            while at + 8 <= size and file.read(4) == b"RIFF":
                promised = struct.unpack("<I", file.read(4))[0] + 8
                if promised >= 1 << 32:  # nobody knows
                    return False
                file.seek(at := at + promised)
        return size < at
    at = head.find(b"\x18\x53\x80\x67") + 4  # Matroska's segment. The first set bit gives the length of its size.
    if not head.startswith(b"\x1a\x45\xdf\xa3") or at < 4 or at + 8 > len(head) or not head[at]:
        return False
    length = 9 - head[at].bit_length()
    unknown = (1 << 7 * length) - 1
    promised = int.from_bytes(head[at : at + length]) & unknown
    return promised != unknown and size < at + length + promised


def to_rgb(convert: VideoReformatter, frame: av.VideoFrame, size: int | None, shape: tuple | None) -> np.ndarray:
    """One decoded frame as (H, W, 3) uint8, upright, with white for what is transparent. `shape`: the shape of the
    frames before it. Raises ValueError unless the frame is to be turned by quarter turns."""
    turns, mirrored = orientation(frame)
    width, height = frame.width, frame.height
    if size is not None:
        width = height = size
    elif shape is not None:  # a stream may change its size on the way
        height, width = shape[:2] if turns % 2 == 0 else shape[1::-1]
    frame = on_white(frame)
    picture = convert.reformat(frame, width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    return np.ascontiguousarray(np.rot90(picture[::-1] if mirrored else picture, turns))


def on_white(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame composited on white. A frame without transparency is returned unchanged."""
    if not (frame.format.has_palette or any(part.is_alpha for part in frame.format.components)):
        return frame
    pixels = frame.reformat(format="rgba").to_ndarray()
    if (pixels[..., 3] == 255).all():
        return frame
    alpha = pixels[..., 3:].astype(np.uint16)
    blended = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return av.VideoFrame.from_ndarray(blended.astype(np.uint8), format="rgb24")


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Counter-clockwise quarter turns of a frame, and whether it is mirrored before, top to bottom. Both come from its
    display matrix, which FFmpeg sets for EXIF, MP4 and HEIF. Raises ValueError for other turns."""
    try:
        data = frame.side_data
    except ValueError:  # PyAV cannot name one of the kinds: leave that one out
        graph = av.filter.Graph()
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=1)
        drops = [graph.add("sidedata", f"mode=delete:type={kind}") for kind in NEW_SIDE_DATA]
        graph.link_nodes(source, *drops, graph.add("buffersink")).configure()
        graph.push(frame)
        data = graph.pull().side_data
    matrix = data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return 0, False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    angle = math.degrees(math.atan2(-b, a))
    turns = round(angle / 90)
    if abs(angle - 90 * turns) > 1:
        raise ValueError(f"is to be turned by {angle:.0f} degrees: re-encode it upright")
    return turns % 4, a * d - b * c < 0
