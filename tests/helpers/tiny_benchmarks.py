"""Benchmarks of a few small images in the official formats, for the tests of the readers."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

Kps = dict[int, list[float]]

CATS = {  # stem: keypoints by id, box; all 40 x 30 pixels
    "one": ({0: [4.0, 5.0], 2: [10.0, 6.0], 3: [20.0, 7.0]}, [2, 3, 30, 20]),
    "two": ({0: [8.0, 9.0], 2: [12.0, 10.0], 14: [31.0, 22.0]}, [1, 2, 35, 29]),
    "three": ({2: [5.0, 6.0], 3: [15.0, 8.0]}, [0, 4, 18, 28]),
}
PAIRS = [("one", "two"), ("three", "one")]


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Load a JSON file, change it in place, write it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_spair(root: Path, folder: str = "test", category: str = "cat") -> Path:
    """Three cats and two pairs of them."""
    for stem, (kps, box) in CATS.items():
        picture(root / "JPEGImages" / category / f"{stem}.jpg")
        entry = {
            "filename": f"{stem}.jpg", "image_width": 40, "image_height": 30, "bndbox": box,
            "kps": {str(i): kps.get(i) for i in range(30)},
        }  # fmt: skip
        dump(root / "ImageAnnotation" / category / f"{stem}.json", entry)
    names = [f"{i:06d}-{a}-{b}:{category}" for i, (a, b) in enumerate(PAIRS, start=1)]
    for name, (a, b) in zip(names, PAIRS, strict=True):
        ids = sorted(CATS[a][0].keys() & CATS[b][0].keys())
        entry = {"kps_ids": [str(i) for i in ids], "viewpoint_variation": 1, "mirror": 0}
        for side, stem in (("src", a), ("trg", b)):
            entry |= {f"{side}_kps": [CATS[stem][0][i] for i in ids], f"{side}_bndbox": CATS[stem][1]}
        dump(root / "PairAnnotation" / folder / f"{name}.json", entry)
    layout = root / "Layout" / "large" / f"{folder}.txt"
    layout.parent.mkdir(parents=True)
    layout.write_text("".join(f"{name}\n" for name in names))
    return root


def write_willow(root: Path) -> Path:
    """Two pairs; the points of image k run from (k, 2 k) in steps of (1, 2)."""
    lines = [["imageA", "imageB", *(f"{axis}{side}{i}" for side in "AB" for axis in "XY" for i in range(10))]]
    for a, b in (("car(G)/a", "car(G)/b"), ("duck(S)/c", "duck(S)/a")):
        row = []
        for name in (a, b):
            picture(root / "PF-dataset" / f"{name}.png")
            k = "abc".index(name[-1])
            row += [k + 1.5 * i for i in range(10)] + [2 * k + i / 2 for i in range(10)]
        lines.append([f"PF-dataset/{a}.png", f"PF-dataset/{b}.png", *row])
    with (root / "test_pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return root


def write_coco(root: Path, names: list[str] | None = None, **changes: object) -> Path:
    """One dog per image; dog k has the points (k, 5), (k, 6) and, if k is even, (k, 7)."""
    names = names or [f"{k:02d}.jpg" for k in range(10)]
    points = [[k, 5, 2, k, 6, 1, k, 7, 2 * (k % 2 == 0)] for k in range(len(names))]
    content = {
        "images": [{"id": 100 + k, "file_name": name} for k, name in enumerate(names)],
        "categories": [{"id": 3, "name": "dog", "keypoints": ["left_paw", "right_paw", "nose"]}],
        "annotations": [
            {"image_id": 100 + k, "category_id": 3, "bbox": [2, 3, 20 + k, 10], "keypoints": flat}
            for k, flat in enumerate(points)
        ],
    } | changes  # fmt: skip
    for name in names:
        picture(root / "images" / name)
    dump(root / "keypoints.json", content)
    return root
