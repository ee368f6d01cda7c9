"""DAVIS 2017 (Pont-Tuset et al. 2017): videos with masks of several objects, to be segmented from their first frame."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semcorr.core.errors import UserError
from semcorr.core.paths import require_file_name
from semcorr.core.ranges import Count, Positive, Whole
from semcorr.core.text_files import read_lines
from semcorr.data.datamodule import PairOptions
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.open_image import open_image
from semcorr.data.record import image_size, require_root
from semcorr.data.views import SquareFit, fit_to_square, load_image, render_square

VOID = 255  # value of pixels that belong to no object and no background; counted as background
MIN_FRAMES = 3  # of a video: the first and the last are not scored
REMEDY = "Unpack DAVIS-2017-trainval-480p.zip again."


class SegmentedVideo(NamedTuple):
    """A video: its frames and their annotations, frame by frame."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    size: tuple[int, int]  # width, height
    objects: int  # values of the first mask: 1 to this one


class DAVIS(EvaluationBenchmark):
    """The official tree in `root`, or in its sub-folder `DAVIS`: JPEGImages, Annotations and ImageSets/2017.

    Args:
        neighbours: Number of cells that a label is propagated from.
        radius: Cells that a label may move in x and y between two frames; null for any number.
        previous: Number of frames before a frame that its labels come from, besides the first one.
        temperature: Temperature of the softmax over the neighbours' similarities.
        resolution: Folder of the frames and masks: 480p, as the published figures, or another that is there.
        **options: As for every benchmark; `split` is `val` or `train`.
    """

    name = "davis"
    splits = ("val", "train")
    title, cases_name, section, is_video, has_readout = "DAVIS", "videos", "segmentation", True, False
    official: Mapping[str, int] = MappingProxyType({"videos, train": 60, "videos, val": 30})
    recipe = DownloadRecipe(
        licence="terms of the DAVIS challenge (not verified here: see davischallenge.org)",
        archives=(
            ArchiveInfo(
                "DAVIS-2017-trainval-480p.zip",
                "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",
            ),
        ),
        marker_file="ImageSets/2017",
    )

    def __init__(
        self,
        *,
        neighbours: Count = 5,
        radius: Whole | None = 12,
        previous: Whole = 7,
        temperature: Positive = 0.1,
        resolution: str = "480p",
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(**options)
        self.neighbours, self.radius, self.previous, self.temperature = neighbours, radius, previous, temperature
        self.resolution = require_file_name(resolution, "`data.resolution`")
        self.videos = cache(self._read)

    def cases(self, split: str) -> Sequence[SegmentedVideo]:
        """Return the videos of a split, in the order of its list."""
        return self.videos(split)

    def check(self, split: str) -> None:
        """Read the list, the names of all frames and masks, and the first mask of each video."""
        self.videos(split)

    def count(self, split: str) -> dict[str, int]:
        """Count videos, frames and objects."""
        videos = self.videos(split)
        return {
            "videos": len(videos),
            "frames": sum(len(video.frames) for video in videos),
            "objects": sum(video.objects for video in videos),
        }

    def images(self, video: SegmentedVideo) -> DataLoader[Tensor]:
        """Return a video's frames as the backbone sees them, in batches of `encode_batch`."""
        return self.loader(VideoFrames(video, self.size, self.resize))

    def fit(self, video: SegmentedVideo) -> SquareFit:
        """Return the geometry of a video's frames in the square that the backbone sees."""
        return fit_to_square(video.size, self.size, self.resize)

    def _read(self, split: str) -> tuple[SegmentedVideo, ...]:
        require_root(self.root, "DAVIS 2017", "Run `python -m semcorr.prepare davis`, or give data.root=DIR.")
        root = next((path for path in (self.root, self.root / "DAVIS") if (path / "ImageSets").is_dir()), self.root)
        path = root / "ImageSets" / "2017" / f"{split}.txt"
        names = read_lines(path, REMEDY)
        if not names:
            raise UserError(f"{path} names no video. {REMEDY}")
        if repeated := [name for name, times in Counter(names).items() if times > 1]:
            raise UserError(f"{path} names the video {repeated[0]} twice. {REMEDY}")
        return tuple(_read_video(root, require_file_name(name, f"{path},"), self.resolution) for name in names)


class VideoFrames(Dataset[Tensor]):
    """A video's frames, resized into the backbone's square."""

    def __init__(self, video: SegmentedVideo, size: int, resize: str) -> None:
        self.video, self.size, self.fit = video, size, fit_to_square(video.size, size, resize)

    def __len__(self) -> int:
        return len(self.video.frames)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 size size"]:
        path = self.video.frames[index]
        image = load_image(path)
        _require_size(path, image, self.video.size)
        return render_square(image, self.size, self.fit)


def read_mask(path: Path, size: tuple[int, int]) -> UInt8[Tensor, "h w"]:
    """Read the objects' values from an indexed picture; void becomes background, 0.

    Args:
        path: The picture.
        size: Width and height that it must have.

    Raises:
        UserError: The picture is damaged, of another size, or in colours that are not an index.
    """
    with open_image(path, REMEDY) as image:
        if image.mode not in ("P", "L"):
            raise UserError(
                f"{path} must be an indexed or a grey picture of object numbers, got {image.mode}. {REMEDY}"
            )
        _require_size(path, image, size)
        values = np.array(image, dtype=np.uint8)
    values[values == VOID] = 0
    return torch.from_numpy(values)


def _require_size(path: Path, image: Image.Image, size: tuple[int, int]) -> None:
    if image.size != size:
        raise UserError(
            f"{path} is {image.size[0]} x {image.size[1]} pixels, the first frame of its video {size[0]} x {size[1]}. "
            f"{REMEDY}"
        )


def _read_video(root: Path, name: str, resolution: str) -> SegmentedVideo:
    """List a video's frames and masks, which must be of the same frames, and read its first mask."""
    folders = [root / kind / resolution / name for kind in ("JPEGImages", "Annotations")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist. {REMEDY}")
    frames, masks = (
        tuple(sorted(path for path in folder.glob(f"*.{suffix}") if not path.name.startswith(".")))
        for folder, suffix in zip(folders, ("jpg", "png"), strict=True)
    )
    if [path.stem for path in frames] != [path.stem for path in masks]:
        unpaired = sorted({path.stem for path in frames} ^ {path.stem for path in masks})[0]
        raise UserError(
            f"{folders[1]} must have a mask for each frame of {folders[0]}: {unpaired} is in one only. {REMEDY}"
        )
    if len(frames) < MIN_FRAMES:
        raise UserError(
            f"{folders[0]} has {len(frames)} frames; the first and the last are not scored, so there must be at least "
            f"{MIN_FRAMES}. {REMEDY}"
        )
    size = image_size(frames[0])
    objects = int(read_mask(masks[0], size).max())
    if not objects:
        raise UserError(f"{masks[0]} has no object to follow. {REMEDY}")
    return SegmentedVideo(name, frames, masks, size, objects)
