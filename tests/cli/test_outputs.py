"""A place that cannot be written is told in a sentence before the work, by every verb; side files end no run."""

import errno
import importlib
import json
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from tiny_runs import run_dir

from semcorr.core import files
from semcorr.core.errors import UserError
from semcorr.engine.export import _save
from semcorr.engine.loggers import CSVScalarLogger, build_tensorboard_logger
from semcorr.evaluate import evaluate
from semcorr.metrics.predictions import write_predictions
from semcorr.visualization import predictions as draw

pytestmark = pytest.mark.integration


def a_file(root: Path) -> Path:
    (root / "file").write_text("of the user's")
    return root / "file"


def below_a_file(root: Path) -> Path:
    return a_file(root) / "deep" / "place"


def a_dangling_link(root: Path) -> Path:
    (root / "link").symlink_to(root / "missing" / "far")
    return root / "link"


def too_long(root: Path) -> Path:
    return root / ("x" * 300)


def a_pipe(root: Path) -> Path:
    os.mkfifo(root / "pipe")
    return root / "pipe"


def a_folder(root: Path) -> Path:
    (root / "folder").mkdir()
    return root / "folder"


def in_proc(root: Path) -> Path:
    return Path("/proc/semcorr/place")


def a_full_disk(root: Path) -> Path:
    return root / "full"


FOLDERS = [a_file, below_a_file, a_dangling_link, too_long, in_proc, a_pipe, a_full_disk]
FILES = [a_folder, a_pipe, below_a_file, too_long, in_proc, a_full_disk]
VERBS: dict[str, tuple[str, list[Callable[[Path], Path]], str]] = {  # the line, its bad places, and their option
    "match": ("{a} {b} --out {place}", FOLDERS, "--out"),
    "transfer": ("{coco} {images} --out {place}", FILES, "--out"),
    "transfer --draw": ("{coco} {images} --out {good} --draw {place}", FOLDERS[:-1], "--draw"),
    "report": ("{run} --no-maps --out {place}", FOLDERS, "--out"),
    "export": ("{run} --out {place}/backbone.safetensors", [below_a_file, too_long, in_proc, a_full_disk], "--out"),
    "benchmark": ("match --out {place}", FILES, "--out"),
    "prepare": ("spair --archive {a} --root {place}", [below_a_file, too_long, in_proc, a_full_disk], "--root"),
    "prepare --verify": ("spair --verify --root {images} --report {place}", FILES, "--report"),
    "evaluate": ("data.root={missing} run_dir={place}", FOLDERS, "run_dir"),
    "train": ("data.root={missing} run_dir={place}", FOLDERS, "run_dir"),
}
TRAINED = {  # of a training run, besides what every run has
    "loss": {"_target_": "semcorr.models.losses.gaussian_cross_entropy", "_partial_": True},
    "optimizer": {"_target_": "semcorr.engine.optim.adamw", "_partial_": True},
    "scheduler": {"_target_": "semcorr.engine.optim.constant_rate", "_partial_": True},
}
CASES = [(verb, place) for verb, (_, places, _) in VERBS.items() for place in places]


