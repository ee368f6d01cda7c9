"""SPair-71k, and any benchmark written in its format.

Records come from ImageAnnotation, which knows all keypoints of both images (the geometry-aware
subset needs those of the target that the source does not share); PairAnnotation must agree.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Unpack

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.terminal import Stage
from semcorr.core.text_files import JsonMapping, JsonObject, read_lines
from semcorr.data.datamodule import OfficialCounts, PairDataModule, PairListEntry, PairOptions
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.keypoints import benchmark_metadata, flip_permutation, symmetry_groups
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    Segmentation,
    build_image_record,
    log,
    longer_side,
    pad_keypoints,
    parse_whole_number,
    read_annotation,
    require_field,
    require_list,
    require_root,
    require_whole_number,
)

FOLDERS = {"train": "trn", "val": "val", "test": "test"}  # our split to theirs
CLASSES = {"viewpoint_variation": 3, "scale_variation": 3, "truncation": 4, "occlusion": 4}  # classes of each, from 0
DETAILS = ("src_pose", "trg_pose", "mirror")  # kept as they are


class SPairTree(NamedTuple):
    """The paths of the parts of a benchmark in SPair-71k's format."""

    layout: Path  # pair lists
    pairs: Path  # PairAnnotation
    images: Path  # ImageAnnotation
    pictures: Path  # JPEGImages
    slots: int | None = 30  # keypoint slots of every image; None: as many as there are
    facts: str | None = "spair71k"  # table of symmetry groups and flips, see `keypoints`; None: neither is known
    partial: bool = False  # pairs of the list may have no annotation
    masks: Path | None = None  # pictures of VOC class ids, where there are any


