"""AP-10K as a correspondence benchmark, built from its official COCO files.

The construction is GeoAware-SC's ("Telling Left from Right", section 5 and its released notebook):
drop the images with several animals and those with fewer than 3 keypoints; per species 30 images to
test and 20 to validate; pairs share at least 3 keypoints. Its lists depend on the order of a
directory listing, so they cannot be reproduced. Here every choice is a sort, by image id or by a
hash of the pair's own name: the same everywhere and forever, whatever the file system or Python.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.files import temporary_folder
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.coco_fields import VISIBILITY
from semcorr.data.keypoints import benchmark_metadata, flip_from_names, flip_permutation, keypoint_names
from semcorr.data.record import (
    MAX_EXTENT,
    is_number,
    read_annotation,
    require_field,
    require_list,
    require_whole_number,
)

ANNOTATIONS = tuple(f"annotations/ap10k-{part}-split1.json" for part in ("train", "test", "val"))  # in this order
TEST, VAL = 30, 20  # images per species
MIN_KEYPOINTS = MIN_SHARED = 3
TRAIN_PAIRS = 50  # at most, per training image of a species
PER_FAMILY = {"test": 900, "val": 400}  # cross-species pairs
PER_TWO_FAMILIES = {"test": 30, "val": 20}  # cross-family pairs
SEED = 42
NUM_KEYPOINTS = 17
RESTORE = "Restore the official annotation file."

Pair = tuple[int, int, str]  # source id, target id, and what both are: species, family or "all"


class Animal(NamedTuple):
    """The one annotation kept of an image."""

    id: int  # of the image
    species: str
    family: str
    file: str
    size: tuple[int, int]  # width, height
    keypoints: tuple[tuple[float, float] | None, ...]
    box: tuple[float, float, float, float]  # x1 y1 x2 y2
    bits: int  # visible keypoints, one bit each
    annotation: Path  # the file that says so, for messages

    @property
    def name(self) -> str:
        """The animal's path in GeoAware-SC's tree, its name in our tables."""
        return f"{self.family}/{self.species}/{self.id:012d}"


def read_animals(files: Sequence[Path]) -> list[Animal]:
    """Read the first annotation of every image, in the order of the files; return them sorted by image id.

    Raises:
        UserError: A file cannot be read, or an annotation names an image or category that it lacks.
    """
    animals: dict[int, Animal] = {}
    for path in files:
        content = read_annotation(path)
        images, species = (_index_entries(content, key, path) for key in ("images", "categories"))
        _require_own_files(images, path)
        for category in species.values():
            _require_official_order(category, path)
        location = f"{path}, annotations"
        for entry in require_list(content, "annotations", path):
            key, category_key = (require_whole_number(entry, field, location) for field in ("image_id", "category_id"))
            for field, value, known in (("image_id", key, images), ("category_id", category_key, species)):
                if value not in known:
                    raise UserError(
                        f"{location}: {field} {value} of annotation {quote_value(entry.get('id'))} is not in the file. "
                        f"{RESTORE}"
                    )
            if key not in animals:
                animals[key] = read_animal({**species[category_key], **entry, **images[key]}, path)
    return [animals[key] for key in sorted(animals)]


def _index_entries(content: JsonMapping, key: str, path: Path) -> dict[int, JsonMapping]:
    """Return the images or categories of a file by id; two of one id would silently be the last of them."""
    entries: dict[int, JsonMapping] = {}
    for entry in require_list(content, key, path):
        number = require_whole_number(entry, "id", f"{path}, {key}")
        if entries.setdefault(number, entry) != entry:  # the same entry may be there twice
            raise UserError(f"{path}, {key}: two have the id {number}. {RESTORE}")
    return entries


def _require_own_files(images: Mapping[int, JsonMapping], path: Path) -> None:
    """Require that no two images are of one file: a picture would be matched with itself."""
    owners: dict[object, int] = {}
    for key, entry in images.items():
        file = entry.get("file_name")
        if isinstance(file, str) and owners.setdefault(file, key) != key:
            raise UserError(f"{path}: images {owners[file]} and {key} both name {quote_value(file)}. {RESTORE}")


def _require_official_order(category: JsonMapping, path: Path) -> None:
    """Require the official order of the keypoints, where a file names them: symmetry groups and mirrors count on it."""
    if (names := category.get("keypoints")) is None:
        return
    is_official = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_official or flip_from_names(names) != flip_permutation("ap10k", "*"):
        official = [*keypoint_names("ap10k", "*").values()]
        raise UserError(
            f"{path}, categories: `keypoints` of {quote_value(category.get('name'))} are {quote_value(names)}; those "
            f"of AP-10K are {', '.join(official)}, in this order. {RESTORE}"
        )


def read_animal(entry: JsonMapping, path: Path) -> Animal:
    """Merge an annotation with its image and its category, as GeoAware-SC stores it and COCO splits it.

    A keypoint is visible or not: its v is never a factor (published code multiplies by v / 2, which
    would halve the coordinates of an occluded point).

    Args:
        entry: Fields of the annotation, its category and its image together; `id` is the image's.
        path: The file, for messages.

    Raises:
        UserError: A field is missing or of another kind.
    """
    flat, box = require_list(entry, "keypoints", path), require_list(entry, "bbox", path)
    is_box = len(box) == 4 and all(is_number(value) and abs(value) <= MAX_EXTENT for value in box)
    if len(flat) != 3 * NUM_KEYPOINTS or not is_box:
        raise UserError(
            f"{path}: `keypoints` {quote_value(flat)} or `bbox` {quote_value(box)} of image "
            f"{quote_value(entry.get('id'))} are not x, y, v of each of the {NUM_KEYPOINTS} keypoints and x, y, width, "
            f"height. {RESTORE}"
        )
    triples = [flat[i : i + 3] for i in range(0, len(flat), 3)]
    wrong = next((i for i, triple in enumerate(triples) if not _is_triple(triple)), None)
    if wrong is not None:
        raise UserError(
            f"{path}: keypoint {wrong} of image {quote_value(entry.get('id'))} is {quote_value(triples[wrong])}; it "
            f"must be x, y, v, with v 0, 1 or 2, and x and y finite numbers where v is not 0. {RESTORE}"
        )
    points = [(float(x), float(y)) if v > 0 else None for x, y, v in triples]
    x, y, width, height = map(float, box)
    key = require_whole_number(entry, "id", path)
    size = (require_whole_number(entry, "width", path), require_whole_number(entry, "height", path))
    if min(size) < 1:
        raise UserError(f"{path}: image {key} is {size[0]} x {size[1]} pixels (`width`, `height`). {RESTORE}")
    species, family, file = (  # the first two are folders of the released tree
        require_file_name(require_field(entry, field, path), f"{path}, image {key}, field `{field}`")
        for field in ("name", "supercategory", "file_name")
    )
    return Animal(
        id=key,
        species=species,
        family=family,
        file=file,
        size=size,
        keypoints=tuple(points),
        box=(x, y, x + width, y + height),
        bits=sum(1 << i for i, point in enumerate(points) if point is not None),
        annotation=path,
    )


def _is_triple(triple: Sequence[object]) -> bool:
    """Return whether a keypoint is x, y, v; x and y of one that is not annotated may be anything."""
    v = triple[2]
    if not is_number(v) or v not in VISIBILITY:
        return False
    return v == 0 or all(is_number(value) and abs(value) <= MAX_EXTENT for value in triple)


def keep_single_animals(animals: Iterable[Animal]) -> list[Animal]:
    """Drop images that hold several animals (1,847, listed by hand) or show too few keypoints."""
    several = set(benchmark_metadata("ap10k_multi_instance")["ids"])
    return [animal for animal in animals if animal.id not in several and animal.bits.bit_count() >= MIN_KEYPOINTS]


def split_images(animals: Iterable[Animal]) -> dict[str, dict[str, list[Animal]]]:
    """Split images by species, in the order of their ids: the last 30 of each test, up to 20 before them validate.

    Returns:
        The images of each species, by split: train, val and test. A species without images in a split is left out.
    """
    by_species: dict[str, list[Animal]] = defaultdict(list)
    for animal in sorted(animals, key=lambda animal: animal.id):
        by_species[animal.species].append(animal)
    splits: dict[str, dict[str, list[Animal]]] = {"train": {}, "val": {}, "test": {}}
    for species in sorted(by_species):
        images = by_species[species]
        test = max(0, len(images) - TEST)
        val = max(0, test - VAL)
        parts = {"train": images[:val], "val": images[val:test], "test": images[test:]}
        for split, part in parts.items():
            if part:
                splits[split][species] = part
    return splits


def build_pairs(animals: Iterable[Animal]) -> dict[str, list[Pair]]:
    """Build the pairs of all seven splits: train, val, test and {val,test}_cross_{species,family}."""
    splits = split_images(keep_single_animals(animals))
    pairs = {split: _intra_species(split, images) for split, images in splits.items()}
    for split in ("val", "test"):
        families: dict[str, dict[str, list[Animal]]] = defaultdict(dict)
        for species, images in splits[split].items():
            families[images[0].family][species] = images
        pairs[f"{split}_cross_species"] = _cross_species(split, families)
        pairs[f"{split}_cross_family"] = _cross_family(split, families)
    return pairs


def _intra_species(split: str, images: Mapping[str, Sequence[Animal]]) -> list[Pair]:
    pairs = []
    for species, animals in images.items():
        cap = TRAIN_PAIRS * len(animals) if split == "train" else None
        pairs += _choose_pairs(combinations(animals, 2), cap, split, species)
    return sorted(pairs, key=lambda pair: (pair[2], *pair))


def _cross_species(split: str, families: Mapping[str, Mapping[str, Sequence[Animal]]]) -> list[Pair]:
    pairs = []
    for family in sorted(families):
        candidates = (p for first, second in combinations(families[family].values(), 2) for p in product(first, second))
        pairs += _choose_pairs(candidates, PER_FAMILY[split], f"{split}_cross_species", family)
    return sorted(pairs, key=lambda pair: (pair[2], *pair))


def _cross_family(split: str, families: Mapping[str, Mapping[str, Sequence[Animal]]]) -> list[Pair]:
    members = {name: [a for images in family.values() for a in images] for name, family in families.items()}
    pairs = []
    for first, second in combinations(sorted(members), 2):
        candidates = product(members[first], members[second])
        chosen_pairs = _choose_pairs(candidates, PER_TWO_FAMILIES[split], f"{split}_cross_family", f"{first}/{second}")
        pairs += [(source, target, "all") for source, target, _ in chosen_pairs]
    return sorted(pairs)


def _choose_pairs(candidates: Iterable[tuple[Animal, Animal]], count: int | None, split: str, label: str) -> list[Pair]:
    """Choose the `count` pairs of smallest hash that share enough keypoints; one more bit sets the direction."""
    ranked = []
    for a, b in candidates:
        if (a.bits & b.bits).bit_count() >= MIN_SHARED:
            low, high = sorted((a.id, b.id))
            rank = hashlib.sha256(f"{SEED}/{split}/{label}/{low}/{high}".encode()).digest()
            ranked.append((rank, (low, high) if rank[-1] % 2 else (high, low)))
    return [(*ids, label) for _, ids in sorted(ranked)[:count]]


def write_pairs(root: Path) -> None:
    """Write root/pairs from an official tree's annotations: a list per split and a manifest, all or nothing."""
    pairs = build_pairs(read_animals([root / file for file in ANNOTATIONS]))
    with temporary_folder(root, "pairs") as folder:
        for split, split_pairs in pairs.items():
            (folder / f"{split}.txt").write_text(format_pair_list(split_pairs))
        (folder / "manifest.json").write_text(json.dumps(build_manifest(pairs), indent=1) + "\n")
        folder.replace(root / "pairs")


def format_pair_list(pairs: Iterable[Pair]) -> str:
    """Format one line per pair, named as GeoAware-SC's files are."""
    return "".join(f"{source}-{target}:{label}\n" for source, target, label in pairs)


def build_manifest(pairs: Mapping[str, Sequence[Pair]]) -> JsonObject:
    """Build the manifest: counts, and a hash that is equal for equal builds."""
    digests = {split: hashlib.sha256(format_pair_list(pairs[split]).encode()).hexdigest() for split in sorted(pairs)}
    total_digest = hashlib.sha256(
        "".join(f"{split} {digest}\n" for split, digest in digests.items()).encode()
    ).hexdigest()
    return {"sha256": total_digest, "pairs": {split: len(pairs[split]) for split in sorted(pairs)}, "lists": digests}
