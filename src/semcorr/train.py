"""python -m semcorr.train: fine-tune a backbone and a head on a benchmark, then score them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from semcorr.cli import hydra_main


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, keep the best by `val/all/pck@0.1`, score it on the test split.

    With `cfg.checkpoint` the run is continued from its last epoch. A frozen backbone under a head without
    weights is scored as it is: the baseline of a sweep.

    Returns:
        What metrics.json holds.
    """
    from hydra.utils import instantiate

    from semcorr.callbacks import checkpoints, refuse_to_mix, resume
    from semcorr.run import build, make_trainer, read_checkpoint, save_config, score

    run_dir = Path(cfg.run_dir)
    refuse_to_mix(run_dir, cfg.checkpoint)
    training = {key: instantiate(cfg[key]) for key in ("loss", "optimizer", "scheduler")}
    module, data = build(cfg, ("fit", "test"), **training)
    trainer = make_trainer(cfg, run_dir, callbacks=checkpoints(run_dir))
    if trainer.is_global_zero:
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(cfg, module, run_dir)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        print("Nothing to train: the backbone is frozen and the head has no weights. Scored as it is.")
        return score(cfg, trainer, module, data)
    trainer.fit(module, datamodule=data, ckpt_path=resume(run_dir, trainer), weights_only=True)
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.strategy.barrier()
        module.load_state_dict(read_checkpoint(run_dir)["state_dict"], strict=False)
    return score(cfg, trainer, module, data)


def main() -> None:
    """The command."""
    hydra_main(train, "train")


if __name__ == "__main__":
    main()
