"""Keypoint names, symmetry groups and left-right flips, per benchmark and category.

The tables are data (`facts/*.json`) in the benchmarks' own ids. Ids have holes (bicycle has no 11
and 12, bus no 8 and 9) and are never compressed: a compressed id silently names another point.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

import torch
from jaxtyping import Bool
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject

Groups = tuple[tuple[int, ...], ...]

CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # where a word of leftFrontPaw ends
ABBREVIATIONS = {"l": "left", "r": "right", "f": "front", "b": "back"}


def keypoint_names(benchmark: str, category: str) -> dict[int, str]:
    """Return the keypoint names of a category by original id.

    >>> keypoint_names("spair71k", "cat")[3]
    'left ear-tip'
    """
    return {int(i): name for i, name in _category_entry(benchmark, category)["names"].items()}


def symmetry_groups(benchmark: str, category: str) -> Groups:
    """Return the groups of interchangeable keypoints (GeoAware-SC, Table 6, with the ids its code uses).

    Eyes, nostrils, ear bases and mouth corners are left out there on purpose.

    >>> symmetry_groups("spair71k", "cat")  # the ear tips, the four feet
    ((2, 3), (9, 10, 11, 12))
    """
    return tuple(tuple(ids) for ids in _category_entry(benchmark, category)["groups"].values())


def flip_permutation(benchmark: str, category: str) -> tuple[int, ...]:
    """Return the left-right permutation: row i of a mirrored image's keypoints is the image's row `flip[i]`.

    >>> flip_permutation("ap10k", "any species")[:5]  # left and right eye change places
    (1, 0, 2, 3, 4)
    """
    return tuple(_category_entry(benchmark, category)["flip"])


def geometry_aware_mask(
    shared: Bool[Tensor, "*b n"], visible_in_target: Bool[Tensor, "*b n"], groups: Groups
) -> Bool[Tensor, "*b n"]:
    """Return which keypoints are in the geometry-aware subset ("Telling Left from Right", section 3.1).

    A shared keypoint belongs to it if at least two keypoints of its symmetry group, itself
    included, are visible in the target: then appearance alone cannot tell them apart there.
    The twin need not be visible in the source.

    >>> shared = torch.tensor([True, True, False])
    >>> geometry_aware_mask(shared, torch.tensor([True, True, True]), groups=((1, 2),))
    tensor([False,  True, False])
    """
    twins = torch.zeros_like(shared)
    for group in groups:
        ids = list(group)
        twins[..., ids] = visible_in_target[..., ids].sum(-1, keepdim=True) >= 2
    return shared & twins


def groups_from_names(names: Sequence[str]) -> Groups:
    """Derive symmetry groups from names that differ only in side or end, for a COCO file that has none.

    Eyes and nostrils stay out, as in the published groups.

    >>> groups_from_names(["left_eye", "right_eye", "left_front_paw", "right_back_paw", "nose"])
    ((2, 3),)
    """
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        stem = _remove_words(name, ("left", "right", "front", "back", "hind"))
        if _is_sided(name) and not {"eye", "nostril"} & set(_split_words(name)):
            groups.setdefault(stem, []).append(i)
    return tuple(tuple(ids) for ids in groups.values() if len(ids) > 1)


def flip_from_names(names: Sequence[str]) -> tuple[int, ...] | None:
    """Derive the left-right permutation from the words left and right in the names, for a COCO file.

    Returns:
        The permutation; None if a name has a side and no single twin, since nothing is there in the mirror image.

    >>> flip_from_names(["left_eye", "rightEye", "nose"])
    (1, 0, 2)
    >>> flip_from_names(["left_eye", "left_ear", "right_ear"]) is None
    True
    """
    swap = {"left": "right", "right": "left"}
    words = [tuple(_split_words(name)) for name in names]
    order = [*range(len(names))]
    for i, own in enumerate(words):
        if _is_sided(names[i]):
            twins = [j for j, other in enumerate(words) if other == tuple(swap.get(word, word) for word in own)]
            if len(twins) != 1 or words.count(own) != 1:
                return None
            order[i] = twins[0]
    return tuple(order)


@cache
def benchmark_metadata(benchmark: str) -> JsonObject:
    """Return a benchmark's table as shipped with the package."""
    table: JsonObject = json.loads((files("semcorr.data") / f"facts/{benchmark}.json").read_text())
    return table


def _category_entry(benchmark: str, category: str) -> JsonObject:
    categories = benchmark_metadata(benchmark)["categories"]
    entry = categories.get(category, categories.get("*"))  # "*": one table for every species
    if entry is None:
        raise UserError(f"{benchmark} has no category {category!r}; it has {', '.join(categories)}")
    return dict(entry)


def _split_words(name: str) -> list[str]:
    """Split a name into words of any script; AnimalPose's `L_F_Paw` and `leftFrontPaw` are left, front, paw."""
    parts = re.findall(r"[^\W_]+", CAMEL.sub(" ", name))
    return [ABBREVIATIONS.get(word, word) for word in map(str.lower, parts)]


def _remove_words(name: str, words: Iterable[str]) -> str:
    return "_".join(word for word in _split_words(name) if word not in words)


def _is_sided(name: str) -> bool:
    return bool({"left", "right"} & set(_split_words(name)))
