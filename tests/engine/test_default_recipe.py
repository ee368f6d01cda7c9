"""The recipe of a plain `train`: precision of the device, validations inside the epoch, protocols side by side."""

import json
import types

import pytest
import torch
from lightning import Trainer
from omegaconf import OmegaConf

from semcorr.core.errors import UserError
from semcorr.engine.callbacks import MONITOR, ModelCheckpoint, checkpoint_callbacks
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.trainer_options import (
    describe_precision,
    device_precision,
    resolve_precision,
    run_products,
)
from semcorr.engine.validations import is_counted
from semcorr.train import train

pytestmark = pytest.mark.integration

LINE = ["data.steps=8", "data.batch_size=2", "trainer.val_check_interval=0.25"]  # as the recipe has it


@pytest.mark.parametrize(
    ("precision", "on_gpu", "has_bf16", "expected"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("auto", True, False, "32-true"),
        ("auto", False, True, "32-true"),
        ("auto", False, False, "32-true"),
        ("32-true", True, True, "32-true"),
        ("16-mixed", False, False, "16-mixed"),
        (None, True, True, None),
    ],
)
def test_automatic_precision_is_mixed_on_a_gpu_with_bfloat16_alone(precision, on_gpu, has_bf16, expected):
    assert resolve_precision(precision, on_gpu, has_bf16) == expected


@pytest.mark.parametrize(
    ("accelerator", "expected"), [("auto", "bf16-mixed"), ("gpu", "bf16-mixed"), ("cpu", "32-true")]
)
def test_the_device_is_the_one_that_the_run_is_on(monkeypatch, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)

    assert device_precision({"accelerator": accelerator, "precision": "auto"}) == expected


@pytest.mark.parametrize(
    ("device", "precision", "inside", "text"),
    [
        ("cuda:0", "bf16-mixed", ("high", True), "bf16-mixed, TF32 products"),
        ("cuda:0", "16-mixed", ("high", True), "16-mixed, TF32 products"),
        ("cuda:0", "32-true", ("highest", False), "32-true"),
        ("cpu", "bf16-mixed", ("highest", True), "bf16-mixed"),
    ],
)
def test_products_are_in_tf32_on_a_gpu_unless_single_precision_was_typed(device, precision, inside, text):
    facts = {"precision": precision, "strategy": types.SimpleNamespace(root_device=torch.device(device))}
    trainer = object.__new__(type("RunningTrainer", (Trainer,), facts))

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with run_products(trainer):
        found = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    assert (before, found) == (("highest", True), inside)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert describe_precision(trainer) == text


def test_validations_count_from_a_share_of_the_first_epoch_on_and_its_last_one_always():
    assert [done for done in range(1, 12) if is_counted(done, 1, 11, 0.6)] == [7, 8, 9, 10, 11]
    assert is_counted(5, 5, 9, 0.6)  # nothing follows: 10 would be in the next epoch
    assert not is_counted(4, 4, 9, 0.6)
    assert is_counted(1, 1, 100, 0.0)


def noted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[tuple[int, int, bool]]:
    """Let validations give these scores, and note each: epoch, step, and whether `best.ckpt` was written."""
    from lightning.pytorch import callbacks

    found, save = [], callbacks.ModelCheckpoint._save_topk_checkpoint
    end, candidates_of = ModelCheckpoint.on_validation_end, callbacks.ModelCheckpoint._monitor_candidates

    def monitor_candidates(self, trainer):
        return {**candidates_of(self, trainer), MONITOR: torch.tensor(scores[len(found) - 1])}

    def on_validation_end(self, trainer, module):
        if self.monitor is not None:
            found.append([trainer.current_epoch, trainer.global_step, False])
        end(self, trainer, module)

    def save_topk(self, trainer, candidates):
        before = self.best_model_score
        save(self, trainer, candidates)
        if self.monitor is not None and self.best_model_score is not before:
            found[-1][-1] = True

    monkeypatch.setattr(ModelCheckpoint, "on_validation_end", on_validation_end)
    monkeypatch.setattr(callbacks.ModelCheckpoint, "_monitor_candidates", monitor_candidates)
    monkeypatch.setattr(callbacks.ModelCheckpoint, "_save_topk_checkpoint", save_topk)
    return found


