"""Variants of an image that a backbone sees (corrupted, mirrored, turned), and content hashes of their pixels."""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.files import file_sha256
from semcorr.data.corruptions.corruption import Corruption
from semcorr.data.pictures import reading_key
from semcorr.data.record import ImageRecord, PairRecord

MIRRORED, TURNED, PLAIN, CORRUPTED = " mirrored", " turned ", " plain", " corrupted"
DERIVED = re.compile(rf".*({MIRRORED}|{TURNED}\d+|{PLAIN}|{CORRUPTED})", re.DOTALL)  # names that end as derived ones do


class ImageVariant(NamedTuple):
    """An image or the mirror image of its rendered square, then turned: what a backbone sees of a flip.

    Squashed or letterboxed, a turned image's square is the turned square of the image.
    """

    record: ImageRecord
    mirrored: bool = False
    turned: int = 0  # degrees anticlockwise: 0, 90, 180 or 270

    @property
    def name(self) -> str:
        """The variant's name, unique in its benchmark whatever images are called; the key of its features."""
        name = unmirrored_name(self.record.name) + CORRUPTED * (self.record.corruption is not None)
        name = mirrored_name(name) if self.mirrored else name
        return f"{name}{TURNED}{self.turned}" if self.turned else name


def unmirrored_name(name: str) -> str:
    """Return an image's name, escaped where it ends as the name of a mirrored or turned image does.

    The result is unique as names are, and never the name of another image's mirrored or turned variant.

    >>> unmirrored_name("cat/7"), unmirrored_name("cat/7 mirrored")
    ('cat/7', 'cat/7 mirrored plain')
    """
    return name + PLAIN if DERIVED.fullmatch(name) else name


def mirrored_name(name: str) -> str:
    """Return the name of the mirror image of the image called `name`; the function is its own inverse.

    >>> mirrored_name("cat/7"), mirrored_name(mirrored_name("cat/7"))
    ('cat/7 mirrored', 'cat/7')
    """
    return name.removesuffix(MIRRORED) if name.endswith(MIRRORED) else name + MIRRORED


def uncorrupted_name(name: str) -> str:
    """Return the name that a corrupted image has where it is not corrupted: predictions of both are compared by it.

    >>> uncorrupted_name("cat/7 corrupted"), uncorrupted_name("cat/7")
    ('cat/7', 'cat/7')
    """
    return name.removesuffix(CORRUPTED)


def content_hash(image: ImageVariant) -> str:
    """Return 32 hex digits that depend on the file's bytes and how they are read and shown, not on its path.

    Raises:
        UserError: The file does not exist.
    """
    record = image.record
    try:
        status = record.path.stat()
        digest = _cached_sha256(record.path, status.st_mtime_ns, status.st_size)
        digest += reading_key(record.path, record.upright, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise UserError(f"{record.path} does not exist. Restore the image, or drop the pairs that name it.") from None
    turn = f" {image.turned}" if image.turned else ""  # entries of earlier versions have neither turns nor reading keys
    change = f" {record.corruption.identity(record.name)}" if record.corruption else ""
    return hashlib.sha256(f"{digest} {record.mirrored:d} {image.mirrored:d}{turn}{change}".encode()).hexdigest()[:32]


@cache
def _cached_sha256(path: Path, mtime: int, size: int) -> str:
    """Return the checksum of a file's bytes, computed once as long as the file does not change."""
    return file_sha256(path)


def unique_images(pairs: Iterable[PairRecord]) -> list[ImageRecord]:
    """Return every image of the pairs once, sorted by name; one that is there corrupted and not counts as two."""
    images = {ImageVariant(image).name: image for pair in pairs for image in (pair.source, pair.target)}
    return [images[name] for name in sorted(images)]


def list_variants(images: Iterable[ImageRecord], mirrored: bool = False) -> list[ImageVariant]:
    """Return every image and, if requested, its mirror image, sorted by name."""
    variants = [
        ImageVariant(image, is_mirrored)
        for image in images
        for is_mirrored in ((False, True) if mirrored else (False,))
    ]
    return sorted(variants, key=lambda variant: variant.name)


def corrupt_pairs(pairs: Iterable[PairRecord], corruption: Corruption) -> list[PairRecord]:
    """Return pairs whose images are corrupted, both or the target alone; an image of several pairs stays one."""
    corrupted: dict[int, ImageRecord] = {}

    def corrupt(image: ImageRecord) -> ImageRecord:
        """Return the corrupted image, the same object for the same one."""
        return corrupted.setdefault(id(image), image._replace(corruption=corruption))

    if corruption.images == "target":
        return [pair._replace(target=corrupt(pair.target)) for pair in pairs]
    return [pair._replace(source=corrupt(pair.source), target=corrupt(pair.target)) for pair in pairs]
