"""Validations of a training fit into its epochs, or it is refused."""

import pytest

from semcorr.train import main

pytestmark = pytest.mark.integration

LINE = ["data.batch_size=2", "trainer.num_sanity_val_steps=0", "protocol=semcorr"]


@pytest.mark.parametrize("option", ["data.steps=2", "data.steps=9 +trainer.limit_train_batches=2"])
def test_validations_further_apart_than_an_epoch_are_refused_before_anything_is_written(tiny, tmp_path, capsys, option):
    line = [*tiny, *LINE, *option.split(), "trainer.val_check_interval=5", f"run_dir={tmp_path / 'run'}"]

    assert main(line) == 2

    error = capsys.readouterr().err
    assert "`trainer.val_check_interval` must be at most 2, the steps of an epoch, got 5. Give a smaller" in error
    assert not (tmp_path / "run").exists()
