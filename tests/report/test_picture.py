"""The picture shows what was kept, where it was."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stts_mini.data.batches import Reader
from stts_mini.data.clips import OWN, Clip, held_out
from stts_mini.data.video import Video
from stts_mini.report import picture as drawing
from stts_mini.report.picture import (
    ACCURACY,
    GLYPHS,
    LOSS,
    band,
    clip_views,
    draw_clips,
    draw_curve,
    heat,
    look,
    to_pixels,
    write_text,
)
from stts_mini.train import build_model
from stts_mini.training.logging import Log
from tests.tiny import tiny


def test_cells_are_drawn_where_they_lie():
    cells = np.arange(9).reshape(1, 9)
    pixels = to_pixels(cells, 12)
    assert pixels.shape == (1, 12, 12)
    for y in range(12):
        for x in range(12):
            assert pixels[0, y, x] == (y // 4) * 3 + x // 4


def test_pruned_cells_are_dim_and_kept_ones_untouched():
    frames = np.full((2, 12, 12, 3), 200, np.uint8)
    keep = np.zeros((2, 9), bool)
    keep[0], keep[1, 4] = True, True
    shown, dimmed, heated = clip_views(frames, keep, np.linspace(0, 1, 18).reshape(2, 9))
    assert shown is frames and (dimmed[0] == 200).all()
    assert (dimmed[1, 4:8, 4:8] == 200).all() and (dimmed[1] == 40).sum() == 3 * (144 - 16)
    assert heated[0, 0, 0].sum() < heated[1, -1, -1].sum()


def test_names_stand_above_the_axis_that_their_curve_has():
    """Logarithmic ones from the left edge on, shares up to the right edge, each in its colour."""
    colours, lines = [(200, 50, i) for i in range(4)], np.linspace(0.1, 0.9, 5)
    a, b, c, d = ((lines, colour) for colour in colours)
    picture, letter = drawing.panel({"ab": a, "c": b}, {"d": c, "ef": d}, (600, 200)), drawing.LETTER
    places = {"ab": 96, "c": 96 + 2 * letter + 24, "d": 530 - letter, "ef": 530 - 3 * letter - 24}
    for (name, x), colour in zip(places.items(), colours, strict=True):
        alone = np.zeros_like(picture)
        write_text(alone, name, x, 12, colour=colour)
        assert np.array_equal((picture[:32] == colour).all(-1), (alone[:32] == colour).all(-1))


def test_heat_grows_lighter():
    light = heat(np.linspace(0, 1, 20)).astype(int).sum(-1)
    assert (np.diff(light) > 0).all()


def test_letters_are_all_different_and_stand_where_they_should():
    assert GLYPHS.shape == (95, 8, 5) and len(set(map(bytes, GLYPHS))) == 95
    picture = np.zeros((12, 30, 3), np.uint8)
    write_text(picture, "T y\n", 1, 2, scale=1)  # what is no letter is a block
    rows = ["".join(" #"[int(x)] for x in row).rstrip() for row in picture[..., 0] == 255]
    assert rows == [
        "",
        "",
        " #####             #####",
        "   #               #####",
        "   #         #   # #####",
        "   #         #   # #####",
        "   #         #   # #####",
        "   #          #### #####",
        "   #             # #####",
        "              ###",
        "",
        "",
    ]
    twice = np.zeros((24, 60, 3), np.uint8)
    write_text(twice, "T y\n", 2, 4, scale=2)
    assert (twice == picture.repeat(2, 0).repeat(2, 1)).all()
    write_text(picture, "far too long to fit", 0, 4)  # is cut, not an error


def shows(picture, text, x, y, colour=(255, 255, 255)):
    """Whether this text stands there, in that colour."""
    alone = np.zeros_like(picture)
    write_text(alone, text, x, y, colour=(1, 1, 1))
    return alone.any() and (picture[alone[..., 0] == 1] == colour).all()


def pixels_of(png):
    with av.open(str(png)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


def curve(tmp_path, losses, accuracies, first=0):
    with open(tmp_path / "log.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, Log.NAMES[:7], restval=0)
        rows.writeheader()
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
            rows.writerow(dict(step=first + i, task_loss=loss, accuracy=accuracy))
    draw_curve(tmp_path / "log.csv", tmp_path / "a.png", size=(326, 180))
    return pixels_of(tmp_path / "a.png") if (tmp_path / "a.png").exists() else None


def heights(picture, colour, left=96, right=256):
    """The upper end of the line in each column between the axes' texts."""
    lit = (picture[30:150, left:right] == colour).all(-1)
    assert lit.any(0).all() and lit.sum(0).min() == 2
    return 30 + lit.argmax(0)


