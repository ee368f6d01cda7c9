"""python -m semcorr.evaluate: score a backbone, or a training run, on a benchmark."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from semcorr.cli.hydra_app import hydra_main
from semcorr.core.files import MIN_FREE_BYTES, require_writable
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.text_files import JsonObject

if TYPE_CHECKING:  # it imports torch, which --help does not need
    from semcorr.store.cache import SweepFeatureCache

SUMMARY = "Score a frozen backbone, or a training run's checkpoint, on a benchmark."
EXAMPLES = (
    "backbone=dinov2 data=spair data.root=DIR",
    "checkpoint=RUN_DIR",
    "checkpoint=RUN_DIR data=ap10k protocol=[semcorr,geoaware]",
    "data=synthetic backbone=efficientnet_lite0 trainer=cpu",
    "-m backbone=dinov2,dinov3 localise=argmax,window_soft_argmax,window_9",
)


def evaluate(cfg: DictConfig, cache: "SweepFeatureCache | None" = None) -> JsonObject:
    """Score `cfg.data`'s split and write the results to `cfg.run_dir`.

    Args:
        cfg: Configuration of the run, conf/evaluate.yaml.
        cache: Cache of features that the jobs of a sweep share.

    Returns:
        The content of metrics.json; an empty dictionary on processes other than the first.
    """
    from semcorr.data.evaluation_only import EvaluationBenchmark
    from semcorr.engine.build import build_datamodule_and_module
    from semcorr.engine.callbacks import refuse_to_replace
    from semcorr.engine.checkpoints import load_trained
    from semcorr.engine.evaluation_modules import build_evaluation_module
    from semcorr.engine.foreign_files import refuse_foreign_files
    from semcorr.engine.run_dir import refuse_other_run
    from semcorr.engine.scoring import score_and_save
    from semcorr.engine.trainer import build_trainer
    from semcorr.engine.trainer_options import check_processes
    from semcorr.engine.unused_settings import warn_of_trial

    check_processes(cfg.trainer)
    require_writable(Path(cfg.run_dir), "run_dir", MIN_FREE_BYTES)
    refuse_to_replace(Path(cfg.run_dir))
    refuse_other_run(Path(cfg.run_dir), cfg)
    refuse_foreign_files(Path(cfg.run_dir), cfg)
    warn_of_trial(cfg)
    module, data = build_datamodule_and_module(cfg)
    refuse_other_run(Path(cfg.run_dir), cfg, is_filled=True)
    if cfg.checkpoint:
        load_trained(module, Path(cfg.checkpoint))
    module.pose.check(module.backbone, data)
    trainer = build_trainer(cfg, Path(cfg.run_dir))
    if isinstance(data, EvaluationBenchmark):
        return score_and_save(cfg, trainer, build_evaluation_module(module, data), data)
    return score_and_save(cfg, trainer, module, data, cache)


def _evaluate(cfg: DictConfig) -> JsonObject:
    """Evaluate as a command, with a message for the case of an interruption."""
    stored = f" Features that were computed are in the store {cfg.store.root}." if cfg.store.get("root") else ""
    with advise_on_interrupt(lambda: f"No scores were written.{stored} Run the same line again"):
        return evaluate(cfg)


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr evaluate`, and return its exit code."""
    return hydra_main(_evaluate, "evaluate", SUMMARY, EXAMPLES, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
