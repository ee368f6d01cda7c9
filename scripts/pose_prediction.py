"""Zero-shot pose prediction ("Telling Left from Right", Table 1): the pose of the closest templates, by a vote of sets.

    python scripts/pose_prediction.py                                         # synthetic creatures, EfficientNet-Lite0
    python scripts/pose_prediction.py data=spair backbone=dinov2              # any benchmark that states poses
    python scripts/pose_prediction.py data=spair data.root=DIR templates=test # templates from the split that is scored

The paper's templates are generated images. Here they are images of the split `templates` (train, if left out), whose
annotation says Left, Right, Frontal or Rear, `sets` (3) of each pose and category; those of the scored split itself
are not predicted. An image is compared with templates of its own category, which is known.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table

from semcorr.core.errors import UserError
from semcorr.data.image_variants import unique_images
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.views import make_view
from semcorr.engine.build import build_datamodule_and_module
from semcorr.engine.known_targets import conf_dir
from semcorr.evaluation.pose.alignment import AdaptivePose
from semcorr.evaluation.pose.distance import ObjectCells, cells_of_object
from semcorr.evaluation.pose.masks import ObjectMasks
from semcorr.evaluation.pose.prediction import pose_accuracy, template_distances

POSES = ("Left", "Right", "Frontal", "Rear")
CHOICES = {"left or right": (0, 1), "front or back": (2, 3), "all four": (0, 1, 2, 3)}
SYNTHETIC = ["data=synthetic", "backbone=efficientnet_lite0", "backbone.size=320", "trainer=cpu"]


def main(arguments: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Print accuracy against chance; and return it, with the number of images."""
    own = {"sets": "3", "templates": "train"}
    own |= {key: value for key, _, value in (one.partition("=") for one in arguments) if key in own}
    overrides = [one for one in arguments if one.partition("=")[0] not in own]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("evaluate", [*(SYNTHETIC if not overrides else []), *overrides, "run_dir=unused"])
    module, data = build_datamodule_and_module(cfg)
    distances, truth = compared(module.backbone.eval(), data, own["templates"], int(own["sets"]))
    scores = {what: pose_accuracy(distances, truth, among) for what, among in CHOICES.items()}
    two = [scores["left or right"], scores["front or back"]]
    scores["either, told which"] = (sum(s * n for s, n in two) / sum(n for _, n in two), sum(n for _, n in two))
    show(scores, f"{data.name} {data.split}, {module.backbone.name}, {own['sets']} template sets")
    return scores


def compared(backbone: Any, data: Any, split: str, sets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances (images, sets, poses) of the scored split's images to templates of `split`; and their true poses."""
    described = Described(backbone, data)
    gallery, scored = (posed(data.pairs(name)) for name in (split, data.split))
    templates = {category: first(some, sets, category) for category, some in gallery.items()}
    used = {image.name for some in templates.values() for row in some for image in row} if split == data.split else ()
    distances, truth = [], []
    asked = [(c, image, pose) for c, some in scored.items() for image, pose in some if image.name not in used]
    for category, image, pose in track(asked, description="Comparing", transient=True):
        cells = [[described(template, split) for template in row] for row in templates[category]]
        distances.append(template_distances(described(image, data.split), cells))
        truth.append(POSES.index(pose))
    return torch.stack(distances), torch.tensor(truth)


def posed(pairs: Iterable[PairRecord]) -> Mapping[str, list[tuple[ImageRecord, str]]]:
    """By category, the images that show one of the four poses."""
    pairs = list(pairs)
    told = {p.source.name: (p.category, p.details.get("src_pose")) for p in pairs}
    told |= {p.target.name: (p.category, p.details.get("trg_pose")) for p in pairs}
    found: dict[str, list[tuple[ImageRecord, str]]] = {}
    for image in unique_images(pairs):
        category, pose = told[image.name]
        if pose in POSES:
            found.setdefault(category, []).append((image, pose))
    return found


def first(images: Sequence[tuple[ImageRecord, str]], sets: int, category: str) -> list[list[ImageRecord]]:
    """The first few of each pose: rows are sets, columns poses."""
    columns = [[image for image, pose in images if pose == wanted] for wanted in POSES]
    if (least := min(map(len, columns))) < sets:
        scarce = POSES[[len(column) for column in columns].index(least)]
        raise UserError(
            f"`sets`: {sets} of every pose are wanted, but of {category} {scarce} there are {least}. "
            "Give fewer, sets=N, or a split with more, templates=SPLIT."
        )
    return [[column[k] for column in columns] for k in range(sets)]


class Described:
    """Cells of images, each encoded once."""

    def __init__(self, backbone: Any, data: Any) -> None:
        self.backbone, self.data = backbone, data
        self.masks: dict[str, ObjectMasks] = {}
        self.known: dict[str, ObjectCells] = {}

    @torch.no_grad()
    def __call__(self, image: ImageRecord, split: str) -> ObjectCells:
        """Of one image."""
        if image.name not in self.known:
            masks = self.masks.setdefault(split, ObjectMasks(AdaptivePose(), self.data, split))
            maps = self.backbone(make_view(image, self.backbone.size, self.data.resize).image[None])
            self.known[image.name] = cells_of_object(maps, masks(image, maps))
        return self.known[image.name]


def show(scores: Mapping[str, tuple[float, int]], title: str) -> None:
    """Accuracy against chance."""
    table = Table(title=title)
    for header in ("among", "images", "accuracy", "chance"):
        table.add_column(header, justify="left" if header == "among" else "right")
    for what, (score, count) in scores.items():
        table.add_row(what, str(count), f"{100 * score:.1f}", f"{100 / len(CHOICES.get(what, (0, 1))):.0f}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"pose_prediction: {error}", file=sys.stderr)
        sys.exit(2)
