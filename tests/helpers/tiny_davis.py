"""Small segmented videos in the official layout of DAVIS 2017."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = [0, 0, 0, 236, 95, 103, 249, 145, 87, 99, 199, 148]
PALETTE = COLOURS + [0] * (768 - len(COLOURS))  # of 256 colours, as DAVIS's: with fewer, Pillow packs the indices


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def drifting(frames: int = 5, step: int = 8, size: tuple[int, int] = (96, 96)) -> tuple[np.ndarray, np.ndarray]:
    """Two textured objects drift one cell of 8 a frame over a plain background; frames and masks."""
    width, height = size
    video = np.full((frames, height, width, 3), 90, np.uint8)
    masks = np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        for number, (top, left) in enumerate([(8, 8 + step * t), (56, 64 - step * t)], start=1):
            video[t, top : top + 24, left : left + 24] = texture(24, 24, number)
            masks[t, top : top + 24, left : left + 24] = number
    return video, masks


def still(frames: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The same frame over and over, one object of whole cells."""
    masks = np.zeros((frames, 96, 96), np.uint8)
    masks[:, 24:64, 32:72] = 1
    return np.repeat(texture(96, 96, 7)[None], frames, 0), masks


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask, "P")
    image.putpalette(PALETTE)
    image.save(path)


def write_davis(root: Path, split: str = "val", **videos: tuple[np.ndarray, np.ndarray]) -> Path:
    """Write videos of one split; frames are lossless under the official ending, which says nothing of a file."""
    for name, (frames, masks) in videos.items():
        for t, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            path = root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path, format="PNG")
            write_mask(root / "Annotations" / "480p" / name / f"{t:05d}.png", mask)
    write_list(root, split, videos)
    return root


def write_list(root: Path, split: str, names: Mapping[str, object]) -> None:
    path = root / "ImageSets" / "2017" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))
