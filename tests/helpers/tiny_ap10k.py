"""An AP-10K of made-up animals in the official COCO layout: 54 species of 23 families."""

import json
import random
import shutil
from pathlib import Path

from tiny_benchmarks import dump, picture

from semcorr.data.keypoints import benchmark_metadata, keypoint_names

SIZE = (60, 40)
NO_IMAGES = ("arctic fox", "orangutan", "mole", "bat")  # as in the real one
COUNTS = {"dog": 159, "king cheetah": 25, "argali sheep": 45, "black bear": 50}  # others: USUAL
USUAL = 53
CROWD = benchmark_metadata("ap10k_multi_instance")["ids"]


def species() -> dict[str, str]:
    """Species to family, in the order of the official ids."""
    return benchmark_metadata("ap10k")["species"]


def made_up(usual: int = USUAL) -> tuple[list[dict], list[dict]]:
    """COCO images and annotations; some images show several animals or too little of one."""
    dice = random.Random(0)
    free = (i for i in range(1, 10**6) if i not in set(CROWD))
    images, annotations = [], []
    for category, name in enumerate(species(), start=1):
        wanted = 0 if name in NO_IMAGES else min(COUNTS.get(name, usual), 3 * usual)
        for k in range(wanted):
            _add(images, annotations, next(free), category, dice, visible=dice.randint(5, 17))
            if k == 0:
                _add(images, annotations, next(free), category, dice, visible=2)
                _add(images, annotations, CROWD[category], category, dice, visible=17)
            if k == 1:  # a second animal of another species in the same image: only the first counts
                annotations.append(
                    {**annotations[-1], "id": 10**6 + images[-1]["id"], "category_id": category % 54 + 1}
                )
    return images, annotations


def _add(images: list, annotations: list, key: int, category: int, dice: random.Random, visible: int) -> None:
    chosen = set(dice.sample(range(17), visible))
    points = [(dice.randint(1, 58), dice.randint(1, 38), 2) if i in chosen else (0, 0, 0) for i in range(17)]
    images.append(
        {"license": 1, "id": key, "file_name": f"{key:012d}.jpg", "width": SIZE[0], "height": SIZE[1], "background": 1}
    )
    annotations.append(
        {
            "id": 5000 + key, "image_id": key, "category_id": category, "bbox": [5, 6, 40, 30], "area": 1200,
            "iscrowd": 0, "num_keypoints": visible, "keypoints": [value for point in points for value in point],
        }
    )  # fmt: skip


def write_ap10k(root: Path, usual: int = USUAL, order: int = 0, pictures: bool = False) -> Path:
    """The official tree; `order` shuffles in which order its files come into being."""
    images, annotations = made_up(usual)
    names = list(keypoint_names("ap10k", "*").values())
    categories = [
        {"id": i, "name": name, "supercategory": family, "keypoints": names, "skeleton": []}
        for i, (name, family) in enumerate(species().items(), start=1)
    ]
    parts = ["train", "val", "test"]
    jobs = [("json", part) for part in parts] + [("jpg", image["file_name"]) for image in images if pictures]
    random.Random(order).shuffle(jobs)
    (root / "data").mkdir(parents=True)
    first = picture(root / "first.jpg", SIZE)
    for kind, name in jobs:
        if kind == "jpg":
            shutil.copy(first, root / "data" / name)
            continue
        ids = {image["id"] for image in images if parts[image["id"] % 3] == name}
        content = {
            "info": {}, "licenses": [], "categories": categories,
            "images": [image for image in images if image["id"] in ids],
            "annotations": [a for a in annotations if a["image_id"] in ids],
        }  # fmt: skip
        dump(root / "annotations" / f"ap10k-{name}-split1.json", content)
    first.unlink()
    return root


def write_released(root: Path, order: int = 0) -> Path:
    """The tree GeoAware-SC's notebook leaves: two zebras and a horse, two pairs, under a folder called json."""
    root = root / "json" / "ap-10k"  # a plain replace of "json" by "jpg" would break this path
    dice = random.Random(1)
    images, annotations = [], []
    for key in (7, 30, 101):
        _add(images, annotations, key, 0, dice, visible=17)
    kinds = {7: "zebra", 30: "horse", 101: "zebra"}
    paths = {}
    for image, entry in zip(images, annotations, strict=True):
        below = f"Equidae/{kinds[image['id']]}/{image['id']:012d}"
        merged = {**entry, **image, "name": kinds[image["id"]], "supercategory": "Equidae"}
        dump(root / "ImageAnnotation" / f"{below}.json", merged)
        picture(root / "JPEGImages" / f"{below}.jpg", SIZE)
        paths[image["id"]] = f"data/ap-10k/ImageAnnotation/{below}.json"
    pairs = [("test", 101, 7, "zebra"), ("test", 7, 101, "zebra"), ("test_cross_species", 7, 30, "Equidae"),
             ("test_cross_family", 30, 7, "all"), ("trn", 7, 101, "zebra"), ("val", 7, 101, "zebra")]  # fmt: skip
    random.Random(order).shuffle(pairs)
    for folder, source, target, label in pairs:
        content = {"src_json_path": paths[source], "trg_json_path": paths[target]}
        dump(root / "PairAnnotation" / folder / f"{source}-{target}:{label}.json", content)
    return root


def edit_coco(root: Path, part: str, change) -> None:
    path = root / "annotations" / f"ap10k-{part}-split1.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
