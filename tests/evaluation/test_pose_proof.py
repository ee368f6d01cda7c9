"""That features of a real network tell poses apart, well enough to gain from it; on drawn creatures."""

import json
import runpy

import pyarrow.parquet as pq
import pytest
from repository import ROOT

from semcorr.data.synthetic import write_synthetic
from semcorr.evaluate import evaluate

SCRIPT = ROOT / "scripts" / "predict_poses.py"
DRAWING = ["data.train=24", "data.val=1", "data.test=40"]
NETWORK = ["data=synthetic", *DRAWING, "backbone=efficientnet_lite0", "backbone.size=320", "trainer=cpu"]


@pytest.fixture(scope="module")
def herd(tmp_path_factory):
    """Five of each azimuth and category to be scored, three to be templates."""
    return write_synthetic(tmp_path_factory.mktemp("data") / "herd", images={"trn": 24, "val": 1, "test": 40})


def mirrored_geo(run, herd):
    """Geometry-aware PCK@0.1 per image, of pairs whose azimuths are each other's mirror images."""
    azimuth = {
        f"{path.parent.name}/{path.stem}": json.loads(path.read_text())["azimuth_id"]
        for path in (herd / "ImageAnnotation").glob("*/*.json")
    }
    hits: dict[str, list[bool]] = {}
    for row in pq.read_table(run / "predictions.parquet").to_pylist():
        here, there = azimuth[row["source"]], azimuth[row["target"]]
        if row["ambiguous"] and here != there and (here + there) % 8 == 0:
            dx, dy = row["predicted_x"] - row["target_x"], row["predicted_y"] - row["target_y"]
            hits.setdefault(row["pair"], []).append((dx * dx + dy * dy) ** 0.5 <= 0.1 * row["extent"])
    assert len(hits) > 700
    return sum(sum(one) / len(one) for one in hits.values()) / len(hits)


@pytest.mark.slow
def test_alignment_gains_five_points_where_poses_differ_by_a_mirror(config, herd, tmp_path):
    scores = {}
    for pose in ("none", "adaptive"):
        run = tmp_path / pose
        evaluate(
            config("evaluate", *NETWORK, f"data.root={herd}", "localise.window=7", f"pose={pose}", f"run_dir={run}")
        )
        scores[pose] = mirrored_geo(run, herd)

    assert scores["adaptive"] >= scores["none"] + 0.05


@pytest.mark.slow
def test_pose_prediction_beats_chance_by_twenty_five_points(herd):
    scores = runpy.run_path(str(SCRIPT))["main"]([*NETWORK, f"data.root={herd}"])

    accuracy, images = scores["all four"]
    assert images == 100
    assert accuracy >= 0.25 + 0.25