def test_a_picture_is_written_whole_and_under_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("12:30")
    Path("log.csv").write_text("step,task_loss,accuracy\n0,1,1\n")
    draw_curve("log.csv", "12:30/a%d.png")
    assert os.listdir("12:30") == ["a%d.png"] and pixels_of("file:12:30/a%d.png").shape == (420, 900, 3)


def test_curves_stand_at_their_values(tmp_path):
    """A loss of 10 and of 1 on a logarithmic axis from 1 to 10: its top and its bottom, rows 40 and 140."""
    picture = curve(tmp_path, [10, 10, 1, 1], [0.5] * 4, first=7)
    loss = heights(picture, LOSS)
    assert set(loss[:53]) == {40} and set(loss[107:]) == {140} and (np.diff(loss) >= 0).all()
    assert set(heights(picture, ACCURACY)) == {90}
    lines = [y for y in range(180) if (picture[y, [*range(96, 149), *range(203, 256)]] == 70).all()]
    assert lines == [65, 115] and (picture[lines, 95] == 24).all() and (picture[lines, 256] == 24).all()  # at quarters
    for i, loss in enumerate(("1", "1.8", "3.2", "5.6", "10")):
        assert shows(picture, loss, 4, 133 - 25 * i, LOSS) and shows(picture, f"{25 * i}%", 264, 133 - 25 * i, ACCURACY)
    assert shows(picture, "Loss", 96, 12, LOSS) and shows(picture, "Accuracy", 160, 12, ACCURACY)
    assert shows(picture, "7", 96, 154, (170,) * 3) and shows(picture, "11 steps", 166, 154, (170,) * 3)
    assert shows(curve(tmp_path, [1, 1], [0, 0]), "10", 4, 33, LOSS)  # a flat one has an axis, too
    assert shows(curve(tmp_path, [0, 0], [0, 0]), "1e-08", 4, 133, LOSS)


def test_curves_are_smoothed_over_a_fiftieth_of_the_steps(tmp_path):
    found = heights(curve(tmp_path, [1] * 160, [0, 0, 0] + [0, 0, 0.6] * 52 + [0]), ACCURACY)
    assert set(found[:3]) == {140} and set(found[6:]) == {120}  # the mean of any three is 0.2
    assert heights(curve(tmp_path, [1] * 99, [0, 1] * 49 + [0]), ACCURACY).min() < 45  # the mean of one


def test_without_a_step_there_is_no_curve(tmp_path):
    assert curve(tmp_path, [], []) is None


