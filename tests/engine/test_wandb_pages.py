"""What loggers leave: an offline W&B run read back from its own file; the same scalars in TensorBoard and CSV."""

import csv
import json
import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from semcorr import train
from semcorr.core.errors import UserError
from semcorr.engine.loggers import build_wandb_logger

pytestmark = pytest.mark.integration

BLOCK = 1 << 15
QUICK = [
    "finetune.blocks=1",
    "data.steps=4",
    "data.batch_size=2",
    "trainer.max_epochs=2",
    "trainer.val_check_interval=null",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture
def typed(monkeypatch, tmp_path):
    def run(*line: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setattr("wandb.login", lambda prompt: False)  # no key, whoever runs this
        return train.main(line)

    return run


def records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format after a header of seven bytes: blocks of 32 KiB, records whole (1) or in parts (2, 3, 4)."""
    assert content[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if at + 7 + length > len(content):  # not all of it is written yet
            return
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


class Read:
    """An offline run: its records, by kind."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.files = path.parent / "files"
        until = time.monotonic() + 60
        self.read(path)
        while not self.exits and time.monotonic() < until:  # W&B's own process writes the last of it when we are done
            time.sleep(0.1)
            self.read(path)

    def read(self, path: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        self.run, self.exits, self.config = None, [], {}
        self.history: dict[str, list] = defaultdict(list)
        self.scalars: dict[str, dict] = defaultdict(dict)  # the last at each step
        self.summary: dict[str, object] = {}
        self.summary_keys: set[str] = set()  # the last of each curve is in it, too
        self.metrics: dict[str, object] = {}  # what the summary has of a curve
        for data in records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            self.take(record)

    def take(self, record) -> None:
        if record.HasField("run"):
            self.run = record.run
            self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.config.update:
            self.config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key, value in row.items():
            self.history[key].append(value)
            self.scalars[key][row.get("trainer/global_step")] = value
        for item in record.summary.update:
            self.summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        self.summary_keys |= {item.key or item.nested_key[0] for item in [*record.history.item, *record.summary.update]}
        if record.HasField("metric"):
            self.metrics[record.metric.name] = record.metric.summary
        if record.HasField("exit"):
            self.exits.append(record.exit.exit_code)


def scalars_of(run: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()):
        for key, value in row.items():
            if value and key != "step":
                found[key][int(row["step"])] = float(value)
    return dict(found)


def test_an_offline_run_of_two_epochs_holds_scalars_tables_pictures_summary_and_code(typed, tmp_path, tiny, capfd):
    assert typed(*QUICK, *tiny, "logger=wandb", "logger.tags=[mine]", "run_dir=RUN") == 0

    output = capfd.readouterr()
    lines = output.out.partition("synthetic test")[0].splitlines()[:-1]
    stages = ("train: ", "Reading ", "Encoding ", "Training ", "Epoch ", "Testing ")
    assert [line for line in lines if not line.startswith(stages)] == lines[-1:]
    assert lines[-1].startswith("W&B is offline: wandb sync ")
    assert output.err == ""
    read = Read(tmp_path / "RUN")
    scalars = scalars_of(tmp_path / "RUN")
    assert {"train/loss", "val/geo/pck@0.05", "test/std/pck@0.1", "cost/images_per_second", "cost/memory_gb"} <= set(
        scalars
    )
    assert any(key.startswith("lr-") for key in scalars)
    for key, values in scalars.items():
        assert read.scalars[key] == pytest.approx(values), key

    assert len(read.history["val/categories/path"]) == len(read.history["val/matches/path"]) == 2
    assert len(read.history["val/similarity/path"]) == 2
    with Image.open(read.files / read.history["val/similarity/path"][0]) as maps:
        assert maps.height > 500  # two of them at least, below one another
    for stage, categories in (("val", 4), ("test", 5)):  # one has no pair to validate on
        table = json.loads((read.files / read.history[f"{stage}/categories/path"][-1]).read_text())
        assert table["columns"][:4] == ["category", "all@0.01", "geo@0.01", "std@0.01"]
        assert len(table["columns"]) == 1 + 3 * 5
        assert len(table["data"]) == categories
        with Image.open(read.files / read.history[f"{stage}/matches/path"][-1]) as page:
            assert page.width > 800
    metrics = json.loads((tmp_path / "RUN" / "metrics.json").read_text())
    table = json.loads((read.files / read.history["test/categories/path"][0]).read_text())
    column = table["columns"].index("all@0.1")
    assert [row[column] / 100 for row in table["data"]] == pytest.approx(
        [found["all"]["image"]["0.1"] for found in metrics["category"].values()]
    )
    curves = json.loads((read.files / read.history["test/curves/path"][0]).read_text())
    assert ["geo", "point", 0.15, metrics["pck"]["geo"]["point"]["0.15"]] in curves["data"]
    assert json.loads((read.files / "metrics.json").read_text()) == metrics

    assert read.summary["scores/pairs"] == metrics["pairs"]
    assert read.summary["scores/seconds/encode"] == metrics["seconds"]["encode"]
    assert len(read.summary_keys) < 60
    assert read.metrics["val/geo/pck@0.05"].max
    assert read.metrics["train/loss"].min
    assert read.run.display_name == "tiny-blocks_1-synthetic"
    assert read.run.job_type == "train"
    assert [*read.run.tags] == ["tiny", "blocks_1", "synthetic", "cosine", "visual_ai", "mine"]
    assert read.config["seed"] == 42
    assert read.config["provenance"]["packages"]["semcorr"]
    assert read.exits == [0]


def test_a_disabled_wandb_is_not_warned_of(typed, tmp_path, tiny, caplog):
    quick = ["finetune.blocks=1", "data.steps=1", "data.batch_size=2", "trainer.max_epochs=1"]
    assert typed(*quick, *tiny, "logger=wandb", "+logger.mode=disabled", "run_dir=RUN") == 0

    assert "lacks entries" not in caplog.text
    assert not [*(tmp_path / "RUN").rglob("*.wandb")]


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_finished_runs_of_one_group(typed, tmp_path, tiny):
    """Also the one that fails, which does not swallow the next."""
    assert typed("-m", *QUICK, *tiny, "finetune.blocks=1,99,2", "logger=wandb", "run_dir=SWEEP") == 2

    first, second = (Read(tmp_path / "SWEEP" / number) for number in "02")
    assert {first.run.run_group, second.run.run_group} == {"SWEEP"}
    assert [first.run.display_name, second.run.display_name] == [
        "tiny-blocks_1-synthetic 0",
        "tiny-blocks_2-synthetic 2",
    ]
    assert first.run.run_id != second.run.run_id
    assert first.exits == second.exits == [0]
    assert first.config["finetune"]["blocks"] == 1
    assert second.config["finetune"]["blocks"] == 2


def test_tensorboard_holds_the_scalars_of_csv_pictures_and_hparams(typed, tmp_path, tiny):
    assert typed(*QUICK, *tiny, "logger=tensorboard", "run_dir=RUN") == 0

    events = EventAccumulator(str(tmp_path / "RUN" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    written = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    expected = scalars_of(tmp_path / "RUN")
    assert written.keys() == expected.keys()
    assert len(expected) > 30
    for tag, values in expected.items():
        assert written[tag] == pytest.approx(values, rel=1e-6), tag

    pictures = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    assert {tag: len(drawn) for tag, drawn in pictures.items()} == {
        "val/matches": 2,
        "val/similarity": 2,
        "test/matches": 1,
    }
    assert pictures["test/matches"][0].width > 800

    summaries = {
        tag: HParamsPluginData.FromString(metadata.plugin_data.content)
        for tag, metadata in (
            (value.tag, value.metadata)
            for path in sorted((tmp_path / "RUN" / "tensorboard").glob("events.*"))
            for event in EventFileLoader(str(path)).Load()
            for value in event.summary.value
        )
        if metadata.plugin_data.plugin_name == "hparams"
    }
    options = summaries["_hparams_/session_start_info"].session_start_info.hparams
    assert options["finetune.blocks"].number_value == 1
    assert not {"run_dir", "logger._target_", "provenance.git"} & {*options}
    compared = [info.name.tag for info in summaries["_hparams_/experiment"].experiment.metric_infos]
    assert sorted(compared) == ["test/all/pck@0.1", "test/geo/pck@0.1", "test/std/pck@0.1"]


@pytest.mark.parametrize(("name", "allowed"), [("WANDB_MODE", "'offline'"), ("WANDB_CONSOLE", "'redirect'")])
def test_variables_that_wandb_refuses_are_a_user_error(monkeypatch, tmp_path, name, allowed):
    monkeypatch.setenv(name, "foo")
    with pytest.raises(UserError, match=f"^the environment variable {name}: .*{allowed}.*, got 'foo'. Correct or"):
        build_wandb_logger(tmp_path)


def test_an_empty_mode_is_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setattr("wandb.login", lambda prompt: False)

    assert build_wandb_logger(tmp_path)._wandb_init["mode"] == "offline"
    assert "WANDB_MODE" not in os.environ  # where W&B would refuse it
