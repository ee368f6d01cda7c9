"""python -m semcorr.train: fine-tune a backbone and a head on a benchmark, then score them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from semcorr.cli import hydra_main
from semcorr.core.files import ROOM, require_writable
from semcorr.core.interrupt import advising


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, keep the best by `val/all/pck@0.1`, score it on the test split.

    With `cfg.checkpoint` the run is continued from its last epoch. A frozen backbone under a head without
    weights is scored as it is: the baseline of a sweep. With `cfg.test` (`data@test=NAME`) another benchmark
    than the one trained on is scored.

    Returns:
        What metrics.json holds.
    """
    from semcorr.callbacks import advice, checkpoints, refuse_to_mix
    from semcorr.checkpoint_files import checkpoint_path, load_trained
    from semcorr.resuming import resume
    from semcorr.run import begin_run, make_trainer, score
    from semcorr.run_dir import refuse_other_run
    from semcorr.shelf import SHELF
    from semcorr.trainer_options import check_processes

    run_dir = Path(cfg.run_dir)
    check_processes(cfg.trainer)
    require_writable(run_dir, "run_dir", ROOM)
    refuse_to_mix(run_dir, cfg.checkpoint)
    if cfg.checkpoint is None:
        refuse_other_run(run_dir, cfg)
    cfg.checkpoint = None  # where it goes on, config.yaml says by itself: it is that of an unbroken run
    module, data, scored = _built(cfg)
    goes_on = checkpoint_path(run_dir, "last").is_file()
    trainer = make_trainer(cfg, run_dir, goes_on, callbacks=checkpoints(run_dir))
    last = resume(cfg, module, trainer, data)  # may refuse, and the run's config.yaml stays as it was
    if trainer.is_global_zero:
        begin_run(cfg, module, run_dir, goes_on)
    if not any(module.trained()):
        print("Nothing to train: the backbone is frozen and the head has no weights. Scored as it is.")
        return score(cfg, trainer, module, scored)
    SHELF.clear()  # before training needs the room
    with advising(lambda: advice(run_dir, trainer)):
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.strategy.barrier()
            load_trained(module, Path(trainer.strategy.broadcast(str(run_dir))))  # default names differ by the second
        return score(cfg, trainer, module, scored)


def _built(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """The module, what it is trained on and what it is scored on."""
    from hydra.utils import instantiate

    from semcorr.data.datamodule import PairDataModule
    from semcorr.errors import UserError
    from semcorr.run import benchmark, build, check_config, reuse

    check_config(cfg)
    training = {key: instantiate(cfg[key]) for key in ("loss", "optimizer", "scheduler")}
    other = benchmark(cfg, "test", ("test",)) if "test" in cfg else None
    if other is not None and not isinstance(other, PairDataModule):
        raise UserError(f"`data@test`: {other.name} has no pairs. Score it with semcorr.evaluate checkpoint=RUN_DIR")
    data: Any
    module, data = build(cfg, ("fit",) if other else ("fit", "test"), **training)
    reuse(module, data)
    scored = other or data
    module.pose.check(module.backbone, scored)
    scored.size, scored.pixels = data.size, data.pixels
    return module, data, scored


def main() -> None:
    """The command."""
    hydra_main(train, "train")


if __name__ == "__main__":
    main()
