"""Small videos with tracked points, in the official layout of TAP-Vid-DAVIS."""

import pickle
from pathlib import Path

import numpy as np

CENTRES = (np.stack(np.meshgrid(range(1, 7), range(1, 7)), -1).reshape(-1, 2) + 0.5) / 8  # of 8 x 8 cells


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def moving_square(frames: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """A textured square of 24 pixels moves 4 pixels a frame to the right, in 48 x 64; four points on it."""
    video = np.full((frames, 48, 64, 3), 90, np.uint8)
    for t in range(frames):
        video[t, 12:36, 4 * t : 4 * t + 24] = texture(24, 24, seed)
    at = np.array([[6, 18], [18, 18], [6, 30], [18, 30]]) + np.arange(frames)[:, None, None] * [4, 0]
    occluded = np.zeros((4, frames), bool)
    occluded[1, 0] = occluded[2, 3] = True
    points = (at.transpose(1, 0, 2) / [64, 48]).astype(np.float32)
    return {"video": video, "points": points, "occluded": occluded}


def static(frames: int = 6, size: int = 64) -> dict[str, np.ndarray]:
    """The same texture over and over, and a point at the centre of every inner cell of 8 x 8."""
    points = np.repeat(CENTRES[:, None], frames, 1).astype(np.float32)
    occluded = np.zeros(points.shape[:2], bool)
    return {"video": np.repeat(texture(size, size)[None], frames, 0), "points": points, "occluded": occluded}


def panning(height: int, width: int, frames: int = 5) -> dict[str, np.ndarray]:
    """A camera moves 8 pixels a frame over noise; points start at the centres of cells and leave to the left."""
    wide = texture(height, width + 8 * frames)
    video = np.stack([wide[:, 8 * t : 8 * t + width] for t in range(frames)])
    starts = np.stack(np.meshgrid(np.arange(4, width, 8), np.arange(4, height, 8)), -1).reshape(-1, 1, 2)
    at = starts - np.arange(frames)[None, :, None] * [8, 0]
    return {"video": video, "points": (at / [width, height]).astype(np.float32), "occluded": at[..., 0] < 0}


def write(root: Path, protocol: int = 4, **videos: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "tapvid_davis.pkl").write_bytes(pickle.dumps(videos, protocol))
    return root
