"""Matcher: on pictures of any kind what benchmarks are scored by, wherever the pictures were moved to."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import open_dict
from PIL import Image
from test_pairwise import HalfMixed
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.coords import from_view, to_image
from semcorr.data.synthetic import write_synthetic
from semcorr.errors import UserError
from semcorr.matching import cell_stride
from semcorr.train import train

SMALL = "backbone.size=192"
HEADS = ["cosine", "bottleneck", "upsample", "self_attention", "cross_attention", "consensus", "cats"]


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """With true weights: 12 cells a side."""
    return Matcher.load("efficientnet_lite0", SMALL, device="cpu")


@pytest.fixture(scope="module")
def random() -> Matcher:
    return Matcher.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("cats") / "drawn"
    write_synthetic(root, images={"trn": 0, "val": 0, "test": 3}, categories=["cat"])
    return sorted((root / "JPEGImages/cat").glob("*.jpg"))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def upright(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def some_points(size: tuple[int, int], count: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 2, generator=generator) * torch.tensor(size) - 0.5


def cell(matcher: Matcher, size: tuple[int, int]) -> torch.Tensor:
    """Sides of a cell in original pixels; the view is squashed."""
    return torch.tensor(size) / matcher.module.backbone.size * matcher.module.backbone.stride


def encodings(matcher: Matcher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images of every call of the network."""
    seen: list[int] = []
    own = matcher.module.backbone.forward
    monkeypatch.setattr(matcher.module.backbone, "forward", lambda image: (seen.append(len(image)), own(image))[1])
    return seen


# -- where pictures were moved to --


def test_a_picture_matched_with_itself_returns_the_points(matcher, cats):
    for path in cats[:3]:
        size = size_of(path)
        points = some_points(size)
        match = matcher.match(path, path, points)

        assert ((match.points - points) / cell(matcher, size)).norm(dim=-1).max() < 0.1
        assert match.consistent.all()


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_resized_picture_moves_the_answer_with_it(matcher, cats, factor, which):
    a, b = (Image.fromarray(upright(path)) for path in cats[:2])
    points = some_points(a.size)
    plain = matcher.match(a, b, points)
    larger = [round(side * factor) for side in (a if which == "a" else b).size]
    scale = torch.tensor(larger) / torch.tensor((a if which == "a" else b).size)

    if which == "a":
        moved = matcher.match(a.resize(larger), b, (points + 0.5) * scale - 0.5).points
    else:
        moved = (matcher.match(a, b.resize(larger), points).points + 0.5) / scale - 0.5

    off = ((moved - plain.points) / cell(matcher, b.size)).norm(dim=-1)[plain.consistent]
    assert len(off) > 20
    assert off.quantile(0.95) < 0.5
    assert off.median() < 0.1


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_padded_picture_moves_the_answer_with_it(cats, resize):
    matcher = Matcher.load("tiny", f"data.resize={resize}", device="cpu")
    a, b = (upright(path) for path in cats[:2])
    points = some_points(a.shape[1::-1])
    pads = ((30, 11), (7, 50), (0, 0))

    plain = matcher.match(a, b, points)
    from_padded = matcher.match(np.pad(a, pads, constant_values=200), b, points + torch.tensor([7.0, 30.0]))
    into_padded = matcher.match(a, np.pad(b, pads, constant_values=0), points)

    assert_close(from_padded.points, plain.points, atol=1e-2, rtol=0)
    assert_close(into_padded.points - torch.tensor([7.0, 30.0]), plain.points, atol=1e-2, rtol=0)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_turned_by_exif_is_matched_as_it_is_shown(random, cats, tmp_path, orientation):
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    a, b = (Image.fromarray(upright(path)) for path in cats[:2])
    b.transpose(turn).save(tmp_path / "turned.png", exif=exif)
    points = some_points(a.size)

    assert_close(random.match(a, tmp_path / "turned.png", points).points, random.match(a, b, points).points)


@pytest.mark.filterwarnings("error")
def test_one_pixel_a_line_and_a_plain_picture_have_answers_inside(random, cats):
    for odd in (np.zeros((1, 1), np.uint8), np.zeros((1, 500), np.uint8), np.full((40, 30, 3), 9, np.uint8)):
        h, w = odd.shape[:2]
        there, back = random.match(cats[0], odd, [[5, 5]]).points, random.match(odd, cats[0], [[0, 0]]).points
        assert ((there >= -0.5) & (there <= torch.tensor([w, h]) - 0.5)).all()
        assert back.isfinite().all()


# -- the same as everywhere else --


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
    train(config("train", *tiny, "finetune.blocks=2", "trainer.max_epochs=1", "optimizer.lr=1e-2", f"run_dir={run}"))
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
    import semcorr.matcher.restore

    own = semcorr.matcher.restore.composed

    def swapped(name: str, line: Any) -> Any:
        cfg = own(name, line)
        with open_dict(cfg):
            cfg.backbone._target_ = f"{HalfMixed.__module__}.HalfMixed"
        return cfg

    alone = Matcher.load("tiny", "localise=argmax", device="cpu")
    monkeypatch.setattr(semcorr.matcher.restore, "composed", swapped)
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


