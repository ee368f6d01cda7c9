"""SOCO (Dünkel et al. 2026, arXiv 2605.31597): rendered objects of 100 categories, whose points are joined by name.

The official tree has Images/<category>/*.JPEG and, of each pair, PairAnnotations/<kind>/<group>/*.json, which holds all
that is read. PCK@bbox. The authors place images in the upper left corner of a white square: data.resize=corner is that
with black beside it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import JsonObject
from semcorr.data.coco_fields import Id, require_id
from semcorr.data.datamodule import OfficialCounts, PairDataModule
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.keypoints import Groups
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    build_image_record,
    list_annotations,
    longer_side,
    pad_keypoints,
    read_annotation,
    require_field,
    require_list,
    require_root,
)

log = logging.getLogger(__name__)

FOLDERS = MappingProxyType(
    {
        "train": "trainsplits/train",
        "val": "trainsplits/train",
        "test": "trainsplits/test",
        "intra": "intra",
        "cross": "cross",
    }
)
TRAINING_FOLDERS = ("trainsplits/train", "trainsplits/test")  # folders whose keypoints are numbered together
VALIDATION_STRIDE = 10  # one training pair of a group in so many validates
HUB = "https://huggingface.co/datasets/GenIntelLab/SOCO/resolve/main"
REMEDY = "Unpack PairAnnotations.zip again."


class SOCOSide(NamedTuple):
    """One image of a pair as annotated."""

    name: str
    path: Path
    size: tuple[int, int]  # width, height
    box: object  # as in the file
    points: Mapping[str, object]  # by their names, as in the file
    concepts: Mapping[str, Id]  # of the points that have one, by their names


class SOCOPair(NamedTuple):
    """A pair as annotated."""

    file: Path
    group: str
    source: SOCOSide
    target: SOCOSide
    overlap: Sequence[str]  # names of the points to score


class SOCO(PairDataModule):
    """The official tree at `root`, with the splits of its probes and its two lists without training.

    `train` and `test` are the predefined halves of the pairs within categories, of which every tenth training pair of a
    category is `val`; `intra` are all pairs within categories, `cross` those across related ones. A category is the
    pair's group, by which the authors average. The geometry-aware subset is ours: a point belongs to it if the target
    shows another point of the same concept. A keypoint's row may differ between splits, but
    not where `heldout_keypoints` compares them.
    """

    name = "soco"
    splits = ("train", "val", "test", "intra", "cross")
    official = OfficialCounts(
        pairs={"train": 9_000, "val": 1_000, "test": 10_000, "intra": 20_000, "cross": 20_000}, tolerance=0.001
    )
    recipe = DownloadRecipe(
        licence="CC-BY-4.0",
        archives=(
            ArchiveInfo("Images.zip", f"{HUB}/Images.zip"),
            ArchiveInfo("PairAnnotations.zip", f"{HUB}/PairAnnotations.zip"),
        ),
        marker_file="PairAnnotations/intra",
    )

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs sorted by group and file.

        Raises:
            UserError: The tree is not whole, an annotation is damaged, or `heldout_keypoints` is given for `cross`.
        """
        require_root(self.root, "SOCO", "Run `python -m semcorr.prepare soco`, or give data.root=DIR.")
        folder = self.root / "PairAnnotations" / FOLDERS[split]
        files = list_pair_files(folder)
        if not files:
            raise UserError(f"{folder} holds no <group>/*.json: {self.root} is not SOCO's whole tree. {REMEDY}")
        if split in ("train", "val"):
            groups = (list(group) for _, group in groupby(files, key=lambda file: file.parent.name))
            files = [
                f for group in groups for i, f in enumerate(group) if (i % VALIDATION_STRIDE == 0) == (split == "val")
            ]
        pairs = [read_soco_pair(file, self.root) for file in files]
        scored = [pair for pair in pairs if pair.overlap]
        if len(scored) < len(pairs):
            log.warning(
                "%s: %d of %d pairs share no point and are left out", folder, len(pairs) - len(scored), len(pairs)
            )
        names = list_names(scored)
        if self.heldout_keypoints is not None:  # else there is no need to read them all
            if split == "cross":
                raise UserError(
                    "`data.heldout_keypoints`: the pairs of data.split=cross are of other groups than those trained "
                    "on, so that none of their keypoints is known to be held out. Give data.heldout_keypoints=null."
                )
            names = {
                group: [*dict.fromkeys((*self.trained_names.get(group, ()), *members))]
                for group, members in names.items()
            }
        return pad_keypoints(build_soco_pairs(scored, names))

    @cached_property
    def trained_names(self) -> Mapping[str, Sequence[str]]:
        """The names of the keypoints of all pairs that are trained on or tested, by group: one row is one point."""
        files = (file for name in TRAINING_FOLDERS for file in list_pair_files(self.root / "PairAnnotations" / name))
        return list_names(read_soco_pair(file, self.root) for file in files)


def list_pair_files(folder: Path) -> list[Path]:
    """List the annotations of pairs, sorted by group and file."""
    return sorted(list_annotations(folder, "*/*.json"), key=lambda file: (file.parent.name, file.name))


