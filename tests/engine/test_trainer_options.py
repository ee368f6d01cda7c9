"""What Lightning's Trainer takes and cannot work is refused in a sentence; what an evaluation ignores is not."""

from pathlib import Path

import pytest

from semcorr.cli.errors import user_message
from semcorr.core.errors import UserError
from semcorr.engine.callbacks import checkpoint_callbacks
from semcorr.engine.trainer import build_trainer
from semcorr.evaluate import evaluate
from semcorr.train import train

pytestmark = pytest.mark.integration

KEPT = "the best epoch is kept, by its validation"


@pytest.mark.parametrize("verb", [train, evaluate])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", "64", "half"])
def test_a_precision_that_does_not_work_is_refused(config, tiny, verb, precision):
    with pytest.raises(UserError) as error:
        verb(config(verb.__name__, *tiny, f"trainer.precision={precision}"))

    assert (
        str(error.value) == f"`trainer.precision` must be one of auto, 32-true, bf16-mixed, 16-mixed, got {precision}"
    )


@pytest.mark.sampled(8)
@pytest.mark.filterwarnings("ignore:.*discouraged.*:UserWarning", "ignore:.*fp16 is not supported on CPU.*:UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "32", "'32'", "bf16", "16", "null"])
def test_a_precision_that_works_is_not_refused_by_any_of_its_names(config, tiny, precision):
    assert evaluate(config("evaluate", *tiny, f"trainer.precision={precision}"))["pairs"] == 30


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["trainer.max_epochs=0"], "`trainer.max_epochs` must be at least 1, got 0"),
        (["trainer.max_epochs=-1"], "`trainer.max_epochs` must be at least 1, got -1"),
        (["trainer.max_epochs=null", "+trainer.max_steps=8"], "`trainer.max_epochs` must be at least 1, got None"),
        (["+trainer.limit_val_batches=0"], f"`trainer.limit_val_batches` must be more than 0, got 0: {KEPT}"),
        (["+trainer.limit_val_batches=0.0"], f"`trainer.limit_val_batches` must be more than 0, got 0: {KEPT}"),
        (["+trainer.check_val_every_n_epoch=3"], "`trainer.check_val_every_n_epoch` must be at most 1, the number of"),
    ],
)
def test_a_training_that_could_not_end_well_is_not_begun(config, tiny, tmp_path, options, output):
    with pytest.raises(UserError) as error:
        train(config("train", *tiny, "finetune.blocks=1", *options))

    assert str(error.value).startswith(output)
    assert not (tmp_path / "run").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("option", ["trainer.max_epochs=0", "+trainer.limit_val_batches=0"])
def test_an_evaluation_and_a_single_step_do_not_ask_for_it(config, tiny, option):
    assert evaluate(config("evaluate", *tiny, option))["pairs"] == 30
    cfg = config("train", *tiny, option, "trainer.fast_dev_run=true")
    build_trainer(cfg, Path(cfg.run_dir), callbacks=checkpoint_callbacks(Path(cfg.run_dir)))


def test_a_training_that_keeps_no_best_epoch_needs_no_validation(config, tiny):
    """As those that are timed."""
    cfg = config("train", *tiny, "+trainer.limit_val_batches=0", "+trainer.enable_checkpointing=false")
    build_trainer(cfg, Path(cfg.run_dir))


@pytest.mark.parametrize(
    ("option", "output"),
    [
        ("limit_test_batches=0", "`trainer.limit_test_batches` must be positive or null, got 0"),
        ("limit_train_batches=0.0", "`trainer.limit_train_batches` must be positive or null, got 0"),
        ("limit_test_batches=0.01", "`trainer`: You requested to check 0.01 of the `test_dataloader` but 0.01 * 15 "),
    ],
)
def test_a_limit_that_leaves_no_batch_is_a_user_error(config, tiny, option, output):
    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *tiny, f"+trainer.{option}"))

    assert str(user_message(error.value, "evaluate")).startswith(output)
