"""matches.png: aligned tiles, rings of the metric's tolerance around the truth, right and wrong by colour and shape."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from semcorr.data.record import PairRecord, build_image_record
from semcorr.metrics.pck import Tolerance
from semcorr.visualization import predictions
from semcorr.visualization.canvas import RIGHT, WRONG
from semcorr.visualization.predictions import GAP, HEAD, MARGIN, SIDE, is_within, plot_pair, plot_predictions

EXTENT = 60.0
SIZES = [((100, 50), (60, 90)), ((40, 80), (90, 90)), ((50, 50), (200, 100))]  # of sources and targets
GREY = (128, 128, 128)


@pytest.fixture
def pairs(tmp_path: Path) -> list[PairRecord]:
    made = []
    for i, sizes in enumerate(SIZES):
        ends = []
        for side, size in zip(("source", "target"), sizes, strict=True):
            path = tmp_path / f"{side}{i}.png"
            Image.new("RGB", size, GREY).save(path)
            ends.append(build_image_record(path.stem, path, size, [(20.0, 20.0)], (0, 0, *size), path))
        made.append(PairRecord(str(i), "cat", ends[0], ends[1], EXTENT))
    return made


def row(pair: int, predicted: tuple[float, float], target: tuple[float, float] = (30.0, 25.0)) -> dict[str, object]:
    error = float(np.hypot(*np.subtract(predicted, target))) / EXTENT
    return {
        "pair": str(pair), "source_x": 20.0, "source_y": 20.0, "predicted_x": predicted[0], "predicted_y": predicted[1],
        "target_x": target[0], "target_y": target[1], "extent": EXTENT, "error": error,
    }  # fmt: skip


def images_of(picture: np.ndarray) -> list[tuple[int, int, int, int]]:
    """x, y, width and height of the grey images, by their extremes in either half."""
    found = []
    for left, right in ((0, SIDE), (SIDE + GAP, 2 * SIDE + GAP)):
        y, x = np.nonzero((picture[:, left:right] == GREY).all(-1))
        found.append((left + x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1))
    return found


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_images_keep_their_aspect_are_large_and_apart(pairs, index):
    picture = np.asarray(plot_pair(pairs[index], [], 0.1))

    assert picture.shape[1] == 2 * SIDE + GAP
    for (x, _, width, height), size in zip(images_of(picture), SIZES[index], strict=True):
        assert max(width, height) == SIDE >= 320
        assert width / height == pytest.approx(size[0] / size[1], rel=0.01)
        assert x + width / 2 == pytest.approx(SIDE / 2 if x < SIDE else SIDE + GAP + SIDE / 2, abs=1)
    assert (picture[:, SIDE : SIDE + GAP] == 255).all()


@pytest.mark.parametrize(("predicted", "colour"), [((30.0, 30.0), RIGHT), ((31.0, 31.0), RIGHT), ((40.0, 60.0), WRONG)])
def test_a_ring_of_the_tolerance_is_around_the_truth_in_the_colour_of_the_result(pairs, predicted, colour):
    """The target is 60 x 90 pixels, displayed at four times the size."""
    picture = np.asarray(plot_pair(pairs[0], [row(0, predicted)], 0.12)).astype(int)

    x, y, width, _ = images_of(picture)[1]
    scale = width / 60
    centre = x + 30.5 * scale, y + 25.5 * scale
    angles = np.linspace(np.pi, 2 * np.pi, 40)  # the upper half, where no line crosses

    def share_along(radius: float, wanted: tuple[int, int, int]) -> float:
        """The share of directions in which a pixel within one of this radius has a colour."""
        near = [
            [picture[round(centre[1] + r * np.sin(a)), round(centre[0] + r * np.cos(a))] for a in angles]
            for r in (radius - 1, radius, radius + 1)
        ]
        return float(np.mean((np.abs(np.array(near) - wanted).max(-1) < 40).any(0)))

    reach = 0.12 * EXTENT * scale
    assert share_along(reach, colour) > 0.95
    assert share_along(reach - 6, colour) < 0.2
    assert share_along(reach + 6, colour) < 0.2


def test_a_right_match_is_a_disc_and_a_wrong_one_a_cross(pairs):
    """In both images."""
    for predicted, colour, sides in (((30.0, 27.0), RIGHT, True), ((40.0, 60.0), WRONG, False)):
        picture = np.asarray(plot_pair(pairs[0], [row(0, predicted)], 0.1)).astype(int)
        (x, y, width, _), (u, v, _, _) = images_of(picture)
        places = [
            (x + 20.5 * width / 100, y + 20.5 * width / 100),
            (u + (predicted[0] + 0.5) * 4, v + (predicted[1] + 0.5) * 4),
        ]
        for a, b in places:
            assert np.abs(picture[int(b), int(a)] - colour).max() < 40
            above = picture[int(b) - 3, int(a)]  # within a disc, between the arms of a cross
            assert (np.abs(above - colour).max() < 40) == sides


def test_tiles_are_aligned_below_titles_and_a_legend(pairs):
    table = pa.Table.from_pylist([row(0, (30.0, 30.0)), row(1, (80.0, 80.0)), row(2, (30.0, 30.0))])

    page = np.asarray(plot_predictions(pairs, table, 0.1))

    tile = 2 * SIDE + GAP
    assert page.shape[1] == 2 * tile + 3 * MARGIN
    grey = (page == GREY).all(-1)
    starts = np.flatnonzero(np.diff(np.r_[0, grey[:, : MARGIN + tile].any(1)]) == 1)  # of rows, on the left
    assert len(starts) == 2
    right = np.flatnonzero(grey[:, MARGIN + tile :].any(1))[0]
    assert abs(int(right) - int(starts[0])) <= 1  # the square target of the second tile is as high as its row
    for top in starts:  # a title above the images
        assert (page[top - HEAD : top - 5, MARGIN : MARGIN + 200].min(-1) < 100).any()
    legend = page[: starts[0] - HEAD - MARGIN]
    assert all((np.abs(legend.astype(int) - colour).max(-1) < 10).any() for colour in (RIGHT, WRONG))


def test_a_title_has_category_pck_and_threshold(pairs, monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(predictions, "draw_text_line", lambda draw, place, text, *_, **__: written.append(text))
    table = pa.Table.from_pylist([row(0, (30.0, 30.0)), row(0, (80.0, 80.0)), row(0, (31.0, 27.0))])

    plot_predictions(pairs[:2], table, 0.1)

    assert "cat: PCK@0.1 66.7 % (2 of 3)" in written
    assert "source0 to target0" in written
    assert "cat: no keypoints" in written
    assert any("at most 0.1 of the extent" in text for text in written)


def test_an_error_of_alpha_is_right_unless_the_protocol_is_strict():
    assert is_within({"error": 0.1}, 0.1)
    assert not is_within({"error": 0.1}, 0.1, Tolerance(strict=True))
    assert is_within({"error": 0.1 + 1e-9}, 0.1, Tolerance(single=True))
    assert not is_within({"error": 0.1 + 1e-9}, 0.1)


def test_a_mirrored_record_is_drawn_mirrored(pairs, tmp_path):
    halves = np.zeros((50, 100, 3), np.uint8)
    halves[:, :50] = 255
    Image.fromarray(halves).save(tmp_path / "source0.png")
    pair = pairs[0]._replace(source=pairs[0].source._replace(mirrored=True))

    picture = np.asarray(plot_pair(pair, [], 0.1))

    middle = picture[len(picture) // 2]
    assert middle[10].max() < 20
    assert middle[SIDE - 10].min() > 235
