"""MP-100 (Xu et al. 2022, "Pose for Everything") as pairs, by the lists that MARCO evaluates on; test only, PCK@bbox.

`root` has mp100/ with the images, annotations/mp100_split*_test.json, COCO keypoint files of which each has its own
categories, and pairs/pairs_<subset>.json, lists of {src_file, trg_file, category_id}. MARCO's code joins the n-th
visible point of one image to the n-th visible one of the other; here points are joined by their number.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Unpack

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import read_json
from semcorr.data.coco_fields import CocoBox, Id, read_box, read_keypoints, read_size, require_id
from semcorr.data.datamodule import PairDataModule, PairOptions
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    Point,
    build_image_record,
    image_size,
    keypoint_bounding_box,
    log,
    longer_side,
    pad_keypoints,
    require_field,
    require_root,
)

SUBSETS = ("clothing", "animal_face", "animal_body_unseen", "human_face", "furniture")
ROOT_REMEDY = "Give data.root=DIR, a folder with mp100, annotations and pairs."
REMEDY = "Restore the official file."


class PosedObject(NamedTuple):
    """An annotated object of an image."""

    points: Sequence[Point]
    box: CocoBox | None
    size: tuple[int, int] | None  # of the image, where the file says it
    file: Path


Objects = Mapping[tuple[str, Id], Sequence[PosedObject]]  # by the image's file and the category's id


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
        objects, categories = read_objects(self.root / "annotations")
        image = cache(self._build_image)
        pairs, several, apart = [], 0, 0
        for subset in self.subsets:
            for number, (ends, category) in enumerate(read_pair_list(self.root / "pairs" / f"pairs_{subset}.json")):
                found = [_find_objects(objects, (file, category), subset) for file in ends]
                if any(len(each) > 1 for each in found):
                    several += 1
                    continue
                source, target = (image(file, each[0]) for file, each in zip(ends, found, strict=True))
                if len(source.visible) != len(target.visible) or not (source.visible & target.visible).any():
                    apart += 1
                    continue
                label = f"{subset}/{categories.get(category, category)}"
                pairs.append(PairRecord(f"{subset}-{number:06d}", label, source, target, longer_side(target.box)))
        for count, reason in ((several, "an image with several objects"), (apart, "no visible point in common")):
            if count:
                log.warning("%s: %d pairs have %s and are left out", self.root / "pairs", count, reason)
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


def _find_objects(objects: Objects, key: tuple[str, Id], subset: str) -> Sequence[PosedObject]:
    """Return the objects of the pair's category in one of its images."""
    if found := objects.get(key):
        return found
    raise UserError(
        f"pairs_{subset}.json pairs {quote_value(key[0])} as category {key[1]}, which no annotation has. {REMEDY}"
    )


def read_pair_list(path: Path) -> list[tuple[tuple[str, str], Id]]:
    """Read a list: the files of both images, below the folder of the images, and the id of the category."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Add MARCO's pair lists (mp100_pairs.zip), or choose another data.subset."
        )
    entries = read_json(path, REMEDY)
    if not isinstance(entries, list):
        raise UserError(f"{path} must be a list of pairs. {REMEDY}")
    pairs = []
    for number, entry in enumerate(entries):
        location = f"{path}, pair {number},"
        source, target = (
            require_file_name(require_field(entry, key, path), f"{location} {key},", folders=True)
            for key in ("src_file", "trg_file")
        )
        require_field(entry, "category_id", path)
        pairs.append(((source, target), require_id(entry, "category_id", location)))
    return pairs


def read_objects(folder: Path) -> tuple[Objects, Mapping[Id, str]]:
    """Read the annotations of all test files: the objects that have points, and the names of the categories."""
    files = sorted(folder.glob("*test*.json"))
    if not files:
        raise UserError(f"{folder} holds no mp100_split*_test.json. {ROOT_REMEDY}")
    objects: dict[tuple[str, Id], list[PosedObject]] = {}
    categories: dict[Id, str] = {}
    for file in files:
        content = read_json(file, REMEDY)
        images = {require_id(entry, "id", str(file)): entry for entry in require_field(content, "images", file)}
        for entry in content.get("categories", []) if isinstance(content, Mapping) else []:
            categories[require_id(entry, "id", str(file))] = str(entry.get("name"))
        for number, entry in enumerate(require_field(content, "annotations", file)):
            location = f"{file}, annotations[{number}]"
            values = entry.get("keypoints") or []
            points, _ = read_keypoints(values, [str(i) for i in range(len(values) // 3)], location)
            if not any(point is not None for point in points):
                continue
            image = images.get(require_id(entry, "image_id", location))
            if image is None:
                raise UserError(
                    f"{location} names image_id {entry['image_id']}, which the file does not define. {REMEDY}"
                )
            box, size = read_box(entry.get("bbox"), "xywh", location, "data.root"), read_size(image, str(file))
            key = (str(require_field(image, "file_name", file)), require_id(entry, "category_id", location))
            objects.setdefault(key, []).append(PosedObject(tuple(points), box, size, file))
    return objects, categories
