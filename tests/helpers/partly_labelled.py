"""Drawn creatures as a COCO file in which only some are annotated, and the command that labels the others."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from semcorr.data.keypoints import keypoint_names
from semcorr.transfer import app

SKELETON = [[1, 3], [2, 4]]


def coco(creatures: Path, categories: tuple[str, ...] = ("cat",), sources: int = 2, boxes: bool = True) -> dict:
    """Drawn creatures; the first of each category are annotated, the rest are to be labelled."""
    content: dict = {"images": [], "annotations": [], "categories": []}
    for kind, category in enumerate(categories, 1):
        names = list(keypoint_names("spair71k", category).values())
        content["categories"].append({"id": kind, "name": category, "keypoints": names, "skeleton": SKELETON})
        for i, file in enumerate(sorted((creatures / "ImageAnnotation" / category).glob("*.json"))):
            annotation = json.loads(file.read_text())
            x1, y1, x2, y2 = annotation["bndbox"]
            one = {"id": len(content["images"]) + 100, "image_id": len(content["images"]), "category_id": kind}
            if boxes:
                one["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if i < sources:
                points = [annotation["kps"][str(k)] for k in range(len(names))]
                one["keypoints"] = [each for p in points for each in ([*p, 2] if p else [0, 0, 0])]
            size = {"width": annotation["image_width"], "height": annotation["image_height"]}
            content["images"].append(
                {"id": one["image_id"], "file_name": f"{category}/{annotation['filename']}"} | size
            )
            content["annotations"].append(one)
    return content


def alone(creatures: Path, into: Path) -> Path:
    """A folder with the cats only."""
    return shutil.copytree(creatures / "JPEGImages/cat", into / "images/cat").parent


def typed(*arguments: object) -> tuple[int, str]:
    line = [str(argument) for argument in arguments]
    model = [] if "--model" in line else ["--model", "tiny"]
    result = CliRunner().invoke(app, [*line, *model, "--device", "cpu"], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write(folder: Path, content: dict, name: str = "annotations.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name
