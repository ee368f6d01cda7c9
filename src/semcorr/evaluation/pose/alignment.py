"""Adaptive pose alignment: each pair's source is matched in the pose that is closest to the target's.

"Telling Left from Right", 4.1 and supplement. Nothing is trained. docs/pose.md says what paper and code leave open.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, require_fields
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap, PairBatch, View
from semcorr.data.augment import require_flips
from semcorr.data.benchmark import BenchmarkModule
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import ImageVariant
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.evaluation.pose.distance import ObjectCells, cells_of_object, instance_distance
from semcorr.evaluation.pose.masks import MASKS, ObjectMasks
from semcorr.models.weights.checkpoints import require_weights_file


class PoseTransform(NamedTuple):
    """A pose of an image: mirrored or not, then turned."""

    mirrored: bool = False
    turned: int = 0  # degrees anticlockwise: 0, 90, 180 or 270

    def __str__(self) -> str:
        """Format the pose for tables.

        >>> print(PoseTransform(), PoseTransform(mirrored=True), PoseTransform(turned=90), sep=", ")
        plain, mirrored, turned 90
        """
        words = ["mirrored"] * self.mirrored + [f"turned {self.turned}"] * bool(self.turned)
        return " ".join(words) or "plain"

    def image_variant(self, record: ImageRecord) -> ImageVariant:
        """Return the variant of an image in this pose: the backbone's input, and the key of its features."""
        return ImageVariant(record, *self)

    def transform_points(self, points: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Float[Tensor, "*n 2"]:
        """Transform points, in pixels of an image of this width and height, to pixels of the image in this pose.

        >>> PoseTransform(turned=90).transform_points(torch.tensor([3.0, 0.0]), size=(4, 2))  # now upper left
        tensor([0., 0.])
        """
        x, y = points.unbind(-1)
        width, height = size
        x = width - 1 - x if self.mirrored else x
        for _ in range(self.turned // 90):
            x, y, width, height = y, width - 1 - x, height, width
        return torch.stack((x, y), dim=-1)

    def transform_pixels(self, values: Shaped[Tensor, "*c s s"]) -> Shaped[Tensor, "*c s s"]:
        """Transform a square image itself, or anything on its grid."""
        values = values.flip(-1) if self.mirrored else values
        return values.rot90(self.turned // 90, (-2, -1))


PLAIN = PoseTransform()


def list_pose_transforms(mirror: bool, turns: Sequence[int]) -> list[PoseTransform]:
    """List the image itself first, then mirrored and turned, but not both at once (the paper's supplement)."""
    return [PLAIN, *([PoseTransform(mirrored=True)] if mirror else []), *(PoseTransform(turned=turn) for turn in turns)]


SCHEMA = pa.schema(
    [
        ("pair", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("category", pa.string()),
        ("mask", pa.string()),  # whose cells were compared
        ("variant", pa.string()),
        ("distance", pa.float32()),
        ("chosen", pa.bool_()),
    ]
)
ORDER = ("pair", "variant")
CHOICES = {"reduce": ("mean", "sum"), "mask": MASKS, "twins": ("source", "shared")}


@dataclass(frozen=True)
class AdaptivePose:
    """Poses in which the source of a pair is tried, and their comparison. Without any pose, pairs stay as they are.

    Args:
        mirror: Try the mirror image.
        rotations: Degrees anticlockwise to turn the image by, any of 90, 180 and 270, for each category by its name.
        mask: Mask of the cells that are compared: `auto` is the benchmark's segmentation if it has one of every image,
            else the box; `segmentation`, `box`; `sam`, Segment Anything prompted with the box; `none`, all cells.
        reduce: `mean` (released code) or `sum` (paper) of the cells' distances.
        mutual: Compare only cells that are each other's nearest.
        grid: Cells along a side to which maps are resized first: 64 in the released code; null, their own.
        twins: Keypoints that are read in a mirror image: `source`, all whose twin the source shows;
            `shared`, only where the target shows it, too, as the released code does.
        sam_weights: The authors' checkpoint, for `sam`.
    """

    mirror: bool = False
    rotations: JsonMapping = field(default_factory=dict)
    mask: str = "auto"
    reduce: str = "mean"
    mutual: bool = False
    grid: Count | None = None
    twins: str = "source"
    sam_weights: str | None = None

    def __post_init__(self) -> None:
        require_fields(self, "pose")
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"`pose.{key}` must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        for category, turns in self.rotations.items():
            if not isinstance(turns, Sequence) or not all(turn in (90, 180, 270) for turn in turns):
                raise UserError(f"`pose.rotations.{category}` may list 90, 180 and 270, got {turns}")
        if self and self.mask == "sam":
            require_extra("`pose.mask=sam`", "sam", "segment_anything")
        if self and self.mask == "sam" and self.sam_weights is None:
            raise UserError("`pose.mask=sam` needs pose.sam_weights=FILE, a checkpoint of Segment Anything; or use box")
        if self and self.mask == "sam" and self.sam_weights is not None:
            require_weights_file(self.sam_weights, "pose.sam_weights")  # it is read when images have been encoded

    def __bool__(self) -> bool:
        """Tell whether there is any pose to try."""
        return self.mirror or any(map(len, self.rotations.values()))

    def candidates(self, category: str) -> list[PoseTransform]:
        """List the poses to try for a category, the image as it is first."""
        return list_pose_transforms(self.mirror, self.rotations.get(category, ()))

    def check(self, backbone: Backbone, data: BenchmarkModule) -> None:
        """Refuse data and backbones that cannot be aligned, before anything is trained or encoded.

        Raises:
            UserError: The benchmark has no pairs, left-right permutations or masks, or the backbone needs both images.
        """
        if not self:
            return
        if not isinstance(data, PairDataModule):
            raise UserError(f"`pose`: {data.name} has no pairs, so there is nothing to align. Set pose=none")
        if backbone.needs_pair:
            raise UserError(f"`pose`: {backbone.name} sees both images at once and none alone. Set pose=none")
        if self.mirror:
            require_flips(data.pairs(data.split), data.name, "pose.mirror", "pose=none")
        ObjectMasks(self.mask, data, data.split)


class PosePart(NamedTuple):
    """Pairs of a batch, with the keypoints that are matched from one view of their source."""

    pairs: list[int]  # their indices in the batch
    batch: PairBatch  # of these pairs alone, whose sources show only the keypoints of this part
    records: list[PairRecord]  # of a benchmark whose source images were in these poses


class PoseAligner:
    """Alignment of the pairs of a split, and a table of the poses that were chosen.

    Args:
        options: Poses, and how they are compared.
        data: The benchmark.
        split: Name of its split.
        device: Device on which masks are made.
    """

    def __init__(self, options: AdaptivePose, data: PairDataModule, split: str, device: torch.device) -> None:
        self.options = options
        self.records: dict[str, PairRecord] = {pair.name: pair for pair in data.pairs(split)}
        self.masks = ObjectMasks(options.mask, data, split, device, options.sam_weights)
        self.tables: list[pa.Table] = []

    def add_variants(self, images: Sequence[ImageVariant]) -> list[ImageVariant]:
        """Return images, and their variants where they are the source of a pair, in the order of their names."""
        variants = {image.name: image for image in images}
        for pair in self.records.values():
            if ImageVariant(pair.source).name in variants:
                candidates = [variant.image_variant(pair.source) for variant in self.options.candidates(pair.category)]
                variants |= {image.name: image for image in candidates if image.name not in variants}
        return [variants[name] for name in sorted(variants)]

    def split_batch(self, batch: PairBatch, features: Callable[[str], FeatureMap]) -> list[PosePart]:
        """Split the batch into the parts to match: every shared keypoint is in exactly one of them.

        The keypoints that a mirror image does not show are matched from the image as it is.

        Args:
            batch: Batch of pairs without pixels.
            features: Function that returns the features of an image, or of a variant of it, by name.
        """
        variants = self._choose_variants(batch, features)
        posed = [self._pose_source(batch, i, variant) for i, variant in enumerate(variants)]
        names = [view.name for view in posed]
        stacked = [torch.stack(column) for column in zip(*(view[:-1] for view in posed), strict=True)]
        posed_view = View._make([*stacked, names])
        original_view = batch.source._replace(visible=batch.source.visible & ~posed_view.visible)
        records = [self.records[name] for name in batch.pair]
        posed_records = [apply_variant(record, variant) for record, variant in zip(records, variants, strict=True)]
        views = ((posed_view, posed_records), (original_view, records))
        return [
            part
            for view, view_records in views
            if (part := _select_matched(batch._replace(source=view), view_records)).pairs
        ]

    def _choose_variants(self, batch: PairBatch, features: Callable[[str], FeatureMap]) -> list[PoseTransform]:
        """Choose for each pair the variant closest to the target; of equals the first, which is the image as it is."""
        chosen, rows = [], []
        targets: dict[tuple[object, ...], ObjectCells] = {}  # pairs of a batch look into few images
        for name in batch.pair:
            record = self.records[name]
            key = (record.target.name, record.target.box)
            if key not in targets:
                targets[key] = self._object_cells(record.target, PLAIN, features)
            candidates = self.options.candidates(record.category)
            distances = [
                self._distance(self._object_cells(record.source, candidate, features), targets[key])
                for candidate in candidates
            ]
            best = distances.index(min(distances))
            columns = (name, record.source.name, record.target.name, record.category, self.masks.kind)
            rows += [(*columns, str(candidates[k]), distances[k], k == best) for k in range(len(candidates))]
            chosen.append(candidates[best])
        self.tables.append(pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA))
        return chosen

    def _object_cells(
        self, record: ImageRecord, variant: PoseTransform, features: Callable[[str], FeatureMap]
    ) -> ObjectCells:
        """Return the object's cells of an image in a pose."""
        maps = features(variant.image_variant(record).name)
        mask = self.masks(record, maps)
        return cells_of_object(maps, None if mask is None else variant.transform_pixels(mask), self.options.grid)

    def _distance(self, source: ObjectCells, target: ObjectCells) -> float:
        """Compute the distance of two objects, as the options say."""
        return float(instance_distance(source, target, self.options.reduce, self.options.mutual))

    def _pose_source(self, batch: PairBatch, i: int, variant: PoseTransform) -> View:
        """Return the source in a pose, with those keypoints that are matched there."""
        record = self.records[batch.pair[i]]
        source = View._make(column[i] for column in batch.source)
        if variant == PLAIN:
            return source
        keypoints, visible = source.keypoints, source.visible
        if variant.mirrored:
            assert record.flip is not None, "AdaptivePose.check comes first"
            usable = batch.shared[i] if self.options.twins == "shared" else visible
            keypoints, visible = mirror_twins(keypoints, visible, usable, record.flip)
        points = variant.transform_points(keypoints, (source.image.shape[-1],) * 2)
        return source._replace(keypoints=points, visible=visible, name=variant.image_variant(record.source).name)


def pose_summary(table: pa.Table) -> JsonObject:
    """Summarise poses for metrics.json: the masks, and how many pairs each variant was chosen for."""
    counts = Counter(row["variant"] for row in table.to_pylist() if row["chosen"])
    return {"mask": table["mask"][0].as_py(), "chosen": dict(sorted(counts.items()))}


def mirror_twins(
    keypoints: Float[Tensor, "n 2"], visible: Bool[Tensor, " n"], usable: Bool[Tensor, " n"], flip: Sequence[int]
) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """Return where keypoints of the mirror image are in the image itself, and which of them can be matched there.

    A mirrored left ear is a right ear: the mirror image's keypoint i is where the image's keypoint flip[i] is.

    Args:
        keypoints: Keypoints of the image itself, in pixels.
        visible: Which keypoints the image itself shows.
        usable: Which keypoints of the image itself may stand for their twins.
        flip: Left-right permutation of the first keypoints; those after its end are their own twins.

    Returns:
        Places of the mirror image's keypoints, in pixels of the image itself; and which keypoints are visible and have
        a usable twin.

    >>> points = torch.tensor([[1.0, 0.0], [5.0, 0.0], [3.0, 0.0]])  # a left ear, a right ear out of sight, a nose
    >>> seen = torch.tensor([True, False, True])
    >>> mirror_twins(points, seen, seen, (1, 0, 2))[1]  # whose left ear is where the right one was?
    tensor([False, False,  True])
    """
    order = _pad_flip(flip, len(keypoints))
    return keypoints[order], visible & usable[order]


def apply_variant(record: PairRecord, variant: PoseTransform) -> PairRecord:
    """Transform a pair as if its source had been photographed in a pose, all in original pixels."""
    source = record.source
    order = _pad_flip(record.flip or () if variant.mirrored else (), len(source.keypoints))
    points = variant.transform_points(source.keypoints[order], source.size)
    corners = variant.transform_points(torch.tensor(source.box).reshape(2, 2), source.size)
    x1, y1, x2, y2 = torch.cat((corners.amin(0), corners.amax(0))).tolist()
    size = source.size[::-1] if variant.turned % 180 else source.size
    changed = source._replace(size=size, keypoints=points, visible=source.visible[order], box=(x1, y1, x2, y2))
    return record._replace(source=changed)


def _pad_flip(flip: Sequence[int], rows: int) -> list[int]:
    """Extend a flip to all rows of keypoints: some categories have more of them than this one."""
    return [*flip, *range(len(flip), rows)]


def _select_matched(batch: PairBatch, records: Sequence[PairRecord]) -> PosePart:
    """Select those pairs that have a keypoint to match."""
    pairs = batch.shared.any(-1).nonzero().flatten().tolist()
    selected = PairBatch._make([*(select_rows(column, pairs) for column in batch[:6]), (), ()])
    return PosePart(pairs, selected, [records[i] for i in pairs])


def select_rows(column: object, index: list[int]) -> object:
    """Select rows of a tensor, a sequence of names or a view, in the order of `index`."""
    if isinstance(column, View):
        return View._make(select_rows(values, index) for values in column)
    if isinstance(column, Tensor):
        return torch.stack([column[i] for i in index]) if index else column[:0]  # a GPU would wait for a list
    assert isinstance(column, Sequence)
    return [column[i] for i in index]
