"""DAVIS 2017: masks propagated through small videos, and the whole program on them."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra.utils import get_object
from lightning import Trainer
from omegaconf import OmegaConf
from patch_backbone import Patches
from saved_runs import save_run
from tiny_davis import drifting, still, write_davis

from semcorr.cli.compose import compose_config, find_own_protocol, merge_checkpoint_config
from semcorr.cli.errors import user_message
from semcorr.cli.sweep.objective import NAMES, check_objective, select_number
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.davis import DAVIS
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.views import fit_to_square
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.segmentation import SegmentationModule, labels_of_cells, masks_of_labels
from semcorr.evaluate import evaluate
from semcorr.matching.readouts import argmax
from semcorr.metrics.sections import HEADLINES
from semcorr.metrics.segmentation import boundary_accuracy, region_similarity
from semcorr.models.heads.cosine import Cosine

pytestmark = pytest.mark.integration


def line(root, *more: str) -> list[str]:
    return ["data=davis", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu", *more]


def propagate(root, size: int = 96, **options) -> SegmentationModule:
    module = SegmentationModule(
        CorrespondenceModule(Patches(), Cosine(), localise=argmax, finetune=lambda backbone: None)
    )
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    data = DAVIS(root=str(root), size=size, split="val", workers=0, **options)
    trainer.test(module, datamodule=data, verbose=False)
    return module


def test_cells_take_the_label_of_the_pixel_at_their_centre():
    """12 x 8 pixels letterboxed into 24: two view pixels a pixel, 4 rows of padding above, cells of 4."""
    fit = fit_to_square((12, 8), 24, "letterbox")
    mask = torch.zeros(8, 12, dtype=torch.uint8)
    mask[2:4, 4:6] = 2
    labels = labels_of_cells(mask, 2, fit, FeatureMap(torch.zeros(1, 3, 6, 6), 4))
    expected = torch.zeros(6, 6)
    expected[2, 2] = 1
    assert labels[2].tolist() == expected.tolist()
    assert (labels.sum(0) == 1).all()
    assert not labels[1].any()


@pytest.mark.parametrize("resize", ["squash", "letterbox", "corner"])
def test_labels_of_cells_come_back_as_the_mask_they_were_made_of(resize):
    """Whole cells of a wide frame, through the square and back: at most the enlargement's rounded corners are lost."""
    fit = fit_to_square((96, 48), 96, resize)
    mask = torch.zeros(48, 96, dtype=torch.uint8)
    mask[16:40, 16:64] = 1
    labels = labels_of_cells(mask, 1, fit, FeatureMap(torch.zeros(1, 3, 24, 24), 4))
    back = masks_of_labels(labels, fit, 96, (96, 48))
    assert back.shape == mask.shape
    assert (back != mask).sum() <= 8


def enlarged_scores(masks) -> list[tuple[float, float]]:
    """J and F of each object and frame if all labels of cells were right: what enlarging them to pixels leaves."""
    fit, cells = fit_to_square((96, 96), 96, "squash"), FeatureMap(torch.zeros(1, 1, 12, 12), 8)
    scores = []
    for mask in map(torch.from_numpy, masks[1:-1]):
        objects = int(masks[0].max())
        best = masks_of_labels(labels_of_cells(mask, objects, fit, cells), fit, 96, (96, 96))
        for k in range(1, objects + 1):
            scores.append(tuple(float(f(best == k, mask == k)) for f in (region_similarity, boundary_accuracy)))
    return scores


def test_what_drifts_whole_cells_is_followed(tmp_path):
    """Two objects move a cell a frame. With the nearest cell alone labels stay exact, until they are enlarged."""
    write_davis(tmp_path, drift=drifting(), still=still())
    result = propagate(tmp_path, neighbours=1).result
    assert {video: list(objects) for video, objects in result.videos.items()} == {"drift": ["1", "2"], "still": ["1"]}
    expected = [np.mean(enlarged_scores(masks), axis=0) for _, masks in (drifting(), drifting(), still())]
    assert [result.scores[key] for key in "JF"] == pytest.approx(np.mean(expected, axis=0), abs=1e-12)
    assert result.scores["J"] > 0.9
    assert result.table.num_rows == 2 * 3 + 1 * 2  # neither the first nor the last frame