class Encoded(BaseException):
    """The work has begun."""


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is built or asked, nothing is downloaded, unpacked, measured or read as a benchmark."""

    def begin(*_: object, **__: object) -> None:
        raise Encoded

    for work in (
        "semcorr.inference.Matcher.load", "semcorr.engine.build.build_datamodule_and_module",
        "semcorr.engine.build.build_datamodule",
        "semcorr.engine.rebuild.load_trained_module",
        "semcorr.benchmark.match.benchmark_matching", "semcorr.data.download.install._build",
        "semcorr.data.download.verify.verify_benchmark",
        "semcorr.report.command.load_benchmark_pairs", "semcorr.report.command.read_runs",
    ):  # fmt: skip
        module, _, name = work.rpartition(".")
        if name == "load":
            module, name = "semcorr.inference", "Matcher.load"
        monkeypatch.setattr(f"{module}.{name}", begin)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """What the verbs read."""
    root = tmp_path / "inputs"
    root.mkdir()
    for name in "ab":
        Image.new("RGB", (40, 30)).save(root / f"{name}.png")
    (root / "coco.json").write_text("{}")
    run = run_dir(root / "run", config=TRAINED)
    (root / "images").mkdir()
    return {
        "a": root / "a.png", "b": root / "b.png", "coco": root / "coco.json", "images": root / "images",
        "good": root / "labels.json", "run": run, "missing": root / "missing",
    }  # fmt: skip


def listing(root: Path) -> dict[str, object]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else path.is_symlink()
        for path in root.rglob("*")
    }


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("verb", "place"), CASES, ids=[f"{verb}-{place.__name__}" for verb, place in CASES])
def test_a_bad_place_is_reported_before_the_work_and_nothing_is_left(
    verb, place, inputs, no_work, tmp_path, monkeypatch, capfd
):
    line, _, option = VERBS[verb]
    there = tmp_path / "there"
    there.mkdir()
    bad = place(there)
    if place is a_full_disk:
        fill_the_disk(monkeypatch)
    words = [word.format(place=bad, **inputs) for word in line.split()]
    before = listing(tmp_path)
    monkeypatch.chdir(there)
    code = importlib.import_module(f"semcorr.{verb.split()[0]}").main(words)

    output = capfd.readouterr().err
    assert code == 2
    assert output.startswith("Error: ")
    assert output.count("\n") == 1
    assert option in output
    named = [path for path in (bad, *bad.parents[:2]) if path not in there.parents]  # under which the inputs lie
    assert any(str(path) in output for path in named)
    assert listing(tmp_path) == before


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte can be written to any file that is named for being unfinished."""
    own = Path.write_bytes

    def write_bytes(self: Path, data: bytes) -> int:
        if self.name.endswith(".part"):
            self.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return own(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


def test_an_audit_of_a_run_that_cannot_be_written_encodes_nothing(inputs, no_work, monkeypatch, capfd):
    (inputs["run"] / "audit.json").mkdir()
    code = importlib.import_module("semcorr.audit").main([str(inputs["run"])])
    assert code == 2
    assert "audit.json" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a.png", "coco.json"])
def test_what_is_read_is_not_written_over(name, inputs, no_work, tmp_path, monkeypatch, capfd):
    place = inputs["a"].parent
    (place / "matches.json").symlink_to(place / "a.png")
    verb, line = {
        "a.png": ("match", f"{inputs['a']} {inputs['b']} --out {place}"),
        "coco.json": ("transfer", f"{inputs['coco']} {inputs['images']} --out {inputs['coco']}"),
    }[name]
    before = listing(tmp_path)
    code = importlib.import_module(f"semcorr.{verb}").main(line.split())
    assert code == 2
    assert "--out" in capfd.readouterr().err
    assert listing(tmp_path) == before


# -- what a run leaves --


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_or_written_is_a_warning_and_the_figures_are_there(
    config: Callable[..., DictConfig], tiny, tmp_path, monkeypatch, caplog
):
    failures: list[BaseException] = [
        MemoryError(), OSError(errno.ENOSPC, "No space left on device"), UserError("the image has gone"),
    ]  # fmt: skip
    for i, failure in enumerate(failures):

        def fail(*_: object, failure: BaseException = failure, **__: object) -> None:
            raise failure

        monkeypatch.setattr(draw, "save_plot" if i == 1 else "plot_predictions", fail)
        run = tmp_path / str(i)
        caplog.clear()
        metrics = evaluate(config("evaluate", *tiny, f"run_dir={run}"))
        assert json.loads((run / "metrics.json").read_text())["pck"] == metrics["pck"]
        assert (run / "predictions.parquet").is_file()
        assert not (run / "matches.png").exists()
        assert "matches.png is not drawn" in caplog.text
        monkeypatch.undo()


def test_metrics_are_the_last_of_what_a_finished_run_has_and_the_picture_comes_after(
    config: Callable[..., DictConfig], tiny, tmp_path, monkeypatch
):
    order: list[str] = []
    own = files.replace_file

    def noted(path: Path, option: str | None = None):
        order.append(path.name)
        return own(path, option)

    for module in ("semcorr.core.files", "semcorr.metrics.predictions", "semcorr.visualization.predictions"):
        monkeypatch.setattr(f"{module}.replace_file", noted)
    evaluate(config("evaluate", *tiny, f"run_dir={tmp_path / 'run'}"))
    assert order == ["config.yaml", "predictions.parquet", "metrics.json", "matches.png"]


def test_a_log_that_cannot_be_written_is_warned_of_once_and_scoring_goes_on(tmp_path, caplog):
    logger = CSVScalarLogger(tmp_path / "run")
    logger.log_metrics({"val/x": 0.5}, 1)
    assert (tmp_path / "run/metrics.csv").read_text() == "step,val/x\n1,0.5\n"
    (tmp_path / "run/metrics.csv").unlink()
    (tmp_path / "run/metrics.csv").mkdir()
    with caplog.at_level(logging.WARNING):
        for step in range(2, 5):
            logger.log_metrics({"val/x": 0.5}, step)
        logger.finalize("success")

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "metrics.csv cannot be written (Is a directory)" in caplog.text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.csv"]

    (tmp_path / "file").touch()
    board, before = build_tensorboard_logger(tmp_path / "file"), len(caplog.records)
    for step in range(3):
        board.log_metrics({"val/x": 0.5}, step)
    board.finalize("success")
    assert len(caplog.records) == before + 1


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"step\nx\n", b"\xff\xfe\x00", b"step,a\n1,2,3\n,\n"])
def test_a_damaged_log_begins_again_with_a_warning(content, tmp_path, caplog):
    (tmp_path / "metrics.csv").write_bytes(content)
    logger = CSVScalarLogger(tmp_path)
    logger.resume(5)

    assert f"{tmp_path / 'metrics.csv'} is damaged" in caplog.text
    logger.log_metrics({"val/x": 0.5}, 6)
    assert (tmp_path / "metrics.csv").read_text() == "step,val/x\n6,0.5\n"


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that fills."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_weights(path: Path) -> None:
    with files.replace_file(path) as beside:
        _save({"w": torch.zeros(5000)}, beside, {})


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: files.write_text(path, "x" * 5000),
    "parquet": lambda path: write_predictions(pa.table({"a": list(range(5000))}), path),
    "png": lambda path: draw.save_plot(Image.effect_noise((200, 200), 50), path),
    "safetensors": save_weights,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_fills_in_the_middle_leaves_what_was_there(kind, tmp_path):
    (tmp_path / kind).write_text("before")

    with limited(2000), pytest.raises(UserError, match=rf"{kind} cannot be written .*Free some space"):
        WRITERS[kind](tmp_path / kind)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {kind: "before"}
