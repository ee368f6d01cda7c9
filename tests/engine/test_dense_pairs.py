"""TSS and Caltech-101: every pixel of small pairs is matched, and the whole program on them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Trainer
from patch_backbone import Patches
from tiny_dense import CELL, write_caltech, write_tss

from semcorr.cli.errors import user_message
from semcorr.cli.sweep.objective import NAMES, select_number
from semcorr.core.errors import UserError
from semcorr.data.caltech101 import Caltech101
from semcorr.data.tss import TSS
from semcorr.engine.dense_pairs import FlowModule, LabelTransferModule
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluate import evaluate
from semcorr.matching.readouts import argmax, window_soft_argmax
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.geometric import Geometric

pytestmark = pytest.mark.integration


def line(name: str, root, *more: str) -> list[str]:
    return [f"data={name}", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu", *more]


def score(kind, data, head=None, localise=argmax):
    module = CorrespondenceModule(Patches(), head or Cosine(), localise=localise, finetune=lambda backbone: None)
    module = kind(module)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(module, datamodule=data, verbose=False)
    return module


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_objects_that_move_whole_cells_are_followed_in_both_directions_and_mirrored(tmp_path, resize):
    result = score(FlowModule, TSS(root=str(write_tss(tmp_path)), size=96, resize=resize, workers=0)).result
    assert result.table["PCK"].to_pylist() == [1.0] * 6
    assert result.scores == {"PCK": 1.0}
    assert list(result.categories) == ["FG3DCar", "JODS", "PASCAL"]


def test_a_flow_between_cells_is_what_a_head_of_warps_says(tmp_path):
    """Half a cell to the right, 4 pixels: objects that move 8 to the right are missed by 4, the others by more."""
    head = Geometric("affine")
    head.affine.linear.bias.data = torch.tensor([0, 0, 2 * 0.5 * CELL / 96, 0, 0, 0])
    data = [TSS(root=str(write_tss(tmp_path)), size=96, workers=0, alpha=alpha / 96) for alpha in (4.1, 3.9)]

    near, far = (score(FlowModule, one, head, window_soft_argmax).result.table["PCK"].to_pylist() for one in data)

    assert near == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]  # of the mirrored pair, both ways lead to the right
    assert far == [0.0] * 6


def test_a_pair_whose_flag_is_wrong_is_not(tmp_path):
    write_tss(tmp_path)
    (tmp_path / "PASCAL/bus/3/flip_gt.txt").write_text("0")
    categories = score(FlowModule, TSS(root=str(tmp_path), size=96, workers=0)).result.categories
    assert categories["FG3DCar"]["PCK"] == 1.0
    assert categories["PASCAL"]["PCK"] < 0.2


def test_the_mean_is_over_groups_and_the_threshold_is_alpha_of_the_longer_side(tmp_path):
    """Image 2 of each pair is image 1: nothing moves, and the error is the true flow, 8, 16 and 8 of 96 pixels."""
    write_tss(tmp_path)
    for folder in ("FG3DCar/car_001", "JODS/horse_1_2", "PASCAL/bus/3"):
        (tmp_path / folder / "flip_gt.txt").write_text("0")
        image = (tmp_path / folder / "image1.png").read_bytes()
        (tmp_path / folder / "image2.png").write_bytes(image)
        (tmp_path / folder / "flow2.flo").write_bytes((tmp_path / folder / "flow1.flo").read_bytes())
        (tmp_path / folder / "mask2.png").write_bytes((tmp_path / folder / "mask1.png").read_bytes())
    means = {
        alpha: score(FlowModule, TSS(root=str(tmp_path), size=96, workers=0, alpha=alpha)).result.scores["PCK"]
        for alpha in (CELL / 96, (CELL + 0.01) / 96, (2 * CELL + 0.01) / 96)
    }
    assert [*means.values()] == [0.0, pytest.approx(2 / 3), 1.0]  # 8 is not below 8


def test_masks_are_carried_with_the_object(tmp_path):
    result = score(LabelTransferModule, Caltech101(root=str(write_caltech(tmp_path)), size=96, workers=0)).result
    assert result.table["IoU"].to_pylist() == [1.0, 1.0]
    assert result.scores == {"LT_ACC": 1.0, "IoU": 1.0}


def test_masks_of_an_object_that_is_not_found_are_scored_by_hand(tmp_path):
    """Both images are the first: each pixel takes its own label, 8 columns beside those of the list's target."""
    write_caltech(tmp_path)
    folder = tmp_path / "101_ObjectCategories/crab"
    (folder / "image_0002.png").write_bytes((folder / "image_0001.png").read_bytes())
    table = score(LabelTransferModule, Caltech101(root=str(tmp_path), size=96, workers=0)).result.table
    assert table["LT_ACC"][0].as_py() == pytest.approx(1 - 2 * 8 * 48 / 96**2)
    assert table["IoU"][0].as_py() == pytest.approx(40 / 56)