def list_names(pairs: Iterable[SOCOPair]) -> dict[str, list[str]]:
    """List the names of the keypoints of each group, sorted; of pairs that have a point to score."""
    names: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.overlap:
            names.setdefault(pair.group, set()).update(pair.source.points, pair.target.points)
    return {group: sorted(members) for group, members in names.items()}


def read_soco_pair(file: Path, root: Path) -> SOCOPair:
    """Read the annotation of a pair; it names its images, and has its points with it.

    Raises:
        UserError: A field is missing or of another kind, or a point to score is in one image alone.
    """
    entry = read_annotation(file)
    source, target = (_read_side(entry, side, file, root) for side in ("src", "trg"))
    names = require_list(entry, "semantic_overlap", file)
    overlap = [_require_text(name, f"{file}: a name of `semantic_overlap`") for name in names]
    for name in overlap:
        if name not in source.points or name not in target.points:
            raise UserError(
                f"{file}: field `semantic_overlap` names {quote_value(name)}, which is not in both `src_keypoints` and "
                f"`trg_keypoints`. {REMEDY}"
            )
    group = file.parent.name if entry.get("pair_group") is None else entry["pair_group"]
    return SOCOPair(file, _require_text(group, f"{file}: field `pair_group`"), source, target, overlap)


def _require_text(value: object, location: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{location} is {quote_value(value)}; it must be a text that is not blank. {REMEDY}")
    return value


def _read_side(entry: JsonObject, side: str, file: Path, root: Path) -> SOCOSide:
    field = "category" if entry.get(f"{side}_category") is None and "category" in entry else f"{side}_category"
    category = require_file_name(require_field(entry, field, file), f"{file}, field `{field}`,")
    image = require_file_name(require_field(entry, f"{side}_image", file), f"{file}, field `{side}_image`,")
    size = require_field(entry, f"{side}_imsize", file)
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise UserError(f"{file}: field `{side}_imsize` must be [width, height], got {quote_value(size)}. {REMEDY}")
    keypoints = require_list(entry, f"{side}_keypoints", file)
    positions: dict[str, object] = {}
    for number, keypoint in enumerate(keypoints):
        location = f"{file}, {side}_keypoints[{number}]"
        keypoint_name = _require_text(require_field(keypoint, "name", location), f"{location}: field `name`")
        positions[keypoint_name] = require_field(keypoint, "pos", location)
    if len(positions) < len(keypoints):
        raise UserError(f"{file}: two of `{side}_keypoints` have one name, by which points are joined. {REMEDY}")
    points = {name: position for name, position in positions.items() if position is not None}
    box = entry.get(f"{side}_bndbox")
    box = [0, 0, *size] if box in (None, []) else box  # the image is the extent then, as in the authors' code
    concepts = {
        k["name"]: require_id(k, "concept_id", f"{file}, `{side}_keypoints`")
        for k in keypoints
        if k.get("concept_id") is not None
    }
    name = f"{category}/{Path(image).stem}"
    return SOCOSide(name, root / "Images" / category / image, (size[0], size[1]), box, points, concepts)


def build_soco_pairs(pairs: Iterable[SOCOPair], names: Mapping[str, Sequence[str]]) -> list[PairRecord]:
    """Build the records of pairs; a keypoint's row is the place of its name among those of the pair's group.

    Args:
        pairs: The pairs.
        names: Names of the keypoints of each group, in the order of their rows.
    """
    by_group: dict[str, list[SOCOPair]] = {}
    for pair in pairs:
        by_group.setdefault(pair.group, []).append(pair)
    records = []
    for group, members in by_group.items():
        rows = names[group]
        concepts = concept_groups(rows, members)
        for pair in members:
            unscored = pair.source.points.keys() & pair.target.points.keys() - set(pair.overlap)
            source = _build_image(pair.source, [name for name in rows if name not in unscored], rows, pair.file)
            target = _build_image(pair.target, rows, rows, pair.file)
            name = f"{pair.file.parent.name}/{pair.file.stem}"
            records.append(PairRecord(name, group, source, target, longer_side(target.box), concepts))
    return records


def concept_groups(names: Sequence[str], pairs: Iterable[SOCOPair]) -> Groups:
    """Return the rows of points of one concept, such as all wheels, where there are several of it."""
    concepts: dict[str, set[int]] = {}
    rows = {name: row for row, name in enumerate(names)}
    for side in (side for pair in pairs for side in (pair.source, pair.target)):
        for name, concept in side.concepts.items():
            if name in rows:
                concepts.setdefault(str(concept), set()).add(rows[name])
    return tuple(tuple(sorted(group)) for group in concepts.values() if len(group) > 1)


def _build_image(side: SOCOSide, kept_names: Sequence[str], names: Sequence[str], file: Path) -> ImageRecord:
    points = [side.points.get(name) if name in kept_names else None for name in names]
    return build_image_record(side.name, side.path, side.size, points, side.box, file)
