"""What one browser has open, and what a click makes of it: values in, values out.

Points are (x, y) in original pixels, as everywhere; of a mirrored target, in those of its mirror image.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageOps

from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture

Point = tuple[float, float]
NEAR = 0.02  # of the longer side: a click so near to a point chooses it
REMEMBERED = 50
POINTS = 100  # of a session at most
PIXELS = 1600 * 1600  # of a picture at most; larger ones are reduced


class SessionPoints(NamedTuple):
    """Points of the source, and where they truly are in the target, as far as that was said."""

    points: tuple[Point, ...] = ()
    truths: tuple[Point | None, ...] = ()
    chosen: int = -1  # the point whose map and window are shown


class Session(NamedTuple):
    """One browser's."""

    model: str
    a: Picture | None = None
    b: Picture | None = None
    mirrored: bool = False  # b, which is then its mirror image
    marks: SessionPoints = SessionPoints()
    past: tuple[SessionPoints, ...] = ()


def add_point(session: Session, point: Point) -> Session:
    """A click on the source: a new point; or an old one is chosen.

    >>> from PIL import Image
    >>> empty = Session("tiny", Picture(Image.new("RGB", (100, 100)), (100, 100), "a"))
    >>> add_point(add_point(empty, (10, 10)), (50, 50)).marks.points
    ((10, 10), (50, 50))
    >>> add_point(add_point(add_point(empty, (10, 10)), (50, 50)), (11, 10)).marks.chosen
    0
    """
    if session.a is None:
        return session
    marks, reach = session.marks, NEAR * max(session.a.size)
    away = [math.dist(point, other) for other in marks.points]
    if away and min(away) <= reach:
        return session._replace(marks=marks._replace(chosen=away.index(min(away))))
    if len(marks.points) == POINTS:
        raise UserError(f"There are {POINTS} points, the most that there can be. Undo or clear some first")
    return _after(session, SessionPoints((*marks.points, point), (*marks.truths, None), len(marks.points)))


def annotate_point(session: Session, point: Point) -> Session:
    """A click on the target: there the chosen point truly is."""
    marks = session.marks
    if session.b is None or marks.chosen < 0:
        return session
    truths = tuple(point if i == marks.chosen else truth for i, truth in enumerate(marks.truths))
    return _after(session, marks._replace(truths=truths))


def undo(session: Session) -> Session:
    """Before the last point or annotation."""
    return session._replace(marks=session.past[-1], past=session.past[:-1]) if session.past else session


def clear_points(session: Session) -> Session:
    """No points; that can be undone."""
    return _after(session, SessionPoints()) if session.marks.points else session


def open_pictures(session: Session, a: Picture | None = None, b: Picture | None = None) -> Session:
    """Other pictures. Points stay with their source, annotations with their target."""
    if a is not None:
        session = session._replace(a=a, marks=SessionPoints(), past=())
    if b is not None:
        kept = session.marks._replace(truths=(None,) * len(session.marks.points))
        session = session._replace(b=b, mirrored=False, marks=kept, past=())
    return session


def reduce_picture(picture: Picture) -> Picture:
    """Reduce what is kept of a picture to `PIXELS`. Its `size`, which points are measured in, remains the original's.

    >>> reduce_picture(Picture(Image.new("RGB", (4000, 2000)), (4000, 2000), "a"))[1:]
    ((4000, 2000), 'a')
    >>> reduce_picture(Picture(Image.new("RGB", (4000, 2000)), (4000, 2000), "a")).image.size
    (2262, 1131)
    """
    width, height = picture.image.size
    share = math.sqrt(PIXELS / (width * height))
    if share >= 1:
        return picture
    short = max(1, int(min(width, height) * share))
    long = min(int(max(width, height) * share), PIXELS // short)  # of a line of pixels, which cannot be thinner
    size = (short, long) if width < height else (long, short)
    return picture._replace(image=picture.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def picture_bytes(image: Image.Image) -> int:
    """Count what an RGB image takes in memory, where Pillow pads a pixel to four bytes."""
    return 4 * image.width * image.height


def session_bytes(session: Session) -> int:
    """Count what a session takes in memory, at most: its pictures, its points and those that can be undone."""
    pictures = sum(picture_bytes(picture.image) for picture in (session.a, session.b) if picture is not None)
    return pictures + 1024 * POINTS


def flip_target(session: Session) -> Session:
    """The target mirrored, and what was annotated with it."""
    if session.b is None:
        return session
    width = session.b.size[0]
    b = session.b._replace(image=ImageOps.mirror(session.b.image))
    change = _truths(lambda point: (width - 1 - point[0], point[1]))
    return session._replace(
        b=b, mirrored=not session.mirrored, marks=change(session.marks), past=tuple(map(change, session.past))
    )


def _truths(move: Callable[[Point], Point]) -> Callable[[SessionPoints], SessionPoints]:
    return lambda marks: marks._replace(truths=tuple(truth and move(truth) for truth in marks.truths))


def _after(session: Session, marks: SessionPoints) -> Session:
    return session._replace(marks=marks, past=(*session.past, session.marks)[-REMEMBERED:])
