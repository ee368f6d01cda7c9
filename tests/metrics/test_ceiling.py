"""The best that cell centres can do."""

import math

import numpy as np
import pytest
import torch

from semcorr.data.views import fit_to_square
from semcorr.evaluate import evaluate
from semcorr.metrics.breakdown import nearest_centres
from semcorr.metrics.pck import ALPHAS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [(90, 40), (33, 71), (48, 48)])
def test_no_cell_centre_is_nearer_than_the_nearest(resize, size):
    """Against a loop over all cells, measured in original pixels; points in and around the image."""
    side, stride = 56, 8
    how = fit_to_square(size, side, resize)
    random = np.random.default_rng(0)
    points = torch.from_numpy(random.uniform(-5, np.array(size) + 5, (40, 2)))
    scale, offset = (torch.tensor([values], dtype=torch.double) for values in (how.scale, how.offset))

    found = nearest_centres(points[None], scale, offset, (7, 7), stride)[0]

    for point, best in zip(points.tolist(), found.tolist(), strict=True):
        xs, ys = ([((i + 0.5) * stride - how.offset[a]) / how.scale[a] - 0.5 for i in range(7)] for a in (0, 1))
        centres = [(x, y) for x in xs for y in ys]
        assert math.dist(point, best) == pytest.approx(min(math.dist(point, centre) for centre in centres), abs=1e-9)
        assert min(math.dist(best, centre) for centre in centres) < 1e-9


@pytest.mark.sampled(2)
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_argmax_never_beats_the_ceiling_of_its_run(config, tiny, resize):
    metrics = evaluate(config("evaluate", *tiny, "localise=argmax", f"data.resize={resize}"))

    for subset in ("all", "geo", "std"):
        for by in ("image", "point"):
            for alpha in map("{:g}".format, ALPHAS):
                assert metrics["pck"][subset][by][alpha] <= metrics["ceiling"][subset][by][alpha] <= 1
    assert metrics["ceiling"]["all"]["point"]["0.2"] == 1
    assert 0 < metrics["ceiling"]["all"]["point"]["0.01"] < 1


@pytest.mark.slow
def test_the_grid_is_the_similaritys_and_not_the_backbones(config, tiny, tmp_path):
    """A head that doubles the grid twice raises the ceiling."""
    coarse, fine = (
        evaluate(config("evaluate", *tiny, f"head={head}", f"run_dir={tmp_path / head}"))["ceiling"]["all"]["point"]
        for head in ("cosine", "upsample")
    )

    assert coarse["0.01"] < 0.5 < 0.9 < fine["0.05"]
    assert fine["0.01"] > coarse["0.01"] + 0.1
