"""KAP: as a function of similarity maps, of a table, and in a run."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import default_collate

from semcorr.core.coords import from_view, to_image
from semcorr.data.dataset import PairDataset
from semcorr.engine.build import build_datamodule_and_module
from semcorr.evaluate import evaluate
from semcorr.metrics.kap import KAP_ALPHAS, SCHEMA, average_precision, inside_outside, keypoint_average_precision

pytestmark = pytest.mark.integration


def detections(rows: list[tuple]) -> pa.Table:
    """From (pair, visible, inside, outside) at 0.1."""
    names = ("pair", "visible", "inside", "outside", "corner_inside", "corner_outside")
    return pa.Table.from_pylist(
        [
            {"category": "cat", "keypoint": 0, "alpha": 0.1} | dict(zip(names, (*row, *row[-2:]), strict=True))
            for row in rows
        ],
        SCHEMA,
    )


def slow_precision(scored: list[tuple[float, bool]]) -> float:
    """The definition: for every distinct threshold the precision of all at or above it, times the recall gained."""
    total, positives, before = 0.0, sum(hit for _, hit in scored), 0
    for threshold in sorted({score for score, _ in scored}, reverse=True):
        above = [hit for score, hit in scored if score >= threshold]
        total += sum(above) / len(above) * (sum(above) - before) / positives
        before = sum(above)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_agrees_with_its_definition(seed):
    random = np.random.default_rng(seed)
    score, positive = random.integers(0, 12, 40) / 12, random.random(40) < 0.3  # many ties

    assert average_precision(score, positive) == pytest.approx(slow_precision([*zip(score, positive, strict=True)]))


def test_the_order_of_equal_scores_does_not_matter():
    assert average_precision(np.ones(4), np.array([True, False, False, False])) == 0.25
    assert average_precision(np.ones(4), np.array([False, False, False, True])) == 0.25
    assert average_precision(np.ones(4), np.zeros(4, bool)) is None


def test_inside_and_outside_agree_with_a_loop_over_cells():
    torch.manual_seed(0)
    similarity, target = torch.randn(6, 5, 7), torch.rand(6, 2) * 60 - 5
    centres = torch.stack(torch.meshgrid(torch.arange(7) * 8.0, torch.arange(5) * 6.0, indexing="xy"), -1)

    for reach in (0.5, 8.0, 20.0, 500.0):
        inside, outside = inside_outside(similarity, centres, target, reach)

        low, high = similarity.min().item(), similarity.max().item()
        for i in range(6):
            within, beyond = [0.0], [0.0]
            for row in range(5):
                for column in range(7):
                    value = (similarity[i, row, column].item() - low) / (high - low)
                    away = math.dist(target[i].tolist(), (8.0 * column, 6.0 * row))
                    (within if away <= reach else beyond).append(value)
            assert inside[i].item() == pytest.approx(max(within), abs=1e-6)
            assert outside[i].item() == pytest.approx(max(beyond), abs=1e-6)


def test_a_map_without_any_difference_is_all_zeros():
    ones = torch.ones(2, 3, 3)

    inside, outside = inside_outside(ones, torch.zeros(3, 3, 2), torch.zeros(2, 2), 1.0)

    assert inside.tolist() == outside.tolist() == [0.0, 0.0]


def test_kap_by_hand():
    """One pair: a good match (0.9 in, 0.2 out), a bad one (0.4, 0.8), and a point the target does not show (0.1, 0.7).

    Ranked: 0.9 yes, 0.8, 0.7 (its best anywhere), 0.4 yes, 0.2. Precision 1 and 2 / 4, recall a half each: 0.75.
    """
    table = detections([("p", True, 0.9, 0.2), ("p", True, 0.4, 0.8), ("p", False, 0.1, 0.7)])

    assert keypoint_average_precision(table) == {"image": pytest.approx(0.75), "point": pytest.approx(0.75), "pairs": 1}


def test_a_guess_at_a_point_that_is_not_there_costs_whatever_place_it_falls_on():
    near, far = (detections([("p", True, 0.5, 0.1), ("p", False, *guess)]) for guess in ((0.9, 0.1), (0.1, 0.9)))

    assert keypoint_average_precision(near) == keypoint_average_precision(far)
    assert keypoint_average_precision(near)["point"] == 0.5


def test_released_kap_returns_before_its_own_visibility_handling():
    """A regression test: there an invisible keypoint is a positive, near the corner its zeros point to."""
    table = detections([("p", True, 0.5, 0.1), ("p", False, 0.9, 0.2)])

    assert keypoint_average_precision(table)["point"] == 0.5  # 0.9 no, 0.5 yes, 0.1
    assert keypoint_average_precision(table, released=True)["point"] == 1.0  # 0.9 "yes", 0.5 yes, 0.2, 0.1


def test_pairs_without_a_positive_are_left_out_of_the_mean_and_counted_out():
    table = detections([("p", True, 0.5, 0.1), ("q", False, 0.9, 0.2)])

    assert keypoint_average_precision(table) == {"image": 1.0, "point": 0.5, "pairs": 1}


def test_the_order_of_the_rows_does_not_matter():
    random = np.random.default_rng(0)
    rows = [(f"p{i % 9}", bool(random.random() < 0.7), *random.random(2)) for i in range(60)]

    assert keypoint_average_precision(detections(rows)) == keypoint_average_precision(detections(rows[::-1]))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("options", [["head=cosine"], ["head=upsample"], ["data.resize=letterbox"]])
def test_a_run_asks_after_every_keypoint_that_the_source_shows(config, tiny, tmp_path, options):
    """Against pairs one at a time from pixels, and loops over cells."""
    cfg = config("evaluate", *tiny, "kap=true", *options)
    metrics = evaluate(cfg)
    rows = pq.read_table(Path(cfg.run_dir) / "detections.parquet").to_pylist()

    module, data = build_datamodule_and_module(config("evaluate", *tiny, *options))
    module.eval()
    records = data.pairs("test")
    assert len(rows) == len(KAP_ALPHAS) * sum(int(pair.source.visible.sum()) for pair in records)
    assert any(not row["visible"] for row in rows)
    pairs = PairDataset(records, data.size, data.resize)
    found = {(row["pair"], row["keypoint"], row["alpha"]): row for row in rows}
    for i in range(0, len(records), 9):
        batch = default_collate([pairs[i]])
        with torch.no_grad():
            similarity = module(batch.source, batch.target)[0][batch.source.visible[0]]
        low, high = similarity.min(), similarity.max()
        y, x = (torch.arange(n).float() for n in similarity.shape[-2:])
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(1, -1, 2)
        centres = from_view(to_image(cells, data.size / similarity.shape[-1]), batch.target.scale, batch.target.offset)
        ids = batch.source.visible[0].nonzero().flatten().tolist()
        for k, maps in zip(ids, similarity, strict=True):
            values = ((maps - low) / (high - low)).flatten()
            row = found[batch.pair[0], k, 0.1]
            assert row["visible"] == bool(records[i].target.visible[k])
            near = (centres[0] - records[i].target.keypoints[k]).norm(dim=-1) <= 0.1 * records[i].extent
            assert row["inside"] == pytest.approx(values[near].max().item() if near.any() else 0.0, abs=1e-3)
            assert row["outside"] == pytest.approx(values[~near].max().item(), abs=1e-3)
    assert metrics["kap"]["definition"]["0.1"]["pairs"] == metrics["pairs"]


def test_without_being_asked_for_nothing_is_detected(config, tiny):
    cfg = config("evaluate", *tiny)

    assert "kap" not in evaluate(cfg)
    assert not (Path(cfg.run_dir) / "detections.parquet").exists()
