"""Similarity maps as pictures: each of its own query, over its own pair, every mark where it belongs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning import LightningModule
from PIL import Image

from semcorr.data.datamodule import PairDataModule
from semcorr.data.record import PairRecord, build_image_record
from semcorr.data.views import fit_to_square
from semcorr.metrics.predictions import Predictions, load_predictions
from semcorr.visualization.similarity import GAP, PREDICTION, QUERY, SIDE, TRUTH, crop_to_image, plot_similarity_page

SIZE = (100, 50)
COLOURS = {"one": (0, 0, 150), "two": (0, 150, 0)}  # of the sources
SOURCES = [[(20.0, 10.0), (70.0, 30.0)], [(60.0, 12.0), (30.0, 40.0)]]  # keypoints, by pair
TARGETS = [[(80.0, 40.0), (10.0, 40.0)], [(20.0, 12.0), (85.0, 10.0)]]
PREDICTED = [[(45.0, 25.0), (10.0, 40.0)], [(20.0, 12.0), (50.0, 35.0)]]
PEAKS = [(1, 1), (1, 6)]  # row and column of the most similar of 8 x 8 cells, by keypoint


class Peaked(LightningModule):
    """Each keypoint is like one cell."""

    def forward(self, *_: Any) -> torch.Tensor:
        similarity = torch.zeros(1, 2, 8, 8)
        for k, (row, column) in enumerate(PEAKS):
            similarity[0, k, row, column] = 1
        return similarity


class Pairs(PairDataModule):
    def records(self, split: str) -> list[PairRecord]:
        return []


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, PairRecord]:
    found = {}
    for i, (name, colour) in enumerate(COLOURS.items()):
        ends = []
        for side, points, fill in (("source", SOURCES[i], colour), ("target", TARGETS[i], (100, 100, 100))):
            path = tmp_path / f"{name}_{side}.png"
            Image.new("RGB", SIZE, fill).save(path)
            ends.append(build_image_record(path.stem, path, SIZE, points, (0, 0, *SIZE), path))
        found[name] = PairRecord(name, "cat", ends[0], ends[1], 100.0)
    return found


def rows() -> Predictions:
    """One query is far off and ambiguous, the other not."""
    each = [
        {
            "pair": name, "keypoint": k, "source": f"{name}_source", "target": f"{name}_target", "category": "cat",
            "predicted_x": PREDICTED[i][k][0], "predicted_y": PREDICTED[i][k][1], "target_x": TARGETS[i][k][0],
            "target_y": TARGETS[i][k][1], "extent": 100.0, "ambiguous": (i, k) == (0, 0), "error": error,
        }
        for i, name, k, error in ((0, "one", 0, 0.9), (0, "one", 1, 0.0), (1, "two", 1, 0.3), (1, "two", 0, 0.5))
    ]  # fmt: skip
    return load_predictions(pa.Table.from_pylist(each))


def middle(mask: np.ndarray) -> np.ndarray:
    """Of a ring or a cross: of its extremes."""
    y, x = np.nonzero(mask)
    return np.array([x.min() + x.max(), y.min() + y.max()]) / 2


def test_a_page_shows_each_query_its_map_its_truth_and_its_match(pairs):
    data = Pairs(root=".", size=64)

    sheet = np.asarray(plot_similarity_page(Peaked(), data, pairs, rows())).astype(int)

    height = SIDE * SIZE[1] // SIZE[0]
    assert sheet.shape[0] == 2 * (height + GAP) + GAP
    assert sheet.shape[1] > 2 * (SIDE + GAP) + GAP + 40  # the colour bar and its numbers
    zoom = SIDE / SIZE[0]
    for place, (i, k) in enumerate([(0, 0), (1, 1)]):
        tile = sheet[GAP + place * (height + GAP) :][:height, GAP:]
        left, right, bar = tile[:, :SIDE], tile[:, SIDE + GAP :][:, :SIDE], tile[:, 2 * (SIDE + GAP) :]
        assert tuple(left[-1, -1]) == COLOURS[["one", "two"][i]]
        for half, colour, point in ((left, QUERY, SOURCES), (right, TRUTH, TARGETS), (right, PREDICTION, PREDICTED)):
            at = middle((half == colour).all(-1))
            np.testing.assert_allclose(at, (np.array(point[i][k]) + 0.5) * zoom, atol=1.5)
        hottest = middle(np.abs(right - bar[:2, :8].mean((0, 1))).max(-1) < 12)  # the colour of the greatest value
        cell = np.array([SIDE, height]) / 8
        np.testing.assert_allclose(hottest, (np.array(PEAKS[k][::-1]) + 0.5) * cell, atol=3)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "corner+8"])
def test_a_map_is_laid_over_the_image_alone_and_in_its_aspect(resize):
    """A map that is 1 over the image and 0 over the padding is 1 all over; a ramp goes from border to border."""
    fit = fit_to_square((200, 100), 64, resize)
    (x, y), (w, h) = fit.offset, fit.size
    similarity = torch.zeros(64, 64)
    similarity[y : y + h, x : x + w] = torch.linspace(1, 2, w)

    values = crop_to_image(similarity, fit, 64, (100, 50))

    assert values.shape == (50, 100)
    np.testing.assert_allclose(values, np.broadcast_to(np.linspace(1, 2, 100), (50, 100)), atol=0.02)
