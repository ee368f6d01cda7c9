"""Train and score on the device of `standin_device`, and write as JSON what the host waited for; a program of its own.

    python device_reads.py ANSWER DATA_ROOT CASE ...

A case is the overrides of a training, separated by spaces. Lightning's own Trainer runs it: a few steps in bfloat16 by
autocast, a validation and a test.
"""

import json
import sys
import tempfile
import traceback
from pathlib import Path

from repository import SMALL
from standin_device import NAME, WAITS, register_device

if __name__ == "__main__":  # not where pytest looks here for examples, whose process would have the device for good
    register_device()

import torch  # with the device known
from hydra import compose, initialize_config_dir
from lightning import Callback
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig

from semcorr.cli.compose import expand_list_overrides
from semcorr.engine.build import build_training
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.trainer import build_trainer

QUICK = ["data=synthetic", "backbone=tiny", "trainer=cpu", "data.workers=0", "data.steps=2", "data.batch_size=2",
         "trainer.val_check_interval=null", "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1",
         "optimizer.lr=1e-3", "+trainer.enable_progress_bar=false"]  # fmt: skip


class StandinAccelerator(Accelerator):
    """The device, as Lightning sees it."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: object) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: object) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    def get_device_stats(self, device: object) -> dict:
        return {}


class StepRecorder(Callback):
    """Record of the waits of each training step, from its start to the start of the next, and of each scored batch."""

    def __init__(self) -> None:
        self.steps: list[list] = []
        self.batches: dict[str, list[list]] = {"validate": [], "test": []}
        self.start = 0

    def on_train_batch_start(self, trainer: object, module: object, batch: object, i: int) -> None:
        if self.steps:
            self.steps[-1] += WAITS[self.start :]
        self.steps.append([])
        self.start = len(WAITS)

    def on_validation_batch_start(self, *args: object) -> None:
        self.start = len(WAITS)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(self, *args: object) -> None:
        self.batches["validate"].append(WAITS[self.start :])

    def on_test_batch_end(self, *args: object) -> None:
        self.batches["test"].append(WAITS[self.start :])


def compose_config(run_dir: Path, root: str, case: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = expand_list_overrides(case.split())
        return compose("train", [*QUICK, *SMALL, f"data.root={root}", f"run_dir={run_dir}", *overrides])


def run_case(root: str, case: str) -> dict:
    """Train and score; the waits of whole steps, the last of which ends with the epoch and is left out."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = StepRecorder()
        try:
            cfg = compose_config(Path(folder), root, case)
            module, data, scored = build_training(cfg)
            strategy = SingleDeviceStrategy(torch.device(NAME, 0), accelerator=StandinAccelerator())
            options = {"strategy": strategy, "accelerator": "auto", "precision": None}
            trainer = build_trainer(cfg, Path(folder), callbacks=[recorder], **options)
            trainer.strategy.precision_plugin = MixedPrecision("bf16-mixed", NAME)
            if any(module.trainable_parameters()):
                trainer.fit(module, datamodule=data)
            trainer.test(module, datamodule=scored, verbose=False)
            error = None
        except Exception:
            error = traceback.format_exc()
    return {"steps": recorder.steps[:-1], **recorder.batches, "error": error}


def main() -> None:
    answer, root, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    Path(answer).write_text(json.dumps({case: run_case(root, case) for case in cases}))


if __name__ == "__main__":
    main()
