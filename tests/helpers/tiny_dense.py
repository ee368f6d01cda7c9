"""Small pairs with a dense flow or with outlines, in the official layouts of TSS and Caltech-101."""

import csv
import struct
from pathlib import Path

import numpy as np
from PIL import Image

CELL = 8


def texture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_flow(path: Path, flow: np.ndarray) -> None:
    """As Middlebury's own code: the tag as a float, width and height, then u and v of each pixel, row by row."""
    height, width, _ = flow.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<fii", 202021.25, width, height) + flow.astype("<f4").tobytes())


def write_tss_pair(folder: Path, mirrored: bool = False, shift: int = CELL, seed: int = 0) -> None:
    """An object of 48 x 48 pixels that moves `shift` to the right, over plain grey; 96 x 96.

    Where `mirrored`, both images are stored as they would be if the other one were mirrored: image 2 is the mirror
    image of what the flow of image 1 leads into, and the other way round.
    """
    images, masks = [], []
    for left in (16, 16 + shift):
        image, mask = np.full((96, 96, 3), 90, np.uint8), np.zeros((96, 96), np.uint8)
        image[24:72, left : left + 48], mask[24:72, left : left + 48] = texture(48, 48, seed), 255
        images.append(image)
        masks.append(mask)
    flows = [np.full((96, 96, 2), 2e9, np.float32) for _ in range(2)]
    for flow, mask, sign in zip(flows, masks, (1, -1), strict=True):
        flow[mask > 0] = (sign * shift, 0)
    if mirrored:  # of image 2; the flow from it leads into image 1 mirrored: in its own, mirrored frame x grows left
        images[1], masks[1] = images[1][:, ::-1], masks[1][:, ::-1]
        flows[1] = flows[1][:, ::-1] * [-1, 1]
        flows[1][masks[1] == 0] = 2e9
    for k in (1, 2):
        save(folder / f"image{k}.png", images[k - 1])
        save(folder / f"mask{k}.png", masks[k - 1])
        write_flow(folder / f"flow{k}.flo", flows[k - 1])
    (folder / "flip_gt.txt").write_text(f"{int(mirrored)}\n")


def write_tss(root: Path) -> Path:
    """A pair of each group, the last one mirrored."""
    write_tss_pair(root / "FG3DCar" / "car_001")
    write_tss_pair(root / "JODS" / "horse_1_2", shift=2 * CELL, seed=1)
    write_tss_pair(root / "PASCAL" / "bus" / "3", mirrored=True, seed=2)
    return root


def write_caltech(root: Path, separator: str = ",", prefix: str = "") -> Path:
    """A pair of crabs whose object moves a cell to the right, and a pair of the same image."""
    folder = root / "101_ObjectCategories"
    outlines = []
    for k, left in enumerate((16, 24), start=1):
        image = np.full((96, 96, 3), 90, np.uint8)
        image[24:72, left : left + 48] = texture(48, 48, 0)
        save(folder / "crab" / f"image_000{k}.png", image)  # lossless; the official ones are JPEG
        outlines.append(([left, left + 47, left + 47, left], [24, 24, 71, 71]))
    rows = [["source_image", "target_image", "class", "XA", "YA", "XB", "YB"]]
    for a, b in ((1, 2), (1, 1)):
        cells = [separator.join(f"{v}" for v in axis) for k in (a, b) for axis in outlines[k - 1]]
        rows.append([*(f"{prefix}101_ObjectCategories/crab/image_000{k}.png" for k in (a, b)), "22", *cells])
    with (root / "test_pairs_caltech_with_category.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root
