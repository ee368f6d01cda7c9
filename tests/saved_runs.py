"""config.yaml as a run leaves it, without the run."""

from pathlib import Path
from types import SimpleNamespace

from omegaconf import DictConfig

from semcorr.engine.build import save_config


def save_run(cfg: DictConfig, folder: Path) -> Path:
    """The configuration of a run into its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(cfg, SimpleNamespace(backbone=SimpleNamespace(name="tiny", sha256="ab" * 32)), folder)
    return folder