def test_a_radius_shorter_than_the_motion_loses_the_object(tmp_path):
    write_davis(tmp_path, fast=drifting(frames=4, step=16))
    near, far = (propagate(tmp_path, neighbours=1, radius=radius, previous=1).result.scores["J"] for radius in (1, 2))
    assert near < 0.6 < 0.9 < far


def test_labels_come_from_the_first_and_the_previous_frames(tmp_path):
    """With `previous=0` only the first frame is looked at: after two frames the object is 4 cells away."""
    write_davis(tmp_path, drift=drifting(frames=6))
    scores = {p: propagate(tmp_path, neighbours=1, radius=1, previous=p).result.scores["J"] for p in (0, 1)}
    assert scores[0] < 0.7 < 0.9 < scores[1]


def test_a_run_leaves_config_metrics_table_and_picture(config, tmp_path, capsys):
    root = write_davis(tmp_path / "davis", drift=drifting(), still=still())
    metrics = evaluate(config("evaluate", *line(root)))

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.json", "metrics.csv", "masks.parquet", "masks.png",
    }  # fmt: skip
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert set(metrics["segmentation"]) == {"JF", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay"}
    assert (metrics["videos"], metrics["objects"], metrics["frames"]) == (2, 3, 9)
    assert metrics["split"] == "davis val"
    rows = pq.read_table(run / "masks.parquet").to_pylist()
    by_object = {}
    for row in rows:
        by_object.setdefault((row["video"], row["object"]), []).append(row["J"])
    mean = np.mean([np.mean(values) for values in by_object.values()])
    assert metrics["segmentation"]["J"] == pytest.approx(mean, abs=1e-12)
    for name in NAMES["segmentation"]:  # an objective may be any of them
        select_number(metrics, name)
    assert "test/JF" in (run / "metrics.csv").read_text()
    assert "J&F" in capsys.readouterr().out


def test_videos_that_were_not_scored_are_not_counted(config, tmp_path, capsys):
    root = write_davis(tmp_path / "davis", drift=drifting(), still=still())
    metrics = evaluate(config("evaluate", *line(root, "++trainer.limit_test_batches=1")))
    assert [*metrics["video"]] == ["drift"]
    assert (metrics["videos"], metrics["objects"], metrics["frames"]) == (1, 2, 5)
    assert "of 1 videos" in " ".join(capsys.readouterr().out.split())


def test_half_precision_agrees_but_for_rounding(config, tmp_path, monkeypatch):
    own, seen = SegmentationModule.encode, {}

    def encode(self, *args):
        return seen.setdefault(self.trainer.precision, own(self, *args))

    monkeypatch.setattr(SegmentationModule, "encode", encode)
    root = write_davis(tmp_path / "davis", drift=drifting())
    full, half = (
        evaluate(config("evaluate", *line(root, f"trainer.precision={precision}", f"run_dir={tmp_path / precision}")))
        for precision in ("32-true", "bf16-mixed")
    )
    assert half["segmentation"]["JF"] == pytest.approx(full["segmentation"]["JF"], abs=0.05)
    apart = (seen["bf16-mixed"].values - seen["32-true"].values).abs().max()
    assert 0 < apart < 0.05 * seen["32-true"].values.abs().max()


def test_objectives_of_masks_are_known_before_anything_runs():
    for name in ("segmentation.JF", "video.drift.J", "labels.IoU", "flow.PCK"):
        check_objective(name)
    with pytest.raises(UserError, match=r"no number segmentation\.jf\. Did you mean segmentation"):
        check_objective("segmentation.jf")


def test_every_benchmark_without_pairs_of_keypoints_has_a_protocol_of_its_own():
    """A checkpoint's protocol is not brought along to them."""
    targets = {OmegaConf.load(path).get("_target_") for path in (conf_dir() / "data").glob("*.yaml")} - {None}
    classes = {target: get_object(target) for target in targets}
    own = {target: find_own_protocol(OmegaConf.create({"_target_": target})) for target in targets}
    assert {target: each for target, each in own.items() if each} == {
        target: each
        for target, each in classes.items()
        if isinstance(each, type) and issubclass(each, EvaluationBenchmark)
    }
    assert {each.section for each in own.values() if each} == {*HEADLINES}


class OwnBenchmark(DAVIS):
    """A plug-in's."""


def test_a_checkpoint_brings_no_protocol_to_a_plug_in_s_benchmark_that_has_its_own(config, tiny, tmp_path):
    save_run(config("train", *tiny, "protocol=geoaware"), tmp_path / "run")
    typed = [f"checkpoint={tmp_path / 'run'}", "data=davis", f"data._target_={__name__}.OwnBenchmark"]

    cfg = merge_checkpoint_config(config("evaluate", *typed), typed)

    assert cfg.protocol.name == "semcorr"
    assert cfg.localise._target_ != "semcorr.matching.readouts.ProtocolReadout"


@pytest.mark.parametrize("typed", ["localise=argmax", "localise=window_9", "localise=all", "localise=[argmax,soft]"])
def test_a_readout_that_would_change_nothing_is_refused(tmp_path, typed):
    with pytest.raises(UserError, match=r"`localise[\w.]*`: davis has no readout, so it would change nothing"):
        compose_config("evaluate", [*line(tmp_path), typed])
    compose_config("evaluate", ["data=tss", "backbone=tiny", typed])


def test_readouts_that_a_checkpoint_brings_along_are_no_hindrance(config, tiny, tmp_path):
    root, metrics = write_davis(tmp_path / "davis", still=still()), {}
    for name in ("all", "argmax"):
        save_run(config("train", *tiny, f"localise={name}"), tmp_path / "trained" / name)
        typed = [*line(root), f"checkpoint={tmp_path / 'trained' / name}", f"run_dir={tmp_path / name}"]

        cfg = merge_checkpoint_config(config("evaluate", *typed), typed)

        assert len(cfg.localise.get("rules", ["one"])) == {"all": 4, "argmax": 1}[name]
        cfg.checkpoint = None  # there are no weights
        metrics[name] = evaluate(cfg)
    assert metrics["all"]["segmentation"] == metrics["argmax"]["segmentation"]


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_metrics(tmp_path):
    root = write_davis(tmp_path / "davis", drift=drifting(), still=still(), more=drifting(4))
    common = [option for option in line(root) if option != "trainer=cpu"]
    runs = {"one": ["trainer=cpu"], "two": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]}
    metrics = {}
    for name, options in runs.items():
        options += ["trainer.precision=32-true", f"run_dir={tmp_path / name}"]
        command = [sys.executable, "-m", "semcorr.evaluate", *common, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        metrics[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert metrics[name].pop("seconds")
    assert metrics["one"] == metrics["two"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.neighbours=0", "`data.neighbours` must be"),
        ("data.radius=-1", "`data.radius` must be"),
        ("data.temperature=0", "`data.temperature` must be positive, got 0"),
        ("data.previous=few", "`data.previous`"),
        ("data.resolution=../480p", "`data.resolution` names '../480p'"),
        ("data.split=test", "`data.split` must be one of val, train"),
        ("protocol=dift", "`protocol`: DAVIS has its own"),
        ("head=consensus", "`head`: labels are propagated by features of single frames"),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_is_allowed(config, tmp_path, option, message):
    root = write_davis(tmp_path / "davis", still=still())
    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *line(root, option)))
    assert message in (user_message(error.value, "evaluate") or "")
