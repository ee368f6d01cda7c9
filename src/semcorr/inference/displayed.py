"""Pictures that results can be drawn on later: a file that is read again, or a copy of the size that is displayed."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture, Source, load_picture
from semcorr.visualization.canvas import fit_size

HEIGHT, WIDEST = 480, 960  # largest size of a displayed picture, in pixels


class DisplayedPicture(NamedTuple):
    """A picture to be drawn: results for thousands of files must not hold their pixels."""

    origin: Path | Image.Image  # the file, or the image, no larger than it is displayed
    size: tuple[int, int]  # width, height in original pixels, upright
    name: str

    def __repr__(self) -> str:
        """Return name and size; a notebook that is stored should not tell where its pictures lay."""
        return f"DisplayedPicture({Path(self.name).name}, {self.size[0]} x {self.size[1]})"

    def load(self) -> Picture:
        """Return the picture; a file is read again.

        Raises:
            UserError: The file is gone, or holds a picture of another size by now.
        """
        if not isinstance(self.origin, Path):
            return Picture(self.origin, self.size, self.name)
        picture = load_picture(self.origin)
        if picture.size != self.size:
            raise UserError(
                f"{self.origin} is {picture.size[0]} x {picture.size[1]} pixels now, and was {self.size[0]} x "
                f"{self.size[1]} when it was matched. Match it again"
            )
        return picture


def remember_picture(source: Source | Picture, picture: Picture) -> DisplayedPicture:
    """Return what a picture is drawn from later: its path, or if it came without one a copy, reduced.

    Args:
        source: The picture as it was given.
        picture: The picture as it was read.
    """
    if isinstance(source, str | Path):
        return DisplayedPicture(Path(source).absolute(), picture.size, picture.name)
    image, size = picture.image, displayed_size(picture.size)
    if image.width > size[0]:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return DisplayedPicture(image, picture.size, picture.name)


def displayed_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height at which a picture is displayed."""
    return fit_size(size, WIDEST, HEIGHT)
