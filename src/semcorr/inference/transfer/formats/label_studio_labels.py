"""Labels written as Label Studio's tasks with predictions, which it shows as pre-annotations."""

import json
from collections.abc import Sequence
from urllib.parse import quote

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.coco_fields import Id
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations, LabelStudioNames, category_name

DEFAULTS = LabelStudioNames({}, "image", "image", "keypoints", "boxes")
LOCAL = "/data/local-files/?d="  # URL of a file that Label Studio reads from its own disk
POINT_SIZE = 0.5  # of a keypoint as it is drawn, in percent of the image's width


def format_label_studio(annotations: Annotations, labels: Sequence[KeypointLabel], model: str) -> str:
    """Return tasks with one prediction each: keypoints that were found, with their scores, and given rectangles.

    Tasks of the file that was read keep their data; other images are named by the URL of a local file. The controls are
    those of the file, otherwise DEFAULTS.

    Args:
        annotations: Content of the file that was read.
        labels: Labels of its targets.
        model: The model's config line, for the version that Label Studio shows.
    """
    categories = {category["id"]: category for category in annotations.categories}
    controls = DEFAULTS
    if isinstance(annotations.tool, LabelStudioNames):
        names = annotations.tool._asdict().items()
        controls = controls._replace(**{field: name for field, name in names if name is not None})
    tasks = []
    by_photo: dict[Id, list[KeypointLabel]] = {}  # two tasks may show one image
    for label in labels:
        by_photo.setdefault(label.target.photo.id, []).append(label)
    for photo_id, task_labels in by_photo.items():
        results: list[JsonObject] = []
        for number, label in enumerate(task_labels):
            results += _label_results(label, categories[label.target.category], controls, number)
        prediction = {
            "model_version": f"semcorr {model}".strip(),
            "score": round(sum(label.score for label in task_labels) / len(task_labels), 4),
            "result": results,
        }
        url = LOCAL + quote(task_labels[0].target.photo.name)
        tasks.append({"data": controls.data.get(photo_id, {controls.url: url}), "predictions": [prediction]})
    return json.dumps(tasks, indent=1, allow_nan=False) + "\n"


def _label_results(
    label: KeypointLabel, category: JsonMapping, controls: LabelStudioNames, number: int
) -> list[JsonObject]:
    """Return the regions of a label; with a rectangle, the keypoints are under it."""
    width, height = label.size
    common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": controls.image}
    results: list[JsonObject] = []
    parent: JsonObject = {}
    if label.target.box:
        x, y, w, h = label.target.box
        place = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        results.append(
            {
                "id": f"box{number}",
                "type": "rectanglelabels",
                "from_name": controls.rectangles,
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
                    "from_name": controls.keypoints,
                    "value": {**place, "width": POINT_SIZE, "keypointlabels": [name]},
                    "score": round(score, 4),
                    **common,
                    **parent,
                }
            )
    return results
