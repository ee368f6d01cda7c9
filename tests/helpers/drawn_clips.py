"""Clips whose motion is known: a window that moves over a large drawn picture, and the points in it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 192  # of a frame: of the network of the tests, too, so that nothing is resized
POINTS = ((70.0, 60.0), (120.0, 80.0), (90.0, 130.0))  # in the first frame
NAMES = ["nose", "ear", "tail"]


def draw_world(seed: int = 0, size: tuple[int, int] = (320, 320)) -> Image.Image:
    """A picture with something different everywhere: coloured patches of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        )
        for n in (8, 20, 50)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def draw_frames(shifts: Sequence[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    """One frame for each shift of the world to the right and down, in pixels."""
    world = draw_world(seed)
    return [world.crop((64 - x, 64 - y, 64 - x + SIDE, 64 - y + SIDE)) for x, y in shifts]


def moved_points(shift: tuple[int, int]) -> np.ndarray:
    """Where the points of the first frame are in a frame of that shift."""
    return np.array(POINTS) + shift


def write_clip(folder: Path, frames: Sequence[Image.Image]) -> Path:
    """Write frames as img0000.png, img0001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        frame.save(folder / f"img{i:04}.png")
    return folder


def annotate(
    path: Path,
    points: dict[int, Sequence[Sequence[Sequence[float]]]],
    size: tuple[int, int] = (SIDE, SIDE),
    categories: Sequence[str] = ("cat",),
) -> Path:
    """COCO of the objects in some frames; they are of the categories in turn."""
    content: dict = {"images": [], "annotations": [], "categories": []}
    for i, name in enumerate(categories, 1):
        content["categories"].append({"id": i, "name": name, "keypoints": NAMES, "skeleton": []})
    for frame, objects in points.items():
        image = {"id": frame + 10, "file_name": f"img{frame:04}.png", "width": size[0], "height": size[1]}
        content["images"].append(image)
        for number, places in enumerate(objects):
            one = {"id": len(content["annotations"]) + 1, "image_id": frame + 10}
            one |= {"category_id": 1 + number % len(categories)}
            content["annotations"].append(one | {"keypoints": [value for x, y in places for value in (x, y, 2)]})
    path.write_text(json.dumps(content))
    return path


def read_labels(path: Path) -> dict[int, list[np.ndarray]]:
    """Rows of x, y, v of each labelled object, by the number of its frame."""
    content = json.loads(path.read_text())
    numbers = {image["id"]: int(image["file_name"][-8:-4]) for image in content["images"]}
    labels: dict[int, list[np.ndarray]] = {}
    for one in content["annotations"]:
        labels.setdefault(numbers[one["image_id"]], []).append(np.array(one["keypoints"], float).reshape(-1, 3))
    return labels
