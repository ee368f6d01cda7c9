"""PF-PASCAL in both published layouts, with every quirk of the real one."""

import csv
from pathlib import Path

import numpy as np
from scipy.io import savemat
from tiny_benchmarks import picture

NAN = float("nan")
POINTS = {  # class/stem: keypoints with NaN where missing, box
    "cat/2008_000001": ([[10.5, 20.25], [NAN, NAN], [30, 40], [60, 12]], [5, 6, 90, 66]),
    "cat/2008_000002": ([[11, 22], [33, 44], [55, 50], [NAN, NAN]], [1, 2, 99, 60]),
    "aeroplane/2008_000003": ([[7, 8], [9, 10]], [3, 4, 70, 50]),
}
SIZE = (100, 80)
ROWS = [  # source, target, 1-based class, flip
    ("2008_000001", "2008_000002", 8, 0),
    ("2008_000001", "2008_000002", 8, 1),
    ("2008_000001", "2008_000002", 8, 1),  # the real list repeats rows too
    ("2008_000003", "2008_000003", 1, 0),
]
TEST = ("2008_000002", "2008_000001", 8, [[11.5, 22.5], [55, 50]], [[10.5, 20.25], [30, 40]])


def write_pascal(root: Path, folder: str = "PF-dataset-PASCAL", lists: str = "{}_pairs_pf_pascal.csv") -> Path:
    """`lists` is how the files are called: Willow's way, or SD4Match's `{}_pairs.csv` with trn."""
    for key, (points, box) in POINTS.items():
        category, stem = key.split("/")
        picture(root / folder / "JPEGImages" / f"{stem}.jpg", SIZE)
        path = root / folder / "Annotations" / category / f"{stem}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"kps": np.array(points, float), "bbox": np.array([box], float)})
    train = "trn" if lists == "{}_pairs.csv" else "train"
    header = ["source_image", "target_image", "class", "flip"]
    _csv(root / lists.format(train), header, [[_path(a), _path(b), *rest] for a, b, *rest in ROWS])
    _csv(root / lists.format("val"), header, [[_path(a), _path(b), *rest] for a, b, *rest in ROWS[:1]])
    source, target, category, *sides = TEST
    points = [";".join(str(point[axis]) for point in side) for side in sides for axis in (0, 1)]
    header = ["source_image", "target_image", "class", "XA", "YA", "XB", "YB"]
    _csv(root / lists.format("test"), header, [[_path(source), _path(target), category, *points]])
    return root


def _path(stem: str) -> str:
    return f"PF-dataset-PASCAL/JPEGImages/{stem}.jpg"  # in the lists of every layout


def _csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
