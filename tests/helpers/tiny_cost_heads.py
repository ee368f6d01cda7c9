"""Heads that filter the correlation of two whole maps, built for four by four cells, and what they are given."""

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from semcorr.core.coords import to_image
from semcorr.core.types import FeatureMap
from semcorr.engine.known_targets import conf_dir

CHANNELS, GRID = 12, 4
STRIDE = 8.0


def built(name: str, trained: bool = True, **options) -> nn.Module:
    """Of the configuration, with weights away from where they start."""
    torch.manual_seed(0)
    cfg = OmegaConf.load(conf_dir() / "head" / f"{name}.yaml")
    for base in cfg.pop("defaults", []):
        cfg = OmegaConf.merge(OmegaConf.load(conf_dir() / "head" / f"{base}.yaml"), cfg)
    given = {"channels": CHANNELS, "grid": GRID}
    head = instantiate(cfg, **{key: value for key, value in given.items() if key in cfg} | options)
    if trained:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return head


def maps(batch: int = 2, h: int = GRID, w: int = GRID, precision: torch.dtype = torch.float32) -> FeatureMap:
    return FeatureMap(torch.randn(batch, CHANNELS, h, w).to(precision), STRIDE)


def points(batch: int, n: int) -> torch.Tensor:
    return torch.rand(batch, n, 2) * 40 - 4


def centres(h: int = GRID, w: int = GRID) -> torch.Tensor:
    """Of all cells, row by row, in pixels."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return to_image(torch.stack((x, y), -1).flatten(0, 1).float(), STRIDE)[None]
