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


def build_variant(
    path: Path, name: str = "a", upright: bool = True, mirrored: bool = False, **how: object
) -> ImageVariant:
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
        cache("key", [build_variant(path), build_variant(path, mirrored=False)], lambda: made.append(0) or held())

    assert len(made) == 1


def changed(path: Path) -> ImageVariant:
    picture(path, (41, 30))
    return build_variant(path)


def touched(path: Path) -> ImageVariant:
    os.utime(path, (1, 1))
    return build_variant(path)


def replaced(path: Path) -> ImageVariant:
    os.replace(picture(path.with_name("b.png")), path)
    return build_variant(path)


OTHERS = {
    "another file of one name": lambda path: build_variant(picture(path.with_name("b.png"))),
    "another folder": lambda path: build_variant(picture(path.parent / "sub/a.png")),
    "changed": changed,
    "touched": touched,
    "replaced": replaced,
    "gone": lambda path: path.unlink() or build_variant(path),
    "as stored": lambda path: build_variant(path, upright=False),
    "a mirrored record": lambda path: build_variant(path, mirrored=True),
    "turned": lambda path: build_variant(path, turned=90),
    "another name": lambda path: build_variant(path, "b"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_pixels_are_computed_again(tmp_path, other):
    path = picture(tmp_path / "a.png")
    cache = SweepFeatureCache()
    first = cache("key", [build_variant(path)], held)

    assert cache("key", [other(path)], held) is not first


def test_other_corruptions_of_an_image_are_computed_again(tmp_path):
    image = build_variant(picture(tmp_path / "a.png"))
    cache, made = SweepFeatureCache(), []
    for corruption in (None, Fog(), Fog(severity=4), Fog(seed=1), Snow(), Snow()):
        changed_image = image._replace(record=image.record._replace(corruption=corruption))
        cache("key", [changed_image], lambda: made.append(0) or held())

    assert len(made) == 5


def test_another_key_or_a_cleared_cache_computes_again(tmp_path):
    path = picture(tmp_path / "a.png")
    cache = SweepFeatureCache()
    first = cache("key", [build_variant(path)], held)

    second = cache("another", [build_variant(path)], held)
    cache.clear()

    assert len({id(first), id(second), id(cache("another", [build_variant(path)], held))}) == 3
