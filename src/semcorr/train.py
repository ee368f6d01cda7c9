"""python -m semcorr.train: fine-tune a backbone and a head on a benchmark, then score them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from semcorr.cli.hydra_app import hydra_main
from semcorr.core.files import MIN_FREE_BYTES, require_writable
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonObject

if TYPE_CHECKING:  # it imports torch, which --help does not need
    from semcorr.store.cache import SweepFeatureCache

SUMMARY = "Train a backbone or a head on a benchmark, and score the best weights on its test split."
EXAMPLES = (
    "backbone=dinov2 finetune.blocks=2",
    "backbone=dinov2 finetune=lora head=bottleneck data=pf_pascal data.root=DIR",
    "data=synthetic backbone=efficientnet_lite0 backbone.size=320 trainer=cpu",
    "-m backbone=dino_b16,dinov2,dinov3 finetune.blocks=1,2,4",
    "checkpoint=RUN_DIR",
)


def train(cfg: DictConfig, cache: "SweepFeatureCache | None" = None) -> JsonObject:
    """Train, and score the checkpoint with the best score of the validation (`monitor`) on the test split.

    With `cfg.checkpoint` the run is resumed from its last epoch, with `cfg.start_from` a new one starts from the
    weights of another. A frozen backbone under a head without weights is scored as it is: the baseline of a sweep.
    With `cfg.test` (`data@test=NAME`) another benchmark than the one trained on is scored.

    Args:
        cfg: Configuration of the run, conf/train.yaml.
        cache: Cache of features that the jobs of a sweep share.

    Returns:
        The content of metrics.json; an empty dictionary on processes other than the first.
    """
    from semcorr.data.loaders import divide_batch
    from semcorr.engine.build import build_training
    from semcorr.engine.callbacks import MONITOR, checkpoint_callbacks, require_new_run_dir, resume_advice
    from semcorr.engine.checkpoints import load_trained
    from semcorr.engine.foreign_files import refuse_foreign_files
    from semcorr.engine.resume import refuse_trial, require_last, resume_training, start_from_run
    from semcorr.engine.run_dir import checkpoint_path, refuse_other_run
    from semcorr.engine.saved_config import begin_run
    from semcorr.engine.scoring import score_and_save
    from semcorr.engine.teacher import require_teacher
    from semcorr.engine.trainer import build_trainer
    from semcorr.engine.trainer_options import check_processes, run_products
    from semcorr.engine.unused_settings import warn_of_trial, warn_of_untrained_parts
    from semcorr.engine.validations import require_best, require_validation

    run_dir = Path(cfg.run_dir)
    check_processes(cfg.trainer)
    require_writable(run_dir, "run_dir", MIN_FREE_BYTES)
    require_new_run_dir(run_dir, cfg.checkpoint)
    if cfg.checkpoint is None:
        refuse_other_run(run_dir, cfg)
        refuse_foreign_files(run_dir, cfg)
    else:
        refuse_trial(cfg)
    continues = cfg.checkpoint is not None
    cfg.checkpoint = None  # a resumed run has the config.yaml of an uninterrupted one
    warn_of_trial(cfg)
    module, data, scored = build_training(cfg)
    warn_of_untrained_parts(cfg, module)
    if continues:
        require_last(run_dir, trains=any(module.trainable_parameters()))
    resumes = checkpoint_path(run_dir, "last").is_file()
    savers = checkpoint_callbacks(run_dir, cfg.get("keep_from", 0.0), cfg.get("monitor", MONITOR))
    trainer = build_trainer(cfg, run_dir, resumes, savers)
    if data.global_batch_size is not None:
        divide_batch(data.global_batch_size, trainer.world_size)  # before other processes are started
    if any(module.trainable_parameters()):
        data.trainer = trainer  # whose processes share the steps of an epoch
        require_validation(trainer, data, begins=not resumes)
    last = resume_training(cfg, module, trainer, data)  # before config.yaml is written, as it may raise
    if last is None:  # these, too
        start_from_run(cfg, module)
    if any(module.trainable_parameters()):
        require_teacher(module, getattr(trainer, "callbacks", ()), begins=last is None)
    if trainer.is_global_zero:
        if not resumes:  # of a first epoch that did not end
            (run_dir / "checkpoints" / "best.ckpt").unlink(missing_ok=True)
        begin_run(cfg, module.backbone, run_dir, resumes)
    if not any(module.trainable_parameters()):
        print_line("Nothing to train: the backbone is frozen and the head has no weights. Scored as it is.")
        return score_and_save(cfg, trainer, module, scored, cache)
    if cache is not None:
        cache.clear()  # training needs the memory
    with advise_on_interrupt(lambda: resume_advice(run_dir, trainer)):
        with run_products(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        if not getattr(trainer, "fast_dev_run", False):
            trainer.strategy.barrier()
            # Default names contain the time, and may differ between processes.
            trained = Path(trainer.strategy.broadcast(str(run_dir)))
            require_best(trained, trainer)
            load_trained(module, trained)
        return score_and_save(cfg, trainer, module, scored, cache)


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr train`, and return its exit code."""
    return hydra_main(train, "train", SUMMARY, EXAMPLES, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
