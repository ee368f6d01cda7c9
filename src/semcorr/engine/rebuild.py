"""Configurations and modules rebuilt from the directories of runs, as they were trained or as they were scored."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from semcorr.core.errors import UserError
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.build import build_datamodule_and_module, build_module
from semcorr.engine.checkpoints import load_trained
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.options import check_options
from semcorr.engine.run_dir import flatten_config
from semcorr.engine.saved_config import drop_store, read_run_config, to_plain_types


def read_trained_config(run: Path, weights: Path | None = None) -> DictConfig:
    """Read the configuration of a training run.

    Args:
        run: Directory of the run.
        weights: File of the base weights; None, the one in the configuration.

    Raises:
        UserError: The run is not a training run.
    """
    cfg = read_run_config(run)
    if "loss" not in cfg:
        origin = cfg.get("checkpoint")
        hint = f" It scored {origin}: export that." if origin else ""
        raise UserError(f"{run} is not a training run (see its config.yaml).{hint or ' Give the run_dir of one.'}")
    drop_store(cfg)
    if weights is not None:
        cfg.backbone.weights = str(weights)
    return cfg


def load_trained_module(cfg: DictConfig, run: Path, which: str = "best") -> CorrespondenceModule:
    """Rebuild the module of a training run without any data, in eval mode, with its trained weights if it has any.

    Args:
        cfg: Configuration of the run, as `read_trained_config` returns it.
        run: Directory of the run.
        which: Checkpoint of the weights, `best` or `last`.

    Raises:
        UserError: An option is refused, or the weights are damaged, of another base or of other parts.
    """
    check_options(to_plain_types(cfg))
    module = build_module(cfg)
    origin = {"backbone": cfg.provenance.backbone, "sha256": cfg.provenance.weights_sha256}
    if module.trainable_state_dict():
        load_trained(module, run, which)
    else:
        module.on_load_checkpoint({"base": origin, "state_dict": {}})
    return module.eval()


FILES = ("config.yaml", "metrics.json")  # written by every finished run


def read_scored_config(run: Path, resize: str | None = None, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the configuration of a finished run.

    Args:
        run: Directory of the run.
        resize: How images become squares; None, as in the run.
        overrides: Values to replace, as `key=value`.

    Raises:
        UserError: The folder is not that of a finished run, or an override cannot be used.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder. Give the run_dir of a finished evaluate or train run.")
    missing = [name for name in FILES if not (run / name).is_file()]
    if missing:
        status = "has not finished" if len(missing) == 1 else "is not a run_dir"
        raise UserError(
            f"{run} {status}: no {', no '.join(missing)}. Give the run_dir of a finished evaluate or train run."
        )
    cfg = read_run_config(run, overrides)
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    keys = [override.partition("=")[0] for override in overrides]
    for override, key in zip(overrides, keys, strict=True):
        _, equals, value = override.partition("=")
        if not equals or OmegaConf.select(cfg, key, default=...) is ...:
            close = difflib.get_close_matches(key, flatten_config(content), n=2, cutoff=0.7)
            hint = f"Did you mean {' or '.join(close)}?" if close else "Give key=value, as data.root=DIR."
            raise UserError(f"{override!r}: the run's config.yaml has no key {key!r}. {hint}")
        if isinstance(OmegaConf.select(cfg, key), DictConfig):
            raise UserError(f"{override!r}: {key!r} is a section of config.yaml. Give keys in it, as data.root=DIR.")
        if not value.strip():
            raise UserError(f"{override!r} has no value. Give {key}=VALUE, or leave it out.")
        if keys.count(key) > 1:
            raise UserError(f"{key!r} is given twice. Give it once.")
        try:
            OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}").v)
        except (YAMLError, OmegaConfBaseException):
            raise UserError(f"{override!r}: {value!r} is not a YAML value. Put what has a colon in quotes") from None
    if "test" in cfg:
        cfg.trained_on, cfg.data = cfg.data, cfg.pop("test")
    cfg.data.resize = resize or cfg.data.resize
    cfg.pop("protocol", None)  # the audit starts from our own
    cfg.pop("kap", None)  # it compares scores of the keypoints that both images show
    cfg.logger = {"_target_": "semcorr.engine.loggers.CSVScalarLogger"}
    return cfg


def rebuild_scored_module(run: Path, cfg: DictConfig) -> tuple[CorrespondenceModule, PairDataModule]:
    """Rebuild the module and the benchmark as they were scored.

    Args:
        run: Directory of the run.
        cfg: Configuration of the run, as `read_scored_config` returns it.

    Raises:
        UserError: The run scored a benchmark without pairs of keypoints, or its weights cannot be loaded.
    """
    origin = run if "loss" in cfg else cfg.get("checkpoint") and Path(cfg.checkpoint)
    module, data = build_datamodule_and_module(cfg)
    if not isinstance(data, PairDataModule):
        raise UserError(
            f"{run} scored {cfg.data._target_.rsplit('.', 1)[-1]}, which has no pairs to be scored otherwise."
        )
    if origin and module.trainable_state_dict():
        load_trained(module, origin)
    return module, data
