"""SPair-71k, and anything written in its format.

Records come from ImageAnnotation, which knows all keypoints of both images (the geometry-aware
subset needs those of the target that the source does not share); PairAnnotation must agree.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.progress import Progress

from semcorr.data.datamodule import PairDataModule
from semcorr.data.groups import facts, flip_permutation, symmetry_groups
from semcorr.data.record import ImageRecord, PairRecord, image_record, longer_side, need, read_json, require_root
from semcorr.errors import UserError

FOLDERS = {"train": "trn", "val": "val", "test": "test"}  # our split to theirs
DETAILS = ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "src_pose", "trg_pose", "mirror")


class SPair(PairDataModule):
    """The official tree at `root`; 53,340 / 5,384 / 12,234 pairs, PCK@bbox."""

    name = "spair"

    def records(self, split: str) -> Sequence[PairRecord]:
        """Pairs in the order of Layout/large."""
        return spair_pairs(self.root, FOLDERS[split])


def spair_pairs(root: Path, folder: str) -> list[PairRecord]:
    """All pairs of Layout/large/<folder>.txt.

    Raises:
        UserError: Something is missing, or the two kinds of annotation disagree.
    """
    require_root(
        root, "SPair-71k", "Download SPair-71k.tar.gz from its project page, unpack it there, or give data.root=DIR."
    )
    layout = root / "Layout" / "large" / f"{folder}.txt"
    if not layout.is_file():
        raise UserError(f"{layout} does not exist: {root} is not a whole SPair-71k tree. Unpack it again.")
    image = cache(lambda category, stem: read_image(root, category, stem))
    names = [line.strip() for line in layout.read_text().splitlines() if line.strip()]
    with Progress(transient=True) as bar:  # ends with an error, where rich's `track` would stay and block the next
        return [_pair(root, folder, name, image, layout) for name in bar.track(names, description=f"Reading {folder}")]


def read_image(root: Path, category: str, stem: str) -> ImageRecord:
    """One ImageAnnotation with its 30 keypoint slots."""
    path = root / "ImageAnnotation" / category / f"{stem}.json"
    entry = read_json(path)
    slots = need(entry, "kps", path)
    expected = facts("spair71k")["slots"]
    if not isinstance(slots, Mapping) or len(slots) != expected:
        raise UserError(f"{path}: field `kps` must map {expected} ids to [x, y] or null, got {len(slots)} entries.")
    keypoints = [need(slots, str(i), path) for i in range(expected)]
    size = (int(need(entry, "image_width", path)), int(need(entry, "image_height", path)))
    picture = root / "JPEGImages" / category / need(entry, "filename", path)
    return image_record(f"{category}/{stem}", picture, size, keypoints, need(entry, "bndbox", path), path)


def _pair(root: Path, folder: str, name: str, image: Any, layout: Path) -> PairRecord:
    try:  # 000001-2008_001546-2008_004704:aeroplane
        stems, category = name.rsplit(":", 1)
        _, source_stem, target_stem = stems.split("-")
    except ValueError:
        raise UserError(f"{layout}: {name!r} is not <id>-<source>-<target>:<category>. Restore the file.") from None
    source, target = image(category, source_stem), image(category, target_stem)
    path = root / "PairAnnotation" / folder / f"{name}.json"
    entry = read_json(path)
    _check(entry, source, target, path)
    details = {key: entry.get(key) for key in DETAILS}
    groups = symmetry_groups("spair71k", category)
    flip = flip_permutation("spair71k", category)
    return PairRecord(name, category, source, target, longer_side(target.box), groups, flip, details)


def _check(entry: Mapping[str, Any], source: ImageRecord, target: ImageRecord, path: Path) -> None:
    """PairAnnotation lists the keypoints visible in both images, in the order of their ids."""
    ids = [int(i) for i in need(entry, "kps_ids", path)]
    shared = (source.visible & target.visible).nonzero().flatten().tolist()
    if sorted(ids) != shared:
        raise UserError(f"{path}: field `kps_ids` is {ids}, the image annotations share {shared}. Unpack it again.")
    for side, record in (("src", source), ("trg", target)):
        points = need(entry, f"{side}_kps", path)
        if len(points) != len(ids):
            raise UserError(f"{path}: field `{side}_kps` has {len(points)} points for {len(ids)} ids. Unpack it again.")
        if record.keypoints[ids].tolist() != [[float(x), float(y)] for x, y in points]:
            raise UserError(
                f"{path}: field `{side}_kps` differs from the image annotation of {record.name}. Unpack it again."
            )
        if tuple(map(float, need(entry, f"{side}_bndbox", path))) != record.box:
            raise UserError(
                f"{path}: field `{side}_bndbox` differs from the image annotation of {record.name}. Unpack it again."
            )
