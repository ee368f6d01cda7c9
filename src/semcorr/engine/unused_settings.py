"""Settings that were typed and change nothing of a run: told, not refused, as the jobs of a sweep share a line."""

import logging
from collections.abc import Iterable

from omegaconf import DictConfig
from torch import nn

from semcorr.core.ranks import is_first_process
from semcorr.core.typed_settings import list_settings, read_key
from semcorr.engine.module import CorrespondenceModule

log = logging.getLogger(__name__)
OPTIMIZER = "semcorr.engine.optim.adamw"  # ours, whose rates are of these parts
TRAINING = (
    *("loss", "optimizer", "scheduler", "augment", "pairs", "feature_dropout", "monitor", "keep_from"),
    *("data.steps", "trainer.max_epochs", "trainer.max_steps"),
)
LIMITS = (
    *("max_epochs", "max_steps", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
)
REPLACED = (*(f"trainer.{option}" for option in LIMITS), "logger", "keep_from")  # by fast_dev_run


def warn_of_trial(cfg: DictConfig) -> None:
    """Warn of what was typed and `trainer.fast_dev_run` replaces.

    Args:
        cfg: Configuration of train or evaluate.
    """
    if cfg.trainer.get("fast_dev_run"):
        reason = "trainer.fast_dev_run sets how far a trial runs, and a trial is neither logged nor kept"
        _warn(REPLACED, reason)


def warn_of_untrained_parts(cfg: DictConfig, module: CorrespondenceModule) -> None:
    """Warn of a learning rate that was typed for a part without trainable weights.

    Args:
        cfg: Configuration of a training.
        module: Its module.
    """
    head, backbone = module.trainable_parameters()
    if not head and not backbone:
        _warn(TRAINING, "nothing is trained: the backbone is frozen and the head has no weights")
        return
    if cfg.optimizer.get("_target_") != OPTIMIZER:
        return
    if not backbone:
        _warn(["optimizer.backbone_lr"], "it is the rate of the backbone, which is frozen")
    if not head and not (isinstance(module.loss, nn.Module) and [*module.loss.parameters()]):
        _warn(["optimizer.lr"], "it is the rate of the head, which has no weights. The backbone's is backbone_lr")


def _warn(keys: Iterable[str], reason: str) -> None:
    """Warn that typed settings of these keys, or below them, have no effect."""
    names, typed = tuple(keys), [read_key(setting) for setting in list_settings() or ()]
    unused = [key for key in dict.fromkeys(typed) if any(key == name or key.startswith(f"{name}.") for name in names)]
    if unused and is_first_process():
        listed = ", ".join(f"`{key}`" for key in unused)
        log.warning("%s: without effect here, as %s.", listed, reason)
