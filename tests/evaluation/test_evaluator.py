"""Evaluation as a whole: what it leaves behind, and that the numbers are what they say."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Trainer
from patch_backbone import Patches
from PIL import Image
from torch import nn
from torch.utils.data import default_collate

from semcorr.core.coords import from_view, to_image
from semcorr.core.types import FeatureMap
from semcorr.data.datamodule import PairDataModule
from semcorr.data.dataset import PairDataset
from semcorr.data.record import PairRecord, build_image_record
from semcorr.engine.build import build_datamodule_and_module
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluate import evaluate
from semcorr.matching.readouts import argmax
from semcorr.metrics.pck import SUBSETS
from semcorr.models.heads.cosine import Cosine
from semcorr.visualization.canvas import RIGHT, WRONG

pytestmark = pytest.mark.integration


def test_a_run_leaves_config_metrics_table_and_picture(config, tiny, tmp_path):
    metrics = evaluate(config("evaluate", *tiny))

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.json", "metrics.csv", "predictions.parquet", "matches.png",
    }  # fmt: skip
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert metrics["images"] == 15
    assert metrics["keypoints"] == pq.read_table(run / "predictions.parquet").num_rows
    assert "weights_sha256" in (run / "config.yaml").read_text()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_every_number_follows_from_the_table(config, tiny, tmp_path, resize):
    """PCK by a loop over the rows of predictions.parquet equals metrics.json exactly."""
    metrics = evaluate(config("evaluate", *tiny, f"data.resize={resize}"))

    rows = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    for subset in SUBSETS:
        for alpha in ("0.05", "0.1", "0.2"):
            per_pair: dict[str, list[bool]] = {}
            for row in rows:
                if subset == "all" or (subset == "geo") == row["ambiguous"]:
                    dx, dy = row["predicted_x"] - row["target_x"], row["predicted_y"] - row["target_y"]
                    hit = (dx * dx + dy * dy) ** 0.5 / row["extent"] <= float(alpha)
                    per_pair.setdefault(row["pair"], []).append(hit)
            images = [sum(hits) / len(hits) for hits in per_pair.values()]
            points = [hit for hits in per_pair.values() for hit in hits]
            assert metrics["pck"][subset]["image"][alpha] == pytest.approx(sum(images) / len(images), abs=1e-12)
            assert metrics["pck"][subset]["point"][alpha] == pytest.approx(sum(points) / len(points), abs=1e-12)


def test_the_table_holds_the_annotation_in_original_pixels(config, tiny, tmp_path, creatures):
    evaluate(config("evaluate", *tiny, "data.resize=letterbox"))

    row = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()[0]
    category, stem = row["target"].split("/")
    annotation = json.loads((creatures / "ImageAnnotation" / category / f"{stem}.json").read_text())
    assert [row["target_x"], row["target_y"]] == pytest.approx(annotation["kps"][str(row["keypoint"])], abs=1e-3)
    x1, y1, x2, y2 = annotation["bndbox"]
    assert row["extent"] == max(x2 - x1, y2 - y1)


class Noise(PairDataModule):
    """Pictures of noise, each paired with itself; 40 keypoints in each."""

    def records(self, split: str) -> list[PairRecord]:
        random = np.random.default_rng(0)
        pairs = []
        for i, (width, height) in enumerate([(96, 64), (64, 96), (80, 80)]):
            path = self.root / f"{i}.png"
            Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
            points = random.uniform(8, [width - 8, height - 8], (40, 2)).tolist()  # away from a letterbox's black
            image = build_image_record(str(i), path, (width, height), points, (0, 0, width, height), path)
            pairs.append(PairRecord(str(i), "noise", image, image, 96.0))
        return pairs


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_identical_images_give_pck_1(tmp_path, resize):
    """Every point is found in its own cell or, midway between two, in the other: within 0.1 * 96 pixels."""
    module = CorrespondenceModule(Patches(), Cosine(), localise=argmax, finetune=lambda backbone: None)
    data = Noise(root=str(tmp_path), size=96, resize=resize, workers=0)

    _trainer().test(module, datamodule=data, verbose=False)

    assert module.result.scores["pck"]["all"]["image"]["0.1"] == 1.0
    rows = module.result.tables["predictions"].to_pylist()
    assert len(rows) == 120
    for row in rows:
        width, height = {"0": (96, 64), "1": (64, 96), "2": (80, 80)}[row["source"]]
        cell = (8 * width / 96, 8 * height / 96) if resize == "squash" else (8 * max(width, height) / 96,) * 2
        assert abs(row["predicted_x"] - row["target_x"]) <= 0.6 * cell[0]
        assert abs(row["predicted_y"] - row["target_y"]) <= 0.6 * cell[1]


def test_each_image_is_encoded_once(config, tiny):
    cfg = config("evaluate", *tiny)
    module, data = build_datamodule_and_module(cfg)
    seen: list[torch.Tensor] = []
    module.backbone.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    _trainer().test(module, datamodule=data, verbose=False)

    assert sum(len(images) for images in seen) == 15


def test_pairs_scored_one_at_a_time_from_pixels_agree(config, tiny):
    """The slow twin: no features kept, no grouping, both images through the backbone for every pair."""
    module, data = build_datamodule_and_module(config("evaluate", *tiny))
    _trainer().test(module, datamodule=data, verbose=False)
    fast = {(row["pair"], row["keypoint"]): row for row in module.result.tables["predictions"].to_pylist()}

    module.eval()
    pairs = PairDataset(data.pairs("test"), data.size, data.resize)
    for i in range(len(pairs)):
        batch = default_collate([pairs[i]])
        with torch.no_grad():
            cells = module.localise(module(batch.source, batch.target))
        found = from_view(to_image(cells, 8), batch.target.scale, batch.target.offset)[0]
        for k in batch.shared[0].nonzero().flatten().tolist():
            row = fast.pop((batch.pair[0], k))
            assert [row["predicted_x"], row["predicted_y"]] == pytest.approx(found[k].tolist(), abs=1e-3)
    assert not fast


def test_matches_are_drawn_at_the_keypoints(config, tiny, tmp_path):
    evaluate(config("evaluate", *tiny))

    picture = Image.open(tmp_path / "run" / "matches.png").convert("RGB")
    counts = {colour: count for count, colour in picture.getcolors(maxcolors=10**7)}
    assert counts[RIGHT] > 500  # more than the legend has
    assert counts[WRONG] > 500


def _trainer():
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip


def test_module_is_a_plain_composition():
    """Any callables of the right kind make a module: nothing asks for a name or a registry."""

    module = CorrespondenceModule(Patches(), head=nn.Identity(), localise=lambda s: s, finetune=lambda b: None)
    assert module.trainable_state_dict() == {}


def test_results_of_an_evaluation_do_not_need_a_folder_made_beforehand(config, tiny, tmp_path):
    evaluate(config("evaluate", *tiny, f"run_dir={tmp_path / 'a' / 'b'}"))
    assert (Path(tmp_path) / "a" / "b" / "metrics.json").is_file()


class Finer(Cosine):
    """Twice as many cells along a side, and as many images adapted as it says."""

    adapted = 0

    def transform(self, maps: FeatureMap) -> FeatureMap:
        self.adapted += len(maps.values)
        return FeatureMap(maps.values.repeat_interleave(2, -1).repeat_interleave(2, -2), maps.stride / 2)


def test_a_head_adapts_every_image_once_and_may_make_the_grid_finer(tmp_path):
    tables = {}
    for head in (Cosine(), Finer()):
        module = CorrespondenceModule(Patches(), head, localise=argmax, finetune=lambda backbone: None)
        _trainer().test(module, datamodule=Noise(root=str(tmp_path), size=96, workers=0), verbose=False)
        tables[head] = [
            (row["predicted_x"], row["predicted_y"]) for row in module.result.tables["predictions"].to_pylist()
        ]

    coarse, fine = map(torch.tensor, tables.values())
    assert head.adapted == 3 + 1  # one, to see whether there is anything to do
    assert 0 < (coarse - fine).abs().median() <= 2  # a quarter of a cell, of which the first of four equals is taken


def test_a_smoke_run_encodes_hardly_any_image(config, tiny):
    metrics = evaluate(config("evaluate", *tiny, "trainer.fast_dev_run=true"))

    assert metrics["pairs"] == 2
    assert metrics["images"] == 3
