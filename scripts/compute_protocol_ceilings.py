"""Compute what each protocol's convention alone can reach: the PCK of perfect matches that it decodes and scores.

    python scripts/compute_protocol_ceilings.py SPair-71k

A perfect match is one of two. `place`: the target's own place in the image, between cells where it lies there; what
falls short of 100 is then the convention's shift between points and cells. `cell`: the cell that the convention itself
decodes nearest to its true point; what falls short is the grid's coarseness, and points that it clamps or cuts.
Every protocol has the view and the grid of its authors' code. The same is computed by ours on that grid.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from rich.progress import track
from rich.table import Table
from torch import Tensor

from semcorr.core.terminal import Terminal
from semcorr.data.record import PairRecord
from semcorr.data.spair import SPair
from semcorr.evaluation.conventions import (
    GroundTruth,
    ground_truth,
    original_to_view,
    score_predictions,
    target_cell_to_view,
)
from semcorr.evaluation.protocols import SEMCORR, Protocol, protocol_preset

VIEWS = {  # side of the view in pixels, and cells along it
    "geoaware": (840, 60),
    "sd_dino": (840, 60),
    "dift": (768, 48),
    "visual_ai": (840, 60),
    "sd4match": (768, 48),
    "marco": (770, 220),
    "probe3d": (800, 50),
}
ALPHAS = (0.01, 0.05, 0.1)
BATCH = 512


def find_place(truth: GroundTruth, protocol: Protocol, grid: int) -> Float[Tensor, "b n 2"]:
    """Return the cells, with fractions, where the targets' points lie in the image; its pixels for `native`."""
    if protocol.decode == "native":
        return truth.target
    view = original_to_view(truth.target, truth.target_geometry, "exact")
    return (view + 0.5) * grid / truth.target_geometry.side - 0.5


def find_nearest_cell(truth: GroundTruth, protocol: Protocol, grid: int) -> Float[Tensor, "b n 2"]:
    """Return the cells that the protocol decodes nearest to the targets' points; the nearest pixels for `native`."""
    if protocol.decode == "native":
        return truth.target.round()
    geometry = truth.target_geometry
    points = truth.target.floor() if protocol.points == "floor" else truth.target
    view = original_to_view(points, geometry, protocol.scaling, protocol.clamp)
    cells = torch.arange(grid, dtype=torch.double)[None, :, None].expand(1, -1, 2)
    places = target_cell_to_view(cells, geometry.side, grid, protocol.decode)[0, :, 0]
    return (view[..., None] - places).abs().argmin(-1).double()


def score_matches(pairs: Sequence[PairRecord], protocol: Protocol, side: int, grid: int) -> list[list[float]]:
    """Compute PCK per image of both perfect matches, in percent, at every alpha."""
    shares: list[Tensor] = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        truth = ground_truth(batch, side, protocol.resize, torch.device("cpu"))
        shared = torch.stack([pair.source.visible & pair.target.visible for pair in batch])
        matches = [find(truth, protocol, grid) for find in (find_place, find_nearest_cell)]
        errors = [score_predictions(truth, protocol, cells, grid)[1] for cells in matches]
        shares.append(torch.stack([_pck(values, shared, protocol) for values in errors]))
    return (100 * torch.cat(shares, dim=1).nanmean(1)).tolist()


def _pck(errors: Float[Tensor, "b n"], shared: Bool[Tensor, "b n"], protocol: Protocol) -> Float[Tensor, "b alphas"]:
    """Compute the PCK of every pair; NaN where nothing is shared."""
    alphas = torch.tensor(protocol.tolerance.round_alphas(ALPHAS), dtype=torch.double)[:, None]
    correct = protocol.tolerance.is_correct(errors[:, None], alphas)
    return (correct & shared[:, None]).sum(-1) / shared.sum(-1)[:, None]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of SPair-71k")
    root = parser.parse_args().root
    pairs = SPair(root=str(root), size=840).pairs("test")
    table = Table(title=f"Ceilings on {len(pairs)} pairs, PCK per image in percent at {ALPHAS}")
    for header in ("protocol", "view", "cells", "place", "cell", "ours, cell"):
        table.add_column(header)
    for name, (side, grid) in track(VIEWS.items(), description="Scoring"):
        protocol = protocol_preset(name)
        place, cell = score_matches(pairs, protocol, side, grid)
        _, ours = score_matches(pairs, SEMCORR.with_resize(protocol.resize), side, grid)
        columns = [" / ".join(f"{value:.1f}" for value in values) for values in (place, cell, ours)]
        table.add_row(name, str(side), str(grid), *columns)
    Terminal().print(table)


if __name__ == "__main__":
    main()
