"""Labels written as DeepLabCut's machine labels: x, y and likelihood of each body part, a row for each image."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import Id
from semcorr.inference.transfer.formats.deeplabcut_table import COORDS, HEADERS, Column, Row
from semcorr.inference.transfer.labels import KeypointLabel, group_labels
from semcorr.inference.transfer.objects import Annotations, DeepLabCutNames, ToolNames, TransferImage, category_name

SCORER = "semcorr"
FOLDER = "labeled-data"


def label_table(annotations: Annotations, labels: Sequence[KeypointLabel]) -> tuple[list[Column], list[Row]]:
    """Return columns and rows; x and y are None where a keypoint was not found.

    Individuals are those of the table that was read, otherwise they are numbered, if an image has several objects.

    Raises:
        UserError: Targets are of several categories, of which a table has no place; or two images have one name.
    """
    categories = {category["id"]: category for category in annotations.categories}
    individuals = _list_individuals(annotations, categories)
    names = _name_rows(annotations)
    columns = [
        Column(SCORER, name, str(part), coord)
        for name, category in individuals
        for part in categories[category]["keypoints"]
        for coord in COORDS
    ]
    rows = [
        Row(names[image_labels[0].target.photo.name], _row_cells(image_labels, individuals, categories))
        for image_labels in group_labels(labels)
    ]
    return columns, sorted(rows, key=lambda row: row.name)


def _list_individuals(annotations: Annotations, categories: Mapping[Id, JsonMapping]) -> list[tuple[str | None, Id]]:
    """Return names of individuals and their categories; the name is None if no image has several objects."""
    if isinstance(annotations.tool, DeepLabCutNames) and annotations.tool.individuals:
        return list(annotations.tool.individuals.items())
    category_ids = list(dict.fromkeys(target.category for target in annotations.targets))
    if len(category_ids) > 1:
        names = ", ".join(quote_value(category_name(categories[i])) for i in category_ids)
        raise UserError(
            f"A table of DeepLabCut is of one category, and {names} are to be labelled. Label one at a time, or "
            "choose another --format"
        )
    most = max(Counter(target.photo.name for target in annotations.targets).values())
    individuals: list[str | None] = [f"individual{i}" for i in range(1, most + 1)] if most > 1 else [None]
    return [(name, category) for name in individuals for category in category_ids]


def _name_rows(annotations: Annotations) -> dict[str, str]:
    """Return the names of rows, by the names of the images that are to be labelled."""
    images: dict[str, str] = {}  # by names of rows
    for photo in (target.photo for target in annotations.targets):
        row = _row_name(photo, annotations.tool)
        if (other := images.setdefault(row, photo.name)) != photo.name:
            raise UserError(
                f"{quote_value(other)} and {quote_value(photo.name)} would both be {quote_value(row)} in DeepLabCut, "
                "which knows one level of folders. Rename one"
            )
    return {image: row for row, image in images.items()}


def _row_cells(
    labels: Sequence[KeypointLabel],
    individuals: Sequence[tuple[str | None, Id]],
    categories: Mapping[Id, JsonMapping],
) -> list[object]:
    """Return x, y and likelihood of each body part of each individual.

    Labels go to the individual that they are of, and those of none to the next one of their category.
    """
    named: dict[str | None, KeypointLabel] = {
        label.target.individual: label for label in labels if label.target.individual is not None
    }
    waiting = [label for label in labels if label.target.individual is None]
    cells: list[object] = []
    for name, category in individuals:
        label = named.pop(name, None) or next((label for label in waiting if label.target.category == category), None)
        if label is None:
            cells += [None] * len(COORDS) * len(categories[category]["keypoints"])
            continue
        waiting = [other for other in waiting if other is not label]
        rows = zip(label.points.tolist(), label.scores.tolist(), label.valid.tolist(), strict=True)
        for (x, y), score, valid in rows:
            cells += [*((round(x, 2), round(y, 2)) if valid else (None, None)), round(score, 4)]
    assert not named
    assert not waiting
    return cells


def _row_name(photo: TransferImage, tool: ToolNames | None) -> str:
    """Return labeled-data/video/image: as in the table that was read, otherwise of the image's folder.

    >>> from pathlib import Path
    >>> _row_name(TransferImage(1, "img1.png", Path("a/labeled-data/cats/img1.png"), None), None)
    'labeled-data/cats/img1.png'
    """
    row = tool.rows.get(photo.id, "") if isinstance(tool, DeepLabCutNames) else ""
    parts = row.replace("\\", "/").split("/")
    if len(parts) < 3:
        parts = [FOLDER, photo.path.resolve().parent.name, photo.path.name]
    return "/".join(parts[-3:])


def format_deeplabcut(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Return a table as CSV, with rows named in three columns."""
    several = any(column.individual is not None for column in columns)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = {"scorer": 0, "individuals": 1, "bodyparts": 2, "coords": 3}
    for name in HEADERS:
        if several or name != "individuals":
            writer.writerow([name, "", "", *(column[fields[name]] for column in columns)])
    for row in rows:
        writer.writerow([*row.name.split("/"), *("" if cell is None else cell for cell in row.cells)])
    return text.getvalue()
