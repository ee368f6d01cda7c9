"""Drawing: colours that readers with red-green blindness tell apart, marks where they belong, numbers on a bar."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from semcorr.visualization.canvas import (
    EDGE,
    PAPER,
    POINT_COLOURS,
    RIGHT,
    WRONG,
    colour_values,
    draw_colour_bar,
    draw_cross,
    draw_dashes,
    draw_disc,
    draw_ring,
    overlay_map,
    shorten_text,
    stack_grid,
    text_colour,
    text_width,
)

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear(colours: object) -> np.ndarray:
    share = np.asarray(colours) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, white D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = rgb @ to_xyz.T / to_xyz.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def seen(colours: object, matrix: object) -> np.ndarray:
    return lab((linear(colours) @ np.asarray(matrix).T).clip(0, 1))


@pytest.mark.parametrize("matrix", BLINDNESS.values(), ids=list(BLINDNESS))
def test_right_and_wrong_differ_without_red_or_green_cones(matrix):
    """By more than 40; green and red of traffic lights by much less."""
    right, wrong, green, red = seen([RIGHT, WRONG, (40, 190, 70), (220, 50, 50)], matrix)

    assert np.linalg.norm(right - wrong) > 60
    assert np.linalg.norm((right - wrong)[1:]) > 2 * np.linalg.norm((green - red)[1:])  # in hue


@pytest.mark.parametrize("matrix", BLINDNESS.values(), ids=list(BLINDNESS))
def test_any_two_colours_of_points_differ(matrix):
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen(POINT_COLOURS, matrix), 2)) > 10


@pytest.mark.parametrize("matrix", [np.eye(3), *BLINDNESS.values()])
def test_larger_values_are_lighter(matrix):
    lightness = seen(colour_values(np.linspace(0, 1, 50)), matrix)[:, 0]

    assert (np.diff(lightness) > 0).all()
    assert lightness[-1] - lightness[0] > 60


@pytest.mark.parametrize("background", POINT_COLOURS)
def test_a_number_is_legible_on_its_colour(background):
    def luminance(colour: tuple[int, int, int]) -> float:
        return float(linear(colour) @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(background), luminance(text_colour(background))), reverse=True)
    assert (high + 0.05) / (low + 0.05) > 4.5  # of WCAG 2


def drawn(mark: object, *arguments: object) -> np.ndarray:
    image = Image.new("RGB", (101, 101), PAPER)
    mark(ImageDraw.Draw(image), *arguments)
    return np.asarray(image)


def test_marks_are_centred_have_a_dark_edge_and_two_shapes():
    disc, cross = (drawn(mark, (50, 50), 20, RIGHT) for mark in (draw_disc, draw_cross))

    for mark in (disc, cross):
        for colour in (RIGHT, EDGE):
            y, x = np.nonzero((mark == colour).all(-1))
            assert [x.mean(), y.mean()] == pytest.approx([50, 50], abs=1)
        assert (mark[50, 50] == RIGHT).all()
    assert (disc[50, 60] == RIGHT).all()
    assert (cross[50, 70] == PAPER).all()  # between the arms


@pytest.mark.parametrize("radius", [10, 33.5])
def test_a_ring_has_its_radius(radius):
    ring = drawn(draw_ring, (50, 50), radius, WRONG, 3)

    y, x = np.nonzero((ring == WRONG).all(-1))
    assert np.hypot(x - 50, y - 50) == pytest.approx(radius, abs=2.6)
    assert (ring[50, 50] == PAPER).all()


def test_dashes_lead_from_the_start_and_leave_gaps():
    dashes = drawn(draw_dashes, (10, 50), (90, 50), WRONG, 2)[50]
    on = (dashes == WRONG).all(-1)

    assert on[11]
    assert not on[:9].any()
    assert not on[92:].any()
    assert 0.35 < on[10:91].mean() < 0.65


@pytest.mark.parametrize("stop", [(1e9, 50), (1e9, 1e9), (-1e9, 50), (np.inf, 50), (np.nan, 50)])
def test_a_line_to_a_place_far_outside_ends_with_the_picture(stop):
    dashes = drawn(draw_dashes, (50, 50), stop, WRONG, 2)

    assert (dashes == WRONG).all(-1).any() == np.isfinite(stop).all()
    if stop == (1e9, 50):
        assert np.array_equal(dashes[:, :90], drawn(draw_dashes, (50, 50), (99, 50), WRONG, 2)[:, :90])


def test_a_line_outside_the_picture_is_not_drawn():
    assert (drawn(draw_dashes, (-1e9, 400), (1e9, 400), WRONG, 2) == PAPER).all()


def test_a_bar_has_the_maps_colours_and_height_the_greatest_value_on_top():
    values = np.linspace(-1, 3, 60)[:, None].repeat(40, 1)
    laid, bar = overlay_map(Image.new("RGB", (40, 60), (128, 128, 128)), values, 0.6)

    assert bar.height == laid.height == 60
    np.testing.assert_allclose(np.asarray(bar)[::-1, 3].astype(int), np.asarray(laid)[:, 3], atol=2)


def test_a_colour_bar_shows_its_numbers():
    """Other numbers, other pixels right of the colours; the colours are the same."""
    one, other = (np.asarray(draw_colour_bar(100, low, high)) for low, high in ((0.0, 1.0), (0.0, 0.5)))

    np.testing.assert_array_equal(one[:, :14], other[:, :14])
    assert (one[:30, 18:] != other[:30, 18:]).any()
    assert (one[-30:, 18:] == other[-30:, 18:]).all()


def test_a_map_of_one_value_is_drawn():
    laid, _ = overlay_map(Image.new("RGB", (8, 8)), np.full((8, 8), 0.3), 0.5)

    assert len(laid.getcolors()) == 1


def test_a_grid_has_columns_of_one_width_and_rows_of_the_highest_tile():
    tiles = [Image.new("RGB", size, POINT_COLOURS[i]) for i, size in enumerate([(50, 20), (30, 40), (50, 10)])]

    grid = np.asarray(stack_grid(tiles, 2, 5))

    assert grid.shape == (5 + 40 + 5 + 10 + 5, 5 + 50 + 5 + 50 + 5, 3)
    for colour, (x, y) in zip(POINT_COLOURS, [(5, 5), (60, 5), (5, 50)], strict=False):
        rows, columns = np.nonzero((grid == colour).all(-1))
        assert (columns.min(), rows.min()) == (x, y)


def test_a_long_text_is_shortened_in_its_middle():
    short = shorten_text("a_very_long_folder/and_a_name_0001", 12, 120)

    assert text_width(short, 12) <= 120
    assert short.startswith("a_very")
    assert short.endswith("0001")
    assert shorten_text("cat", 12, 120) == "cat"
