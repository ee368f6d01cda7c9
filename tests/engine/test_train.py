"""Training as a whole: what moves, what is saved, and that a killed run ends where an unbroken one does."""

import csv
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer

from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module, build_training_parts
from semcorr.evaluate import evaluate
from semcorr.train import train

pytestmark = pytest.mark.integration

QUICK = ["finetune.blocks=2", "data.steps=3", "data.batch_size=4", "optimizer.backbone_lr=1e-3"]


def _weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)["state_dict"]


def test_only_the_last_two_blocks_and_the_norm_move_and_the_checkpoint_holds_them_and_names_its_base(config, tiny):
    """After three steps everything else is bit-identical."""
    cfg = config("train", *tiny, *QUICK, "trainer.max_epochs=1")
    module, _ = build_datamodule_and_module(cfg)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}

    train(cfg)

    after = _weights(Path(cfg.run_dir))
    assert {name.split(".")[3] for name in after if ".blocks." in name} == {"2", "3"}
    assert all(".blocks." in name or ".norm." in name for name in after)
    moved = {name for name, value in after.items() if not value.equal(before[name.removeprefix("backbone.")])}
    assert moved == set(after)
    checkpoint = torch.load(Path(cfg.run_dir) / "checkpoints/best.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(module.trainable_state_dict())
    assert checkpoint["base"] == {"backbone": "vit_tiny_patch16_224", "sha256": module.backbone.sha256}


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("backbone", ["tiny", "efficientnet_lite0"])
def test_frozen_weights_and_statistics_do_not_change_in_a_step(config, tiny, backbone):
    """Nor do the running means of the batch norms, in moving blocks or frozen ones."""
    cfg = config("train", *tiny, *QUICK, f"backbone={backbone}", "backbone.pretrained=false", "backbone.size=64")
    module, data = build_datamodule_and_module(cfg, training=build_training_parts(cfg))
    before = {name: value.clone() for name, value in module.state_dict().items()}

    _step(module, data)

    changed = {name for name, value in module.state_dict().items() if not value.equal(before[name])}
    assert changed == set(module.trainable_state_dict())
    assert changed


def test_training_lowers_the_loss_and_leaves_every_file(config, tiny, tmp_path):
    train(config("train", *tiny, *QUICK, "data.steps=20", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"))

    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.json", "metrics.csv", "predictions.parquet", "matches.png", "checkpoints",
    }  # fmt: skip
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = lines[0].index("train/loss")
    losses = [float(line[column]) for line in lines[1:] if line[column]]
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert {"val/all/pck@0.1", "val/geo/pck@0.1", "val/std/pck@0.1", "test/all/pck@0.05"} <= set(lines[0])


def test_evaluating_a_run_gives_the_number_it_was_trained_to_and_it_is_not_trained_into_twice(config, tiny, tmp_path):
    """Where nothing was saved it is: a training that is killed while it first saves leaves an empty folder."""
    cfg = config("train", *tiny, *QUICK, "trainer.max_epochs=1")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    trained = train(cfg)

    line = ["finetune.blocks=2", "protocol=unified", f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'e'}"]
    again = evaluate(config("evaluate", *tiny, *line))

    assert again["pck"] == trained["pck"]
    assert again["protocols"] == trained["protocols"]
    with pytest.raises(UserError, match="already holds a training run"):
        train(cfg)


@pytest.mark.slow
def test_another_base_is_refused_by_name(config, tiny, tmp_path):
    train(config("train", *tiny, *QUICK, "trainer.max_epochs=1"))

    other = config("evaluate", *tiny, "finetune.blocks=2", "seed=7", f"checkpoint={tmp_path / 'run'}")
    other.run_dir = str(tmp_path / "other")
    with pytest.raises(UserError, match="trained on vit_tiny_patch16_224 with weights sha256"):
        evaluate(other)


def _command(creatures: Path, run: Path, *more: str) -> list[str]:
    from repository import SMALL

    overrides = [
        "data=synthetic", f"data.root={creatures}", *SMALL, "backbone=tiny", "trainer=cpu", *QUICK,
        "trainer.max_epochs=3", "data.workers=1", f"run_dir={run}",
    ]  # fmt: skip
    return [sys.executable, "-m", "semcorr.train", *(more or overrides)]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(creatures, tmp_path):
    """SIGKILL after its first checkpoint, then on to the end. scripts/inject_faults.py does so at sixty moments."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(_command(creatures, whole), check=True, capture_output=True, cwd=tmp_path)

    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(_command(creatures, broken), cwd=tmp_path, **silent)
    deadline = time.monotonic() + 600
    while _epochs(broken) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _epochs(broken) >= 1
    subprocess.run(_command(creatures, broken, f"checkpoint={broken}"), check=True, capture_output=True, cwd=tmp_path)

    expected, resumed = _weights(whole), _weights(broken)
    assert set(expected) == set(resumed)
    assert all(value.equal(resumed[name]) for name, value in expected.items())
    scalars = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (whole, broken)]
    timed = {key for key in scalars[0][0] if key.startswith("cost/")}
    assert timed == {"cost/images_per_second", "cost/memory_gb"}
    kept = [[{key: row[key] for key in row.keys() - timed} for row in rows] for rows in scalars]
    assert kept[0] == kept[1]
    assert not [path for path in broken.iterdir() if path.name.startswith(".metrics.json")]


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over(config, tiny, tmp_path):
    """checkpoint=RUN_DIR on a run that saved nothing yet ends where an unbroken run does."""
    whole = config("train", *tiny, *QUICK, "trainer.max_epochs=1", f"run_dir={tmp_path / 'whole'}")
    train(whole)

    again = config("train", *tiny, *QUICK, "trainer.max_epochs=1", f"run_dir={tmp_path / 'broken'}")
    again.checkpoint = again.run_dir
    train(again)

    expected, found = _weights(tmp_path / "whole"), _weights(tmp_path / "broken")
    assert all(value.equal(found[name]) for name, value in expected.items())


def _epochs(run: Path) -> int:
    path = run / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["epoch"] + 1 if path.is_file() else 0


@pytest.mark.slow
def test_config_yaml_says_what_the_number_depends_on(config, tiny, tmp_path):
    train(config("train", *tiny, *QUICK, "trainer.max_epochs=1"))

    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["finetune"]["blocks"] == 2
    assert saved["seed"] == 42
    assert set(saved["provenance"]) == {"packages", "git", "backbone", "weights_sha256"}
    assert saved["provenance"]["packages"]["torch"] == version("torch")


def _step(module, data) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_steps=1,
        limit_val_batches=0, use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


@pytest.mark.slow
def test_wandb_runs_offline_without_a_key_and_tensorboard_writes_events(config, tiny, tmp_path, monkeypatch):
    """The CSV file is there whichever logger is asked for."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.login", lambda prompt: False)  # no key, whoever runs this
    for logger, files in (("wandb", "wandb/offline-run-*/*.wandb"), ("tensorboard", "tensorboard/events*")):
        run = tmp_path / logger
        train(config("train", *tiny, *QUICK, "trainer.max_epochs=1", f"logger={logger}", f"run_dir={run}"))
        assert list(run.glob(files))
        assert "val/all/pck@0.1" in (run / "metrics.csv").read_text()


def test_a_frozen_backbone_is_scored_as_it_is(config, tiny, tmp_path, capsys):
    """The baseline of a sweep: the same numbers as `evaluate`, and no checkpoint."""
    frozen = train(config("train", *tiny, "protocol=semcorr", "finetune.blocks=0", f"run_dir={tmp_path / 'frozen'}"))

    assert "Nothing to train" in capsys.readouterr().out
    assert not (tmp_path / "frozen" / "checkpoints").exists()
    assert (tmp_path / "frozen" / "metrics.json").is_file()
    assert frozen["pck"] == evaluate(config("evaluate", *tiny))["pck"]


@pytest.mark.slow
def test_a_grid_sets_the_size_and_the_run_says_so(config, tiny, tmp_path):
    """Three cells of eight pixels; a run that is brought back by checkpoint=RUN has the size in pixels."""
    metrics = evaluate(config("evaluate", *tiny, "backbone.grid=3"))

    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["backbone"]
    assert (saved["size"], saved["grid"]) == (24, None)
    assert metrics["pck"] == evaluate(config("evaluate", *tiny, "backbone.size=24", f"run_dir={tmp_path / 'b'}"))["pck"]
    assert metrics["pck"] != evaluate(config("evaluate", *tiny, f"run_dir={tmp_path / 'c'}"))["pck"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", [train, evaluate])
def test_a_damaged_checkpoint_is_named(config, tiny, tmp_path, verb):
    train(config("train", *tiny, *QUICK, "data.steps=1", "trainer.max_epochs=1"))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    place = tmp_path / ("run" if verb is train else "new")
    cfg = config(verb.__name__, *tiny, f"checkpoint={tmp_path / 'run'}", f"run_dir={place}")

    with pytest.raises(UserError, match=r"(best|last)\.ckpt is damaged .*Take another copy of it, or train again"):
        verb(cfg)
