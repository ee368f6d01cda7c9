"""The fields of a COCO annotation, each read or refused, quoted in messages as in the file."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from semcorr.core.errors import UserError
from semcorr.core.paths import MAX_QUOTED
from semcorr.core.text_files import JsonMapping
from semcorr.data.record import MAX_EXTENT, Point, is_number

Id = int | str
Entry = TypeVar("Entry")
Corners = tuple[float, float, float, float]
LAYOUTS = {"xywh": "x, y, width, height", "xyxy": "x1, y1, x2, y2"}
VISIBILITY = (0, 1, 2)
EXACT = 2**53  # from where on floats are not whole numbers of their own
FLAGS = {"0": False, "false": False, "1": True, "true": True}


class CocoBox(NamedTuple):
    """A box as COCO has it, and by its corners: each as exact as the file."""

    xywh: Corners
    corners: Corners


def quote_json(value: object) -> str:
    """Quote a value of a JSON file in a message: as it stands there, on one line, shortened if long.

    >>> quote_json([1, float("nan"), None]), quote_json("7")
    ('[1, NaN, null]', '"7"')
    """
    text = json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def require_id(entry: JsonMapping, key: str, location: str) -> Id:
    """Return an id: a whole number, or a text.

    Args:
        entry: An object of the file, which has the field.
        key: Name of the field.
        location: Where the object stands, for messages.

    Raises:
        UserError: The field is neither.
    """
    value = entry[key]
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{location}: `{key}` is {quote_json(value)}; it must be a whole number or a text. Correct it.")
    return value


def find_by_id(known: Mapping[Id, Entry], key: Id) -> Entry | None:
    """Return the entry of an id. 7 and "7" are the same, unless there are both.

    >>> find_by_id({7: "a"}, "7"), find_by_id({7: "a", "7": "b"}, "7"), find_by_id({7: "a"}, "07")
    ('a', 'b', None)
    """
    if key in known:
        return known[key]
    other_type = str(key) if isinstance(key, int) else int(key) if re.fullmatch("0|-?[1-9][0-9]{0,19}", key) else None
    return known.get(other_type) if other_type is not None else None


def read_flag(entry: JsonMapping, key: str, location: str) -> bool:
    """Return a field that is 0 or 1; False where it is absent or null.

    Raises:
        UserError: The field is something else.
    """
    value = entry.get(key)
    if value is None:
        return False
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if text not in FLAGS:
        raise UserError(f"{location}: `{key}` is {quote_json(value)}; it must be 0 or 1. Correct it.")
    return FLAGS[text]


def read_size(entry: JsonMapping, location: str) -> tuple[int, int] | None:
    """Return width and height in pixels; None if they are not given, as by 0 or null.

    Raises:
        UserError: A side is not a whole number of pixels, or only one of them is given.
    """
    sides: dict[str, int] = {}
    for key in ("width", "height"):
        value = entry.get(key)
        if value in (None, 0) and value is not False:
            continue
        if not is_number(value) or not math.isfinite(value) or value != int(value) or value < 0:
            raise UserError(
                f"{location}: `{key}` is {quote_json(value)}; it must be a whole number of pixels. Correct it."
            )
        sides[key] = int(value)
    if len(sides) == 1:
        side, other = ("width", "height") if "width" in sides else ("height", "width")
        problem = f" says only its `{side}`" if entry.get(other) is None else f": `{other}` is 0 beside its `{side}`"
        raise UserError(f"{location}{problem}. Give `width` and `height`, or none of them.")
    return (sides["width"], sides["height"]) if sides else None


def read_keypoints(values: object, names: Sequence[str], location: str) -> tuple[list[Point], int]:
    """Return a point for each name, and how many of them have v = -1.

    They are x, y, v one after the other, or in rows. v is 0 where a keypoint is not annotated, and DeepLabCut's -1
    says the same: x and y are not looked at there. Without `keypoints`, none is annotated.

    Args:
        values: The field `keypoints` as in the file.
        names: Names of the category's keypoints.
        location: The annotation, for messages.

    Raises:
        UserError: There are not as many as names, or one is not x, y and v.
    """
    if values is None or values == []:
        return [None] * len(names), 0
    rows = values if isinstance(values, list) and all(isinstance(row, list) for row in values) else None
    flat = values if rows is None else [value for row in rows for value in row]
    if not isinstance(flat, list) or any(isinstance(value, list | dict) for value in flat):
        raise UserError(
            f"{location}: `keypoints` must be finite numbers, x, y and v of each, got {quote_json(values)}. Correct it."
        )
    if len(flat) != 3 * len(names) or (rows is not None and any(len(row) != 3 for row in rows)):
        raise UserError(
            f"{location} has {len(flat)} numbers in `keypoints`; its category has {len(names)} keypoints, of x, y and "
            f"v each, which are {3 * len(names)} numbers. Correct it."
        )
    triples = [flat[i : i + 3] for i in range(0, len(flat), 3)]
    points = [_read_point(*triple_and_name, location) for triple_and_name in zip(triples, names, strict=True)]
    return points, sum(triple[2] == -1 for triple in triples)


def _read_point(triple: list, name: str, location: str) -> Point:
    (x, y, v), location = triple, f"{location}: the keypoint {quote_json(name)}"
    if not is_number(v) or v not in (-1, *VISIBILITY):
        raise UserError(
            f"{location} is {quote_json(triple)}, and its v must be 0 (not annotated), 1 (hidden) or 2 (visible). "
            "Correct it."
        )
    for value in (x, y):
        if v <= 0 and value is None:
            continue
        if not is_number(value):
            raise UserError(f"{location} is {quote_json(triple)}; x and y must be finite numbers. Correct it.")
        if v > 0 and not abs(value) <= MAX_EXTENT:
            raise UserError(
                f"{location} is {quote_json(triple)}; x and y must be finite numbers of pixels. Correct it."
            )
    if v > 0 and x == y == -1:
        raise UserError(
            f"{location} is {quote_json(triple)}, and -1, -1 is not a place. Give it v = 0, or the place it has."
        )
    return (float(x), float(y)) if v > 0 else None


def read_box(values: object, layout: str, location: str, option: str = "") -> CocoBox | None:
    """Return a box, or None where there is none, or it has no area.

    Args:
        values: The box as in the file.
        layout: Meaning of the four numbers: one of LAYOUTS.
        location: The annotation, for messages.
        option: The option that gives the layout, for messages; empty if none does.

    Raises:
        UserError: It is not four finite numbers, or has a negative width or height.
    """
    if values is None or values == []:
        return None
    if (
        not isinstance(values, list)
        or len(values) != 4
        or not all(is_number(v) and abs(v) <= MAX_EXTENT for v in values)
    ):
        raise UserError(
            f"{location}: `bbox` must be four finite numbers, {LAYOUTS[layout]}, got {quote_json(values)}. Correct it."
        )
    a, b, c, d = map(float, values)
    xywh, corners = ((a, b, c - a, d - b), (a, b, c, d)) if layout == "xyxy" else ((a, b, c, d), (a, b, a + c, b + d))
    if xywh[2] < 0 or xywh[3] < 0:
        remedy = f"correct it, or change that by {option}." if option else "correct it."
        raise UserError(
            f"{location}: `bbox` {quote_json(values)} has a width or a height below 0. It is read as "
            f"{LAYOUTS[layout]}; {remedy}"
        )
    flat = xywh[2] == 0 or xywh[3] == 0 or corners[2] <= corners[0] or corners[3] <= corners[1]
    return None if flat else CocoBox(xywh, corners)


def other_corners(box: CocoBox, layout: str) -> Corners:
    """Return the corners of a box if its four numbers were of the other layout."""
    a, b, c, d = box.corners if layout == "xyxy" else box.xywh
    return (a, b, a + c, b + d) if layout == "xyxy" else (a, b, c, d)


def is_plausible_box(corners: Corners, points: Sequence[Point], size: tuple[int, int]) -> bool:
    """Return whether a box lies in its image and holds its keypoints, within a pixel.

    >>> is_plausible_box((2, 2, 8, 8), [(3, 8.5), None], (9, 9)), is_plausible_box((2, 2, 2, 8), [], (9, 9))
    (True, False)
    """
    (x1, y1, x2, y2), annotated = corners, [point for point in points if point is not None]
    inside = box_overhang(corners, size) <= 1 and all(
        x1 - 1 <= x <= x2 + 1 and y1 - 1 <= y <= y2 + 1 for x, y in annotated
    )
    return inside and x1 < x2 and y1 < y2


def box_overhang(corners: Corners, size: tuple[int, int]) -> float:
    """Return by how many pixels a box reaches outside its image; not above 0 if it is within."""
    return max(-corners[0], -corners[1], corners[2] - size[0], corners[3] - size[1])


def are_shares(values: Sequence[float]) -> bool:
    """Return whether numbers are fractions of an image's sides, not pixels.

    >>> are_shares([0.25, 1.0]), are_shares([0.0, 1.0]), are_shares([0.5, 7.0])
    (True, False, False)
    """
    return all(0 <= value <= 1 for value in values) and any(0 < value < 1 for value in values)