class SPair(PairDataModule):
    """The official tree at `root`; 53,340 / 5,384 / 12,234 pairs, PCK@bbox."""

    name = "spair"
    recipe: DownloadRecipe | None = DownloadRecipe(
        licence="research use; images from PASCAL VOC (Flickr terms)",
        archives=(
            ArchiveInfo("SPair-71k.tar.gz", "https://cvlab.postech.ac.kr/research/SPair-71k/data/SPair-71k.tar.gz"),
        ),
        marker_file="Layout/large/test.txt",
    )
    official = benchmark_metadata("spair71k")["official"]

    def tree(self) -> SPairTree:
        """Return the official folders."""
        return official_spair_tree(self.root)

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs in the order of Layout/large."""
        return read_tree_pairs(self.tree(), FOLDERS[split])

    def pair_list(self, split: str) -> Sequence[PairListEntry]:
        """Return the pair list, which names images and category."""
        tree = self.tree()
        parts = [_parse_pair_name(name, tree.layout) for name in read_pair_names(tree, FOLDERS[split])]
        return [
            PairListEntry(f"{category}/{source}", f"{category}/{target}", category)
            for source, target, category in parts
        ]

    def annotation_conflicts(self, split: str) -> list[str]:
        """Return where PairAnnotation and ImageAnnotation differ; reading refuses the first."""
        conflicts: list[str] = []
        read_tree_pairs(self.tree(), FOLDERS[split], complain=conflicts.append)
        return conflicts


def official_spair_tree(root: Path) -> SPairTree:
    """Return the folders that SPair-71k.tar.gz unpacks to."""
    require_root(root, "SPair-71k", "Run `python -m semcorr.prepare spair`, or give data.root=DIR.")
    layout, masks = root / "Layout" / "large", root / "Segmentation"
    return SPairTree(layout, root / "PairAnnotation", root / "ImageAnnotation", root / "JPEGImages", masks=masks)


def read_spair_pairs(root: Path, folder: str) -> list[PairRecord]:
    """Read all pairs of Layout/large/<folder>.txt of an official tree."""
    return read_tree_pairs(official_spair_tree(root), folder)


def _refuse(contradiction: str) -> None:
    raise UserError(f"{contradiction} Unpack it again.")


def read_tree_pairs(tree: SPairTree, folder: str, complain: Callable[[str], None] = _refuse) -> list[PairRecord]:
    """Read all pairs of a list.

    Args:
        tree: The paths of the benchmark.
        folder: Name of the list: trn, val or test.
        complain: Function that is called with a message for every pair whose two kinds of annotation differ.

    Raises:
        UserError: Something is missing, or (unless `complain` returns) annotations differ.
    """
    image = cache(lambda category, stem: read_spair_image(tree, category, stem))
    names = read_pair_names(tree, folder)
    with Stage(f"Reading {len(names):,} pairs of {folder}", len(names)) as stage:
        return [_build_pair(tree, folder, name, image, complain) for name in stage.track(names)]


def read_pair_names(tree: SPairTree, folder: str) -> list[str]:
    """Read the names of the pairs, without those a partial benchmark does not annotate.

    Args:
        tree: The paths of the benchmark.
        folder: Name of the list: trn, val or test.

    Raises:
        UserError: The list does not exist.
    """
    layout = tree.layout / f"{folder}.txt"
    if not layout.is_file():
        raise UserError(f"{layout} does not exist: this is not a whole tree. Unpack it again.")
    names = read_lines(layout)
    if not tree.partial:
        return names
    annotated = {path.stem for path in (tree.pairs / folder).glob("*.json")}
    annotated_pairs = [name for name in names if name in annotated]
    log.warning(
        "%s: %d of %d pairs have no annotation and are left out, as published",
        tree.pairs,
        len(names) - len(annotated_pairs),
        len(names),
    )
    return annotated_pairs


def read_spair_image(tree: SPairTree, category: str, stem: str) -> ImageRecord:
    """Read one ImageAnnotation with all its keypoint slots.

    Args:
        tree: The paths of the benchmark.
        category: Category of the image, the name of its folder.
        stem: Name of the annotation without its ending.

    Raises:
        UserError: A field is missing or of another kind, or the image is absent.
    """
    path = tree.images / category / f"{stem}.json"
    entry = read_annotation(path)
    slots = require_field(entry, "kps", path)
    if not isinstance(slots, Mapping) or len(slots) != (tree.slots or len(slots)):
        given = f"{len(slots)} entries" if isinstance(slots, Mapping) else quote_value(slots)
        raise UserError(f"{path}: field `kps` must map {tree.slots or 'all'} ids to [x, y] or null, got {given}.")
    keypoints = [require_field(slots, str(i), path) for i in range(len(slots))]
    size = (require_whole_number(entry, "image_width", path), require_whole_number(entry, "image_height", path))
    picture = (
        tree.pictures
        / category
        / require_file_name(require_field(entry, "filename", path), f"{path}, field `filename`")
    )
    record = build_image_record(
        f"{category}/{stem}", picture, size, keypoints, require_field(entry, "bndbox", path), path
    )
    azimuth = None if entry.get("azimuth_id") is None else require_whole_number(entry, "azimuth_id", path)
    return record._replace(azimuth=azimuth, segmentation=_find_segmentation(tree, category, stem))


def _find_segmentation(tree: SPairTree, category: str, stem: str) -> Segmentation | None:
    """Return an image's segmentation; its pixels are numbered as VOC's 20 classes, not as SPair-71k's own 18."""
    path = tree.masks / category / f"{stem}.png" if tree.masks else None
    if path is None or not path.is_file() or tree.facts is None:
        return None
    return Segmentation(path, benchmark_metadata(tree.facts)["categories"][category]["voc_class_id"])


def _build_pair(
    tree: SPairTree, folder: str, name: str, image: Callable[[str, str], ImageRecord], complain: Callable[[str], None]
) -> PairRecord:
    source_stem, target_stem, category = _parse_pair_name(name, tree.layout / f"{folder}.txt")
    source, target = image(category, source_stem), image(category, target_stem)
    path = tree.pairs / folder / f"{name}.json"
    entry = read_annotation(path)
    if (contradiction := _find_contradiction(entry, source, target, path)) is not None:
        complain(contradiction)
    details: JsonObject = {key: entry.get(key) for key in DETAILS}
    details |= {key: _read_class(entry, key, path) for key in CLASSES}
    details |= {
        f"{side}_domain": _read_domain(entry, f"{short}_domain", path)
        for side, short in (("source", "src"), ("target", "trg"))
    }
    details["azimuth_difference"] = azimuth_difference(source.azimuth, target.azimuth)
    groups = symmetry_groups(tree.facts, category) if tree.facts else ()
    flip = flip_permutation(tree.facts, category) if tree.facts else None
    return PairRecord(name, category, source, target, longer_side(target.box), groups, flip, details)


def _read_class(entry: JsonMapping, key: str, path: Path) -> int | None:
    """Return the class of a pair, or None where it is not annotated."""
    if entry.get(key) is None:
        return None
    number = require_whole_number(entry, key, path)
    if not 0 <= number < CLASSES[key]:
        raise UserError(f"{path}: field `{key}` is {number}; it must be 0 to {CLASSES[key] - 1}, or null. Correct it.")
    return number


