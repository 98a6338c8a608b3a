"""The picture shows what was kept, where it was."""

import numpy as np

from stts_mini.report.picture import GLYPHS, clip_views, heat, to_pixels, write_text


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
