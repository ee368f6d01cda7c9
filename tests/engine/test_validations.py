"""A training has a validation that counts, by which its best weights are kept, or it is refused."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.engine.resume import require_times
from semcorr.engine.validations import require_validation
from semcorr.train import main, train

pytestmark = pytest.mark.integration

LINE = ["data.batch_size=2", "trainer.num_sanity_val_steps=0", "protocol=semcorr"]


def schedule(length: int = 20, **options: object) -> tuple[SimpleNamespace, SimpleNamespace, object]:
    """Return the arguments of `require_validation`: as much of a trainer and of a benchmark as it reads."""
    defaults = {"max_epochs": 1, "max_steps": -1, "accumulate_grad_batches": 1, "limit_train_batches": 1.0,
                "val_check_interval": 0.25, "check_val_every_n_epoch": 1}  # fmt: skip
    begins = options.pop("begins", True)
    return SimpleNamespace(**(defaults | options)), SimpleNamespace(stream=lambda: range(length)), begins


@pytest.mark.parametrize("option", ["data.steps=2", "data.steps=9 +trainer.limit_train_batches=2"])
def test_validations_further_apart_than_an_epoch_are_refused_before_anything_is_written(tiny, tmp_path, capsys, option):
    line = [*tiny, *LINE, *option.split(), "trainer.val_check_interval=5", f"run_dir={tmp_path / 'run'}"]

    assert main(line) == 2

    error = capsys.readouterr().err
    assert "`trainer.val_check_interval` must be at most 2, the steps of an epoch, got 5. Give a smaller" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_check_interval": 20},
        {"val_check_interval": 1.0, "max_steps": 20},
        {"max_steps": 5},
        {"max_steps": 3, "accumulate_grad_batches": 2},
        {"max_steps": 10, "accumulate_grad_batches": 3, "max_epochs": 2},  # 7 steps, then 3 of the second epoch
        {"val_check_interval": 30, "check_val_every_n_epoch": None, "max_epochs": 2},
        {"val_check_interval": 99, "max_steps": 1, "fast_dev_run": 1},
        {"length": 1, "val_check_interval": 0.25},
        {"max_steps": 4, "begins": False},
    ],
)
def test_a_training_with_a_validation_is_let_through(options):
    require_validation(*schedule(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 4}, r"`trainer\.max_steps` is 4: .+ ends after batch 4, .+ due after batch 5\. "
                           r"Give trainer\.max_steps=5 or more, or trainer\.val_check_interval=4 or less\."),
        ({"max_steps": 0}, r"ends after batch 0.+Give trainer\.max_steps=5 or more\."),
        ({"max_steps": 2, "accumulate_grad_batches": 2}, r"after batch 4, .+ Give trainer\.max_steps=3 or more"),
        ({"max_steps": 24, "max_epochs": 3, "check_val_every_n_epoch": 2}, r"after batch 24, .+ due after batch 25\. "
         r"Give trainer\.max_steps=25 or more, or trainer\.check_val_every_n_epoch=1 and .+interval=20 or less"),
        ({"val_check_interval": 30, "check_val_every_n_epoch": None}, r"`trainer\.val_check_interval` is 30: .+ after "
         r"batch 20, .+ Give trainer\.val_check_interval=20 or less\."),
        ({"val_check_interval": 21}, "must be at most 20, the steps of an epoch, got 21"),
    ],
)  # fmt: skip
def test_a_training_without_a_validation_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        require_validation(*schedule(**options))


@pytest.mark.parametrize("option", ["+trainer.max_steps=5", "+trainer.max_time='00:00:00:01'"])
def test_where_a_training_ends_in_its_first_epoch_the_last_validation_counts(
    config, tiny, tmp_path, option, monkeypatch
):
    """By the number of steps, and by the time: then Lightning validates before it stops."""
    if "max_time" in option:
        from lightning.pytorch.callbacks import Timer

        monkeypatch.setattr(Timer, "time_elapsed", lambda timer, *_: 7200.0 if timer.start_time() else 0.0)

    metrics = train(config("train", *tiny, *LINE, "data.steps=20", "trainer.val_check_interval=0.25", option))

    run = tmp_path / "run"
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == (5 if "max_steps" in option else 1)
    assert json.loads((run / "metrics.json").read_text())["pck"] == metrics["pck"]


def test_a_training_that_time_ends_before_a_validation_says_so(config, tiny, tmp_path, monkeypatch):
    """As where only every second epoch is validated."""
    from lightning.pytorch.callbacks import Timer

    monkeypatch.setattr(Timer, "time_elapsed", lambda timer, *_: 7200.0 if timer.start_time() else 0.0)
    line = [
        "data.steps=4",
        "trainer.max_epochs=2",
        "+trainer.check_val_every_n_epoch=2",
        "+trainer.max_time='00:01:00:00'",
    ]

    with pytest.raises(
        UserError, match=r"the training was ended at step 1, .+, before .+ are in .+last\.ckpt\. Go on with"
    ):
        train(config("train", *tiny, *LINE, *line))

    monkeypatch.undo()
    more = [*line[:-1], "+trainer.max_time='01:00:00:00'", f"checkpoint={tmp_path / 'run'}"]
    assert train(config("train", *tiny, *LINE, *more))["pck"]


@pytest.mark.parametrize(
    "saved", [None, {}, {"time_elapsed": 3}, {"time_elapsed": {"train": "3"}}, {"time_elapsed": {"train": math.nan}}]
)
def test_a_damaged_time_is_reported(tmp_path, saved):
    with pytest.raises(UserError, match=r"last\.ckpt is damaged \(its callbacks\.Timer holds no times\)"):
        require_times(saved, tmp_path / "last.ckpt")
