"""Zero-shot pose prediction ("Telling Left from Right", Table 1): the pose of the closest templates, by majority vote.

    python scripts/predict_poses.py                                         # synthetic creatures, EfficientNet-Lite0
    python scripts/predict_poses.py data=spair backbone=dinov2              # any benchmark that states poses
    python scripts/predict_poses.py data=spair data.root=DIR templates=test # templates from the split that is scored

The paper's templates are generated images. Here they are images of the split `templates` (default: train) whose
annotated pose is Left, Right, Frontal or Rear, `sets` (default: 3) of each pose and category; templates from the scored
split are not scored. An image is compared with templates of its own category, which is known.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import unique_images
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.views import make_view, to_unit_range
from semcorr.engine.build import build_datamodule_and_module
from semcorr.engine.known_targets import conf_dir
from semcorr.evaluation.pose.alignment import AdaptivePose
from semcorr.evaluation.pose.distance import ObjectCells, cells_of_object, pose_accuracy, template_distances
from semcorr.evaluation.pose.masks import ObjectMasks

POSES = ("Left", "Right", "Frontal", "Rear")
CHOICES = {"left or right": (0, 1), "front or back": (2, 3), "all four": (0, 1, 2, 3)}
SYNTHETIC = ["data=synthetic", "backbone=efficientnet_lite0", "backbone.size=320", "trainer=cpu"]


def main(arguments: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Print accuracy beside chance; return the accuracies, each with its number of images."""
    options = {"sets": "3", "templates": "train"}
    options |= {key: value for key, _, value in (item.partition("=") for item in arguments) if key in options}
    overrides = [item for item in arguments if item.partition("=")[0] not in options]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("evaluate", [*(SYNTHETIC if not overrides else []), *overrides, "run_dir=unused"])
    module, data = build_datamodule_and_module(cfg)
    if not isinstance(data, PairDataModule):
        raise UserError(f"`data`: {data.name} has no pairs, whose annotations state poses. Choose another benchmark.")
    distances, truth = compute_distances(module.backbone.eval(), data, options["templates"], int(options["sets"]))
    scores = {what: pose_accuracy(distances, truth, poses) for what, poses in CHOICES.items()}
    two = [scores["left or right"], scores["front or back"]]
    scores["either, told which"] = (sum(s * n for s, n in two) / sum(n for _, n in two), sum(n for _, n in two))
    print_scores(scores, f"{data.name} {data.split}, {module.backbone.name}, {options['sets']} template sets")
    return scores


def compute_distances(
    backbone: Backbone, data: PairDataModule, split: str, sets: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances (images, sets, poses) of the scored images to templates of `split`, and their true poses."""
    encode = Described(backbone, data)
    gallery, scored = (group_by_pose(data.pairs(name)) for name in (split, data.split))
    templates = {category: choose_first(group, sets, category) for category, group in gallery.items()}
    used = {image.name for group in templates.values() for row in group for image in row} if split == data.split else ()
    distances, truth = [], []
    queries = [(c, image, pose) for c, group in scored.items() for image, pose in group if image.name not in used]
    for category, image, pose in track(queries, description="Comparing", transient=True):
        cells = [[encode(template, split) for template in row] for row in templates[category]]
        distances.append(template_distances(encode(image, data.split), cells))
        truth.append(POSES.index(pose))
    return torch.stack(distances), torch.tensor(truth)


def group_by_pose(pairs: Iterable[PairRecord]) -> Mapping[str, list[tuple[ImageRecord, str]]]:
    """Group the images that show one of the four poses by category, each with its pose."""
    pairs = list(pairs)
    annotations = {p.source.name: (p.category, p.details.get("src_pose")) for p in pairs}
    annotations |= {p.target.name: (p.category, p.details.get("trg_pose")) for p in pairs}
    images: dict[str, list[tuple[ImageRecord, str]]] = {}
    for image in unique_images(pairs):
        category, pose = annotations[image.name]
        if pose in POSES:
            images.setdefault(category, []).append((image, pose))
    return images


def choose_first(images: Sequence[tuple[ImageRecord, str]], sets: int, category: str) -> list[list[ImageRecord]]:
    """Select the first `sets` images of each pose, as rows of sets and columns of poses."""
    columns = [[image for image, pose in images if pose == name] for name in POSES]
    if (least := min(map(len, columns))) < sets:
        scarce = POSES[[len(column) for column in columns].index(least)]
        raise UserError(
            f"`sets`: {sets} of every pose are wanted, but of {category} {scarce} there are {least}. "
            "Give fewer, sets=N, or a split with more, templates=SPLIT."
        )
    return [[column[k] for column in columns] for k in range(sets)]


class Described:
    """An encoder of the object's cells, which encodes every image once."""

    def __init__(self, backbone: Backbone, data: PairDataModule) -> None:
        self.backbone, self.data = backbone, data
        self.masks: dict[str, ObjectMasks] = {}
        self.known: dict[str, ObjectCells] = {}

    @torch.no_grad()
    def __call__(self, image: ImageRecord, split: str) -> ObjectCells:
        """Return the cells of the object in an image."""
        if image.name not in self.known:
            masks = self.masks.setdefault(split, ObjectMasks(AdaptivePose().mask, self.data, split))
            maps = self.backbone(to_unit_range(make_view(image, self.backbone.size, self.data.resize).image[None]))
            self.known[image.name] = cells_of_object(maps, masks(image, maps))
        return self.known[image.name]


def print_scores(scores: Mapping[str, tuple[float, int]], title: str) -> None:
    """Print a table of accuracy beside chance."""
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
        print(f"predict_poses: {error}", file=sys.stderr)
        sys.exit(2)
