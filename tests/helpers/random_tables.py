"""Predictions made up, as batches for the metric and as the table that an evaluation would write of them."""

import numpy as np
import pyarrow as pa
import torch

CATEGORIES = ("bus", "cat", "dog")


def batch(random: np.random.Generator, first: int, pairs: int, keypoints: int = 7, images: int = 9) -> dict:
    """Pairs `first` ... of random images; every pair shares a keypoint; distances are often exactly on a tolerance."""
    shared = random.random((pairs, keypoints)) < 0.6
    shared[np.arange(pairs), random.integers(keypoints, size=pairs)] = True
    target = random.integers(0, 200, (pairs, keypoints, 2)).astype(np.float32)
    steps = random.integers(-6, 7, (pairs, keypoints, 1)) * np.array([3, 4])  # 5, 10, 15 ... pixels off
    off = np.where(random.random((pairs, keypoints, 1)) < 0.5, steps, random.normal(0, 12, (pairs, keypoints, 2)))
    category = random.integers(len(CATEGORIES), size=pairs)
    ends = [random.permutation(images)[:2] for _ in range(pairs)]
    return {
        "predicted": (target + off).astype(np.float32),
        "target": target,
        "extent": random.choice([50.0, 100.0, 150.0], pairs).astype(np.float32),
        "shared": shared,
        "ambiguous": shared & (random.random((pairs, keypoints)) < 0.5),
        "category": category,
        "pair": [f"{i:03d}" for i in range(first, first + pairs)],
        "ends": [[f"{CATEGORIES[c]}/{image}" for image in two] for c, two in zip(category, ends, strict=True)],
    }


def batches(*sizes: int, seed: int = 0) -> list[dict]:
    random, starts = np.random.default_rng(seed), np.cumsum([0, *sizes])
    return [batch(random, int(start), size) for start, size in zip(starts, sizes, strict=False)]


def tensors(one: dict) -> dict[str, torch.Tensor]:
    """What `PCK.update` is told."""
    names = ("predicted", "target", "extent", "shared", "ambiguous", "category")
    return {name: torch.from_numpy(one[name]) for name in names}


def table(parts: list[dict]) -> pa.Table:
    """The rows of the shared keypoints, in single precision as the evaluation writes them."""
    rows = []
    for one in parts:
        for i, k in np.argwhere(one["shared"]):
            (x, y), (a, b) = one["predicted"][i, k], one["target"][i, k]
            rows.append(
                {"pair": one["pair"][i], "source": one["ends"][i][0], "target": one["ends"][i][1],
                 "category": CATEGORIES[one["category"][i]], "keypoint": int(k), "predicted_x": x, "predicted_y": y,
                 "target_x": a, "target_y": b, "extent": one["extent"][i], "ambiguous": bool(one["ambiguous"][i, k]),
                 "localise": "argmax"}
            )  # fmt: skip
    return pa.Table.from_pylist(rows)


def hand_made(rows: list[dict]) -> pa.Table:
    """Rows with what they leave out: pair p of a and b, a cat, found where it is, extent 100."""
    usual = {"pair": "p", "source": "a", "target": "b", "category": "cat", "keypoint": 0, "target_x": 0.0,
             "target_y": 0.0, "extent": 100.0, "ambiguous": False, "localise": "argmax"}  # fmt: skip
    full = [usual | row for row in rows]
    return pa.Table.from_pylist(
        [{"predicted_x": row["target_x"], "predicted_y": row["target_y"]} | row for row in full]
    )
