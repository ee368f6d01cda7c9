"""Matcher answers as benchmarks are scored, whatever head, precision or device; each picture is encoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from matched_pictures import SMALL, cell, drawn_cats, encodings, size_of, some_points, upright
from omegaconf import open_dict
from pair_backbones import HalfMixed
from PIL import Image
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.core.coords import from_view, to_image
from semcorr.matching.batched import cell_stride
from semcorr.train import train

pytestmark = pytest.mark.integration

HEADS = ["cosine", "bottleneck", "upsample", "self_attention", "cross_attention", "consensus", "cats", "transport"]
HEADS += ["consensus_dual", "chm", "cats_plus_plus", "geometric", "decoder", "continuous"]


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return drawn_cats(tmp_path_factory.mktemp("cats") / "drawn")


# -- the same as everywhere else --


@pytest.mark.sampled(4)
@pytest.mark.parametrize("head", HEADS)
def test_answers_are_those_of_the_parts_called_one_after_the_other(cats, head):
    matcher = Matcher.load("tiny", f"head={head}", "localise.window=5", device="cpu", subcell=False)
    a, b = (matcher.encode(path) for path in cats[:2])
    points = some_points(a.size, 7)
    module, views = matcher.module, [matcher.encode(path) for path in cats[:2]]
    side = module.backbone.size
    images = [Image.fromarray(upright(path)).resize((side, side), Image.Resampling.BICUBIC) for path in cats[:2]]
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in images]
    scales = [side / torch.tensor(view.size) for view in views]

    with torch.no_grad():
        here, there = (module.backbone(one) for one in pixels)
        similarity = module.head(here, there, ((points + 0.5) * scales[0] - 0.5)[None])
        stride = cell_stride(there, similarity)
        cells = module.localise(similarity)
    expected = from_view(to_image(cells, stride), scales[1][None], torch.zeros(1, 2))[0]

    match = matcher.match(a, b, points)
    assert_close(match.points, expected, atol=2e-2, rtol=0)
    assert_close(match.scores, similarity[0].flatten(1).amax(1), atol=1e-4, rtol=1e-4)


def test_a_run_is_matched_with_as_it_was_scored(tiny, config, tmp_path):
    run = tmp_path / "trained"
    line = ["finetune.blocks=2", "protocol=semcorr", "optimizer.lr=1e-2", f"run_dir={run}"]
    train(config("train", *tiny, *line))
    rows = pq.read_table(run / "predictions.parquet").to_pylist()[:40]
    root = Path(next(one for one in tiny if one.startswith("data.root=")).removeprefix("data.root="))
    matcher = Matcher.load(str(run), device="cpu", trim=False, subcell=False)
    plain = Matcher.load("tiny", device="cpu", trim=False, subcell=False)

    found = {}
    for name, one in (("run", matcher), ("plain", plain)):
        known = {n: one.encode(root / "JPEGImages" / f"{n}.jpg") for r in rows for n in (r["source"], r["target"])}
        found[name] = torch.cat(
            [one.match(known[r["source"]], known[r["target"]], [[r["source_x"], r["source_y"]]]).points for r in rows]
        )
    truth = torch.tensor([[r["predicted_x"], r["predicted_y"]] for r in rows])

    assert_close(found["run"], truth, atol=0.05, rtol=0)
    assert (found["plain"] - truth).norm(dim=-1).max() > 0.2  # the run's weights are what matters


def test_a_backbone_that_must_see_both_pictures_does(cats, monkeypatch):
    import semcorr.inference.load

    own = semcorr.inference.load.compose_config

    def swapped(name: str, line: Any) -> Any:
        cfg = own(name, line)
        with open_dict(cfg):
            cfg.backbone._target_ = f"{HalfMixed.__module__}.HalfMixed"
        return cfg

    alone = Matcher.load("tiny", "localise=argmax", device="cpu")
    monkeypatch.setattr(semcorr.inference.load, "compose_config", swapped)
    both = Matcher.load("tiny", "localise=argmax", device="cpu")
    points = some_points(size_of(cats[0]))

    assert_close(*(one.match(cats[0], cats[0], points).points for one in (alone, both)), atol=0.1, rtol=0)
    assert not torch.equal(*(one.match(*cats[:2], points).points for one in (alone, both)))
    assert both.dense(*cats[:2], size=(8, 6)).flow.isfinite().all()


def test_half_precision_finds_nearly_the_same(cats):
    full, half = (Matcher.load("efficientnet_lite0", SMALL, device="cpu", precision=p) for p in ("32", "bf16"))
    points = some_points(size_of(cats[0]))
    one, other = (matcher.match(cats[0], cats[1], points) for matcher in (full, half))

    assert not torch.equal(one.scores, other.scores)
    assert_close(one.scores, other.scores, atol=0.03, rtol=0)
    assert (one.points - other.points).norm(dim=-1).median() < 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same(cats):
    points = some_points(size_of(cats[0]))
    found = [Matcher.load("tiny", device=device).match(cats[0], cats[1:], points) for device in ("cpu", "cuda")]

    for one, other in zip(*found, strict=True):
        assert other.points.device.type == "cpu"
        assert (one.points - other.points).norm(dim=-1).median() < 0.1


@pytest.mark.parametrize("cycle", [0.3, 2.0])
def test_a_match_is_consistent_if_it_returns_to_within_so_many_cells(cats, cycle):
    matcher = Matcher.load("efficientnet_lite0", SMALL, device="cpu", cycle=cycle)
    points = some_points(size_of(cats[0]))

    match = matcher.match(cats[0], cats[1], points)
    back = matcher.match(cats[1], cats[0], match.points).points
    off = ((back - points) / cell(matcher, size_of(cats[0]))).norm(dim=-1)

    assert_close(match.returned, back, atol=1e-2, rtol=0)
    assert match.consistent.tolist() == (off <= cycle).tolist()
    assert 0 < match.consistent.sum() < len(points)


# -- each picture once --


@pytest.mark.sampled(2)
@pytest.mark.parametrize("batch", [1, 8])
def test_a_hundred_targets_cost_a_hundred_and_one_encodings(random, cats, monkeypatch, batch):
    seen = encodings(random, monkeypatch)
    monkeypatch.setattr(random, "batch", batch)
    targets = [np.roll(upright(cats[1]), i, axis=1) for i in range(100)]
    points = some_points(size_of(cats[0]), 5)

    found = random.match(cats[0], targets, points)

    assert sum(seen) == 101
    assert max(seen) == batch
    assert len(found) == 100
    assert_close(found[37].points, random.match(cats[0], targets[37], points).points, atol=1e-2, rtol=0)


def test_targets_are_asked_for_as_they_are_encoded(random, cats, monkeypatch):
    monkeypatch.setattr(random, "batch", 4)
    seen = []

    def pictures():
        for path in [cats[1]] * 20:
            seen.append(path)
            yield path

    next(random.matches(cats[0], pictures(), [[3, 4]]))

    assert len(seen) == 4


def test_what_is_encoded_is_not_encoded_again(random, cats, monkeypatch):
    a, b = (random.encode(path) for path in cats[:2])
    seen = encodings(random, monkeypatch)

    random.match(a, [b, cats[2], a], [[3, 4]])
    random.dense(a, b)
    random.mutual(a, b)
    random.similarity(a, b, (3, 4))

    assert sum(seen) == 1
