"""DeepLabCut's CollectedData: a table with a row for each image, in CSV or in pandas' HDF5.

Coordinates are those of matplotlib and napari, in which images are annotated: pixel centres are at integers, as here.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.data.coco_fields import Id
from semcorr.data.coco_file import Notes, warn_notes
from semcorr.data.record import Point
from semcorr.inference.transfer.formats.deeplabcut_h5 import read_hdf5_table
from semcorr.inference.transfer.formats.deeplabcut_table import (
    COORDS,
    REMEDY,
    Column,
    Individual,
    read_csv_table,
)
from semcorr.inference.transfer.formats.fields import ImageFolder, read_number
from semcorr.inference.transfer.formats.grouping import OBJECT
from semcorr.inference.transfer.formats.kinds import HDF5, read_head
from semcorr.inference.transfer.objects import (
    AnnotatedObject,
    AnnotationFile,
    DeepLabCutNames,
    TransferImage,
    build_categories,
    build_object,
)

log = logging.getLogger(__name__)


def read_deeplabcut_objects(path: Path, folder: Path) -> AnnotationFile:
    """Read a table; an image whose row is empty is one without annotation.

    An individual without any keypoint in a row is not in the image. Individuals with the same body parts are one
    category.

    Args:
        path: The table, of a project with one animal or with several.
        folder: Folder of the images.

    Raises:
        UserError: The file is not such a table, or contradicts itself or the folder.
    """
    if read_head(path).startswith(HDF5):
        columns, rows = read_hdf5_table(path)
    else:
        columns, rows = read_csv_table(path)
    places = _index_columns(columns, path)
    parts = {individual: list(by_part) for individual, by_part in places.items()}
    groups: dict[tuple[str, ...], list[Individual]] = {}
    for individual, names in parts.items():
        groups.setdefault(tuple(sorted(names)), []).append(individual)
    keypoints = {OBJECT if len(groups) == 1 else str(group[0]): parts[group[0]] for group in groups.values()}
    ids: dict[Individual, Id] = {member: i for i, group in enumerate(groups.values(), 1) for member in group}
    images: dict[Id, TransferImage] = {}
    objects: list[AnnotatedObject] = []
    notes: Notes = {}
    finder = ImageFolder(folder, notes)
    row_numbers: dict[str, Id] = {}
    for number, row in enumerate(rows, 1):
        location = f"{path}, image {quote_value(row.name)}"
        if row_numbers.setdefault(row.name, number) != number:
            raise UserError(f"{location} has two rows. Drop one.")
        name = finder.find(row.name, location)
        images[number] = TransferImage(number, name, folder / name, None)
        for individual, by_part in places.items():
            where = location if individual is None else f"{location}, {quote_value(individual)}"
            order = parts[groups[tuple(sorted(by_part))][0]]  # of the category
            points = [_read_point(row.cells, by_part[part], f"{where}, {quote_value(part)}") for part in order]
            if any(point is not None for point in points):
                key, category = len(objects) + 1, ids[individual]
                objects.append(build_object(key, images[number], category, None, points, individual))
    if any(column.coord == "likelihood" for column in columns):
        log.warning("%s has likelihoods, as labels of a network: they are read as annotations, however likely", path)
    warn_notes(path, notes)
    tool = DeepLabCutNames(
        {number: name for name, number in row_numbers.items()},
        {individual: ids[individual] for individual in places if individual is not None},
    )
    return AnnotationFile(build_categories(keypoints), images, objects, {item.photo.id for item in objects}, tool)


def _index_columns(columns: Sequence[Column], path: Path) -> dict[Individual, dict[str, tuple[int, int]]]:
    """Return the numbers of the columns of x and y, by individual and body part."""
    if len(scorers := {column.scorer for column in columns}) > 1:
        raise UserError(
            f"{path} has labels of several scorers, {', '.join(map(quote_value, sorted(scorers)))}. Keep those of one."
        )
    places: dict[Individual, dict[str, dict[str, int]]] = {}
    for i, column in enumerate(columns):
        location = f"{path}, column {i + 1} of numbers, {quote_value(column.bodypart)}"
        if column.coord not in COORDS or not column.bodypart or column.individual == "":
            raise UserError(
                f"{location}: it is {quote_value(column.coord)}, and must have a body part and be x, y or likelihood. "
                f"{REMEDY}"
            )
        coords = places.setdefault(column.individual, {}).setdefault(column.bodypart, {})
        if column.coord in coords:
            raise UserError(f"{location}: there are two columns of its {column.coord}. Drop one.")
        coords[column.coord] = i
    for parts in places.values():
        for part, coords in parts.items():
            if "x" not in coords or "y" not in coords:
                raise UserError(
                    f"{path}: {quote_value(part)} has no column of its {'y' if 'x' in coords else 'x'}. {REMEDY}"
                )
    if not places:
        raise UserError(f"{path} has no columns of body parts. {REMEDY}")
    return {
        individual: {part: (coords["x"], coords["y"]) for part, coords in parts.items()}
        for individual, parts in places.items()
    }


def _read_point(cells: Sequence[object], place: tuple[int, int], location: str) -> Point:
    """Return the point of two cells; None where both are empty."""
    x, y = (cells[i] for i in place)
    if x is None and y is None:
        return None
    if x is None or y is None:
        raise UserError(f"{location}: only its {'y' if x is None else 'x'} is there. Give both, or none.")
    return read_number(x, "x", location), read_number(y, "y", location)
