"""Settings that change nothing of a run are told where they were typed, and only there."""

import logging
import re

import pytest

from semcorr import evaluate, train
from semcorr.core.typed_settings import record_settings
from semcorr.engine.build import build_training
from semcorr.engine.unused_settings import warn_of_trial, warn_of_untrained_parts


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["finetune=frozen", "head=bottleneck", "optimizer.backbone_lr=0.5"], "`optimizer.backbone_lr`: .*is frozen"),
        (["head=cosine", "optimizer.lr=0.5"], "`optimizer.lr`: .*head, which has no weights"),
        (["finetune=frozen", "loss=dense", "optimizer.lr=0.5"], "`loss`, `optimizer.lr`: .*nothing is trained"),
        (["trainer.fast_dev_run=true", "trainer.max_epochs=7"], "`trainer.max_epochs`: .*trainer.fast_dev_run sets"),
        (["trainer.max_epochs=7", "head=bottleneck", "optimizer.backbone_lr=0.5", "optimizer.lr=0.5"], None),
        (
            ["head=cosine", "optimizer.lr=0.5", "loss=gaussian_cross_entropy", "loss.learn=scalar"],
            None,
        ),  # its rate, too
    ],
)
def test_a_setting_without_effect_is_told_where_it_was_typed(config, tiny, caplog, line, told):
    cfg = config("train", *tiny, *line)
    module, *_ = build_training(cfg)
    warn_of_trial(cfg)
    warn_of_untrained_parts(cfg, module)
    assert not caplog.records  # nothing was typed: the configuration is composed in Python

    with record_settings(line), caplog.at_level(logging.WARNING):
        warn_of_trial(cfg)
        warn_of_untrained_parts(cfg, module)

    assert len(caplog.records) == (told is not None)
    if told is not None:
        assert re.match(told, caplog.records[0].getMessage()), caplog.text


def test_both_commands_tell_it(tiny, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trial = [*tiny, "trainer.fast_dev_run=true", "+trainer.limit_test_batches=3"]
    for verb, more in ((train, ["finetune=frozen", "optimizer.lr=1"]), (evaluate, [])):
        caplog.clear()
        assert verb.main([*trial, *more, f"run_dir={verb.__name__}"]) == 0
        told = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
        assert "`trainer.limit_test_batches`" in told[0]
        assert len(told) == 1 + (verb is train)
