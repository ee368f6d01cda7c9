"""python -m semcorr.train: fine-tune a backbone and a head on a benchmark, then score them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from semcorr.cli.hydra_app import hydra_main
from semcorr.core.files import ROOM, require_writable
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.text_files import JsonObject


def train(cfg: DictConfig) -> JsonObject:
    """Train, keep the best by `val/all/pck@0.1`, score it on the test split.

    With `cfg.checkpoint` the run is continued from its last epoch. A frozen backbone under a head without
    weights is scored as it is: the baseline of a sweep. With `cfg.test` (`data@test=NAME`) another benchmark
    than the one trained on is scored.

    Returns:
        What metrics.json holds.
    """
    from semcorr.engine.build import begin_run, build_trainer, score_and_save
    from semcorr.engine.callbacks import checkpoint_callbacks, require_new_run_dir, resume_advice
    from semcorr.engine.checkpoints import checkpoint_path, load_trained
    from semcorr.engine.resume import resume_training
    from semcorr.engine.run_dir import refuse_other_run
    from semcorr.engine.trainer_options import check_processes
    from semcorr.store.sweep_cache import SHELF

    run_dir = Path(cfg.run_dir)
    check_processes(cfg.trainer)
    require_writable(run_dir, "run_dir", ROOM)
    require_new_run_dir(run_dir, cfg.checkpoint)
    if cfg.checkpoint is None:
        refuse_other_run(run_dir, cfg)
    cfg.checkpoint = None  # where it goes on, config.yaml says by itself: it is that of an unbroken run
    module, data, scored = _built(cfg)
    goes_on = checkpoint_path(run_dir, "last").is_file()
    trainer = build_trainer(cfg, run_dir, goes_on, callbacks=checkpoint_callbacks(run_dir))
    last = resume_training(cfg, module, trainer, data)  # may refuse, and the run's config.yaml stays as it was
    if trainer.is_global_zero:
        begin_run(cfg, module, run_dir, goes_on)
    if not any(module.trainable_parameters()):
        print("Nothing to train: the backbone is frozen and the head has no weights. Scored as it is.")
        return score_and_save(cfg, trainer, module, scored)
    SHELF.clear()  # before training needs the room
    with advise_on_interrupt(lambda: resume_advice(run_dir, trainer)):
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.strategy.barrier()
            load_trained(module, Path(trainer.strategy.broadcast(str(run_dir))))  # default names differ by the second
        return score_and_save(cfg, trainer, module, scored)


def _built(cfg: DictConfig) -> tuple[object, object, object]:
    """The module, what it is trained on and what it is scored on."""
    from hydra.utils import instantiate

    from semcorr.core.errors import UserError
    from semcorr.data.datamodule import PairDataModule
    from semcorr.engine.build import build_datamodule, build_datamodule_and_module, check_config, use_cached_features

    check_config(cfg)
    training = {key: instantiate(cfg[key]) for key in ("loss", "optimizer", "scheduler")}
    other = build_datamodule(cfg, "test", ("test",)) if "test" in cfg else None
    if other is not None and not isinstance(other, PairDataModule):
        raise UserError(f"`data@test`: {other.name} has no pairs. Score it with semcorr.evaluate checkpoint=RUN_DIR")
    data: Any
    module, data = build_datamodule_and_module(cfg, ("fit",) if other else ("fit", "test"), **training)
    use_cached_features(module, data)
    scored = other or data
    module.pose.check(module.backbone, scored)
    scored.size, scored.pixels = data.size, data.pixels
    return module, data, scored


def main() -> None:
    """The command."""
    hydra_main(train, "train")


if __name__ == "__main__":
    main()
