"""Scoring of a module, and the files and tables of its results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning import Trainer
from omegaconf import DictConfig
from torch import nn

from semcorr.core.files import list_outputs
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.build import Benchmark
from semcorr.engine.evaluation_only import EvaluationModule
from semcorr.engine.foreign_files import mark_while_unfinished
from semcorr.engine.loggers import CSVScalarLogger, finish_loggers
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.pages import log_summary
from semcorr.engine.run_dir import POST_FEATURE_KEYS, config_hash, replace_results
from semcorr.engine.saved_config import save_config
from semcorr.engine.trainer_options import run_products
from semcorr.evaluation.results import print_scores, write_results
from semcorr.models.weights.loading import weights_sha256
from semcorr.store.cache import SweepFeatureCache


def score_and_save(
    cfg: DictConfig,
    trainer: Trainer,
    module: CorrespondenceModule | EvaluationModule,
    data: Benchmark,
    cache: SweepFeatureCache | None = None,
) -> JsonObject:
    """Test, then write the results to `cfg.run_dir` and print them, on the first process.

    Args:
        cfg: Configuration of the run.
        trainer: Lightning's Trainer.
        module: Module to test.
        data: The benchmark.
        cache: Cache of features that the jobs of a sweep share.

    Returns:
        The content of metrics.json; an empty dictionary on the other processes.
    """
    if cache is not None and isinstance(module, CorrespondenceModule):
        module.share_features(cache, config_hash(cfg, *POST_FEATURE_KEYS) + weights_sha256(module))
    if not trainer.is_global_zero:
        with run_products(trainer):
            trainer.test(module, datamodule=data, verbose=False)
        return {}
    run_dir = Path(cfg.run_dir)
    with mark_while_unfinished(run_dir), replace_results(run_dir) as folder:
        with _redirect_scalars(folder, trainer), run_products(trainer):
            trainer.test(module, datamodule=data, verbose=False)
        save_config(cfg, module.backbone, folder)
        if isinstance(module, EvaluationModule):
            metrics = module.write_results(folder)
        else:
            assert isinstance(data, PairDataModule)
            metrics = write_results(module.result, data, folder, count_trained(module))
    log_summary(trainer.loggers, metrics, run_dir, trainer.global_step)
    finish_loggers(trainer.loggers)
    print_table = module.print_scores if isinstance(module, EvaluationModule) else print_scores
    print_table(metrics, f"{metrics['split']}, {module.backbone.name}")
    print_line(f"Wrote {run_dir}: {', '.join(list_outputs(run_dir))}")
    return metrics


def count_trained(module: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@contextmanager
def _redirect_scalars(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Write metrics.csv, which scoring extends, into a folder, to be replaced together with the other results."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVScalarLogger)]
    paths = [logger.path for logger in loggers]
    for logger in loggers:
        logger.path = folder / logger.path.name
    try:
        yield
    finally:
        for logger, path in zip(loggers, paths, strict=True):
            logger.path = path