def _read_domain(entry: JsonMapping, key: str, path: Path) -> str | None:
    """Return the kind of image, or None where it is not annotated."""
    name = entry.get(key)
    if name is not None and not isinstance(name, str):
        raise UserError(f"{path}: field `{key}` is {quote_value(name)}; it must be a text, or null. Correct it.")
    return name


def azimuth_difference(source: int | None, target: int | None) -> int | None:
    """Return the steps of 45 degrees between two azimuths of SPair-71k, the shorter way round: 0 to 4.

    >>> azimuth_difference(7, 1)
    2
    """
    if source is None or target is None:
        return None
    difference = abs(source - target) % 8
    return min(difference, 8 - difference)


def _parse_pair_name(name: str, layout: Path) -> tuple[str, str, str]:
    try:  # 000001-2008_001546-2008_004704:aeroplane
        stems, category = name.rsplit(":", 1)
        _, source, target = stems.split("-")
    except ValueError:
        raise UserError(
            f"{layout}: {quote_value(name)} is not <id>-<source>-<target>:<category>. Restore the file."
        ) from None
    for part in (source, target, category, name):
        require_file_name(part, f"{layout}, pair {quote_value(name)},")
    return source, target, category


def _find_contradiction(entry: JsonMapping, source: ImageRecord, target: ImageRecord, path: Path) -> str | None:
    """Return how a PairAnnotation differs from its ImageAnnotations, or None.

    It lists the keypoints visible in both images, in the order of their ids.
    """
    listed = enumerate(require_list(entry, "kps_ids", path))
    ids = [parse_whole_number(value, f"{path}: entry {i} of field `kps_ids`") for i, value in listed]
    shared = (source.visible & target.visible).nonzero().flatten().tolist()
    if sorted(ids) != shared:
        return f"{path}: field `kps_ids` is {ids}, the image annotations share {shared}."
    for side, record in (("src", source), ("trg", target)):
        points = require_list(entry, f"{side}_kps", path)
        if len(points) != len(ids):
            return f"{path}: field `{side}_kps` has {len(points)} points for {len(ids)} ids."
        if record.keypoints[ids].tolist() != points:  # whatever the points are: the record's are sound
            return f"{path}: field `{side}_kps` differs from the image annotation of {record.name}."
        if require_list(entry, f"{side}_bndbox", path) != list(record.box):
            return f"{path}: field `{side}_bndbox` differs from the image annotation of {record.name}."
    return None


class SPairU(SPair):
    """`root` is SPair-U's own tree, or SPair-71k's with ExtraPairAnnotation and ExtraImageAnnotation.

    Args:
        spair: SPair-71k, whose images and pair lists it uses.
        **options: As for every benchmark.
    """

    name = "spair_u"
    splits = ("test",)
    official = OfficialCounts()
    recipe = DownloadRecipe(
        licence="annotations by the authors of Jamais Vu; images from PASCAL VOC (Flickr terms), research use",
        archives=(ArchiveInfo("SPair-U.zip", "https://groups.inf.ed.ac.uk/hbilen-data/data/JamaisVuData/SPair-U.zip"),),
        marker_file="PairAnnotation/test",
    )

    def __init__(self, *, spair: str, **options: Unpack[PairOptions]) -> None:
        super().__init__(**options)
        self.spair = Path(spair)

    def tree(self) -> SPairTree:
        """Return the folders of whichever of the two trees exists.

        Raises:
            UserError: Neither exists, or SPair-71k's images are not there.
        """
        require_root(self.root, "SPair-U", "Run `python -m semcorr.prepare spair_u`, or give data.root=DIR.")
        prefix = "Extra" if (self.root / "ExtraPairAnnotation").is_dir() else ""
        pairs, images = (self.root / f"{prefix}{kind}Annotation" for kind in ("Pair", "Image"))
        if not pairs.is_dir():
            raise UserError(f"{self.root} has neither PairAnnotation nor ExtraPairAnnotation. Unpack SPair-U.zip.")
        home = next((home for home in (self.root, self.spair) if (home / "JPEGImages").is_dir()), None)
        if home is None:
            raise UserError(f"SPair-U uses SPair-71k's images: not at {self.spair}/JPEGImages. Give data.spair=DIR.")
        return SPairTree(
            home / "Layout" / "large", pairs, images, home / "JPEGImages", slots=None, facts=None, partial=True
        )

    def records(self, split: str) -> list[PairRecord]:
        """Return the pairs in the order of SPair-71k's list."""
        return pad_keypoints(read_tree_pairs(self.tree(), FOLDERS[split]))
