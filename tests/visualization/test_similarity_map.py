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
from semcorr.metrics.predictions import Predictions, load_predictions
from semcorr.visualization.similarity import FOUND, QUERY, SIDE, TRUTH, plot_similarity_page

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

    assert sheet.shape == (2 * SIDE + 4, 2 * SIDE + 4, 3)
    zoom = SIDE / np.array(SIZE)
    for place, (i, k) in enumerate([(0, 0), (1, 1)]):
        tile = sheet[place * (SIDE + 4) :][:SIDE]
        left, right = tile[:, :SIDE], tile[:, SIDE + 4 :]
        assert tuple(left[-1, -1]) == list(COLOURS.values())[i]
        for half, colour, point in ((left, QUERY, SOURCES), (right, TRUTH, TARGETS), (right, FOUND, PREDICTED)):
            at = middle((half == colour).all(-1))
            np.testing.assert_allclose(at, (np.array(point[i][k]) + 0.5) * zoom, atol=1.5)
        warm = right[..., 0] - right[..., 2]
        hottest = middle((warm > 100) & (warm < 130))  # of what is no mark
        np.testing.assert_allclose(hottest, (np.array(PEAKS[k][::-1]) + 0.5) * SIDE / 8, atol=3)
