"""Labels written as DeepLabCut's machine labels: x, y and likelihood of each body part, a row for each image."""

import csv
import io
from collections.abc import Mapping, Sequence

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import Id
from semcorr.inference.transfer.formats.deeplabcut import COORDS, HEADERS, Column, Row
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations, TransferImage, category_name

SCORER = "semcorr"
FOLDER = "labeled-data"


def label_table(annotations: Annotations, labels: Sequence[KeypointLabel]) -> tuple[list[Column], list[Row]]:
    """Return columns and rows; x and y are None where a keypoint was not found.

    Individuals are those of the table that was read, otherwise they are numbered, if an image has several objects.

    Raises:
        UserError: Labels are of several categories, of which a table has no place; or two images have one name.
    """
    categories = {category["id"]: category for category in annotations.categories}
    by_photo: dict[object, list[KeypointLabel]] = {}
    for label in labels:
        by_photo.setdefault(label.target.photo.id, []).append(label)
    individuals: list[tuple[str | None, Id]] = [(str(name), i) for name, i in annotations.tool.get("individuals", [])]
    if not individuals:
        used = list(dict.fromkeys(label.target.category for label in labels))
        if len(used) > 1:
            names = ", ".join(quote_value(category_name(categories[i])) for i in used)
            raise UserError(
                f"A table of DeepLabCut is of one category, and the labels are of {names}. Label one at a time, or "
                "choose another --format"
            )
        most = max((len(own) for own in by_photo.values()), default=1)
        numbered: list[str | None] = [f"individual{i}" for i in range(1, most + 1)] if most > 1 else [None]
        individuals = [(name, category) for name in numbered for category in used]
    columns = [
        Column(SCORER, name, str(part), coord)
        for name, category in individuals
        for part in categories[category]["keypoints"]
        for coord in COORDS
    ]
    rows: dict[str, Row] = {}
    for own in by_photo.values():
        name = _row_name(own[0].target.photo)
        if name in rows:
            raise UserError(
                f"Two images would be {quote_value(name)} in DeepLabCut, which knows one level of folders. Rename one"
            )
        rows[name] = Row(name, _row_cells(own, individuals, categories))
    return columns, [rows[name] for name in sorted(rows)]


def _row_cells(
    labels: Sequence[KeypointLabel],
    individuals: Sequence[tuple[str | None, Id]],
    categories: Mapping[Id, JsonMapping],
) -> list[object]:
    """Return x, y and likelihood of each body part of each individual; labels go to individuals of their category."""
    waiting = list(labels)
    cells: list[object] = []
    for _, category in individuals:
        label = next((each for each in waiting if each.target.category == category), None)
        if label is None:
            cells += [None] * len(COORDS) * len(categories[category]["keypoints"])
            continue
        waiting.remove(label)
        rows = zip(label.points.tolist(), label.scores.tolist(), label.valid.tolist(), strict=True)
        for (x, y), score, valid in rows:
            cells += [*((round(x, 2), round(y, 2)) if valid else (None, None)), round(score, 4)]
    assert not waiting
    return cells


def _row_name(photo: TransferImage) -> str:
    """Return labeled-data/video/image: as in the table that was read, otherwise of the image's folder.

    >>> from pathlib import Path
    >>> _row_name(TransferImage(1, "img1.png", Path("a/labeled-data/cats/img1.png"), None))
    'labeled-data/cats/img1.png'
    """
    parts = str(photo.entry.get("name") or "").replace("\\", "/").split("/")
    if len(parts) < 3:
        parts = [FOLDER, photo.path.resolve().parent.name, photo.path.name]
    return "/".join(parts[-3:])


def format_deeplabcut(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Return a table as CSV, with rows named in three columns."""
    several = columns[0].individual is not None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = {"scorer": 0, "individuals": 1, "bodyparts": 2, "coords": 3}
    for name in HEADERS:
        if several or name != "individuals":
            writer.writerow([name, "", "", *(column[fields[name]] for column in columns)])
    for row in rows:
        writer.writerow([*row.name.split("/"), *("" if cell is None else cell for cell in row.cells)])
    return text.getvalue()