def test_a_pair_without_labels_is_named_whatever_its_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(Caltech101, "labels", lambda self, pair: (torch.zeros(96, 96, dtype=torch.uint8),) * 2)
    with pytest.raises(UserError, match=r"image_0002\.png has no label in pair 0001-crab-image_0001-image_0002"):
        score(LabelTransferModule, Caltech101(root=str(write_caltech(tmp_path)), size=96, workers=0))


@pytest.mark.parametrize(
    ("name", "write", "section", "pairs"), [("tss", write_tss, "flow", 6), ("caltech101", write_caltech, "labels", 2)]
)
def test_a_run_leaves_config_metrics_and_table(config, tmp_path, capsys, name, write, section, pairs):
    root = write(tmp_path / "data")
    metrics = evaluate(config("evaluate", *line(name, root)))

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.json", "metrics.csv", "pairs.parquet"}
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert set(metrics["seconds"]) == {"encode", "match", "score"}
    assert (metrics["pairs"], metrics["split"], metrics["protocol"]) == (pairs, f"{name} test", name)
    for objective in NAMES[section]:
        select_number(metrics, objective)
    table = pq.read_table(run / "pairs.parquet")
    assert table.num_rows == pairs
    for key, value in metrics[section].items():
        by_category = [
            np.mean([row[key] for row in table.to_pylist() if row["category"] == c]) for c in metrics["category"]
        ]
        assert value == pytest.approx(np.mean(by_category))
        assert f"test/{key}" in (run / "metrics.csv").read_text()
    assert "mean" in capsys.readouterr().out


def test_a_head_that_compares_both_images_carries_labels_that_cosines_alone_lose(config, tmp_path):
    """Features are of random weights: what a cell's neighbours agree on is right far more often."""
    root = write_caltech(tmp_path / "data")
    alone, both = (
        evaluate(config("evaluate", *line("caltech101", root, f"head={head}", f"run_dir={tmp_path / head}")))["labels"]
        for head in ("cosine", "consensus")
    )
    assert alone["LT_ACC"] < 0.5 < 0.8 < both["LT_ACC"] <= 1
    assert alone["IoU"] < 0.5 < both["IoU"] <= 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.alpha=0", "`data.alpha` must be positive, got 0"),
        ("data.pairs=no.csv", "no.csv does not exist"),
        ("data.extent=box", "`data.extent` must be one of source, target"),
        ("protocol=dift", "`protocol`: TSS has its own"),
        ("data.split=val", "`data.split` must be one of test"),
        ("localise=all", "`localise`: TSS is scored by one readout, got 4"),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_is_allowed(config, tmp_path, option, message):
    root = write_tss(tmp_path / "data")
    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *line("tss", root, option)))
    assert message in (user_message(error.value, "evaluate") or "")


def test_a_flow_without_foreground_is_named(config, tmp_path):
    from PIL import Image

    root = write_tss(tmp_path / "data")
    Image.new("L", (96, 96)).save(root / "JODS/horse_1_2/mask1.png")
    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *line("tss", root)))
    assert "flow1.flo has no flow on the foreground of mask1.png" in (user_message(error.value, "evaluate") or "")
    assert torch.is_grad_enabled()
