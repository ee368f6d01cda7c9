"""TSS (Taniai, Sinha and Sato 2016): 400 pairs of images with dense flow between foreground objects.

A folder of a pair holds image1.png, image2.png, their masks mask1.png and mask2.png, flow1.flo from the first to the
second image and flow2.flo back, and flip_gt.txt: 1 if the flows lead into the other image mirrored. Both directions
are scored.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.ranges import Positive
from semcorr.core.tables import read_table
from semcorr.core.text_files import read_text
from semcorr.data.datamodule import PairOptions
from semcorr.data.dense_pairs import DenseBenchmark, DenseImage, DensePair
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.flow_file import read_flow_size
from semcorr.data.open_image import open_image
from semcorr.data.record import image_size, require_root

GROUPS = ("FG3DCar", "JODS", "PASCAL")
ROOTS = (".", "TSS_CVPR2016")  # where the groups' folders are: the official archive has a folder of its own
COLUMNS = ("source_image", "target_image", "flow_direction", "flip_img_A")
EXTENTS = ("source", "target")
FILES = frozenset(
    ("image1.png", "image2.png", "mask1.png", "mask2.png", "flow1.flo", "flow2.flo", "flip_gt.txt")
)  # of a pair
REMEDY = "Unpack TSS_CVPR2016.zip again."
LIST_REMEDY = "Restore the published list, or leave data.pairs out."


class FlowTruth(NamedTuple):
    """Files of a true flow and of the foreground of the image that it begins in."""

    flow: Path
    mask: Path


class TSS(DenseBenchmark):
    """The official tree at `root`, or in its sub-folder `TSS_CVPR2016`.

    Args:
        alpha: Largest error that is right, as a share of the longer side of the image `extent`.
        extent: `source`, the image that the flow begins in, or `target`.
        pairs: A published list below `root` (source_image, target_image, flow_direction, flip_img_A), such as
            test_pairs_tss.csv; null for all folders.
        **options: As for every benchmark.
    """

    name, title, section, cases_name = "tss", "TSS", "flow", "flows"
    official: Mapping[str, int] = MappingProxyType({"pairs, test": 400})
    recipe = DownloadRecipe(
        licence="research use; images of FG3DCar, JODS and PASCAL VOC",
        archives=(
            ArchiveInfo(
                "TSS_CVPR2016.zip",
                "http://www.hci.iis.u-tokyo.ac.jp/datasets/data/JointCorrCoseg/TSS_CVPR2016.zip",
            ),
        ),
        marker_file="FG3DCar",
    )

    def __init__(
        self,
        *,
        alpha: Positive = 0.05,
        extent: str = "source",
        pairs: str | None = None,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(**options)
        if extent not in EXTENTS:
            raise UserError(f"`data.extent` must be one of {', '.join(EXTENTS)}, got {extent!r}")
        self.alpha, self.extent, self.list = alpha, extent, pairs

    def count(self, split: str) -> dict[str, int]:
        """Count pairs of images, and flows."""
        return {"pairs": len({pair.truth.flow.parent for pair in self.pairs(split)}), "flows": len(self.pairs(split))}

    def read_pairs(self, split: str) -> list[DensePair]:
        """Read both directions of every folder, or the rows of the list.

        Raises:
            UserError: The tree is not whole, or a row of the list is damaged.
        """
        require_root(self.root, "TSS", "Run `python -m semcorr.prepare tss`, or give data.root=DIR.")
        root = next((self.root / name for name in ROOTS if (self.root / name / GROUPS[0]).is_dir()), None)
        if root is None:
            raise UserError(f"{self.root} holds neither {GROUPS[0]} nor {ROOTS[1]}/{GROUPS[0]}. Give TSS's folder.")
        if self.list is None:
            folders = [folder for group in GROUPS for folder in _find_folders(root / group)]
            return [_read_pair(root, folder, k, _is_mirrored(folder)) for folder in folders for k in (1, 2)]
        path = self.root / require_file_name(self.list, "`data.pairs`", folders=True)
        rows = read_table(path, COLUMNS, LIST_REMEDY)
        return [_read_row(root, row, f"{path}, line {line}") for line, row in rows]


def read_foreground(path: Path, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Read the mask of a foreground: what is not black.

    Args:
        path: The picture.
        size: Width and height that it must have.

    Raises:
        UserError: The picture is absent, damaged, or of another size.
    """
    with open_image(path, REMEDY) as image:
        if image.size != size:
            raise UserError(
                f"{path} is {image.size[0]} x {image.size[1]} pixels, its image {size[0]} x {size[1]}. {REMEDY}"
            )
        return torch.from_numpy(np.array(image.convert("L")) > 0)


def _find_folders(group: Path) -> list[Path]:
    """Return the folders of a group's pairs: those with any file of a pair, so that missing files are reported."""
    folders = sorted({path.parent for path in group.rglob("*") if path.name in FILES})
    if not folders:
        raise UserError(f"{group} holds no pair, and the score is a mean over {', '.join(GROUPS)}. {REMEDY}")
    return folders


def _is_mirrored(folder: Path) -> bool:
    path = folder / "flip_gt.txt"
    text = read_text(path, REMEDY).strip()
    if text not in ("0", "1"):
        raise UserError(f"{path} must hold 0 or 1, got {quote_value(text)}. {REMEDY}")
    return text == "1"


def _read_pair(root: Path, folder: Path, direction: int, mirrored: bool) -> DensePair:
    """Read the pair whose flow begins in image `direction`."""
    first, second = (folder / f"image{k}.png" for k in (direction, 3 - direction))
    flow, mask = folder / f"flow{direction}.flo", folder / f"mask{direction}.png"
    if not mask.is_file():
        raise UserError(f"{mask} does not exist. {REMEDY}")
    source, target = DenseImage(first, _size(first)), DenseImage(second, _size(second), mirrored)
    if (size := read_flow_size(flow, REMEDY)) != source.size:
        raise UserError(
            f"{flow} is {size[0]} x {size[1]} pixels, {first.name} {source.size[0]} x {source.size[1]}. {REMEDY}"
        )
    relative = folder.relative_to(root)
    name = f"{relative.as_posix()}/{direction}"
    return DensePair(name, relative.parts[0], source, target, FlowTruth(flow, mask))


def _read_row(root: Path, row: Mapping[str, str], location: str) -> DensePair:
    """Read a row of the published list, whose flow begins in its target image (B) and leads into A."""
    paths = [Path(require_file_name(row[key], f"{location}, {key},", folders=True)) for key in COLUMNS[:2]]
    direction, mirrored = row["flow_direction"].strip(), row["flip_img_A"].strip()
    if direction not in ("1", "2") or mirrored not in ("0", "1"):
        raise UserError(f"{location}: flow_direction must be 1 or 2 and flip_img_A 0 or 1. {LIST_REMEDY}")
    expected = [f"image{3 - int(direction)}.png", f"image{direction}.png"]
    if [path.name for path in paths] != expected or paths[0].parent != paths[1].parent or len(paths[0].parts) < 3:
        raise UserError(
            f"{location}: a flow of direction {direction} begins in image{direction}.png, so the row must name "
            f"GROUP/PAIR/{expected[0]} and GROUP/PAIR/{expected[1]}, got {paths[0]} and {paths[1]}. {LIST_REMEDY}"
        )
    return _read_pair(root, root / paths[0].parent, int(direction), mirrored == "1")


_size = cache(image_size)  # of an image in both directions
