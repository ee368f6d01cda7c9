"""A training run's directory to the module as it was trained; no data needed."""

from pathlib import Path

from omegaconf import DictConfig

from semcorr.checkpoint_files import load_trained
from semcorr.errors import UserError
from semcorr.module import Correspondence
from semcorr.options import check_options
from semcorr.run import assembled
from semcorr.saved_config import drop_store, read_run_config


def configuration(run: Path, weights: Path | None = None) -> DictConfig:
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


def rebuilt(cfg: DictConfig, run: Path, which: str = "best") -> Correspondence:
    """The module as it was trained, in eval mode; of a frozen run, as it was built. Needs no data."""
    check_options(cfg)
    module = assembled(cfg)
    origin = {"backbone": cfg.provenance.backbone, "sha256": cfg.provenance.weights_sha256}
    if module.moving():
        load_trained(module, run, which)
    else:
        module.on_load_checkpoint({"base": origin, "state_dict": {}})
    return module.eval()
