"""Labels written as Label Studio's tasks with predictions, which it shows as pre-annotations."""

import json
from collections.abc import Sequence

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations, TransferImage, category_name

CONTROLS = {"keypointlabels": "keypoints", "rectanglelabels": "boxes", "image": "image", "data key": "image"}
LOCAL = "/data/local-files/?d="  # URL of a file that Label Studio reads from its own disk
POINT_SIZE = 0.5  # of a keypoint as it is drawn, in percent of the image's width


def format_label_studio(annotations: Annotations, labels: Sequence[KeypointLabel], model: str) -> str:
    """Return tasks with one prediction each: keypoints that were found, with their scores, and given rectangles.

    Tasks of the file that was read keep their data; other images are named by the URL of a local file. The controls are
    those of the file, otherwise CONTROLS.
    """
    categories = {category["id"]: category for category in annotations.categories}
    controls = CONTROLS | {key: annotations.tool[key] for key in CONTROLS if key in annotations.tool}
    by_photo: dict[object, list[KeypointLabel]] = {}
    for label in labels:
        by_photo.setdefault(label.target.photo.id, []).append(label)
    tasks = []
    for own in by_photo.values():
        results: list[JsonObject] = []
        for number, label in enumerate(own):
            results += _label_results(label, categories[label.target.category], controls, number)
        prediction = {
            "model_version": f"semcorr {model}".strip(),
            "score": round(sum(label.score for label in own) / len(own), 4),
            "result": results,
        }
        tasks.append({"data": _task_data(own[0].target.photo, controls), "predictions": [prediction]})
    return json.dumps(tasks, indent=1, allow_nan=False) + "\n"


def _task_data(photo: TransferImage, controls: JsonMapping) -> JsonObject:
    return dict(photo.entry.get("data") or {controls["data key"]: LOCAL + photo.name})


def _label_results(label: KeypointLabel, category: JsonMapping, controls: JsonMapping, number: int) -> list[JsonObject]:
    """Return the regions of a label; with a rectangle, the keypoints are under it."""
    width, height = label.size
    common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": controls["image"]}
    results: list[JsonObject] = []
    parent: JsonObject = {}
    if label.target.box:
        x, y, w, h = label.target.box
        place = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        results.append(
            {
                "id": f"box{number}",
                "type": "rectanglelabels",
                "from_name": controls["rectanglelabels"],
                "value": {**place, "rotation": 0, "rectanglelabels": [category_name(category)]},
                **common,
            }
        )
        parent = {"parentID": f"box{number}"}
    rows = zip(category["keypoints"], label.points.tolist(), label.scores.tolist(), label.valid.tolist(), strict=True)
    for i, (name, (x, y), score, valid) in enumerate(rows):
        if valid:
            place = {"x": 100 * (round(x, 2) + 0.5) / width, "y": 100 * (round(y, 2) + 0.5) / height}
            results.append(
                {
                    "id": f"keypoint{number}-{i}",
                    "type": "keypointlabels",
                    "from_name": controls["keypointlabels"],
                    "value": {**place, "width": POINT_SIZE, "keypointlabels": [name]},
                    "score": round(score, 4),
                    **common,
                    **parent,
                }
            )
    return results
