"""Measure how far heads miss when an image is matched with itself, shifted by fractions of a cell.

    python scripts/measure_shift_error.py                         # cosine, upsample, decoder and continuous
    python scripts/measure_shift_error.py --steps 300 continuous

Synthetic photographs, cropped at whole pixels, frozen EfficientNet-Lite0: a cell is 16 pixels, so shifts are sixteenths
of a cell. Heads are measured as they start, and after a short training on shifts of other photographs, once by argmax
and once by soft-argmax in a window of the same size in pixels. Points lie at least three cells from the border.
"""

import argparse
from functools import partial

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.coords import to_grid, to_image
from semcorr.core.types import FeatureMap
from semcorr.data.creatures.anatomy import CATEGORIES
from semcorr.data.creatures.photograph import render_photo
from semcorr.engine.build import build_backbone, build_head
from semcorr.engine.known_targets import conf_dir
from semcorr.matching.readouts import argmax, window_soft_argmax
from semcorr.models.losses.soft_argmax_distance import soft_argmax_distance

HEADS = ("cosine", "upsample", "decoder", "continuous")
SIDE, CROPS, POINTS, PAIRS, BORDER = 224, 6, 30, 4, 3
TRAINED, TESTED = 16, 8  # photographs
TEMPERATURE = 0.02


def choose_window(fineness: int) -> int:
    """Return the fine cells along a side of three cells, or one more to have a middle."""
    return 3 * fineness + 1 - fineness % 2


class Shifts:
    """Features of crops of photographs, and pairs of crops of the same photograph.

    Args:
        backbone: Backbone in evaluation mode.
        photographs: Number of photographs.
        seed: Seed of the photographs and of their crops.
    """

    def __init__(self, backbone: nn.Module, photographs: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        values, corners = [], []
        for number in range(photographs):
            image = render_photo(CATEGORIES[number % len(CATEGORIES)], number % 8, 300, rng).image.convert("RGB")
            pixels = torch.from_numpy(np.array(image.resize((SIDE + 32, SIDE + 32)))).permute(2, 0, 1) / 255
            corners.append(torch.from_numpy(rng.integers(0, 33, (CROPS, 2))))
            crops = [pixels[:, y : y + SIDE, x : x + SIDE] for x, y in corners[-1].tolist()]
            maps = backbone(torch.stack(crops))
            values.append(maps.values)
        self.values, self.corners, self.stride = torch.stack(values), torch.stack(corners), maps.stride

    def draw(self, pairs: int) -> tuple[FeatureMap, FeatureMap, Float[Tensor, "b n 2"], Float[Tensor, "b n 2"]]:
        """Draw pairs of crops, and points of the first with their places in the second."""
        photograph = torch.randint(len(self.values), (pairs,), generator=self.generator)
        a = torch.randint(CROPS, (pairs,), generator=self.generator)
        b = (a + 1 + torch.randint(CROPS - 1, (pairs,), generator=self.generator)) % CROPS
        inner = SIDE - 2 * BORDER * self.stride - 64
        points = torch.rand(pairs, POINTS, 2, generator=self.generator) * inner + BORDER * self.stride + 32
        moved = points + (self.corners[photograph, a] - self.corners[photograph, b])[:, None]
        source, target = (FeatureMap(self.values[photograph, each], self.stride) for each in (a, b))
        return source, target, points, moved


@torch.inference_mode()
def measure_errors(head: nn.Module, shifts: Shifts) -> list[str]:
    """Return the mean error in cells of the features, and the share below a tenth, by each readout."""
    head.eval()
    errors: list[list[Tensor]] = [[], []]
    shifts.generator.manual_seed(0)
    for _ in range(20):
        source, target, points, moved = shifts.draw(PAIRS)
        similarity = head(source, target, points)
        fine = similarity.shape[-1] // target.values.shape[-1]
        readouts = (argmax, partial(window_soft_argmax, window=choose_window(fine), temperature=TEMPERATURE))
        for of_readout, readout in zip(errors, readouts, strict=True):
            found = to_grid(to_image(readout(similarity), shifts.stride / fine), shifts.stride)
            of_readout.append((found - to_grid(moved, shifts.stride)).norm(dim=-1).flatten())
    joined = [torch.cat(each) for each in errors]
    return [f"{each.mean():.2f} ({100 * (each < 0.1).float().mean():.0f} %)" for each in joined]


def train_head(head: nn.Module, shifts: Shifts, steps: int) -> None:
    """Train a head on shifts, by the distance of soft-argmax in the window that it is measured by."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    head.train()
    for _ in range(steps):
        source, target, points, moved = shifts.draw(PAIRS)
        similarity = head(source, target, points)
        fine = similarity.shape[-1] // target.values.shape[-1]
        cells, mask = to_grid(moved, shifts.stride / fine), torch.ones(points.shape[:2], dtype=torch.bool)
        loss = soft_argmax_distance(similarity, cells, mask, TEMPERATURE, choose_window(fine))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", default=HEADS, help="names, with options after a space")
    parser.add_argument("--steps", type=int, default=150, help="of the training, four pairs each; 0 leaves it out")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="name of a backbone")
    args = parser.parse_args()
    torch.manual_seed(0)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        plain = compose("evaluate", [f"backbone={args.backbone}", f"backbone.size={SIDE}"])
        sections = {}
        for name in args.heads:
            choice, *options = name.split()
            sections[name] = compose("evaluate", [f"head={choice}", *(f"head.{option}" for option in options)]).head
    backbone = build_backbone(plain).eval()
    with torch.inference_mode():
        to_train, to_test = Shifts(backbone, TRAINED, 1), Shifts(backbone, TESTED, 2)
    to_train.values = to_train.values.clone()  # not of inference mode: heads train on them
    print("| `head=` | argmax | window | trained: argmax | window |\n|---|---|---|---|---|")
    for name, section in sections.items():
        head = build_head(section, backbone.widths, SIDE // int(to_test.stride))
        row = measure_errors(head, to_test)
        if args.steps and any(True for _ in head.parameters()):
            train_head(head, to_train, args.steps)
            row += measure_errors(head, to_test)
        print(f"| `{name}` | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
