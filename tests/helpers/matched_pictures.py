"""Drawn cats to be matched, points on them, and how often a matcher asks its network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semcorr import Matcher
from semcorr.data.synthetic import write_synthetic

SMALL = "backbone.size=192"


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def upright(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def some_points(size: tuple[int, int], count: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, generator=generator) * torch.tensor(size) - 0.5


def cell(matcher: Matcher, size: tuple[int, int]) -> torch.Tensor:
    """Sides of a cell in original pixels; the view is squashed."""
    return torch.tensor(size) / matcher.module.backbone.size * matcher.module.backbone.stride


def encodings(matcher: Matcher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images of every call of the network."""
    seen: list[int] = []
    own = matcher.module.backbone.forward
    monkeypatch.setattr(matcher.module.backbone, "forward", lambda image: (seen.append(len(image)), own(image))[1])
    return seen


def drawn_cats(root: Path) -> list[Path]:
    write_synthetic(root, images={"trn": 0, "val": 0, "test": 3}, categories=["cat"])
    return sorted((root / "JPEGImages/cat").glob("*.jpg"))