def test_the_best_of_the_validations_from_six_tenths_of_the_epoch_on_is_kept(config, tiny, tmp_path, monkeypatch):
    """Of 8 steps every second is validated. The best of all, the first, is not counted, and the last is worse."""
    found = noted(monkeypatch, [0.9, 0.1, 0.5, 0.4])

    train(config("train", *tiny, *LINE))

    assert found == [[0, 2, False], [0, 4, False], [0, 6, True], [0, 8, False]]
    checkpoints = tmp_path / "run" / "checkpoints"
    steps = {
        name: torch.load(checkpoints / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")
    }
    assert steps == {"best": 6, "last": 8}
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (saved.trainer.precision, saved.keep_from) == ("32-true", 0.6)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["protocol"], [*metrics["protocols"]]) == ("visual_ai", ["visual_ai", "semcorr"])


@pytest.mark.slow
def test_in_later_epochs_every_validation_counts(config, tiny, monkeypatch):
    found = noted(monkeypatch, [0.1] * 4 + [0.2, 0.1, 0.1, 0.1])

    train(config("train", *tiny, *LINE, "trainer.max_epochs=2"))

    assert [each[:2] for each in found if each[2]] == [[0, 6], [1, 10]]


def test_a_share_beyond_the_epoch_is_refused(config, tiny):
    with pytest.raises(UserError, match="`keep_from` must be"):
        train(config("train", *tiny, *LINE, "keep_from=1.5"))


def test_the_best_weights_are_kept_by_the_score_that_was_typed(config, tiny, tmp_path, monkeypatch, capsys):
    """The validations rise in one score and fall in the other."""
    log_scores, numbers = CorrespondenceModule._log_scores, iter([0.1, 0.2, 0.3, 0.4])

    def logged(self, stage):
        log_scores(self, stage)
        if stage == "val":
            rising = next(numbers)
            self.log("val/std/pck@0.05", rising)
            self.log(MONITOR, 1 - rising)

    monkeypatch.setattr(CorrespondenceModule, "_log_scores", logged)
    line = ["monitor=val/std/pck@0.05", "keep_from=0", "trainer.num_sanity_val_steps=0"]

    train(config("train", *tiny, *LINE, *line))

    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 8
    assert "val/std/pck@0.05 0." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["val/all/pck", "val/dagger/pck@0.1", "train/loss", "val/all/pck@0.3"])
def test_a_score_that_is_not_logged_is_refused(config, tiny, name):
    with pytest.raises(UserError, match="`monitor` must be val/SUBSET/pck@ALPHA"):
        train(config("train", *tiny, *LINE, f"monitor={name}"))


def test_a_score_without_a_value_is_reported(config, tiny, monkeypatch):
    """As where no keypoint of the validation has a twin."""
    log = CorrespondenceModule.log

    def log_others(self, name, *args, **options):
        if not name.startswith("val/geo"):
            log(self, name, *args, **options)

    monkeypatch.setattr(CorrespondenceModule, "log", log_others)

    with pytest.raises(UserError, match=r"`monitor`: val/geo/pck@0\.1 has no value.*such as val/all/pck@0\.1"):
        train(config("train", *tiny, *LINE, "monitor=val/geo/pck@0.1"))


def test_a_state_of_before_belongs_to_the_same_callback(tmp_path):
    """Its key in a checkpoint is Lightning's, which does not tell when it saves."""
    best, last, _ = checkpoint_callbacks(tmp_path, 0.6)

    assert "'monitor': 'val/all/pck@0.1'" in best.state_key
    assert best.state_key != last.state_key
    assert best.keep_from == 0.6
