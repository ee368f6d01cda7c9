"""Checkpoints: the best and the last, of the moving weights only, and going on from the last."""

import time
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar

from semcorr.errors import UserError
from semcorr.loggers import CSV
from semcorr.optim import planned_steps, refuse_longer
from semcorr.types import ImageBatch

MONITOR = "val/all/pck@0.1"


def checkpoints(run_dir: Path) -> list[Callback]:
    """`best.ckpt` by validation PCK@0.1 on all keypoints, and `last.ckpt`, written as an epoch ends.

    An epoch ends where the training stream can be taken up again exactly (sampler.py), so these are
    all the checkpoints a run needs to be killed at any moment.
    """
    common: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", **common)
    last = ModelCheckpoint(filename="last", **common)  # Lightning's save_last would wait for a better one
    return [best, last, LearningRateMonitor("step")]


class Progress(RichProgressBar):
    """Shows the loss as often as it is logged: to read a number from a GPU is to wait for it."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self._read: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The last ones read."""
        if trainer.global_step % trainer.log_every_n_steps == 0 or not self._read:  # type: ignore[attr-defined]
            self._read = super().get_metrics(trainer, pl_module)
        return self._read


class Cost(Callback):
    """Once an epoch: images a second, over all processes, and the most memory that was taken."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock."""
        self.start, self.images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Two images a pair."""
        self.images += len(batch.view.name) if isinstance(batch, ImageBatch) else 2 * len(batch.pair)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock stands still: epochs end in a validation, which is not counted."""
        self.stopped = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It goes on. Of the callbacks that work after a validation this is the last."""
        if not trainer.sanity_checking:
            self.start += time.perf_counter() - self.stopped

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rate, and what memory the process has or the device had."""
        seconds = time.perf_counter() - self.start
        pl_module.log("cost/images_per_second", self.images * trainer.world_size / seconds)
        pl_module.log("cost/memory_gb", psutil.Process().memory_info().rss / 1e9)
        if pl_module.device.type == "cuda":
            pl_module.log("cost/gpu_gb", torch.cuda.max_memory_allocated(pl_module.device) / 1e9)


def refuse_to_mix(run_dir: Path, checkpoint: str | None) -> None:
    """A run directory holds one run: it is continued when asked, and never by accident."""
    if checkpoint is None and (run_dir / "checkpoints").is_dir():
        raise UserError(
            f"`run_dir`: {run_dir} already holds a training run. Go on with it by checkpoint={run_dir}, "
            "or choose another run_dir."
        )


def advice(run_dir: Path, trainer: Trainer) -> str:
    """Say where an interrupted run was, what it has saved, and how it goes on."""
    from semcorr.run import read_checkpoint

    epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
    where = "while scoring" if trainer.testing else f"in epoch {epoch} of {trainer.max_epochs}"
    if not (run_dir / "checkpoints").is_dir():
        return f"{where}. Nothing was saved: the first epoch had not ended. Run the same line again"
    path = run_dir / "checkpoints" / "last.ckpt"
    saved = f"{path} holds epoch {read_checkpoint(run_dir, 'last')['epoch'] + 1}. " if path.is_file() else ""
    return f"{where}. {saved}Go on with: python -m semcorr.train checkpoint={run_dir}"


def resume(run_dir: Path, trainer: Trainer, data: Any) -> str | None:
    """The last checkpoint of a run directory, if it has one; its scalars are carried on."""
    from semcorr.run import read_checkpoint

    path = run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file() or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    content = read_checkpoint(run_dir, "last")
    data.trainer = trainer  # whose processes share the steps of an epoch
    refuse_longer(content, planned_steps(trainer, data))
    for logger in trainer.loggers:
        if isinstance(logger, CSV):
            logger.resume(content["global_step"])
    return str(path)
