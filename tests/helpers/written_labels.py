"""Labels made by hand, and the tool's own step between what is written for it and what it exports."""

import json
from pathlib import Path

import torch

from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations


def make_labels(annotations: Annotations, size: tuple[int, int] = (40, 30)) -> list[KeypointLabel]:
    """A label of each target; its second keypoint was not found."""
    categories = {entry["id"]: entry for entry in annotations.categories}
    labels = []
    for number, target in enumerate(annotations.targets):
        count = len(categories[target.category]["keypoints"])
        points = torch.tensor([[3.25 + 5 * k + number, 2.5 + 7.33 * k] for k in range(count)])
        scores = torch.tensor([0.9 - 0.1 * k for k in range(count)])
        valid = torch.tensor([k != 1 for k in range(count)])
        labels.append(KeypointLabel(target, size, points, scores, valid, []))
    return labels


def accept(path: Path) -> Path:
    """What Label Studio exports when every prediction was submitted as it is; others' files are left alone."""
    if path.suffix == ".json" and isinstance(tasks := json.loads(path.read_text()), list):
        for task in tasks:
            task["annotations"] = [{"result": each["result"]} for each in task.pop("predictions")]
        path.write_text(json.dumps(tasks))
    return path
