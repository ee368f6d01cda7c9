"""Your own pairs: one row each, with their points.

Columns: `source_image`, `target_image` (paths below the root), `XA`, `YA` (the source's points, `;`
between them), `XB`, `YB` (the target's, in the same order), and if you like `category` and `box`
(the target's, x1;y1;x2;y2). An empty number is a point not visible there. Pixel centres are at integers:
the top left pixel is (0, 0).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from semcorr.core.paths import resolve_inside, shorten
from semcorr.core.text_files import read_table
from semcorr.data.datamodule import PairDataModule
from semcorr.data.pictures import Measured, measure_picture
from semcorr.data.record import PairRecord, Point, around, image_record, longer_side, padded, require_root
from semcorr.errors import UserError

COLUMNS = ("source_image", "target_image", "XA", "YA", "XB", "YB")
EXTENTS = ("image", "box", "keypoints")


class PairsCSV(PairDataModule):
    """A CSV file per split below `root`.

    Args:
        test: The file of the test pairs,
        val: of the validation pairs,
        train: and of the training pairs; null where there are none.
        extent: What alpha is a fraction of: the longer side of the target `image`, of its `box`, or of
            the box around its `keypoints`.
        **options: As for every benchmark.
    """

    name = "pairs_csv"

    def __init__(
        self, *, test: str | None = "pairs.csv", val: str | None = None, train: str | None = None,
        extent: str = "image", **options: Any,
    ) -> None:  # fmt: skip
        if extent not in EXTENTS:
            raise UserError(f"`data.extent` must be one of {', '.join(EXTENTS)}, got {extent!r}")
        lists = {"train": train, "val": val, "test": test}
        self.lists, self.extent = {split: file for split, file in lists.items() if file}, extent
        self.splits = tuple(self.lists)
        super().__init__(**options)

    def records(self, split: str) -> Sequence[PairRecord]:
        """Pairs in the order of the file."""
        return read_csv(self.root, self.lists[split], self.extent)


def read_csv(root: Path, file: str, extent: str) -> list[PairRecord]:
    """All rows of a file."""
    require_root(root, "Your set of pairs", "Give data.root=DIR.")
    path = root / file
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give data.test=FILE, a CSV file below data.root.")
    rows = read_table(path, COLUMNS, "Correct the file.")
    measure = cache(measure_picture)
    return padded([_pair(root, path, line, row, extent, measure) for line, row in rows])


def _pair(
    root: Path, path: Path, line: int, row: Mapping[str, str], extent: str, measure: Callable[[Path], Measured]
) -> PairRecord:
    where = f"{path}, line {line}"
    sides = {"source": _points(row, "A", where), "target": _points(row, "B", where)}
    if len(sides["source"]) != len(sides["target"]):
        raise UserError(
            f"{where}: {len(sides['source'])} points in the source, {len(sides['target'])} in the target. "
            "Give as many, empty where one is not visible."
        )
    records = []
    for side, points in sides.items():
        picture = resolve_inside(root, row[f"{side}_image"], f"{where}, column {side}_image,", "data.root")
        box = _box(row, where) if side == "target" and row.get("box") else None
        if box is None and extent == "box" and side == "target":
            raise UserError(f"{where}: data.extent=box needs the column `box`, x1;y1;x2;y2 of the target. Add it.")
        known = box or (around(points) if any(points) else [0, 0, 1, 1])
        name = Path(row[f"{side}_image"]).with_suffix("").as_posix()
        size, upright = measure(picture)
        records.append(image_record(name, picture, size, points, known, path, upright))
    source, target = records
    lengths = {"image": lambda: float(max(target.size)), "box": lambda: longer_side(target.box),
               "keypoints": lambda: longer_side(around(sides["target"]))}  # fmt: skip
    category = row.get("category") or "object"
    return PairRecord(f"{line - 1:06d}-{source.name}-{target.name}", category, source, target, lengths[extent]())


def _points(row: Mapping[str, str], side: str, where: str) -> list[Point]:
    columns = [row[f"{axis}{side}"].split(";") for axis in "XY"]
    if len(columns[0]) != len(columns[1]):
        raise UserError(f"{where}: X{side} has {len(columns[0])} numbers, Y{side} {len(columns[1])}. Give as many.")
    points: list[Point] = []
    for x, y in zip(*columns, strict=True):
        if x.strip() == y.strip() == "":
            points.append(None)
            continue
        try:
            points.append((float(x), float(y)))
        except ValueError:
            raise UserError(
                f"{where}: X{side}, Y{side} hold {shorten(x)}, {shorten(y)}, which is no point. Correct it."
            ) from None
    return points


def _box(row: Mapping[str, str], where: str) -> list[float]:
    try:
        return [float(value) for value in row["box"].split(";")]
    except ValueError:
        raise UserError(f"{where}: box is {shorten(row['box'])}; it must be x1;y1;x2;y2. Correct it.") from None
