"""MP-100 (Xu et al. 2022, "Pose for Everything") as pairs, by the lists that MARCO evaluates on; test only, PCK@bbox.

`root` has mp100/ with the images, annotations/mp100_split*_test.json, COCO keypoint files of which each has its own
categories, and pairs/pairs_<subset>.json, lists of {src_file, trg_file, category_id}. MARCO's code joins the n-th
visible point of one image to the n-th visible one of the other; here points are joined by their number.
"""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Unpack

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import read_json
from semcorr.data.coco_file import warn_notes
from semcorr.data.datamodule import PairDataModule, PairOptions
from semcorr.data.mp100_objects import REMEDY, PosedObject, PosedObjects, read_id, read_posed_objects
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    build_image_record,
    image_size,
    keypoint_bounding_box,
    list_annotations,
    longer_side,
    pad_keypoints,
    require_field,
    require_root,
)

log = logging.getLogger(__name__)

SUBSETS = ("clothing", "animal_face", "animal_body_unseen", "human_face", "furniture")
ROOT_REMEDY = "Give data.root=DIR, a folder with mp100, annotations and pairs."


class MP100(PairDataModule):
    """MARCO's pairs of MP-100's test images.

    Args:
        subset: One of the five lists; None: all of them. A category is named by its list and its id.
        **options: As for every benchmark.
    """

    name = "mp100"
    splits = ("test",)

    def __init__(self, *, subset: str | None = None, **options: Unpack[PairOptions]) -> None:
        if subset not in (None, *SUBSETS):
            raise UserError(f"`data.subset` must be null or one of {', '.join(SUBSETS)}, got {subset!r}")
        super().__init__(**options)
        self.subsets = SUBSETS if subset is None else (subset,)

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs in the order of their lists, without those of several objects or no common point."""
        require_root(self.root, "MP-100", ROOT_REMEDY)
        objects = read_posed_objects(find_annotations(self.root / "annotations"))
        image = cache(self._build_image)
        pairs, ambiguous_count, disjoint_count = [], 0, 0
        notes: dict[str, list[str]] = {}
        for subset in self.subsets:
            for number, (ends, category) in enumerate(read_mp100_pairs(self.root / "pairs" / f"pairs_{subset}.json")):
                location = f"{self.root / 'pairs' / f'pairs_{subset}.json'}, pair {number}"
                candidates = [_find_objects(objects, (file, category), location) for file in ends]
                if any(len(each) > 1 for each in candidates):
                    ambiguous_count += 1
                    continue
                source, target = (image(file, each[0]) for file, each in zip(ends, candidates, strict=True))
                if note := _find_misfit(source, target, candidates[1][0]):
                    notes.setdefault(note, []).append(f"{subset} {number}")
                    continue
                if not (source.visible & target.visible).any():
                    disjoint_count += 1
                    continue
                label = f"{subset}/{objects.names.get(category, category)}"
                pairs.append(PairRecord(f"{subset}-{number:06d}", label, source, target, longer_side(target.box)))
        for count, reason in (
            (ambiguous_count, "an image with several objects"),
            (disjoint_count, "no visible point in common"),
        ):
            if count:
                log.warning("%s: %d pairs have %s and are left out", self.root / "pairs", count, reason)
        warn_notes(self.root / "pairs", notes)
        return pad_keypoints(pairs)

    def _build_image(self, file: str, posed: PosedObject) -> ImageRecord:
        path = self.root / "mp100" / file
        if not path.is_file():
            raise UserError(
                f"{posed.file} names {file}, and {path} does not exist. Add it, or choose another data.subset."
            )
        box = posed.box.corners if posed.box else keypoint_bounding_box(posed.points)
        name = Path(file).with_suffix("").as_posix()
        return build_image_record(name, path, posed.size or image_size(path), posed.points, box, posed.file)


def find_annotations(folder: Path) -> list[Path]:
    """Find the annotations of the test images of all splits.

    Raises:
        UserError: There are none in the folder.
    """
    if files := list_annotations(folder, "*test*.json"):
        return files
    raise UserError(f"{folder} holds no mp100_split*_test.json. {ROOT_REMEDY}")


def _find_objects(objects: PosedObjects, key: tuple[str, str], location: str) -> Sequence[PosedObject]:
    """Return the objects of the pair's category in one of its images."""
    if objects_of_image := objects.by_image.get(key):
        return objects_of_image
    problem = f"which no annotation in {objects.folder} has"
    if key in objects.without_points:
        problem = f"whose annotation in {objects.folder} shows no keypoint (v > 0)"
    raise UserError(f"{location}, names {quote_value(key[0])} as category {key[1]}, {problem}. {REMEDY}")


def _find_misfit(source: ImageRecord, target: ImageRecord, posed: PosedObject) -> str | None:
    """Return what is said of pairs as this one if they cannot be scored, as it follows their count."""
    if len(source.visible) != len(target.visible):
        return "pairs have annotations of different numbers of keypoints, and are left out"
    if posed.box is None and len({point for point in posed.points if point is not None}) == 1:
        return "pairs have a target without a `bbox`, whose single keypoint has no extent, and are left out"
    return None


def read_mp100_pairs(path: Path) -> list[tuple[tuple[str, str], str]]:
    """Read a list of pairs.

    Returns:
        For each pair the files of source and target, below the folder of the images, and the category's id as text.

    Raises:
        UserError: The file is absent or no such list.
    """
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Add MARCO's pair lists (mp100_pairs.zip), or choose another data.subset."
        )
    entries = read_json(path, REMEDY)
    if not isinstance(entries, list):
        raise UserError(f"{path} must be a list of pairs. {REMEDY}")
    pairs = []
    for number, entry in enumerate(entries):
        location = f"{path}, pair {number}"
        source, target = (
            require_file_name(require_field(entry, key, location), f"{location}, {key},", folders=True)
            for key in ("src_file", "trg_file")
        )
        pairs.append(((source, target), str(read_id(entry, "category_id", location))))
    return pairs
