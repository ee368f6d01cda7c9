"""config.yaml as a run leaves it, without the run."""

from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from semcorr.core.interfaces import Backbone
from semcorr.engine.build import save_config
from semcorr.engine.module import CorrespondenceModule
from semcorr.matching.readouts import argmax
from semcorr.models.heads.cosine import Cosine


class NamedBackbone(Backbone):
    """A backbone without weights, of which a configuration tells the name and the hash."""

    name, sha256, norm, pairwise = "tiny", "ab" * 32, None, False
    blocks: tuple[nn.Module, ...] = ()


def save_run(cfg: DictConfig, folder: Path) -> Path:
    """Save the configuration of a run into its folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    module = CorrespondenceModule(NamedBackbone(), Cosine(), argmax, finetune=lambda backbone: None)
    save_config(cfg, module, folder)
    return folder
