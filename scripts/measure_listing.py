"""Measure the time and memory that listing a benchmark of SPair-71k's full size takes.

    python scripts/measure_listing.py [FOLDER]

Writes a tree with SPair-71k's official counts (1,800 small images; 53,340 / 5,384 / 12,234 pairs)
into FOLDER, or a temporary one, then lists all three splits in a fresh process. The floor
is the time of reading the same files without parsing them.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path

from PIL import Image
from rich.progress import track

from semcorr.data.keypoints import benchmark_metadata, keypoint_names
from semcorr.data.spair import FOLDERS, read_spair_pairs

IMAGES = {"trn": 58, "val": 18, "test": 24}  # per category: 100
SIZE = (40, 30)


def generate(root: Path) -> None:
    """Write a tree with the official counts, where every image shows all keypoints of its category."""
    table = benchmark_metadata("spair71k")
    number = 0
    for i, category in enumerate(track(table["categories"], "Writing the tree")):
        images = _write_images(root, category)
        for split_name, split in FOLDERS.items():
            total, members = table["official"]["pairs"][split_name], [im for im in images if im["split"] == split]
            counts = table["official"]["pairs_per_category"].get(split_name)
            count = counts[category] if counts else total // 18 + (i < total % 18)
            for a, b in _list_pairs(members, count):
                number += 1
                _write_pair(root, split, f"{number:06d}-{a['stem']}-{b['stem']}:{category}", a, b)


def _write_images(root: Path, category: str) -> list[dict]:
    """Write the images of a category and their annotations."""
    folder, annotations = root / "JPEGImages" / category, root / "ImageAnnotation" / category
    folder.mkdir(parents=True)
    annotations.mkdir(parents=True)
    ids = keypoint_names("spair71k", category)
    images = []
    for k, split in enumerate(split for split, n in IMAGES.items() for _ in range(n)):
        stem = f"2008_{k:06d}"
        Image.new("RGB", SIZE, (k, 2 * k, 99)).save(folder / f"{stem}.jpg")
        kps = {str(j): [1 + (j + k) % 38, 1 + j % 28] if j in ids else None for j in range(30)}
        entry = {
            "filename": f"{stem}.jpg",
            "image_width": SIZE[0],
            "image_height": SIZE[1],
            "image_depth": 3,
            "category": category,
            "pose": "Unspecified",
            "bndbox": [1, 1, 39, 29],
            "kps": kps,
            "azimuth_id": k % 8,
        }
        (annotations / f"{stem}.json").write_text(json.dumps(entry))
        images.append({"stem": stem, "split": split, "kps": kps})
    return images


def _list_pairs(images: list[dict], count: int) -> list[tuple[dict, dict]]:
    """List `count` ordered pairs, with repetitions where there are fewer."""
    pairs = list(permutations(images, 2))
    return (pairs * (count // len(pairs) + 1))[:count]


def _write_pair(root: Path, split: str, name: str, a: dict, b: dict) -> None:
    """Write the annotation of a pair, and its line of the layout."""
    ids = [i for i in a["kps"] if a["kps"][i] and b["kps"][i]]
    entry = {
        "filename": name,
        "src_imname": f"{a['stem']}.jpg",
        "trg_imname": f"{b['stem']}.jpg",
        "src_imsize": [*SIZE, 3],
        "trg_imsize": [*SIZE, 3],
        "src_bndbox": [1, 1, 39, 29],
        "trg_bndbox": [1, 1, 39, 29],
        "category": name.split(":")[1],
        "src_pose": "Unspecified",
        "trg_pose": "Unspecified",
        "src_kps": [a["kps"][i] for i in ids],
        "trg_kps": [b["kps"][i] for i in ids],
        "kps_ids": ids,
        "mirror": 0,
        "viewpoint_variation": 0,
        "scale_variation": 0,
        "truncation": 0,
        "occlusion": 0,
    }
    folder = root / "PairAnnotation" / split
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(entry))
    layout = root / "Layout" / "large" / f"{split}.txt"
    layout.parent.mkdir(parents=True, exist_ok=True)
    with layout.open("a") as file:
        file.write(f"{name}\n")


def measure(root: Path) -> None:
    """Print the time of the floor and of the reader, and the peak memory of this process before and after."""
    before = _peak_memory()
    start = time.perf_counter()
    count = sum(len(path.read_bytes()) > 0 for path in (root / "PairAnnotation").rglob("*.json"))
    floor = time.perf_counter() - start
    start = time.perf_counter()
    pairs = [pair for folder in FOLDERS.values() for pair in read_spair_pairs(root, folder)]
    seconds = time.perf_counter() - start
    assert len(pairs) == count
    print(f"{len(pairs)} pairs listed in {seconds:.1f} s; opening and reading the files alone {floor:.1f} s")
    print(f"peak memory {_peak_memory():.0f} MB, of which {before:.0f} MB were imports")


def _peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "SPair-71k"
        if not root.is_dir():
            generate(root)
        subprocess.run([sys.executable, __file__, "--measure", str(root)], check=True)


if __name__ == "__main__":
    main()
