"""The overview of a clip: few frames are held of a long one, and every frame has its place in the rows of scores."""

import numpy as np
import pytest
import torch
from PIL import Image

from semcorr.data.pictures import Picture
from semcorr.visualization.canvas import RIGHT, colour_values
from semcorr.visualization.clip_sheet import HIDDEN, TILES, ClipSheet, FrameScores, colour_scores


def frame(score: float, valid: bool = True, annotated: bool = False) -> FrameScores:
    return FrameScores(np.array([score], np.float32), np.array([valid]), np.array([annotated]))


@pytest.mark.parametrize("frames", [1, 5, 25, 400])
def test_few_frames_are_held_of_a_clip_of_any_length(frames):
    sheet = ClipSheet(["nose", "tail"])
    for i in range(frames):
        picture = Picture(Image.new("RGB", (64, 48), (i % 256, 0, 0)), (64, 48), "a")
        sheet.add(
            picture,
            f"{i}.png",
            torch.tensor([[5.0, 6], [7, 8]]),
            torch.rand(2),
            torch.rand(2) > 0.5,
            torch.zeros(2).bool(),
        )
        assert len(sheet.tiles) <= 2 * TILES

    numbers = [number for number, _ in sheet.tiles]
    assert numbers == list(range(0, frames, sheet.step))
    page = sheet.draw()
    assert page.width < 1400
    assert page.height < 1200


def test_every_frame_has_its_columns():
    rows = [frame(0.25), frame(0.5, valid=False), frame(1.0, annotated=True), frame(0.75)]

    (colours,) = colour_scores(rows, 8)

    wished = [colour_values(np.array(0.25)), HIDDEN, RIGHT, colour_values(np.array(0.75))]
    assert np.array_equal(colours, np.repeat(np.array(wished), 2, axis=0))


def test_frames_that_share_a_column_are_averaged_where_they_show_the_keypoint():
    rows = [frame(0.2), frame(0.4), frame(0.9, valid=False)]
    grey = [frame(0.2), frame(0.4, valid=False), frame(0.9, valid=False)]

    (colours,) = colour_scores([*rows, *grey, *rows[:2], frame(1, annotated=True)], 3)

    assert np.array_equal(colours, [colour_values(np.array(0.3)), HIDDEN, RIGHT])


def test_marks_lie_on_their_points_in_the_colour_of_their_keypoint():
    sheet = ClipSheet(["nose"])
    picture = Picture(Image.new("RGB", (320, 240), "white"), (320, 240), "a")
    sheet.add(
        picture, "a.png", torch.tensor([[200.0, 100.0]]), torch.ones(1), torch.ones(1).bool(), torch.zeros(1).bool()
    )
    ((_, tile),) = sheet.tiles

    dark = np.argwhere(np.asarray(tile.convert("L"))[18:] < 60)  # the edge of the disc, and its number

    assert np.abs(dark.mean(0) - (100, 200)).max() < 1
