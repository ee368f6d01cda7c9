"""TAP-Vid-DAVIS: the official pickle, read safely, and the whole program on small videos."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Trainer
from PIL import Image
from test_evaluate import Patches

from semcorr.cli import explained, with_checkpoint
from semcorr.data.tapvid import TapVid
from semcorr.data.tapvid_videos import read_videos
from semcorr.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.heads.cosine import Cosine
from semcorr.localise import argmax
from semcorr.module import Correspondence
from semcorr.tracking import Tracking, chunks
from semcorr.train import train

CENTRES = (np.stack(np.meshgrid(range(1, 7), range(1, 7)), -1).reshape(-1, 2) + 0.5) / 8  # of 8 x 8 cells


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def moving_square(frames: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """A textured square of 24 pixels moves 4 pixels a frame to the right, in 48 x 64; four points on it."""
    video = np.full((frames, 48, 64, 3), 90, np.uint8)
    for t in range(frames):
        video[t, 12:36, 4 * t : 4 * t + 24] = texture(24, 24, seed)
    at = np.array([[6, 18], [18, 18], [6, 30], [18, 30]]) + np.arange(frames)[:, None, None] * [4, 0]
    occluded = np.zeros((4, frames), bool)
    occluded[1, 0] = occluded[2, 3] = True
    points = (at.transpose(1, 0, 2) / [64, 48]).astype(np.float32)
    return {"video": video, "points": points, "occluded": occluded}


def static(frames: int = 6, size: int = 64) -> dict[str, np.ndarray]:
    """The same texture over and over, and a point at the centre of every inner cell of 8 x 8."""
    points = np.repeat(CENTRES[:, None], frames, 1).astype(np.float32)
    occluded = np.zeros(points.shape[:2], bool)
    return {"video": np.repeat(texture(size, size)[None], frames, 0), "points": points, "occluded": occluded}


def panning(height: int, width: int, frames: int = 5) -> dict[str, np.ndarray]:
    """A camera moves 8 pixels a frame over noise; points start at the centres of cells and leave to the left."""
    wide = texture(height, width + 8 * frames)
    video = np.stack([wide[:, 8 * t : 8 * t + width] for t in range(frames)])
    starts = np.stack(np.meshgrid(np.arange(4, width, 8), np.arange(4, height, 8)), -1).reshape(-1, 1, 2)
    at = starts - np.arange(frames)[None, :, None] * [8, 0]
    return {"video": video, "points": (at / [width, height]).astype(np.float32), "occluded": at[..., 0] < 0}


def write(root: Path, protocol: int = 4, **videos: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "tapvid_davis.pkl").write_bytes(pickle.dumps(videos, protocol))
    return root


@pytest.fixture
def davis(tmp_path) -> Path:
    return write(tmp_path / "davis", square=moving_square(), another=moving_square(7, seed=1), still=static())


def line(root: Path, *more: str) -> list[str]:
    return ["data=tapvid_davis", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu", *more]


# -- the pickle --


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("folder", [".", "tapvid_davis"])
def test_the_official_layout_is_read(tmp_path, protocol, folder):
    entry = moving_square()
    write(tmp_path / folder, protocol, b=entry, a=static())

    data = TapVid(str(tmp_path), size=64)
    data.setup("test")

    assert list(data.videos()) == ["a", "b"]
    video = data.videos()["b"]
    assert np.array_equal(video.frames, entry["video"])
    assert video.points.tolist() == (entry["points"] * 256).tolist()
    assert video.occluded.tolist() == entry["occluded"].tolist()


def test_a_pickle_of_numpy_1_is_read(tmp_path):
    write(tmp_path, 2, a=moving_square())
    path = tmp_path / "tapvid_davis.pkl"
    content = path.read_bytes()
    assert b"numpy._core" in content

    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))

    assert read_videos(path)["a"].frames.shape == (6, 48, 64, 3)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("deep", [True, False])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, protocol, deep):
    bomb = Malicious(tmp_path / "ran")
    write(tmp_path, protocol, a=moving_square() | {"points": np.array([bomb])} if deep else bomb)

    with pytest.raises(UserError, match=r"wants to call .* not.*trust"):
        read_videos(tmp_path / "tapvid_davis.pkl")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": moving_square()})[:-400], b"\x80\x05N."])
def test_a_damaged_pickle_is_named(tmp_path, content):
    (tmp_path / "tapvid_davis.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"tapvid_davis\.pkl.*Restore the official file"):
        TapVid(str(tmp_path), size=64).setup("test")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("video", None, "`video`.*uint8.*NoneType"),
        ("video", np.zeros((6, 48, 64), np.uint8), r"uint8 \(any, any, any, 3\), got uint8 \(6, 48, 64\)"),
        ("video", np.zeros((6, 48, 64, 3)), "got float64"),
        ("points", np.zeros((4, 5, 2), np.float32), r"float.*\(any, 6, 2\), got float32 \(4, 5, 2\)"),
        ("points", np.zeros((4, 6, 2), int), "got int64"),
        ("points", np.full((4, 6, 2), np.nan, np.float32), "not finite"),
        ("occluded", np.zeros((3, 6), bool), r"bool \(4, 6\), got bool \(3, 6\)"),
        ("occluded", np.zeros((4, 6), np.uint8), "got uint8"),
    ],
)
def test_a_field_of_another_shape_or_kind_is_named_with_its_video(tmp_path, field, value, told):
    write(tmp_path, fine=moving_square(), dogs=moving_square() | {field: value})
    with pytest.raises(UserError, match=f"video dogs.*{told}"):
        TapVid(str(tmp_path), size=64).setup("test")


def test_a_missing_field_is_named_with_its_video(tmp_path):
    entry = moving_square()
    del entry["occluded"]
    write(tmp_path, dogs=entry)
    with pytest.raises(UserError, match="video dogs has no field `occluded`"):
        read_videos(tmp_path / "tapvid_davis.pkl")


def test_a_missing_root_or_pickle_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(UserError, match=r"semcorr\.prepare tapvid_davis.*data\.root=DIR"):
        TapVid(str(tmp_path / "nowhere"), size=64).setup("test")
    with pytest.raises(UserError, match=r"neither tapvid_davis\.pkl nor tapvid_davis/tapvid_davis\.pkl"):
        TapVid(str(tmp_path), size=64).setup("test")


def test_videos_in_which_nothing_is_visible_cannot_be_scored(tmp_path):
    write(tmp_path, a=moving_square() | {"occluded": np.ones((4, 6), bool)})
    with pytest.raises(UserError, match="nothing to follow"):
        TapVid(str(tmp_path), size=64).setup("test")


def test_points_outside_the_frame_are_kept_and_reported(tmp_path, caplog):
    entry = moving_square()
    entry["points"][3, 2] = 1.5
    write(tmp_path, a=entry)
    assert read_videos(tmp_path / "tapvid_davis.pkl")["a"].points[3, 2].tolist() == [384, 384]
    assert "1 visible points lie outside their frame (a)" in caplog.text


# -- what the backbone sees --


def test_frames_are_resized_to_256_first_unless_native(davis):
    official, native = (TapVid(str(davis), size=64, workers=0, frames=side, encode_batch=8) for side in (256, "native"))
    frame = Image.fromarray(moving_square()["video"][2])
    first = frame.resize((256, 256), Image.Resampling.LANCZOS)
    for data, expected in ((official, first), (native, frame)):
        seen = next(iter(data.images("square")))[2]
        expected = np.asarray(expected.resize((64, 64), Image.Resampling.BICUBIC)) / 255
        assert seen.numpy().transpose(1, 2, 0) == pytest.approx(expected, abs=1e-6)


def follow(root: Path, cycle: float | None = None, **options) -> Tracking:
    matcher = Correspondence(Patches(), Cosine(), localise=argmax, finetune=lambda backbone: None)
    module = Tracking(matcher, cycle)
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

    assert module.scores["delta_avg"] == 1.0
    for row in module.table.to_pylist():
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

    hidden = [row["true_occluded"] for row in always.table.to_pylist()]
    assert always.scores["OA"] == 1 - sum(hidden) / len(hidden)
    assert not any(row["predicted_occluded"] for row in always.table.to_pylist())
    for row in checked.table.to_pylist():
        cell = int(row["query_y"] / 256 * 12) * 12 + int(row["query_x"] / 256 * 12)
        assert row["predicted_occluded"] == (not returns(video["video"], row["query_frame"], row["frame"], cell))
        assert row["true_occluded"] or not row["predicted_occluded"]
    assert checked.scores["OA"] > 0.95
    assert checked.scores["AJ"] > always.scores["AJ"]


def test_small_chunks_match_as_large_ones(tmp_path, monkeypatch):
    write(tmp_path, noise=panning(96, 96), square=moving_square())
    whole = follow(tmp_path, 4.0)
    monkeypatch.setattr("semcorr.tracking.POINTS", 5)
    monkeypatch.setattr("semcorr.tracking.VALUES", 2 * 200 * 144)

    parts = follow(tmp_path, 4.0)

    assert parts.scores == whole.scores
    queries = TapVid(str(tmp_path), size=96).tracks("noise").queries
    found = torch.zeros_like(queries.evaluated).int()
    for _, rows, targets in chunks(queries, 3):
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


def test_a_checkpoint_of_a_tuned_backbone_is_scored(config, tiny, davis, tmp_path):
    rest = ["finetune.blocks=1", "data.steps=1", "trainer.max_epochs=1", "optimizer.backbone_lr=0.01"]
    train(config("train", *tiny, *rest, f"run_dir={tmp_path / 'RUN'}"))
    plain = evaluate(config("evaluate", *line(davis)))

    typed = [*line(davis)[:3], f"checkpoint={tmp_path / 'RUN'}", f"run_dir={tmp_path / 'E'}"]
    tuned = evaluate(with_checkpoint(config("evaluate", *typed), typed))

    assert tuned["queries"] == plain["queries"]
    scores = [pq.read_table(tmp_path / run / "predictions.parquet")["score"] for run in ("run", "E")]
    assert scores[0] != scores[1]


def test_half_precision_agrees_but_for_rounding(config, tmp_path):
    root = write(tmp_path / "still", still=static())
    metrics = evaluate(config("evaluate", *line(root, "localise=argmax", "trainer.precision=bf16-mixed")))
    assert metrics["tracking"]["delta_avg"] > 0.98


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
    ("option", "told"),
    [
        ("data.query=latest", "`data.query` must be one of first, strided, got 'latest'"),
        ("data.occlusion=none", "`data.occlusion` must be one of visible, cycle"),
        ("data.split=train", "`data.split` must be one of test"),
        ("data.resize=crop", "`data.resize` must be one of"),
        ("data.frames=large", "`data.frames` must be a side in pixels or native, got 'large'"),
        ("data.frames=0", "`data.frames`"),
        ("data.cycle_threshold=0", "`data.cycle_threshold` must be positive, got 0"),
        ("data.encode_batch=0", "`data.encode_batch` must be positive, got 0"),
    ],
)
def test_an_option_out_of_range_is_told_what_is_allowed(config, davis, option, told):
    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *line(davis, option)))
    assert told in (explained(error.value, "evaluate") or "")


def test_training_on_it_is_refused_with_a_way_out(config, davis, tmp_path):
    with pytest.raises(UserError, match=r"nothing to train on.*checkpoint=RUN_DIR data=tapvid_davis"):
        train(config("train", *line(davis)))
    assert not (tmp_path / "run").exists()
