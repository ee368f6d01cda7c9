"""python -m semcorr.evaluate: score a backbone, or a training run, on a benchmark."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from semcorr.cli import hydra_main


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score `cfg.data`'s split and leave the results in `cfg.run_dir`.

    Returns:
        What metrics.json holds.
    """
    from semcorr.loggers import finish
    from semcorr.run import build, make_trainer, print_scores, read_checkpoint, save_config, write_results

    module, data = build(cfg)
    if cfg.checkpoint:
        content = read_checkpoint(Path(cfg.checkpoint))
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"], strict=False)
    run_dir = Path(cfg.run_dir)
    trainer = make_trainer(cfg, run_dir)
    trainer.test(module, datamodule=data, verbose=False)
    finish(trainer.loggers)
    if not trainer.is_global_zero:
        return {}
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(cfg, module, run_dir)
    metrics = write_results(module, data, run_dir)
    print_scores(metrics, f"{metrics['split']}, {module.backbone.name}")
    return metrics


def main() -> None:
    """The command."""
    hydra_main(evaluate, "evaluate")


if __name__ == "__main__":
    main()
