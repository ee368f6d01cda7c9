"""What a run says of its own cost."""

import csv
import time

import pytest

from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.pages import PagesCallback
from semcorr.train import train

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_images_per_second_are_those_of_training_alone(config, tiny, tmp_path, monkeypatch):
    """Two steps of four pairs take a second each; validating them, and drawing what was found, an hour."""
    now, step, score = [time.perf_counter()], CorrespondenceModule.training_step, CorrespondenceModule.validation_step

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(CorrespondenceModule, "training_step", lambda self, batch: (wait(1), step(self, batch))[1])
    monkeypatch.setattr(
        CorrespondenceModule, "validation_step", lambda self, batch: (wait(3600), score(self, batch))[1]
    )
    monkeypatch.setattr(PagesCallback, "on_validation_end", lambda self, trainer, module: wait(3600))

    train(config("train", *tiny, "finetune.blocks=1", "data.steps=2", "data.batch_size=4", "trainer.max_epochs=1"))

    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [float(row["cost/images_per_second"]) for row in rows if row["cost/images_per_second"]] == [8.0]
