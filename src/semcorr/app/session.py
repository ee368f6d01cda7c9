"""The session of one browser, and how a click changes it: pure functions from session to session.

Points are (x, y) in original pixels; of a mirrored target, in those of its mirror image.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageOps

from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture

Point = tuple[float, float]
NEAR = 0.02  # a click within this fraction of the longer side of a point chooses the point
REMEMBERED = 50  # steps that can be undone
POINTS = 100  # most points of a session
PIXELS = 1600 * 1600  # most pixels of a picture; larger pictures are reduced


class SessionPoints(NamedTuple):
    """Points of the source, and their true points in the target where they were annotated."""

    points: tuple[Point, ...] = ()
    truths: tuple[Point | None, ...] = ()
    chosen: int = -1  # index of the point whose map and window are displayed


class Session(NamedTuple):
    """The state of one browser: model, pictures, points and the steps that can be undone."""

    model: str
    a: Picture | None = None
    b: Picture | None = None
    mirrored: bool = False  # whether b is the mirror image of its picture
    marks: SessionPoints = SessionPoints()
    past: tuple[SessionPoints, ...] = ()


def add_point(session: Session, point: Point) -> Session:
    """Add a point at a click on the source; or choose the existing point that is near the click.

    >>> from PIL import Image
    >>> empty = Session("tiny", Picture(Image.new("RGB", (100, 100)), (100, 100), "a"))
    >>> add_point(add_point(empty, (10, 10)), (50, 50)).marks.points
    ((10, 10), (50, 50))
    >>> add_point(add_point(add_point(empty, (10, 10)), (50, 50)), (11, 10)).marks.chosen
    0
    """
    if session.a is None:
        return session
    marks, radius = session.marks, NEAR * max(session.a.size)
    distances = [math.dist(point, other) for other in marks.points]
    if distances and min(distances) <= radius:
        return session._replace(marks=marks._replace(chosen=distances.index(min(distances))))
    if len(marks.points) == POINTS:
        raise UserError(f"There are {POINTS} points, the most that there can be. Undo or clear some first")
    return _replace_points(session, SessionPoints((*marks.points, point), (*marks.truths, None), len(marks.points)))


def annotate_point(session: Session, point: Point) -> Session:
    """Annotate the true point of the chosen one, at a click on the target."""
    marks = session.marks
    if session.b is None or marks.chosen < 0:
        return session
    truths = tuple(point if i == marks.chosen else truth for i, truth in enumerate(marks.truths))
    return _replace_points(session, marks._replace(truths=truths))


def undo(session: Session) -> Session:
    """Undo the last step: a point, an annotation, or the removal of all points."""
    return session._replace(marks=session.past[-1], past=session.past[:-1]) if session.past else session


def clear_points(session: Session) -> Session:
    """Remove all points; this can be undone."""
    return _replace_points(session, SessionPoints()) if session.marks.points else session


def open_pictures(session: Session, a: Picture | None = None, b: Picture | None = None) -> Session:
    """Open other pictures; a new source removes all points, a new target only their annotations."""
    if a is not None:
        session = session._replace(a=a, marks=SessionPoints(), past=())
    if b is not None:
        marks = session.marks._replace(truths=(None,) * len(session.marks.points))
        session = session._replace(b=b, mirrored=False, marks=marks, past=())
    return session


def reduce_picture(picture: Picture) -> Picture:
    """Reduce a picture to at most `PIXELS`; its `size`, in whose pixels points are given, remains the original one.

    >>> reduce_picture(Picture(Image.new("RGB", (4000, 2000)), (4000, 2000), "a"))[1:]
    ((4000, 2000), 'a')
    >>> reduce_picture(Picture(Image.new("RGB", (4000, 2000)), (4000, 2000), "a")).image.size
    (2262, 1131)
    """
    width, height = picture.image.size
    scale = math.sqrt(PIXELS / (width * height))
    if scale >= 1:
        return picture
    short = max(1, int(min(width, height) * scale))
    long = min(int(max(width, height) * scale), PIXELS // short)  # bounds a picture that is one pixel wide
    size = (short, long) if width < height else (long, short)
    return picture._replace(image=picture.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def picture_bytes(image: Image.Image) -> int:
    """Count the bytes of an RGB image in memory, where Pillow pads a pixel to four bytes."""
    return 4 * image.width * image.height


def session_bytes(session: Session) -> int:
    """Bound the bytes of a session in memory: its pictures, its points and the steps that can be undone."""
    pictures = sum(picture_bytes(picture.image) for picture in (session.a, session.b) if picture is not None)
    return pictures + 1024 * POINTS


def flip_target(session: Session) -> Session:
    """Mirror the target, and the annotations with it."""
    if session.b is None:
        return session
    width = session.b.size[0]
    b = session.b._replace(image=ImageOps.mirror(session.b.image))
    mirror = _map_truths(lambda point: (width - 1 - point[0], point[1]))
    return session._replace(
        b=b, mirrored=not session.mirrored, marks=mirror(session.marks), past=tuple(map(mirror, session.past))
    )


def _map_truths(move: Callable[[Point], Point]) -> Callable[[SessionPoints], SessionPoints]:
    """Return a function that moves the annotated points."""
    return lambda marks: marks._replace(truths=tuple(truth and move(truth) for truth in marks.truths))


def _replace_points(session: Session, marks: SessionPoints) -> Session:
    """Replace the points, so that it can be undone."""
    return session._replace(marks=marks, past=(*session.past, session.marks)[-REMEMBERED:])
