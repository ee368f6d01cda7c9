"""An image as a backbone is shown it, and what tells its pixels apart from all others."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from semcorr.data.record import ImageRecord, PairRecord
from semcorr.errors import UserError

MIRRORED = " mirrored"
TURNED = " turned "


class Shown(NamedTuple):
    """An image, or the mirror image of its rendered square, then turned: what a flip shows the backbone.

    Squashed or letterboxed, a turned image's square is the turned square of the image.
    """

    record: ImageRecord
    mirrored: bool = False
    turned: int = 0  # degrees anticlockwise: 0, 90, 180 or 270

    @property
    def name(self) -> str:
        """Unique in its benchmark; the key of its features."""
        name = mirrored_name(self.record.name) if self.mirrored else self.record.name
        return f"{name}{TURNED}{self.turned}" if self.turned else name


def mirrored_name(name: str) -> str:
    """Of the mirror image; and back.

    >>> mirrored_name("cat/7"), mirrored_name(mirrored_name("cat/7"))
    ('cat/7 mirrored', 'cat/7')
    """
    return name.removesuffix(MIRRORED) if name.endswith(MIRRORED) else name + MIRRORED


def content_id(shown: Shown) -> str:
    """32 hex digits that follow from the file's bytes, the mirroring and the turn alone, wherever the file lies."""
    record = shown.record
    try:
        now = record.path.stat()
        digest = _file_sha256(record.path, now.st_mtime_ns, now.st_size)
    except FileNotFoundError:
        raise UserError(f"{record.path} does not exist. Restore the image, or drop the pairs that name it.") from None
    turned = f" {shown.turned}" if shown.turned else ""  # entries of before know of no turns
    return hashlib.sha256(f"{digest} {record.mirrored:d} {shown.mirrored:d}{turned}".encode()).hexdigest()[:32]


@cache
def _file_sha256(path: Path, mtime: int, size: int) -> str:
    """Of the bytes, once for as long as the file does not change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unique_images(pairs: Iterable[PairRecord]) -> list[ImageRecord]:
    """Every image of the pairs once, in the order of their names."""
    images = {image.name: image for pair in pairs for image in (pair.source, pair.target)}
    return [images[name] for name in sorted(images)]


def shown(images: Iterable[ImageRecord], mirrored: bool = False) -> list[Shown]:
    """Every image as it is, and its mirror image if asked for; in the order of their names."""
    both = [Shown(image, side) for image in images for side in ((False, True) if mirrored else (False,))]
    return sorted(both, key=lambda one: one.name)
