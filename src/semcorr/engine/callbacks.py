"""Callbacks of a training: checkpoints of the trainable weights, progress and throughput; and advice on resuming."""

from pathlib import Path

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar

from semcorr.core.device import read_clock
from semcorr.core.errors import UserError
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonObject
from semcorr.core.types import ImageBatch, PairBatch
from semcorr.engine.checkpoints import read_checkpoint
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.engine.trainer_options import describe_precision
from semcorr.engine.validations import counts_validation

MONITOR = "val/all/pck@0.1"
LOSS = "train/loss"
IMAGE_RATE = "cost/images_per_second"  # logged at the end of an epoch


def checkpoint_callbacks(run_dir: Path, keep_from: float = 0.0, monitor: str = MONITOR) -> list[Callback]:
    """Make the callbacks of `best.ckpt`, by a score of the validation, and of `last.ckpt`.

    `last.ckpt` is written at the end of an epoch, where the training stream can be resumed exactly (`BatchStream`), so
    a run may be killed at any moment. `best.ckpt` is written after a validation, and is never resumed from.

    Args:
        run_dir: Directory of the run.
        keep_from: Share of the first epoch before which no validation is counted, as in the unified benchmark's code;
            its last one always is, also where the training ends in it.
        monitor: The score, as it is logged: `val/<subset>/pck@<alpha>`.
    """
    common: JsonObject = {"dirpath": run_dir / "checkpoints", "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=monitor, mode="max", save_on_train_epoch_end=False, **common)
    best.keep_from = keep_from
    # Lightning's save_last would wait for a better one.
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    return [best, last, LearningRateMonitor("step")]


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's callback with a state without folders: after a run directory is moved, the best epoch is still known.

    It has the name of Lightning's class, by which Lightning finds its state in a checkpoint.

    Attributes:
        keep_from: Share of the first epoch before which no validation is counted.
    """

    keep_from = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint if this validation counts and is the best so far."""
        if self.monitor is not None and self.monitor not in trainer.callback_metrics and not trainer.sanity_checking:
            raise UserError(
                f"`monitor`: {self.monitor} has no value, because no keypoint of the validation is in that subset. "
                f"Give another score, such as {MONITOR}."
            )
        if counts_validation(trainer, self.keep_from):
            super().on_validation_end(trainer, pl_module)

    def state_dict(self) -> JsonObject:
        """Return the state with file names instead of paths."""
        return self._move_paths(super().state_dict(), "")

    def load_state_dict(self, state_dict: JsonObject) -> None:
        """Load a state, for the files in the folder of this callback."""
        super().load_state_dict(self._move_paths(state_dict, str(self.dirpath)))
        self.current_score = state_dict["current_score"]  # which Lightning forgets

    def _move_paths(self, state: JsonObject, folder: str) -> JsonObject:
        """Return a state whose paths lie in another folder."""

        def move(path: str) -> str:
            return str(Path(folder) / Path(path).name) if path else ""

        paths = {key: move(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {move(path): score for path, score in state["best_k_models"].items()}
        return {**state, **paths, "best_k_models": best, "dirpath": folder}


class TrainingProgressBar(RichProgressBar):
    """A progress bar that reads the loss only as often as it is logged: reading a number from a GPU waits for it.

    The module does not log it with `prog_bar`: Lightning would then read it at every step, whatever the bar does.
    """

    def __init__(self) -> None:
        super().__init__(leave=False)
        self._read: JsonObject = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> JsonObject:
        """Return the metrics that were read last."""
        interval = getattr(trainer, "log_every_n_steps")  # noqa: B009 - Lightning does not declare it
        if trainer.global_step % interval == 0 or not self._read:
            read = super().get_metrics(trainer, pl_module)
            loss = {LOSS: float(trainer.callback_metrics[LOSS])} if LOSS in trainer.callback_metrics else {}
            self._read = {name: value for name, value in (read | loss).items() if name != "v_num"}  # of W&B, random
        return self._read


class StageLines(Callback):
    """A line for each stage of a run, and for each validation where no progress bar shows its score.

    Args:
        has_bar: Whether a progress bar is shown.
    """

    def __init__(self, has_bar: bool) -> None:
        self.has_bar = has_bar

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained, where and for how long."""
        weights = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        steps = trainer.estimated_stepping_batches
        print_line(
            f"Training {weights:,} weights on {_devices(trainer, pl_module)}, {describe_precision(trainer)}: "
            f"{_count(int(steps), 'step')}, {_count(trainer.max_epochs, 'epoch')}"
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the score that `best.ckpt` is kept by."""
        monitor = getattr(trainer.checkpoint_callback, "monitor", None) or MONITOR
        if monitor in trainer.callback_metrics and not trainer.sanity_checking and not self.has_bar:
            score = float(trainer.callback_metrics[monitor])
            print_line(f"Epoch {trainer.current_epoch + 1}, step {trainer.global_step:,}: {monitor} {score:.3f}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how much is scored, where and in which precision."""
        steps = sum(int(batches) for batches in trainer.num_test_batches)
        where = f"{_devices(trainer, pl_module)}, {describe_precision(trainer)}"
        print_line(f"Testing on {where}: {_count(steps, 'step')}")


def _devices(trainer: Trainer, module: LightningModule) -> str:
    """Name the device, with the number of processes if there are several."""
    return f"{trainer.world_size} x {module.device.type}" if trainer.world_size > 1 else str(module.device)


def _count(number: int | None, noun: str) -> str:
    """Name a number of things; Lightning has None or -1 for no limit."""
    if number is None or number < 0:
        return f"no limit of {noun}s"
    return f"{number:,} {noun}{'s'[: number != 1]}"


class ThroughputMonitor(Callback):
    """Log of images per second, over all processes, and of peak memory, once per epoch.

    Where its clock starts and stops it waits for the device; the steps between are not waited for.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the count of images."""
        self.start, self.images = read_clock(pl_module.device), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: PairBatch | ImageBatch, i: int
    ) -> None:
        """Count the images of a batch, two per pair."""
        self.images += len(batch.view.name) if isinstance(batch, ImageBatch) else 2 * len(batch.pair)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: epochs end with a validation, which is not counted."""
        self.stopped = read_clock(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock; of the callbacks that work after a validation this is the last."""
        if not trainer.sanity_checking:
            self.start += read_clock(pl_module.device) - self.stopped

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rate, the memory of the process and the peak memory of the GPU."""
        seconds = read_clock(pl_module.device) - self.start
        pl_module.log(IMAGE_RATE, self.images * trainer.world_size / seconds)
        pl_module.log("cost/memory_gb", psutil.Process().memory_info().rss / 1e9)
        if pl_module.device.type == "cuda":
            pl_module.log("cost/gpu_gb", torch.cuda.max_memory_allocated(pl_module.device) / 1e9)


def require_new_run_dir(run_dir: Path, checkpoint: str | None) -> None:
    """Refuse a directory that holds another run, which is only continued if `checkpoint` is given.

    Args:
        run_dir: Directory of the run.
        checkpoint: The option `checkpoint`: the directory of a run that is resumed; None for a new run.
    """
    if checkpoint is None and _holds_checkpoint(run_dir):
        raise UserError(
            f"`run_dir`: {run_dir} already holds a training run. Go on with it by checkpoint={run_dir}, "
            "or choose another run_dir."
        )
    config = run_dir / "config.yaml"
    if checkpoint is None or not config.is_file() or _holds_checkpoint(run_dir):
        return
    if "loss" not in read_plain_config(config):
        raise UserError(
            f"`checkpoint`: {run_dir} is not a training run (see its config.yaml). Give the run_dir of one."
        )


def resume_advice(run_dir: Path, trainer: Trainer) -> str:
    """Return a message that says where an interrupted run was, what it has saved, and how to resume it."""
    epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 1)
    progress = "while scoring" if trainer.testing else f"in epoch {epoch} of {trainer.max_epochs}"
    if not _holds_checkpoint(run_dir):
        return f"{progress}. Nothing was saved: the first epoch had not ended. Run the same line again"
    path = run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return f"{progress}, which begins again with: python -m semcorr.train checkpoint={run_dir}"
    epoch = read_checkpoint(run_dir, "last")["epoch"] + 1
    return f"{progress}. {path} holds epoch {epoch}. Go on with: python -m semcorr.train checkpoint={run_dir}"


def _holds_checkpoint(run_dir: Path) -> bool:
    """Tell whether a training has saved anything: one killed while it did so for the first time leaves the folder."""
    return any((run_dir / "checkpoints").glob("*.ckpt"))


def refuse_to_replace(run_dir: Path) -> None:
    """Refuse to write the scores of an evaluation into the directory of a training run."""
    if (run_dir / "checkpoints").is_dir():
        raise UserError(
            f"`run_dir`: {run_dir} holds a training run, whose config.yaml and scores would be replaced. "
            "Choose another run_dir."
        )
