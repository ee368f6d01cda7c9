"""TAP-Vid-DAVIS: what the backbone sees, and the whole program on small videos."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Trainer
from patch_backbone import Patches
from PIL import Image
from tiny_tapvid import moving_square, panning, static, write

from semcorr.cli.compose import merge_checkpoint_config
from semcorr.cli.errors import user_message
from semcorr.core.errors import UserError
from semcorr.data.tapvid import TapVid
from semcorr.engine import tracking
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.tracking import TrackingModule, split_queries
from semcorr.evaluate import evaluate
from semcorr.matching.readouts import argmax
from semcorr.models.heads.cosine import Cosine
from semcorr.train import train

pytestmark = pytest.mark.integration


@pytest.fixture
def davis(tmp_path) -> Path:
    return write(tmp_path / "davis", square=moving_square(), another=moving_square(7, seed=1), still=static())


def line(root: Path, *more: str) -> list[str]:
    return ["data=tapvid_davis", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu", *more]


# -- what the backbone sees --


def test_frames_are_resized_to_256_first_unless_native(davis):
    official, native = (TapVid(str(davis), size=64, workers=0, frames=side, encode_batch=8) for side in (256, "native"))
    frame = Image.fromarray(moving_square()["video"][2])
    first = frame.resize((256, 256), Image.Resampling.LANCZOS)
    for data, expected in ((official, first), (native, frame)):
        seen = next(iter(data.images("square")))[2]
        expected = np.asarray(expected.resize((64, 64), Image.Resampling.BICUBIC))
        assert np.array_equal(seen.numpy().transpose(1, 2, 0), expected)  # in bytes


def follow(root: Path, cycle: float | None = None, head: Cosine | None = None, **options) -> TrackingModule:
    matcher = CorrespondenceModule(Patches(), head or Cosine(), localise=argmax, finetune=lambda backbone: None)
    module = TrackingModule(matcher, cycle)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    data = TapVid(str(root), size=96, workers=0, frames="native", **options)
    trainer.test(module, datamodule=data, verbose=False)
    return module


@pytest.mark.parametrize("query", ["first", "strided"])
@pytest.mark.parametrize(("height", "width", "resize"), [(96, 96, "squash"), (64, 96, "letterbox")])
def test_points_are_found_exactly_where_they_moved_to(tmp_path, height, width, resize, query):
    """One cell a frame, from centre to centre: any half pixel in the coordinates would show."""
    write(tmp_path, noise=panning(height, width))

    module = follow(tmp_path, query=query, resize=resize)

    assert module.result.scores["delta_avg"] == 1.0
    for row in module.result.table.to_pylist():
        if not row["true_occluded"]:
            assert [row["predicted_x"], row["predicted_y"]] == pytest.approx([row["true_x"], row["true_y"]], abs=1e-3)
            assert row["score"] == pytest.approx(1.0, abs=1e-5)


def returns(video: np.ndarray, start: int, end: int, cell: int) -> bool:
    """The most similar patch of frame `end` has `cell` of frame `start` as its own most similar patch."""
    a, b = (video[t].reshape(12, 8, 12, 8, 3).swapaxes(1, 2).reshape(144, -1) / 255 - 0.5 for t in (start, end))
    a, b = (patches / np.linalg.norm(patches, axis=1, keepdims=True) for patches in (a, b))
    return bool((a @ b[(b @ a[cell]).argmax()]).argmax() == cell)


@pytest.mark.parametrize("query", ["first", "strided"])
def test_a_point_is_called_hidden_unless_it_returns_to_its_query(tmp_path, query):
    """What left the frame is matched to something else, whose own best match is elsewhere, but for chance."""
    video = panning(96, 96)
    write(tmp_path, noise=video)

    always, checked = (follow(tmp_path, cycle, query=query) for cycle in (None, 1.0))

    hidden = [row["true_occluded"] for row in always.result.table.to_pylist()]
    assert always.result.scores["OA"] == 1 - sum(hidden) / len(hidden)
    assert not any(row["predicted_occluded"] for row in always.result.table.to_pylist())
    for row in checked.result.table.to_pylist():
        cell = int(row["query_y"] / 256 * 12) * 12 + int(row["query_x"] / 256 * 12)
        assert row["predicted_occluded"] == (not returns(video["video"], row["query_frame"], row["frame"], cell))
        assert row["true_occluded"] or not row["predicted_occluded"]
    assert checked.result.scores["OA"] > 0.95
    assert checked.result.scores["AJ"] > always.result.scores["AJ"]


def test_small_chunks_match_as_large_ones(tmp_path, monkeypatch):
    write(tmp_path, noise=panning(96, 96), square=moving_square())
    whole = follow(tmp_path, 4.0)
    monkeypatch.setattr("semcorr.engine.tracking.POINTS", 5)
    monkeypatch.setattr("semcorr.engine.tracking.VALUES", 2 * 200 * 144)

    parts = follow(tmp_path, 4.0)

    assert parts.result.scores == whole.result.scores
    queries = TapVid(str(tmp_path), size=96).tracks("noise").queries
    found = torch.zeros_like(queries.evaluated).int()
    for _, rows, targets in split_queries(queries, 3):
        assert len(rows) <= 5
        assert len(targets) <= 3
        found[rows[:, None], targets] += 1
    assert torch.equal(found == 1, queries.evaluated)


# -- the program --


@pytest.mark.parametrize("query", ["first", "strided"])
def test_nothing_moves_and_every_point_stays(config, tmp_path, query):
    root = write(tmp_path / "still", still=static())
    metrics = evaluate(config("evaluate", *line(root, "localise=argmax", f"data.query={query}")))
    assert metrics["tracking"]["delta_avg"] == metrics["tracking"]["AJ"] == metrics["tracking"]["OA"] == 1.0


def test_a_run_leaves_config_metrics_table_and_picture(config, davis, tmp_path, capsys):
    metrics = evaluate(config("evaluate", *line(davis, "data.occlusion=cycle", "data.query=strided")))

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.json", "metrics.csv", "predictions.parquet", "tracks.png",
    }  # fmt: skip
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert set(metrics["tracking"]) == {"delta_avg", "OA", "AJ", "delta", "jaccard"}
    assert list(metrics["video"]) == ["another", "square", "still"]
    assert (metrics["videos"], metrics["frames"]) == (3, 6 + 7 + 6)
    assert metrics["queries"] == 2 * (4 + 3) + 2 * 36  # frame 0 has one of the square's points hidden
    assert (metrics["query_mode"], metrics["occlusion"]) == ("strided", "cycle(threshold=8)")
    mean = sum(video["AJ"] for video in metrics["video"].values()) / 3
    assert metrics["tracking"]["AJ"] == pytest.approx(mean, abs=1e-12)
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    assert len(rows) == 7 * 5 + 7 * 6 + 72 * 5
    assert "test/delta_avg" in (run / "metrics.csv").read_text()
    assert "occlusion accuracy" in capsys.readouterr().out


def test_the_picture_has_the_points_in_their_colours(config, tmp_path):
    root = write(tmp_path / "davis", square=moving_square())
    evaluate(config("evaluate", *line(root)))
    picture = np.asarray(Image.open(tmp_path / "run" / "tracks.png").convert("RGB")).astype(int)
    tile = picture[8:208, 8:275]  # the query frame, 267 x 200: a point at (6, 18) of 64 x 48 pixels
    assert abs(tile[round(18 / 48 * 200), round(6 / 64 * 267)] - [255, 38, 38]).max() < 60


@pytest.mark.slow
def test_a_checkpoint_of_a_tuned_backbone_is_scored(config, tiny, davis, tmp_path):
    rest = ["finetune.blocks=1", "data.steps=1", "trainer.max_epochs=1", "optimizer.backbone_lr=0.01"]
    train(config("train", *tiny, *rest, f"run_dir={tmp_path / 'RUN'}"))
    plain = evaluate(config("evaluate", *line(davis)))

    typed = [*line(davis)[:3], f"checkpoint={tmp_path / 'RUN'}", f"run_dir={tmp_path / 'E'}"]
    tuned = evaluate(merge_checkpoint_config(config("evaluate", *typed), typed))

    assert tuned["queries"] == plain["queries"]
    scores = [pq.read_table(tmp_path / run / "predictions.parquet")["score"] for run in ("run", "E")]
    assert scores[0] != scores[1]


def test_heads_multiply_in_full_single_precision(davis, monkeypatch):
    """As for every other benchmark: neither by autocast nor in TF32, of which a CPU has none."""
    inside: list[bool] = []

    @contextmanager
    def record(device_type: str):
        inside.append(True)
        yield
        inside.pop()

    class Watched(Cosine):
        """A head that is called inside alone."""

        def forward(self, *args):
            assert inside == [True]
            return super().forward(*args)

    monkeypatch.setattr(tracking, "full_float32", record)
    assert follow(davis, head=Watched()).result.table.num_rows > 0


def test_half_precision_agrees_but_for_rounding(config, tmp_path):
    root, scores = write(tmp_path / "davis", still=static(), square=moving_square()), {}
    for precision in ("32-true", "bf16-mixed"):
        run = tmp_path / precision
        options = ["localise=argmax", f"trainer.precision={precision}", f"run_dir={run}"]
        metrics = evaluate(config("evaluate", *line(root, *options)))
        assert metrics["video"]["still"]["delta_avg"] > 0.98
        scores[precision] = pq.read_table(run / "predictions.parquet")["score"].to_numpy()
    apart = abs(scores["bf16-mixed"] - scores["32-true"])
    assert 1e-5 < apart.max() < 0.03


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_metrics(davis, tmp_path):
    common = [option for option in line(davis, "data.occlusion=cycle") if option != "trainer=cpu"]
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


# -- mistakes --


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.query=latest", "`data.query` must be one of first, strided, got 'latest'"),
        ("data.occlusion=none", "`data.occlusion` must be one of visible, cycle"),
        ("data.split=train", "`data.split` must be one of test"),
        ("data.resize=crop", "`data.resize` must be one of"),
        ("data.frames=large", "`data.frames` must be a side in pixels or native, got 'large'"),
        ("data.frames=0", "`data.frames`"),
        ("data.cycle_threshold=0", "`data.cycle_threshold` must be positive, got 0"),
        ("data.encode_batch=0", "`data.encode_batch` must be at least 1 or null, got 0"),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_is_allowed(config, davis, option, message):
    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *line(davis, option)))
    assert message in (user_message(error.value, "evaluate") or "")


def test_training_on_it_is_refused_with_a_way_out(config, davis, tmp_path):
    with pytest.raises(UserError, match=r"nothing to train on.*checkpoint=RUN_DIR data=tapvid_davis"):
        train(config("train", *line(davis)))
    assert not (tmp_path / "run").exists()
