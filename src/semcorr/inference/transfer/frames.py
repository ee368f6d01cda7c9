"""The frames of a clip, a folder or a video file, under the names that annotation tools know them by."""

import filecmp
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.coco_fields import Id
from semcorr.data.pictures import Picture, read_annotated
from semcorr.data.video import list_frames, read_or_explain, require_video
from semcorr.inference.transfer.objects import TransferImage
from semcorr.inference.transfer.pipeline import note_broken

log = logging.getLogger(__name__)

NUMBERED = re.compile(r"(.*?)([0-9]{1,18})(\.[A-Za-z][A-Za-z0-9]*)?", re.DOTALL)  # prefix, number, ending
THUMBNAIL = (32, 32)  # size at which two frames are compared


class FrameNames(NamedTuple):
    """The names of a video's frames: what they begin with, their number, and what they end with.

    >>> FrameNames("img", 4, ".png").name(12), FrameNames("img", 4, ".png", first=1).find_index("img0001.png")
    ('img0012.png', 0)
    """

    prefix: str = ""
    digits: int = 6
    suffix: str = ".png"
    first: int = 0  # number of the first frame

    def name(self, index: int) -> str:
        """Return the name of a frame, counted from 0."""
        return f"{self.prefix}{index + self.first:0{self.digits}d}{self.suffix}"

    def find_index(self, name: str) -> int | None:
        """Return which frame a name means, counted from 0; None if it is not named so."""
        match = NUMBERED.fullmatch(name)
        index = int(match.group(2)) - self.first if match else -1
        return index if index >= 0 and self.name(index) == name else None


def derive_names(names: Iterable[str], first: int = 0) -> FrameNames:
    """Derive the names of all frames from those of some: from the first that ends in a number.

    >>> derive_names(["cover.png", "cats/frame_000012.jpg"])
    FrameNames(prefix='cats/frame_', digits=6, suffix='.jpg', first=0)
    """
    matches = (NUMBERED.fullmatch(name) for name in names)
    parts = next((match.groups() for match in matches if match), None)
    if parts is None:
        return FrameNames(first=first)
    return FrameNames(parts[0], len(parts[1]), parts[2] or "", first)


class ClipFrame(NamedTuple):
    """A frame of a clip."""

    photo: TransferImage
    picture: Picture


class Clip(NamedTuple):
    """A folder of frames, or a video file."""

    path: Path
    photos: Sequence[TransferImage] | None  # frames of a folder in order; None: of a file, whose length is not known
    names: FrameNames  # of a file's frames
    known: dict[str, TransferImage]  # images of the annotation file, by name
    annotated: Collection[str]  # names of annotated images
    folder: Path  # where images of the annotation file are
    next_id: int

    @property
    def first_photo(self) -> TransferImage:
        """The first frame."""
        return self.photos[0] if self.photos is not None else self._photo(0, count(self.next_id))

    def _photo(self, index: int, new_ids: Iterator[int]) -> TransferImage:
        """Return a frame of a file: as the annotation file has it, otherwise with a new id."""
        name = self.names.name(index)
        return self.known.get(name) or TransferImage(next(new_ids), name, self.folder / name, None)

    def read(
        self, skipped_images: list[dict[str, str]] | None = None, unrotated_images: list[str] | None = None
    ) -> Iterator[ClipFrame]:
        """Read the frames in order, one at a time.

        Args:
            skipped_images: List to which broken frames are added; None refuses them. A file ends at the first one.
            unrotated_images: List to which the names of frames are added whose annotations are as stored.

        Raises:
            UserError: A frame is broken, or is not the annotated picture of its name.
        """
        if self.photos is None:
            yield from self._read_file(skipped_images)
            return
        for photo in self.photos:
            try:
                picture, upright = read_annotated(photo.path, photo.size)
            except UserError as error:
                note_broken(photo.name, error, skipped_images)
                continue
            if unrotated_images is not None and not upright:
                unrotated_images.append(photo.name)
            yield ClipFrame(photo, picture)

    def _read_file(self, skipped_images: list[dict[str, str]] | None) -> Iterator[ClipFrame]:
        """Read the frames of a video file."""
        new_ids = count(self.next_id)
        previous: ClipFrame | None = None
        for index, picture in enumerate(read_or_explain(self.path)):
            photo = self._photo(index, new_ids)
            if isinstance(picture, UserError):
                is_source = photo.name in self.annotated  # whose own picture is read
                note_broken(f"{self.path.name}: {photo.name}" if is_source else photo.name, picture, skipped_images)
                previous = None
                continue
            frame = ClipFrame(photo, picture)
            broken = {note["file_name"] for note in skipped_images or ()}  # annotated pictures that cannot be compared
            if photo.name in self.annotated and photo.name not in broken:
                require_same_frame(frame, previous, "before", self.names.first)
            if previous is not None and previous.photo.name in self.annotated and previous.photo.name not in broken:
                require_same_frame(previous, frame, "after", self.names.first)
            previous = frame
            yield frame


