"""The picture shows what was kept, where it was."""

import csv
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


def test_heat_grows_lighter():
    light = heat(np.linspace(0, 1, 20)).astype(int).sum(-1)
    assert (np.diff(light) > 0).all()


def test_letters_are_fifteen_pixels_and_all_different():
    assert all(len(bits) == 15 for bits in GLYPHS.values()) and len(set(GLYPHS.values())) >= len(GLYPHS) - 1
    picture = np.zeros((8, 20, 3), np.uint8)
    write_text(picture, "i l", 0, 0, scale=1)
    assert (picture[:5, :3, 0] > 0).astype(int).tolist() == [[1, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 1]]
    assert picture[:, 4:8].sum() == 0 and picture[0, 8, 0] == 255
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
    draw_curve(tmp_path / "log.csv", tmp_path / "a.png", size=(300, 180))
    return pixels_of(tmp_path / "a.png") if (tmp_path / "a.png").exists() else None


def heights(picture, colour, left=70, right=230):
    """The upper end of the line in each column between the axes' texts."""
    lit = (picture[30:150, left:right] == colour).all(-1)
    assert lit.any(0).all() and lit.sum(0).min() == 2
    return 30 + lit.argmax(0)


def test_curves_stand_at_their_values(tmp_path):
    """A loss of 10 and of 1 on a logarithmic axis from 1 to 10: its top and its bottom, rows 40 and 140."""
    picture = curve(tmp_path, [10, 10, 1, 1], [0.5] * 4, first=7)
    loss = heights(picture, LOSS)
    assert set(loss[:53]) == {40} and set(loss[107:]) == {140} and (np.diff(loss) >= 0).all()
    assert set(heights(picture, ACCURACY)) == {90}
    lines = [y for y in range(180) if (picture[y, [*range(70, 123), *range(177, 230)]] == 70).all()]
    assert lines == [65, 115] and (picture[lines, 69] == 24).all() and (picture[lines, 230] == 24).all()  # at quarters
    for i, loss in enumerate(("1", "1.8", "3.2", "5.6", "10")):
        assert shows(picture, loss, 4, 135 - 25 * i, LOSS) and shows(picture, f"{25 * i}%", 238, 135 - 25 * i, ACCURACY)
    assert shows(picture, "loss", 70, 12, LOSS) and shows(picture, "accuracy", 166, 12, ACCURACY)
    assert shows(picture, "7", 70, 154, (170,) * 3) and shows(picture, "11 steps", 140, 154, (170,) * 3)
    assert shows(curve(tmp_path, [1, 1], [0, 0]), "10", 4, 35, LOSS)  # a flat one has an axis, too
    assert shows(curve(tmp_path, [0, 0], [0, 0]), "1e-08", 4, 135, LOSS)


def test_curves_are_smoothed_over_a_fiftieth_of_the_steps(tmp_path):
    found = heights(curve(tmp_path, [1] * 160, [0, 0, 0] + [0, 0, 0.6] * 52 + [0]), ACCURACY)
    assert set(found[:3]) == {140} and set(found[6:]) == {120}  # the mean of any three is 0.2
    assert heights(curve(tmp_path, [1] * 99, [0, 1] * 49 + [0]), ACCURACY).min() < 45  # the mean of one


def test_without_a_step_there_is_no_curve(tmp_path):
    assert curve(tmp_path, [], []) is None


def test_a_band_is_text_stamps_and_three_views(monkeypatch):
    video = Video(np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), np.uint8), [0.0, 12.5], 13.0)
    keep, scores = np.arange(18).reshape(2, 9) % 2 == 0, np.linspace(0, 1, 18).reshape(2, 9)
    picture = band(video, keep, scores, "who ?")
    assert picture.shape == (34 + 3 * (96 + 3), 192, 3) and picture.dtype == np.uint8
    assert shows(picture, "who ?", 4, 4) and shows(picture, "0.0", 4, 20, (170,) * 3)
    assert shows(picture, "12.5", 100, 20, (170,) * 3)
    views = clip_views(video.frames, keep, scores)
    for top, view, below in zip((34, 133, 232), views, (60, 60, 0), strict=True):
        for t in range(2):
            part = picture[top : top + 96, 96 * t : 96 * t + 96]
            assert (part[::2, ::2] == view[t]).all() and (part[1::2, 1::2] == view[t]).all()
        assert (picture[top + 96 : top + 99] == below).all()
    bright = clip_views(video.frames, keep, None)[2]
    assert (bright == heat(np.ones(1))).all()  # without scores


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
    grey = lambda clip, *_: np.full((2, 20 + 10 * clip.seed, 3), 10 + clip.seed, np.uint8)
    monkeypatch.setattr(drawing, "band", grey)
    png = draw_clips(None, clips, reader, 0.5, tmp_path, count)
    if chosen is None:
        assert png is None
        return
    assert png == tmp_path / "pruned.png" and len(pixels_of(png)) == 10 * len(chosen)
    for i, (picture, number) in enumerate(zip(np.split(pixels_of(png), len(chosen)), chosen, strict=True)):
        assert (picture[:2, : 20 + 10 * number] == 10 + number).all(), i
        assert (picture[2:] == 0).all() and (picture[:, 20 + 10 * number :] == 0).all()


def test_the_line_of_text_says_what_was_asked_said_and_kept(tmp_path, monkeypatch):
    config = tiny(tmp_path)
    model, reader = build_model(config, torch.device("cpu")).eval(), Reader(4, 48)
    clip = held_out(config.data, 48, 1, kinds=["short"])[0]
    clip = replace(clip, kind=OWN, qa=(replace(clip.qa[0], question="which ?", answer="red", options=()),))
    for said, verdict in (("red", "right"), ("blue", "answer: red")):
        asked = []
        speak = lambda batch, k, encode, asked=asked, said=said: (
            asked.append(encode(None)) or [[drawing.TOKENIZER.encode(said)]]
        )
        monkeypatch.setattr(model, "generate", speak)
        video, keep, scores, text = look(model, clip, reader, 0.5)
        assert text == f"which ?  said: {said}  {verdict}  k=0.5 18/36 kept"
        assert keep.shape == scores.shape == (4, 9) and keep.sum() == 18 and keep.dtype == bool
        assert (asked[0].keep[0].numpy() == keep).all() and video is reader(clip)
    assert look(model, clip, reader, 0.0)[2] is None