@pytest.mark.parametrize("still, stamp", [(False, "12.5 s"), (True, "2")])
def test_a_band_is_text_stamps_three_views_and_kept_shares_in_rows_of_six(still, stamp):
    stamps = [0.0, 12.5, *range(20, 25)]
    video = Video(np.random.default_rng(0).integers(0, 255, (7, 48, 48, 3), np.uint8), stamps, 25.0, still=still)
    keep, scores = np.arange(63).reshape(7, 9) % 2 == 0, np.linspace(0, 1, 63).reshape(7, 9)
    keep[0] = True
    long = "x" * 52 + " it is wrapped"
    picture = band(video, keep, scores, ["Who ?", long])
    row = 20 + 3 * 100 + 36
    assert picture.shape == (84 + 2 * row, 660, 3) and picture.dtype == np.uint8
    for y, line in zip((12, 32, 52), ("Who ?", "x" * 52, "it is wrapped"), strict=True):
        assert shows(picture, line, 12, y)
    views = clip_views(video.frames, keep, scores)
    for t in range(7):
        y, x = 84 + row * (t // 6), 12 + 108 * (t % 6)
        for v, view in enumerate(views):
            part = picture[y + 20 + 100 * v :][:96, x : x + 96]
            assert (part[::2, ::2] == view[t]).all() and (part[1::2, 1::2] == view[t]).all()
            assert not picture[y + 116 + 100 * v :][:4, x : x + 96].any()  # a gap below,
            assert not picture[y + 20 + 100 * v :][:96, x + 96 : x + 108].any()  # and beside
    grey = (170,) * 3
    assert shows(picture, stamp, 120, 84, grey) and shows(picture, video.stamps[6], 12, 84 + row, grey)
    assert shows(picture, video.stamps[1] + " s", 120, 84, grey) != still
    kept = ["all", *(f"{keep[t].mean():.0%}" for t in range(1, 7))]
    assert kept[1:3] == ["44%", "56%"] and shows(picture, "Kept all", 12, 84 + 320, grey)
    assert shows(picture, "Kept 44%", 120, 84 + 320, grey) and shows(picture, "Kept 56%", 12, 84 + row + 320, grey)
    assert (clip_views(video.frames, keep, None)[2] == heat(np.ones(1))).all()  # without scores


def test_frames_of_any_size_are_drawn_alike():
    frames = np.arange(192 * 192 * 3, dtype=np.uint8).reshape(1, 192, 192, 3)
    picture = band(Video(frames, [0.0], 1.0), np.ones((1, 9), bool), None, ["Who ?"])
    assert (picture[64:160, 12:108] == frames[0, ::2, ::2]).all()


def a_clip(number, kind):
    return Clip(Path(f"{number}.mp4"), kind, "test", number, ())


@pytest.mark.parametrize(
    "kinds, count, chosen",
    [
        (["short"] * 5 + ["watch"] * 2, 4, [0, 1, 2, 5]),
        (["image", "watch", "short"], 4, [2, 1]),
        (["image", OWN], 4, [0, 1]),  # nothing to choose from
        ([OWN] * 5, 3, [0, 1, 2]),
        ([], 4, None),
    ],
)
def test_short_clips_are_drawn_and_a_long_one_last(kinds, count, chosen, tmp_path, monkeypatch):
    clips, reader = [a_clip(n, kind) for n, kind in enumerate(kinds)], Reader(4, 48)
    clips.insert(0, a_clip(99, "short"))
    reader.broken[clips[0].source] = "cut"
    monkeypatch.setattr(drawing, "look", lambda model, clip, reader, k, tokenizer: (clip, k, tokenizer, None))
    grey = lambda clip, *_: np.full((4, 660, 3), 10 + clip.seed, np.uint8)
    monkeypatch.setattr(drawing, "band", grey)
    png = draw_clips(None, clips, reader, 0.5, tmp_path, count)
    if chosen is None:
        assert png is None
        return
    rows = pixels_of(png)[:, 0, 0].tolist()  # a line between two
    assert png == tmp_path / "pruned.png" and rows == [x for n in chosen for x in [170] * 2 + [10 + n] * 4][2:]


def test_the_text_says_what_was_asked_said_and_kept(tmp_path, monkeypatch):
    config = tiny(tmp_path)
    model, reader = build_model(config, torch.device("cpu")).eval(), Reader(4, 48)
    clip = held_out(config.data, 48, 1, kinds=["short"])[0]
    clip = replace(clip, kind=OWN, qa=(replace(clip.qa[0], question="which ?", answer="red", options=()),))
    for said, verdict in (
        ("red", "red. Right."),
        ("blue", "blue. Wrong, the answer is: red."),
        ("", "(nothing). Wrong, the answer is: red."),
    ):
        asked = []
        speak = lambda batch, k, encode, asked=asked, said=said: (
            asked.append(encode(None)) or [[drawing.TOKENIZER.encode(said)]]
        )
        monkeypatch.setattr(model, "generate", speak)
        video, keep, scores, lines = look(model, clip, reader, 0.5)
        assert lines[:3] == ["Which ?", f"Model: {verdict}", "Kept 18 of 36 cells (k = 0.5)."]
        assert keep.shape == scores.shape == (4, 9) and keep.sum() == 18 and keep.dtype == bool
        assert (asked[0].keep[0].numpy() == keep).all() and video is reader(clip)
    assert look(model, clip, reader, 0.0)[2] is None
