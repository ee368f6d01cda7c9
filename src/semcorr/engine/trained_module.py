"""A training run's directory to the module as it was trained; no data needed."""

from pathlib import Path

from omegaconf import DictConfig

from semcorr.cli.options import check_options
from semcorr.core.errors import UserError
from semcorr.engine.build import build_module
from semcorr.engine.checkpoints import load_trained
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.saved_config import drop_store, read_run_config


def read_trained_config(run: Path, weights: Path | None = None) -> DictConfig:
    """What a training run was, with the file of its base weights somewhere else, if need be."""
    cfg = read_run_config(run)
    if "loss" not in cfg:
        origin = cfg.get("checkpoint")
        hint = f" It scored {origin}: export that." if origin else ""
        raise UserError(f"{run} is no training run, by its config.yaml.{hint or ' Give the run_dir of one.'}")
    drop_store(cfg)
    if weights is not None:
        cfg.backbone.weights = str(weights)
    return cfg


def load_trained_module(cfg: DictConfig, run: Path, which: str = "best") -> CorrespondenceModule:
    """The module as it was trained, in eval mode; of a frozen run, as it was built. Needs no data."""
    check_options(cfg)
    module = build_module(cfg)
    origin = {"backbone": cfg.provenance.backbone, "sha256": cfg.provenance.weights_sha256}
    if module.moving():
        load_trained(module, run, which)
    else:
        module.on_load_checkpoint({"base": origin, "state_dict": {}})
    return module.eval()
