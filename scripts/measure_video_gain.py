"""Measure how well annotated frames label the others of a video, on clips whose motion is known.

    python scripts/measure_video_gain.py data/SPair-71k
    python scripts/measure_video_gain.py data/SPair-71k --category dog --clips 8 --model dinov2

A clip is a photograph that turns, grows and moves for 13 frames of 320 x 240 pixels, while a bar passes before it. The
first frame, or the first, middle and last, label those between, as `python -m semcorr.transfer --video` does.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.core.errors import UserError
from semcorr.data.views import load_image
from semcorr.inference import Matcher
from semcorr.inference.transfer.clip import label_clip, read_clip

FRAMES, SIZE = 13, (320, 240)
ANNOTATED = {"first": (0,), "three": (0, 6, 12)}
BAR, GREEN = SIZE[0] // 5, (90, 110, 70)  # width of the bar, and its colour


def main(
    root: Annotated[Path, typer.Argument(help="Folder of SPair-71k.")],
    category: str = "cat",
    clips: Annotated[int, typer.Option(help="Number of photographs: every other one.")] = 4,
    model: str | None = None,
    device: str | None = None,
) -> None:
    """Print errors and occlusion of every rule."""
    with report_user_errors("evaluate"):
        files = sorted((root / "ImageAnnotation" / category).glob("*.json"))[: 2 * clips : 2]
        if not files:
            raise UserError(f"{root} has no annotated photographs of {category}. Give the folder of SPair-71k")
        matcher = Matcher.load(model, device=device)
        rows: dict[tuple[str, str], list[np.ndarray]] = {}
        for file in files:
            with TemporaryDirectory() as folder:
                truth, visible = write_clip(file, root, Path(folder))
                for name, use in (("first", "vote"), ("three", "vote"), ("three", "best")):
                    rows.setdefault((name, use), []).append(
                        measure_clip(matcher, Path(folder), name, use, truth, visible)
                    )
    print_table({key: np.concatenate(values) for key, values in rows.items()})


def frame_motion(t: int, box: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix and the shift that bring a photograph's pixels to those of a frame."""
    u, side = t / (FRAMES - 1), max(box["x2"] - box["x1"], box["y2"] - box["y1"])
    angle, scale = (
        math.radians(20 * math.sin(2 * math.pi * u)),
        0.75 * SIZE[1] / side * (1 + 0.35 * math.sin(math.pi * u)),
    )
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([box["x1"] + box["x2"], box["y1"] + box["y2"]]) / 2
    place = np.array(SIZE) / 2 + (40 * math.sin(4 * math.pi * u), 20 * math.cos(2 * math.pi * u) - 20)
    return matrix, place - matrix @ centre


def write_clip(file: Path, root: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write frames and annotations; return places (t k 2), nan where a keypoint is not annotated, and visibility."""
    annotation = json.loads(file.read_text())
    photo = load_image(root / "JPEGImages" / file.parent.name / f"{file.stem}.jpg")
    box = dict(zip(("x1", "y1", "x2", "y2"), annotation["bndbox"], strict=True))
    names = sorted(annotation["kps"], key=int)
    points = np.array([annotation["kps"][name] or (math.nan, math.nan) for name in names], float)
    places, visible = [], []
    for t in range(FRAMES):
        matrix, shift = frame_motion(t, box)
        inverse = np.linalg.inv(matrix)
        back = -inverse @ (shift + 0.5 - matrix @ np.array([0.5, 0.5]))  # of corners, where pixel centres are at 0.5
        frame = photo.transform(
            SIZE, Image.Transform.AFFINE, (*inverse[0], back[0], *inverse[1], back[1]), Image.Resampling.BICUBIC
        )
        place = points @ matrix.T + shift
        is_visible = ((place >= 0) & (place < np.array(SIZE) - 1)).all(1)
        if FRAMES // 3 <= t < 2 * FRAMES // 3:
            left = int((t - FRAMES // 3) / (FRAMES / 3) * (SIZE[0] + BAR)) - BAR
            frame.paste(GREEN, (left, 0, left + BAR, SIZE[1]))
            is_visible &= ~((place[:, 0] >= left - 0.5) & (place[:, 0] < left + BAR - 0.5))
        frame.save(folder / f"{t:04}.png")
        places.append(place)
        visible.append(is_visible)
    for name, frames in ANNOTATED.items():
        (folder / f"{name}.json").write_text(json.dumps(build_coco(names, frames, places, visible)))
    return np.array(places), np.array(visible)


def build_coco(
    names: list[str], frames: tuple[int, ...], places: list[np.ndarray], visible: list[np.ndarray]
) -> object:
    """Return COCO keypoints of some frames."""
    rows = {
        t: [(*p, 2) if s else (0, 0, 0) for p, s in zip(places[t].tolist(), visible[t], strict=True)] for t in frames
    }
    return {
        "images": [{"id": t, "file_name": f"{t:04}.png", "width": SIZE[0], "height": SIZE[1]} for t in frames],
        "annotations": [
            {"id": t + 1, "image_id": t, "category_id": 1, "keypoints": [value for row in rows[t] for value in row]}
            for t in frames
        ],
        "categories": [{"id": 1, "name": "object", "keypoints": names, "skeleton": []}],
    }


def measure_clip(
    matcher: Matcher, folder: Path, name: str, use: str, truth: np.ndarray, visible: np.ndarray
) -> np.ndarray:
    """Return the error in pixels, the true and the predicted visibility of the annotated keypoints in other frames.

    Args:
        matcher: Matcher that finds the keypoints.
        folder: Folder of the frames and the annotations.
        name: Which frames are annotated, a key of `ANNOTATED`.
        use: Rule of the transfer, `vote` or `best`.
        truth: Places (t k 2) of the keypoints.
        visible: Whether each keypoint is visible in each frame (t k).
    """
    known = visible[list(ANNOTATED[name])].any(0)
    rows = []
    for label in label_clip(matcher, read_clip(folder / f"{name}.json", folder, folder), use):
        t = int(label.target.photo.name[:4])
        if t not in ANNOTATED["three"]:
            error = np.linalg.norm(label.points.numpy() - truth[t], axis=1)
            rows.append(np.stack((error, visible[t], label.valid.numpy()), axis=1)[known])
    return np.concatenate(rows)


def print_table(results: dict[tuple[str, str], np.ndarray]) -> None:
    """Print a row for each choice of annotated frames and rule."""
    table = Table(title="Errors in pixels, of the visible keypoints; occlusion, of all")
    headers = (
        "annotated",
        "--use",
        "visible",
        "median",
        "within 8",
        "within 16",
        "called visible",
        "hidden",
        "called hidden",
    )
    for header in headers:
        table.add_column(header, justify="right")
    for (name, use), values in results.items():
        error, visible, called = values[:, 0], values[:, 1] > 0, values[:, 2] > 0
        shares = [f"{100 * (error[visible] < limit).mean():.1f} %" for limit in (8, 16)]
        counts = [str(int(visible.sum())), str(int((~visible).sum()))]
        right = [f"{100 * (called == value)[visible == value].mean():.1f} %" for value in (True, False)]
        table.add_row(name, use, counts[0], f"{np.median(error[visible]):.2f}", *shares, right[0], counts[1], right[1])
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
