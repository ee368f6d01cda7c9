"""Features cached from one job of a sweep to the next are of the same pixels, whatever files are called."""

import os
from pathlib import Path

import pytest
import torch
from tiny_benchmarks import picture

from semcorr.data.corruptions.weather import Fog, Snow
from semcorr.data.image_variants import ImageVariant
from semcorr.data.record import ImageRecord
from semcorr.store.cache import FeatureCache, SweepFeatureCache


def shown(path: Path, name: str = "a", upright: bool = True, mirrored: bool = False, **how: object) -> ImageVariant:
    box = (0.0, 0.0, 9.0, 9.0)
    record = ImageRecord(name, path, (40, 30), torch.zeros(0, 2), torch.zeros(0).bool(), box, mirrored, upright=upright)
    return ImageVariant(record, **how)


def held() -> FeatureCache:
    """An object of its own, which nobody looks into."""
    return FeatureCache.__new__(FeatureCache)


def test_the_same_images_are_computed_once(tmp_path):
    path = picture(tmp_path / "a.png")
    cache, made = SweepFeatureCache(), []

    for _ in range(3):
        cache("key", [shown(path), shown(path, mirrored=False)], lambda: made.append(0) or held())

    assert len(made) == 1


def changed(path: Path) -> ImageVariant:
    picture(path, (41, 30))
    return shown(path)


def touched(path: Path) -> ImageVariant:
    os.utime(path, (1, 1))
    return shown(path)


def replaced(path: Path) -> ImageVariant:
    os.replace(picture(path.with_name("b.png")), path)
    return shown(path)


OTHERS = {
    "another file of one name": lambda path: shown(picture(path.with_name("b.png"))),
    "another folder": lambda path: shown(picture(path.parent / "sub/a.png")),
    "changed": changed,
    "touched": touched,
    "replaced": replaced,
    "gone": lambda path: path.unlink() or shown(path),
    "as stored": lambda path: shown(path, upright=False),
    "a mirrored record": lambda path: shown(path, mirrored=True),
    "turned": lambda path: shown(path, turned=90),
    "another name": lambda path: shown(path, "b"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_pixels_are_computed_anew(tmp_path, other):
    path = picture(tmp_path / "a.png")
    cache = SweepFeatureCache()
    first = cache("key", [shown(path)], held)

    assert cache("key", [other(path)], held) is not first


def test_other_corruptions_of_an_image_are_computed_anew(tmp_path):
    image = shown(picture(tmp_path / "a.png"))
    cache, made = SweepFeatureCache(), []
    for corruption in (None, Fog(), Fog(severity=4), Fog(seed=1), Snow(), Snow()):
        changed_image = image._replace(record=image.record._replace(corruption=corruption))
        cache("key", [changed_image], lambda: made.append(0) or held())

    assert len(made) == 5


def test_another_key_or_a_cleared_cache_computes_again(tmp_path):
    path = picture(tmp_path / "a.png")
    cache = SweepFeatureCache()
    first = cache("key", [shown(path)], held)

    second = cache("another", [shown(path)], held)
    cache.clear()

    assert len({id(first), id(second), id(cache("another", [shown(path)], held))}) == 3
