"""PF-WILLOW: 900 pairs of 10 classes, 10 keypoints each, all visible.

PCK@bbox-kp: the extent is the larger spread, in x or y, of the target's keypoints.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.tables import read_rows
from semcorr.data.datamodule import PairDataModule
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.keypoints import benchmark_metadata
from semcorr.data.record import ImageRecord, PairRecord, build_image_record, image_size, longer_side, require_root

POINTS = 10
COLUMNS = 2 + 4 * POINTS  # two images; then x of A, y of A, x of B, y of B
ImageSizes = Callable[[Path], tuple[int, int]]  # width and height of a file


class PFWillow(PairDataModule):
    """`root` holds test_pairs.csv and PF-dataset/."""

    name = "pf_willow"
    recipe = DownloadRecipe(
        licence="research use; images collected from the web",
        archives=(
            ArchiveInfo("PF-dataset.zip", "https://www.di.ens.fr/willow/research/proposalflow/dataset/PF-dataset.zip"),
            ArchiveInfo("test_pairs.csv", "https://www.robots.ox.ac.uk/~xinghui/sd4match/test_pairs.csv"),
        ),
        landmark="PF-dataset/car(G)",
    )
    official = benchmark_metadata("pf_willow")["official"]
    splits = ("test",)

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs in the order of the list."""
        return read_willow_pairs(self.root)


def read_willow_pairs(root: Path) -> list[PairRecord]:
    """Read all rows of test_pairs.csv."""
    require_root(root, "PF-WILLOW", "Run `python -m semcorr.prepare pf_willow`, or give data.root=DIR.")
    path = root / "test_pairs.csv"
    if not path.is_file():
        raise UserError(f"{path} does not exist. Put the benchmark's pair list there.")
    size = cache(image_size)
    rows = read_rows(path, "Restore the official list.")[1:]
    return [_pair(root, path, line, row, size) for line, row in rows]


def _pair(root: Path, path: Path, line: int, row: list[str], size: ImageSizes) -> PairRecord:
    if len(row) != COLUMNS:
        raise UserError(f"{path}, line {line}: {len(row)} columns, expected {COLUMNS}. Restore the official list.")
    try:
        numbers = [float(value) for value in row[2:]]
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {error}. Restore the official list.") from None
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{path}, line {line}: a coordinate is not a finite number. Restore the official list.")
    records = []
    for column, start in enumerate((0, 2 * POINTS)):
        name = require_file_name(row[column], f"{path}, line {line}, column {column + 1},", folders=True)
        if len(Path(name).parts) < 3:
            raise UserError(
                f"{path}, line {line}: {quote_value(name)} is not PF-dataset/CLASS/FILE. Restore the official list."
            )
        points = list(zip(numbers[start : start + POINTS], numbers[start + POINTS : start + 2 * POINTS], strict=True))
        records.append(_build_image(root, path, name, points, size))
    source, target = records
    category = Path(row[0]).parts[1]
    name = f"{source.name}-{target.name}"
    return PairRecord(name, category, source, target, longer_side(target.box))


def _build_image(root: Path, path: Path, name: str, points: list[tuple[float, float]], size: ImageSizes) -> ImageRecord:
    """Build the record of an image. Its box is that of the keypoints: nothing else is annotated."""
    picture = root / name
    xs, ys = zip(*points, strict=True)
    box = (min(xs), min(ys), max(xs), max(ys))
    short = "/".join(Path(name).with_suffix("").parts[1:])
    return build_image_record(short, picture, size(picture), points, box, path)