def require_same_frame(frame: ClipFrame, other: ClipFrame | None, place: str, first: int) -> None:
    """Refuse a frame that is not the annotated picture of its name, as where frames are counted from 1 and not from 0.

    Args:
        frame: The frame, and the annotated picture of its number.
        other: The frame beside it, if there is one.
        place: Where that is: `before` or `after` it.
        first: Number of the first frame.

    Raises:
        UserError: The annotated picture has another size than the frame, or shows the other frame.
    """
    path, picture = frame.photo.path, read_annotated(frame.photo.path, frame.photo.size)[0]
    if picture.size != frame.picture.size:
        raise UserError(
            f"{path} is {picture.size[0]} x {picture.size[1]} pixels, and {frame.picture.name} is "
            f"{frame.picture.size[0]} x {frame.picture.size[1]}. Annotate frames at the size of the video"
        )
    if other is None or other.picture.size != picture.size:
        return
    own, neighbouring = (_difference(picture.image, each.picture.image) for each in (frame, other))
    if neighbouring < 0.5 * own:
        number = first + 1 if place == "before" else first - 1
        remedy = (
            f"Give --first {number} if the first frame is numbered so" if number >= 0 else "Give a folder of the frames"
        )
        raise UserError(
            f"{path} is the frame {place} {frame.picture.name}: names of frames are numbered from {first} here. "
            f"{remedy}"
        )


def _difference(a: Image.Image, b: Image.Image) -> float:
    """Compute the mean difference of the grey values of two reduced pictures."""
    first, second = (np.asarray(image.convert("L").resize(THUMBNAIL, Image.Resampling.BOX), float) for image in (a, b))
    return float(np.abs(first - second).mean())


def open_clip(
    path: Path, folder: Path, images: dict[Id, TransferImage], annotated: Collection[Id], first: int | None = None
) -> Clip:
    """Return a clip, whose frames are named as those of the annotation file.

    Frames of a folder keep their names. Those of a file are named by their number, as the annotated ones are.

    Args:
        path: The folder or file.
        folder: Folder of the images of the annotation file.
        images: Images of the annotation file.
        annotated: Those with annotated keypoints.
        first: Number of the first frame of a file; None: 0.

    Raises:
        UserError: There are no frames.
    """
    names = [images[i].name for i in annotated]
    next_id = 1 + max((int(i) for i in images if re.fullmatch("[0-9]{1,20}", str(i))), default=0)
    known = {image.name: image for image in reversed(images.values())}  # the first entry of an image that has two
    frame_names = derive_names(names, first or 0)
    if not path.is_dir():
        warn_other_names(names, frame_names, path)
        return Clip(path, None, frame_names, known, frozenset(names), folder, next_id)
    by_path = {image.path.resolve(): image for image in known.values()}
    new_ids = count(next_id)
    photos = []
    for file in list_frames(path):
        name = _name_frame(file, folder)
        photo = by_path.get(file.resolve()) or _find_copy(file, known.get(name))
        photos.append(photo or TransferImage(next(new_ids), name, file, None))
    return Clip(path, photos, frame_names, known, frozenset(names), folder, next_id)


def require_clip(path: Path, first: int | None) -> None:
    """Refuse, before any work, a clip that is absent or cannot be decoded, and `first` for a folder."""
    if not path.is_dir():
        require_video(path)
    elif first is not None:
        raise UserError(f"--first numbers the frames of a video file, and {path} is a folder. Leave it out")


def warn_other_names(names: Iterable[str], frame_names: FrameNames, path: Path) -> None:
    """Warn of annotated pictures that are named by a number, and not as the frames of a file are."""
    others = [name for name in names if NUMBERED.fullmatch(name) and frame_names.find_index(name) is None]
    if others:
        log.warning(
            "%s: its frames are named %s, %s, ...; %d annotated pictures (%s%s) are named otherwise, and count as none "
            "of them",
            path,
            frame_names.name(0),
            frame_names.name(1),
            len(others),
            ", ".join(others[:3]),
            ", ..." if len(others) > 3 else "",
        )


def _find_copy(file: Path, image: TransferImage | None) -> TransferImage | None:
    """Return the image of a frame's name, if the frame is a copy of it, as of annotated frames that lie elsewhere."""
    try:
        return image if image is not None and filecmp.cmp(file, image.path, shallow=False) else None
    except OSError:  # who reads the frame says what is wrong
        return None


def _name_frame(file: Path, folder: Path) -> str:
    """Return the name of a frame: its path below the folder of the annotated images, or its file name elsewhere."""
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