def test_what_is_encoded_is_not_encoded_again(random, cats, monkeypatch):
    a, b = (random.encode(path) for path in cats[:2])
    seen = encodings(random, monkeypatch)

    random.match(a, [b, cats[2], a], [[3, 4]])
    random.dense(a, b)
    random.mutual(a, b)
    random.similarity(a, b, (3, 4))

    assert sum(seen) == 1


# -- maps --


def test_a_flow_says_of_pixels_what_a_match_says_of_points(matcher, cats):
    a, b = (matcher.encode(path) for path in cats[:2])
    flow = matcher.dense(a, b)
    side = torch.arange(2, 10) * matcher.module.backbone.stride + 7.5  # centres of cells, in the view
    centres = a.placed.from_view(torch.cartesian_prod(side, side)).round()
    match = matcher.match(a, b, centres)
    x, y = centres.long().T

    assert flow.flow.shape == (a.size[1], a.size[0], 2)
    off = (centres + flow.flow[y, x] - match.points).norm(dim=-1) / cell(matcher, b.size).max()
    assert off.quantile(0.8) < 0.5
    assert ((flow.confidence >= 0) & (flow.confidence <= 1)).all()


def test_a_flow_to_itself_is_none_and_sure_of_it(matcher, cats):
    flow = matcher.dense(cats[0], cats[0], size=(50, 40))

    assert flow.flow.shape == (40, 50, 2)
    assert flow.flow.abs().max() < 0.1 * cell(matcher, size_of(cats[0])).max()
    assert flow.confidence.min() > 0.99


def test_similarity_is_greatest_where_the_match_is(matcher, cats):
    a, b = (matcher.encode(path) for path in cats[:2])
    points = some_points(a.size, 10)
    match = matcher.match(a, b, points)

    for point, found, score in zip(points, match.points, match.scores, strict=True):
        near = matcher.similarity(a, b, point)
        assert near.shape == b.size[::-1]
        assert near.max() == pytest.approx(float(score), abs=0.02)
        y, x = divmod(int(near.argmax()), b.size[0])
        assert (torch.tensor([x, y]) - found).norm() < 2.5 * cell(matcher, b.size).max()


def test_mutual_neighbours_are_those_of_a_loop_over_all_cells(matcher, cats):
    a, b = (matcher.encode(path) for path in cats[:2])
    one, other = (x.maps.values[0].flatten(1).T for x in (a, b))
    table = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).T
    pairs = [i for i in range(len(one)) if int(table[:, int(table[i].argmax())].argmax()) == i]
    expected = sorted((float(table[i].max()) for i in pairs), reverse=True)

    found = matcher.mutual(a, b)

    assert_close(found.scores, torch.tensor(expected), atol=1e-4, rtol=0)
    assert len(matcher.mutual(a, b, most=3).points) == 3


# -- what is asked wrongly --


@pytest.mark.parametrize("points", [[[1000, 3]], [[3, -1]], [[np.nan, 2]]])
def test_a_point_outside_is_told_the_size_of_the_picture(random, cats, points):
    width, height = size_of(cats[0])
    with pytest.raises(UserError, match=f"outside .*{cats[0].name}, which is {width} x {height} pixels"):
        random.match(cats[0], cats[1], points)


@pytest.mark.parametrize("points", [[1, 2, 3], "here", [[1, 2, 3]], [["a", "b"]]])
def test_what_are_no_points_is_a_sentence(random, cats, points):
    with pytest.raises(UserError, match="must be rows of x and y"):
        random.match(cats[0], cats[1], points)


def test_no_points_have_no_matches(random, cats):
    match = random.match(cats[0], cats[1], [])

    assert match.points.shape == match.returned.shape == (0, 2)
    assert match.scores.shape == match.consistent.shape == (0,)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("dinov", "Did you mean .*dinov2"),
        ("runs/none", "no run's directory"),
        ("backbone=tiny localise.windw=3", "localise.window"),
        ("backbone=nothing", "nothing"),
        ("checkpoint=nowhere", "nowhere"),
    ],
)
def test_a_model_that_there_is_not_is_a_sentence(line, told):
    with pytest.raises(UserError, match=told):
        Matcher.load(line)


@pytest.mark.parametrize("options", [{"device": "toaster"}, {"precision": "8"}, {"cycle": 0}, {"batch": 0}])
def test_options_that_there_are_not_are_a_sentence(options):
    with pytest.raises(UserError, match=f"`{next(iter(options))}`"):
        Matcher.load("tiny", **options)


def test_loading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Matcher.load("tiny", device="cpu")

    assert torch.equal(torch.rand(3), expected)


def test_importing_semcorr_brings_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, semcorr; assert 'torch' not in sys.modules"], check=True)
