"""Runs of seconds, python -m semcorr.export as typed, and backbones that look trained.

Its fixtures are imported as `run as run`: an argument of that name is no use that a linter sees.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from backbone_cases import IMAGE
from omegaconf import DictConfig, OmegaConf
from torch import nn

from semcorr import export
from semcorr.engine.rebuild import load_trained_module, read_trained_config
from semcorr.train import train

QUICK = [
    "data.steps=3",
    "data.batch_size=4",
    "optimizer.backbone_lr=1e-2",
    "trainer.max_epochs=1",
    "backbone.layers=[1]",
]
FACTS = {"base": "some"}


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one epoch, each trained when any file of tests first asks for it. None may change them."""
    return tmp_path_factory.getbasetemp() / "exported_runs"


@pytest.fixture
def run(runs: Path, tiny: list[str], config: Callable[..., DictConfig]) -> Callable[..., Path]:
    """run("lora") is the directory of a run with finetune=lora; it reads the second of the network's four blocks."""

    def trained(finetune: str, *more: str) -> Path:
        run_dir = runs / hashlib.sha256(" ".join(more).encode()).hexdigest()[:8] / finetune
        if not (run_dir / "metrics.json").exists():
            train(config("train", *tiny, *QUICK, f"finetune={finetune}", *more, f"run_dir={run_dir}"))
        return run_dir

    return trained


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """typed("RUN --format onnx") is `python -m semcorr.export RUN --format onnx` in an empty folder; the exit code."""

    def main(*line: object) -> int:
        monkeypatch.chdir(tmp_path)
        return export.main([*map(str, line)])

    return main


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter, which takes seconds, writes an empty file."""
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda path: path.touch())
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: program)


def features(backbone: nn.Module, image: torch.Tensor = IMAGE) -> torch.Tensor:
    with torch.no_grad():
        return backbone(image).values


def of_run(run: Path, which: str = "best") -> nn.Module:
    return load_trained_module(read_trained_config(run), run, which).backbone


def base_weights(run: Path) -> dict[str, torch.Tensor]:
    return tiny_of(read_trained_config(run)).model.state_dict()


def tiny_of(cfg: DictConfig) -> nn.Module:
    from semcorr.engine.build import build_backbone

    return build_backbone(cfg)


def config_of(build: Callable, **options: object) -> DictConfig:
    return OmegaConf.create({"seed": 0, "backbone": {"_target_": build, **options}}, flags={"allow_objects": True})


def moved(backbone: nn.Module) -> nn.Module:
    """As if trained: what may move has moved, and by enough to be seen in the features."""
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


def loud(backbone: nn.Module) -> nn.Module:
    """DINOv2 and DINOv3 begin with LayerScales so small that nothing inside a block is seen behind it."""
    for name, parameter in backbone.named_parameters():
        if name.rpartition(".")[2] in ("gamma", "gamma_1", "gamma_2"):
            parameter.data.fill_(1)
    return backbone
