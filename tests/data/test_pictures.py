"""Pictures as they are meant: upright, mirrored, on white; those in parts or cut off are refused, or counted."""

import itertools
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest

from stts_mini.data.pictures import cut_off
from stts_mini.data.video import VideoError, read_video

CORNERS = np.full((64, 96, 3), 40, np.uint8)
CORNERS[:32, :48], CORNERS[:32, 48:], CORNERS[32:, :48] = (220, 40, 40), (40, 200, 40), (40, 60, 220)
# EXIF orientation: how the stored picture is to be shown
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def save(path, pixels, codec="png", pix_fmt="rgb24", format="image2", source="rgb24", **options):
    """One picture, by an encoder of FFmpeg's."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=1, options=options)
        frame = av.VideoFrame.from_ndarray(pixels, format=source)
        stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, pix_fmt
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def close(a, b, by=6):
    """Whether two pictures look alike."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).mean() < by


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_and_mirrors(orientation, tmp_path):
    raw = save(tmp_path / "a.jpg", CORNERS, "mjpeg", "yuvj444p", qmin="1", qmax="1").read_bytes()
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    (tmp_path / "b.jpg").write_bytes(raw[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + raw[2:])
    assert close(read_video(tmp_path / "b.jpg", 1).frames[0], UPRIGHT[orientation](CORNERS))
    assert read_video(tmp_path / "b.jpg", 1, size=32).frames.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_videos_matrix_turns_and_mirrors(degrees, mirrored, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv444p"
        stream.set_display_rotation(degrees, hflip=mirrored)  # mirrored after it is turned
        container.mux(stream.encode(av.VideoFrame.from_ndarray(CORNERS, format="rgb24")))
        container.mux(stream.encode())
    turned = np.rot90(CORNERS, degrees // 90)
    assert close(read_video(tmp_path / "a.mp4", 1).frames[0], turned[:, ::-1] if mirrored else turned)


def test_an_odd_angle_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.set_display_rotation(30)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(CORNERS, format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"a\.mp4 is to be turned by 30 degrees: re-encode it upright"):
        read_video(tmp_path / "a.mp4", 1)


@pytest.mark.parametrize("pix_fmt", ["rgba", "ya8", "rgba64be"])
@pytest.mark.parametrize("size", [None, 16])
def test_what_is_transparent_shows_white(pix_fmt, size, tmp_path):
    """Whatever colours are hidden there; half of it, half of white."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., :3] = pixels[..., :1]
    pixels[..., 3] = 0
    pixels[8:24, :16] = (60, 60, 60, 255)
    pixels[8:24, 16:] = (60, 60, 60, 128)
    shown = read_video(save(tmp_path / "a.png", pixels, pix_fmt=pix_fmt, source="rgba"), 1, size=size).frames[0]
    shown = shown.repeat(32 // len(shown), 0).repeat(32 // len(shown), 1).astype(int)
    assert (shown[:4] == 255).all() and (shown[28:] == 255).all()
    assert np.abs(shown[13:19, :11] - 60).max() <= 1 and np.abs(shown[13:19, 21:] - 157).max() <= 2


def test_a_palette_may_be_transparent(tmp_path):
    palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    palette[1] = (255, 200, 0, 0)
    index = np.repeat(np.uint8([1, 0]), 16)[:, None].repeat(32, 1)
    shown = read_video(save(tmp_path / "a.png", (index, palette), pix_fmt="pal8", source="pal8"), 1).frames[0]
    assert (shown[:16] == (200, 0, 0)).all() and (shown[16:] == 255).all()


@pytest.mark.parametrize("name, codec, pix_fmt", [("a.jpg", "mjpeg", "yuvj420p"), ("a.png", "png", "rgb24")])
def test_half_a_picture_is_refused(name, codec, pix_fmt, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    path = save(tmp_path / name, noise, codec, pix_fmt)
    raw = path.read_bytes()
    assert read_video(path, 1).skipped == 0
    for share in (0.5, 0.9):
        path.write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(VideoError, match=f"{name} "):
            read_video(path, 1)


def test_half_a_gif_is_counted(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    path = save(tmp_path / "a.gif", noise, "gif", "rgb8", "gif")
    assert read_video(path, 1).skipped == 0
    path.write_bytes(path.read_bytes() + b"\r\n")
    assert read_video(path, 1).skipped == 0
    path.write_bytes(path.read_bytes()[:-900])
    assert read_video(path, 1).skipped == 1


@pytest.mark.parametrize(
    "head, body, cut",
    [
        (b"RIFF" + struct.pack("<I", 100), 100, False),
        (b"RIFF" + struct.pack("<I", 100), 99, True),
        (b"RIFF" + b"\xff" * 4, 10, False),  # nobody knows
        (b"RIFF" + struct.pack("<I", 4) + b"AVI RIFF" + struct.pack("<I", 100), 100, False),  # more than a gigabyte
        (b"RIFF" + struct.pack("<I", 4) + b"AVI RIFF" + struct.pack("<I", 100), 99, True),
        (b"RIFF" + struct.pack("<I", 4) + b"AVI RIFF", 3, False),  # not even a size
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + (50).to_bytes(7), 50, False),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + (50).to_bytes(7), 49, True),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7, 10, False),  # a live recording
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x84", 20, False),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xa4", 20, True),
        (b"\x1a\x45\xdf\xa3", 20, False),  # no segment
        (b"GIF89a", 20, True),
        (b"anything", 20, False),
    ],
)
def test_files_shorter_than_they_say(head, body, cut, tmp_path):
    (tmp_path / "a").write_bytes(head + bytes(body))
    assert cut_off(tmp_path / "a") == cut


@pytest.mark.parametrize("fourth", [0, 128, 255])
def test_the_fourth_byte_of_an_uncompressed_avi_is_no_transparency(fourth, tmp_path):
    """BI_RGB leaves it unused, and FFmpeg takes it for alpha."""
    pixels = np.dstack([CORNERS, np.full(CORNERS.shape[:2], fourth, np.uint8)])
    path = save(tmp_path / "a.avi", pixels, "rawvideo", "bgra", "avi", source="rgba")
    raw = bytearray(path.read_bytes())
    raw[(at := raw.index(b"strf") + 24) : at + 4] = bytes(4)  # as Windows writes it; FFmpeg writes a name
    path.write_bytes(raw)
    assert close(np.sort(read_video(path, 1).frames[0], 0), np.sort(CORNERS, 0), by=0.1)  # FFmpeg wrote it upside down


def retagged(path, *changes):
    """A TIFF of FFmpeg's, whose tags get other names or values: (tag, its new name, its new value or None)."""
    raw = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", raw, 4)[0]
    entries = range(at + 2, at + 2 + 12 * struct.unpack_from("<H", raw, at)[0], 12)
    for tag, name, value in changes:
        entry = next(e for e in entries if struct.unpack_from("<H", raw, e)[0] == tag)
        struct.pack_into("<H", raw, entry, name)
        if value is not None:
            struct.pack_into("<H", raw, entry + 8, value)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "change, why",
    [
        ((273, 324, None), "made of tiles"),
        ((259, 259, 6), "of JPEGs in a TIFF"),
        ((259, 259, 7), "of JPEGs in a TIFF"),
        ((338, 338, 0), "with a fourth band that is no transparency"),
        ((338, 65000, None), "with a fourth band that is no transparency"),
    ],
)
def test_what_ffmpeg_decodes_wrongly_in_a_tiff_is_refused(change, why, big, tmp_path):
    pixels = np.dstack([CORNERS, np.full(CORNERS.shape[:2], 128, np.uint8)])
    path = save(tmp_path / "a.tif", pixels, "tiff", "rgba", source="rgba", compression_algo="raw")
    shown = read_video(path, 1).frames[0]
    assert np.abs(shown.astype(int) - (CORNERS + 255.0) / 2).max() <= 2
    retagged(path, change)
    if big:  # the other order of bytes
        path.write_bytes(swapped(path.read_bytes()))
    with pytest.raises(VideoError, match=rf"a\.tif is a picture {why}: convert it to PNG or JPEG"):
        read_video(path, 1)


def swapped(raw):
    """The head and the tags of a TIFF in the other order of bytes."""
    at = struct.unpack_from("<I", raw, 4)[0]
    count = struct.unpack_from("<H", raw, at)[0]
    out = bytearray(b"MM\0*" + struct.pack(">I", at) + raw[8:at] + struct.pack(">H", count))
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, n, value = struct.unpack_from("<HHII", raw, entry)
        small = struct.pack(">HH", value, 0) if kind == 3 and n == 1 else struct.pack(">I", value)
        out += struct.pack(">HHI", tag, kind, n) + small
    return bytes(out + raw[len(out) :])


def test_an_animated_webp_is_refused(tmp_path):
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + bytes(6) + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(VideoError, match=r"a\.webp is an animated WebP, .*: convert it to GIF or MP4"):
        read_video(tmp_path / "a.webp", 4)


def test_a_name_is_no_pattern(tmp_path):
    for name, pixels in (("a%d.png", plain(200)), ("a1.png", plain(30))):
        save(tmp_path / "b.png", pixels).rename(tmp_path / name)
    assert (read_video(tmp_path / "a%d.png", 1).frames == plain(200)).all()


def box(kind, *parts):
    """A box of ISO's file format; one with a version of its own begins with four bytes more."""
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def boxed(raw, kind):
    """The first box of this kind."""
    at = raw.index(kind) - 4
    return raw[at : at + struct.unpack_from(">I", raw, at)[0]]


def avif(path, pictures, primary=1, grid=None, more=(), said=None):
    """An AVIF whose items are `pictures`; or, with `grid` (rows, columns), the last item made of all of them. more:
    further properties of the primary item; said: its size, if another than it has."""
    items, zero = [], bytes(4)
    for i, pixels in enumerate(pictures):
        raw = save(path.with_name(f"{i}.avif"), pixels, "libsvtav1", "yuv420p", "avif", preset="8").read_bytes()
        items.append(
            SimpleNamespace(config=boxed(raw, b"av1C"), data=boxed(raw, b"mdat")[8:], size=pixels.shape[1::-1])
        )
    n, tiles = len(items), bool(grid)
    primary = n + 1 if tiles else primary
    sizes = [said if i + 1 == primary and said else item.size for i, item in enumerate(items)]
    if tiles:
        width, height = grid[1] * items[0].size[0], grid[0] * items[0].size[1]
        sizes.append((width, height))
        tile_map = struct.pack(">BBBBHH", 0, 0, grid[0] - 1, grid[1] - 1, width, height)
    kinds = [b"av01"] * n + [b"grid"] * tiles
    props = (
        [box(b"ispe", zero, struct.pack(">II", *size)) for size in sizes] + [item.config for item in items] + list(more)
    )

    def meta(places):
        infos = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", i + 1, 0), kind, b"\0") for i, kind in enumerate(kinds)]
        located = [
            struct.pack(">HHHHII", i + 1, 0, 0, 1, at, len(item.data))
            for i, (at, item) in enumerate(zip(places, items, strict=True))
        ]
        if tiles:
            located.append(struct.pack(">HHHHII", n + 1, 1, 0, 1, 0, len(tile_map)))
        owned = []
        for i, kind in enumerate(kinds):
            own = [i + 1] + [len(sizes) + i + 1] * (kind == b"av01")
            own += range(len(sizes) + n + 1, len(props) + 1) if i + 1 == primary else []
            owned.append(struct.pack(">HB", i + 1, len(own)) + bytes(own))
        parts = [
            box(b"hdlr", zero, zero, b"pict", bytes(13)),
            box(b"pitm", zero, struct.pack(">H", primary)),
            box(b"iloc", b"\1\0\0\0\x44\0", struct.pack(">H", len(located)), *located),
            box(b"iinf", zero, struct.pack(">H", len(infos)), *infos),
            box(b"iprp", box(b"ipco", *props), box(b"ipma", zero, struct.pack(">I", len(owned)), *owned)),
        ]
        if tiles:
            links = struct.pack(f">HH{n}H", n + 1, n, *range(1, n + 1))
            parts += [box(b"iref", zero, box(b"dimg", links)), box(b"idat", tile_map)]
        return box(b"meta", zero, *parts)

    head = box(b"ftyp", b"avif", zero, b"avifmif1miaf")
    start = len(head) + len(meta([0] * n)) + 8
    places = list(itertools.accumulate((len(item.data) for item in items[:-1]), initial=start))
    path.write_bytes(head + meta(places) + box(b"mdat", *(item.data for item in items)))
    return path


def plain(red, height=64, width=96):
    """A picture in one colour."""
    return np.full((height, width, 3), (red, 40, 40), np.uint8)


def test_the_primary_picture_is_shown(tmp_path):
    for primary, pixels in ((1, CORNERS), (2, plain(200, 128, 128))):
        path = avif(tmp_path / "a.avif", [CORNERS, plain(200, 128, 128)], primary)
        assert close(read_video(path, 1).frames[0], pixels, by=12)


@pytest.mark.parametrize("turns, axis", [(None, 0), (0, 1), (1, None), (1, 0), (2, 0), (3, 1)])
def test_heif_turns_then_mirrors(turns, axis, tmp_path):
    more = [box(kind, bytes([n])) for kind, n in ((b"irot", turns), (b"imir", axis)) if n is not None]
    expected = np.rot90(CORNERS, turns or 0)
    expected = {None: expected, 0: expected[::-1], 1: expected[:, ::-1]}[axis]
    assert close(read_video(avif(tmp_path / "a.avif", [CORNERS], more=more), 1).frames[0], expected, by=12)


@pytest.mark.parametrize(
    "case, why",
    [
        (dict(grid=(1, 2)), "tiles"),
        (dict(said=(90, 60)), "cropped"),
        (dict(more=[box(b"clap", bytes(32))]), "cropped"),
        (dict(more=[box(b"auxC", bytes(4), b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")]), "transparency"),
    ],
)
def test_pictures_in_parts_are_refused(case, why, tmp_path):
    path = avif(tmp_path / "a.avif", [plain(200), plain(30)], **case)
    with pytest.raises(VideoError, match=rf"a\.avif is a picture .*{why}.*: convert it to PNG or JPEG"):
        read_video(path, 1)
