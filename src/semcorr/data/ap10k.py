"""AP-10K: 54 species in 23 families, 17 keypoints; pairs within a species, a family, and across families.

Two trees are read: the official one with the lists that `prepare ap10k` adds (`ap10k_pairs`), and
the one that GeoAware-SC's notebook leaves. PCK@bbox.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.text_files import read_lines
from semcorr.data.ap10k_pairs import ANNOTATIONS, Animal, read_animal, read_animals, write_pairs
from semcorr.data.datamodule import PairDataModule
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.keypoints import benchmark_metadata, flip_permutation, symmetry_groups
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    build_image_record,
    list_annotations,
    longer_side,
    read_annotation,
    require_root,
)

CROSS_SPLITS = tuple(f"{split}_cross_{kind}" for kind in ("species", "family") for split in ("val", "test"))
HELD_OUT = ("argali sheep", "black bear", "king cheetah")  # fewer than 50 images each: none is trained on
NAME = re.compile("([0-9]+)-([0-9]+):(.+)")  # 12-345:king cheetah
PREPARE_REMEDY = "Run `python -m semcorr.prepare ap10k`"
DRIVE_URL = (
    "https://drive.usercontent.google.com/download?id=1-FNNGcdtAQRehYYkGY1y4wzFNg4iWNad&export=download&confirm=t"
)


class AP10K(PairDataModule):
    """A category is a species in the splits within species, a family across species, `all` across families.

    `test_held_out` are the pairs of `test` of the three species that no training image shows, a measure of how well a
    method generalises ("Telling Left from Right", supplement B).
    """

    name = "ap10k"
    splits = ("train", "val", "test", "test_held_out", *CROSS_SPLITS)
    official = benchmark_metadata("ap10k")["official"]
    recipe = DownloadRecipe(
        licence="CC-BY-4.0",
        archives=(ArchiveInfo("ap-10k.zip", DRIVE_URL),),
        marker_file=ANNOTATIONS[0],
        convert=write_pairs,
    )

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs sorted by category and image ids."""
        return read_ap10k_pairs(self.root, split)


def read_ap10k_pairs(root: Path, split: str) -> list[PairRecord]:
    """Read the pairs of a split, from either tree.

    Raises:
        UserError: Neither tree is there, or a list names an image that is not.
    """
    require_root(root, "AP-10K", f"{PREPARE_REMEDY}, or give data.root=DIR.")
    if split == "test_held_out":
        if pairs := [pair for pair in read_ap10k_pairs(root, "test") if pair.category in HELD_OUT]:
            return pairs
        raise UserError(
            f"{root}: the list `test` has no pair of {', '.join(HELD_OUT)}. {PREPARE_REMEDY}, or score another split."
        )
    released = (root / "PairAnnotation").is_dir()
    names = _read_released_pair_names(root, split) if released else _read_pair_names(root, split)
    listed = root / "PairAnnotation" if released else _pair_list(root, split)
    image = cache(_released_image_reader(root) if released else _image_reader(root))
    groups, flip = symmetry_groups("ap10k", "*"), flip_permutation("ap10k", "*")
    pairs = []
    for name in names:
        try:  # 12-345:king cheetah
            ids, label = name.split(":")
            source, target = (image(int(i)) for i in ids.split("-"))
        except (ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{listed}: {split} pair {name!r} is not <id>-<id>:<category> of its images. {PREPARE_REMEDY}."
            ) from None
        pairs.append(PairRecord(name, label, source, target, longer_side(target.box), groups, flip))
    return pairs


def _pair_list(root: Path, split: str) -> Path:
    return root / "pairs" / f"{split}.txt"


def _read_pair_names(root: Path, split: str) -> list[str]:
    path = _pair_list(root, split)
    if not path.is_file():
        raise UserError(f"{path} does not exist: AP-10K has no official pairs. {PREPARE_REMEDY}, which makes them.")
    return read_lines(path, PREPARE_REMEDY + ".")


def _image_reader(root: Path) -> Callable[[int], ImageRecord]:
    animals = {a.id: a for a in read_animals([root / file for file in ANNOTATIONS])}

    def image(key: int) -> ImageRecord:
        if key not in animals:
            raise UserError(f"{root}/pairs names image {key}, which no annotation has. {PREPARE_REMEDY} again.")
        return _build_record(animals[key], root / "data" / animals[key].file)

    return image


def _read_released_pair_names(root: Path, split: str) -> list[str]:
    """Parse the pairs from file names, which carry all that the files hold: two ids and the shared label."""
    folder = root / "PairAnnotation" / ("trn" if split == "train" else split)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: {root} is not the whole tree. {PREPARE_REMEDY} with another --root.")
    matches = {path: NAME.fullmatch(path.stem) for path in list_annotations(folder, "*.json")}
    if strange := [path for path, match in matches.items() if match is None]:
        raise UserError(
            f"{strange[0]} is not called <id>-<id>:<category>.json, as {len(strange)} of {len(matches)} files of the "
            "folder; some systems unpack no name with a colon. Give the files their names back, or drop those that are "
            "no pairs."
        )
    pairs = sorted((match[3], int(match[1]), int(match[2])) for match in matches.values() if match)
    return [f"{source}-{target}:{label}" for label, source, target in pairs]


def _released_image_reader(root: Path) -> Callable[[int], ImageRecord]:
    files = (root / "ImageAnnotation").glob("*/*/*.json")
    numbered = [path for path in files if re.fullmatch("[0-9]+", path.stem)]  # passes over ._12.json of macOS
    paths = {int(path.stem): path for path in numbered}

    def image(key: int) -> ImageRecord:
        if key not in paths:
            raise UserError(f"{root}/PairAnnotation names image {key}, which is not in ImageAnnotation. Restore it.")
        below = paths[key].relative_to(root / "ImageAnnotation").with_suffix(".jpg")
        animal = read_animal(read_annotation(paths[key]), paths[key])
        if animal.id != key:  # the pairs' names are made of the files' numbers
            raise UserError(f"{paths[key]}: `id` is {animal.id}, and the file's name says {key}. Restore the file.")
        return _build_record(animal, root / "JPEGImages" / below)

    return image


def _build_record(a: Animal, picture: Path) -> ImageRecord:
    return build_image_record(a.name, picture, a.size, a.keypoints, a.box, a.annotation)
