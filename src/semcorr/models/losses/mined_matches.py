"""The loss by dense matches that are mined from a teacher's features, between the keypoints and around them (MARCO)."""

from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semcorr.core.coords import to_grid, to_image
from semcorr.core.ranges import OptionsOf, Temperature, check_arguments, require_fields
from semcorr.matching.mining import MiningRules, PointPairs, mine_matches, mutual_neighbours
from semcorr.matching.readouts import soft_argmax
from semcorr.models.losses.inputs import ExtraInput, Lookup, LossInputs, weighted_mean
from semcorr.models.losses.pair_maps import PairMaps, covered_cells

ROWS = 4096  # of the similarities of all cells that are computed at once
CANDIDATES = 2000  # points of the source's object that are matched, about, in as fine a lattice as that allows


class MinedMatches(nn.Module):
    """The distance of soft-argmax to matches that are mined from a teacher's features, 300 of each pair.

    As MARCO's self-distillation (visinf/MARCO 1ec16b9, `SoftArgmaxL2Loss`): what keypoints say of a few points of an
    object is carried to all of it, so that features do not forget the points that nobody annotated. The mining is
    described in `semcorr.matching.mining`; a match learned from is one of the region of a keypoint. Distances are in
    halves of the image's side, whatever the grid, as there. Mining is done on the CPU: a training step waits for a GPU.

    Args:
        temperature: Temperature of the student's softmax over all target cells.
        rules: Options of `MiningRules`.
    """

    reads_descriptors = False
    lookup: Lookup = "centre"
    reads = (ExtraInput.PAIRS, ExtraInput.TEACHER, ExtraInput.MASKS)

    @check_arguments("loss")
    def __init__(self, temperature: Temperature = 0.02, **rules: Annotated[Any, OptionsOf(MiningRules)]) -> None:
        super().__init__()
        self.temperature, self.rules = temperature, MiningRules(**rules)
        require_fields(self.rules, "loss")

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of a step: a mean over the matches of each pair, then over the pairs that have any."""
        assert step.pairs is not None, "the step was not asked for them"
        source, target, mask = self.mine(step)
        similarity = step.pairs.similarity(source)
        h, w = similarity.shape[-2:]
        offset = soft_argmax(similarity, self.temperature) - to_grid(target, step.pairs.side / w)
        half = torch.stack((offset.new_full((), (w - 1) / 2), offset.new_full((), (h - 1) / 2)))
        return weighted_mean(torch.linalg.vector_norm(offset / half, dim=-1), mask)

    @torch.no_grad()
    def mine(self, step: LossInputs) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n 2"], Bool[Tensor, "b n"]]:
        """Mine the matches of each pair of a step by the teacher.

        Returns:
            Points of the source and of the target, in pixels, and which of the rows hold a match.
        """
        teacher = step.teacher
        assert teacher is not None, "the step was not asked for it"
        count = len(teacher.source_box)
        stride = teacher.side / step.similarity.shape[-1]
        starts, ends = (to_image(cells[:count], stride).double().cpu().numpy() for cells in (step.starts, step.cells))
        shared = (step.mask[:count] > 0).cpu().numpy()
        rng = np.random.default_rng(int(torch.randint(2**31, ())))  # seeded with the step
        mined = [
            mine_pair(teacher.select(i), PointPairs(starts[i], ends[i]).select(shared[i]), self.rules, rng)
            for i in range(count)
        ]
        columns = np.zeros((2, count, self.rules.points, 2), dtype=np.float32)
        mask = np.zeros((count, self.rules.points), dtype=bool)
        for i, matches in enumerate(mined):
            mask[i, : len(matches.source)] = True
            for column, points in zip(columns, matches, strict=True):
                column[i, : len(points)] = points
        device = teacher.source.values.device
        source, target = torch.from_numpy(columns).to(device)
        return source, target, torch.from_numpy(mask).to(device)


def mine_pair(pair: PairMaps, keypoints: PointPairs, rules: MiningRules, rng: np.random.Generator) -> PointPairs:
    """Mine the matches of one pair from a teacher's features; keypoints off either mask are not used.

    Args:
        pair: Features and masks of one pair, as the teacher sees it.
        keypoints: True correspondences that both images show, in pixels.
        rules: Rules by which matches are mined.
        rng: Random numbers.

    Returns:
        The matches in pixels, `rules.points` at most; none if no keypoint is on both masks.
    """
    assert pair.masks is not None, "the step was not asked for them"
    masks = [mask[0].cpu().numpy() for mask in pair.masks]
    on_object = [is_on_mask(mask, points) for mask, points in zip(masks, keypoints, strict=True)]
    keypoints = keypoints.select(np.logical_and(*on_object))
    if not len(keypoints.source):  # no region could be confirmed
        return keypoints
    candidates = spread_points(masks[0], max(CANDIDATES, rules.points))
    return mine_matches(find_neighbours(pair, rules.ratio), keypoints, candidates, masks[1], rules, rng)


def spread_points(mask: Bool[np.ndarray, "s s"], count: int) -> Float[np.ndarray, "n 2"]:
    """Return the pixels (x, y) of a mask on a square lattice, about `count` or more; all pixels, if there are fewer.

    >>> spread_points(np.ones((4, 4), dtype=bool), count=4).tolist()
    [[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.0]]
    """
    step = max(1, int(np.sqrt(mask.sum() / count)))
    rows, columns = np.nonzero(mask[step // 2 :: step, step // 2 :: step])
    return np.stack((columns, rows), axis=-1) * float(step) + step // 2


def find_neighbours(pair: PairMaps, ratio: float) -> PointPairs:
    """Find the cells on the objects of one pair that are each other's most similar; their centres, in pixels."""
    assert pair.masks is not None, "the step was not asked for them"
    lattice = pair.lattice(None)[0]
    source_cells = covered_cells(pair.masks[0], *pair.source.values.shape[-2:])[0].flatten()
    chunks = lattice[source_cells].split(ROWS)
    h, w = pair.similarity(chunks[0][None, :1]).shape[-2:]
    target_cells = covered_cells(pair.masks[1], h, w)[0].flatten()
    similarity = (pair.similarity(chunk[None])[0].flatten(1)[:, target_cells] for chunk in chunks)
    source, target = mutual_neighbours(similarity, ratio)
    target = target_cells.nonzero()[:, 0][target]
    centres = to_image(torch.stack((target % w, target // w), dim=-1).float(), pair.side / w)
    return PointPairs(lattice[source_cells][source].double().cpu().numpy(), centres.double().cpu().numpy())


def is_on_mask(mask: Bool[np.ndarray, "s s"], points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Tell which points lie on a mask; those beyond the image are at its border."""
    column, row = np.rint(points).clip(0, len(mask) - 1).astype(int).T
    return mask[row, column]
