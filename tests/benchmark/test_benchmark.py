"""The benchmark: its loops answer what ours does, its made-up tree is what it says, its figures are written."""

import json
import math
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from semcorr.benchmark import match, naive, scaling, train
from semcorr.benchmark import measurement as measure
from semcorr.benchmark import synthetic_spair as spair_scale
from semcorr.benchmark.command import app
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, publish_result, read_benchmark_file
from semcorr.benchmark.runs import RunSpec
from semcorr.benchmark.synthetic_spair import make_pair_lists, official_counts, shrink_counts
from semcorr.core.coords import to_image
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.download.verify import verify_benchmark
from semcorr.data.keypoints import benchmark_metadata
from semcorr.data.loaders import count_cores
from semcorr.data.spair import SPair
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.cosine import Cosine

pytestmark = pytest.mark.integration

STRIDE = 14.0
TOY = ["--together", "--device", "cpu"]


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of one scene, the second shifted by (2, 1) cells."""
    scene = torch.randn(16, 9, 9, generator=torch.Generator().manual_seed(0))
    return scene, scene.roll((1, 2), (1, 2))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of SPair-71k's shape."""
    return spair_scale.write_spair_scale(tmp_path_factory.mktemp("scale") / "tree", 0.05)


@pytest.fixture
def typed(tmp_path):
    """typed("match", ...) is `semcorr benchmark match ... --out FILE`; what FILE holds of it."""

    def run(sub: str, *line: str) -> dict:
        out = tmp_path / "benchmark.json"
        result = CliRunner().invoke(app, [sub, *line, "--out", str(out)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(out.read_text())[sub]

    return run


# -- the loops --


@pytest.mark.parametrize("name", naive.LOOPS)
def test_a_naive_loop_finds_what_ours_finds_by_every_readout_that_both_define(maps, name):
    source, target = maps
    points = to_image(
        torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 7.0]]), STRIDE
    )  # cell centres: nothing is interpolated
    reference = naive.LOOPS[name](source, target, points, STRIDE)
    similarity = cosine_similarity(sample_descriptors(source[None], points[None], STRIDE), target[None])

    for key, i in match.SAME.items():
        torch.testing.assert_close(reference[key], match.READOUTS[i](similarity)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(reference["nearest"], torch.tensor([[2.0, 1.0], [5.0, 5.0], [8.0, 8.0]]))
    torch.testing.assert_close(reference["bilinear"], reference["nearest"], atol=1e-3, rtol=0)


def test_the_unified_benchmarks_readouts_agree_with_ours_anywhere(maps):
    source, target = maps
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * (9 * STRIDE - 1)
    reference = naive.match_by_each_readout(source, target, points, STRIDE)
    similarity = Cosine()(FeatureMap(source[None], STRIDE), FeatureMap(target[None], STRIDE), points[None])

    for key, i in match.SAME.items():
        torch.testing.assert_close(reference[key], match.READOUTS[i](similarity)[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", naive.LOOPS)
def test_bilinear_nearest_blends_the_matches_of_the_four_cells_around(maps, name):
    source, target = maps
    point = to_image(torch.tensor([[3.25, 4.5]]), STRIDE)
    found = naive.LOOPS[name](source, target, point, STRIDE)["bilinear"]
    torch.testing.assert_close(found, torch.tensor([[5.25, 5.5]]), atol=1e-4, rtol=0)


def test_a_disagreement_stops_the_benchmark():
    reference = {"cells": {key: [[0.0, 0.0]] for key in match.SAME}}
    with pytest.raises(RuntimeError, match=r"same cell for 0\.0%"):
        match._agreement(reference, {"cells": [[[1.0, 0.0]]] * 4, "centred": [[[1.0, 0.0]]] * 4}, "full correlation")


def test_what_is_matched_has_3_to_20_points_a_pair_8_on_average():
    work = match.build_task(match.MatchingShape(380, 20, 4, 2, 1, "cpu"))
    counts = [len(points) for points in work.points]
    assert 3 <= min(counts) <= max(counts) <= 20
    assert sum(counts) / len(counts) == pytest.approx(8, abs=0.3)
    assert len(set(work.pairs)) == 380


def test_losses_are_compared_relatively_and_the_bound_is_that_of_the_blocks():
    assert train.largest_difference([1.0, 100.0], [1.0, 101.0]) == pytest.approx(1 / 101)
    assert train.speedup_bound(12, 2) == pytest.approx(16 / 6)


# -- SPair-71k's shape --


def test_the_full_shape_has_the_official_numbers_of_pairs_and_images():
    lists = make_pair_lists(official_counts())
    known_counts = benchmark_metadata("spair71k")["official"]
    assert {split: len(pairs) for split, pairs in lists.items()} == {"trn": 53340, "val": 5384, "test": 12234}
    assert Counter(source.category for source, _ in lists["test"]) == known_counts["pairs_per_category"]["test"]

    images = {split: {image for pair in pairs for image in pair} for split, pairs in lists.items()}
    assert sum(map(len, images.values())) == 1800
    assert len(images["test"]) == 480
    for pairs in lists.values():
        assert len(set(pairs)) == len(pairs)
        assert all(a != b and a.category == b.category for a, b in pairs)


def test_a_small_tree_is_read_as_spair_with_exactly_its_counts(tree):
    report = verify_benchmark(SPair(root=str(tree), size=64))
    counts = shrink_counts(official_counts(), 0.05)
    found = {(check.what, check.where): check.found for check in report.checks}
    for split, folder in (("train", "trn"), ("val", "val"), ("test", "test")):
        expected = sum(each.pairs[folder] for each in counts.values())
        assert found["pairs", split] == found["pair and image annotations agree", split] == expected
    expected = sum(sum(each.images.values()) for each in counts.values())
    assert found["images", "all"] == found["file sizes as annotated", "all"] == expected
    assert found["exact duplicates", "train"] == found["images in both", "train & test"] == 0
    assert found["images with keypoints outside", "all"] == found["images with keypoints outside the box", "all"] == 0


def test_synthetic_pairs_share_about_eight_keypoints_and_pictures_differ(tree):
    pairs = SPair(root=str(tree), size=64).records("train")
    shared = [int((pair.source.visible & pair.target.visible).sum()) for pair in pairs]
    assert min(shared) >= 3
    assert 7 < sum(shared) / len(shared) < 9
    pictures = list(tree.glob("JPEGImages/*/*.jpg"))
    assert len({path.read_bytes() for path in pictures}) == len(pictures)
    with Image.open(pictures[0]) as image:
        assert max(image.size) == 500


def test_the_synthetic_tree_is_written_once_and_the_same_everywhere(tree, tmp_path):
    before = (tree / spair_scale.MANIFEST).stat().st_mtime_ns
    assert spair_scale.write_spair_scale(tree, 0.05) == tree
    assert (tree / spair_scale.MANIFEST).stat().st_mtime_ns == before

    again = spair_scale.write_spair_scale(tmp_path / "again", 0.05)
    for path in [*tree.glob("Layout/large/*.txt"), *tree.glob("*/cat/test*")]:
        assert (again / path.relative_to(tree)).read_bytes() == path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]

    with pytest.raises(UserError, match="is not what would be written there"):
        spair_scale.write_spair_scale(tree, 0.1)


# -- what is left behind --


def test_sub_commands_share_one_file_and_replace_their_own_part_only(tmp_path):
    out = tmp_path / "b.json"
    for name, ratio in (("match", 1.0), ("store", 2.0), ("match", 3.0)):
        publish_result(name, BenchmarkResult("t", [BenchmarkRow("a")], "c", {"ratio": ratio}), out, {"pairs": 5})
    content = json.loads(out.read_text())
    assert {name: part["ratio"] for name, part in content.items()} == {"match": 3.0, "store": 2.0}
    assert content["match"]["settings"] == {"pairs": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "b.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"is not a benchmark\.json"):
        read_benchmark_file(tmp_path / "b.json")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_is_of_the_process_that_worked_and_not_of_the_one_that_asked():
    hoard = bytearray(400_000_000)
    hoard[::4096] = b"x" * len(hoard[::4096])
    small = measure.measure(len, b"abc")
    large = measure.measure(sum, range(3), isolated=False)
    assert (small.value, large.value) == (3, 3)
    assert large.memory > 400_000_000 > 200_000_000 > small.memory


@pytest.mark.slow
def test_a_user_error_in_another_process_is_reported_here():
    with pytest.raises(UserError, match="--device must be one of"):
        measure.measure(measure.resolve_device_name, "tpu")


def test_the_floor_is_the_slower_of_computing_and_moving():
    limits = measure.Machine("cpu", 1, flops=100.0, copied=10.0)
    assert limits.floor(operations=200, moved=10) == 2.0
    assert limits.floor(operations=200, moved=50) == 5.0


# -- the sub-commands, at toy size --


def test_match_from_end_to_end(typed):
    found = typed("match", *TOY, "--pairs=6", "--images=3", "--grid=6", "--channels=8", "--naive-pairs=3")
    assert found["agreement"]["full correlation"]["same_cell"] == 1.0
    assert found["ratio"] > 0
    assert found["floor"]["operations"] > 0
    assert found["peak"]["ours"]["memory_mb"] > 1


def test_evaluate_from_end_to_end_on_spairs_shape(typed, tree):
    line = ["--scale=spair", f"--folder={tree}", "--part=0.05", "--backbone=tiny", "--size=32", "--workers=0"]
    found = typed("evaluate", *TOY, *line, "--naive-pairs=2", "--pairs=20")
    assert found["found"]["pairs"] == 20
    assert found["found"]["rows"] == 4 * found["found"]["keypoints"]
    assert found["found"]["operations"] > 0
    assert found["ratio"] > 0
    assert found["over_encoding_and_matching"] > 0
    assert found["peak"]["naive"]["memory_mb"] > 1


@pytest.mark.slow
def test_train_from_end_to_end_with_the_same_losses(typed, creatures):
    line = [
        "--backbone=tiny",
        "--size=32",
        "--steps=3",
        "--pairs=2",
        "--blocks=2",
        "--workers=0",
        f"--root={creatures}",
    ]
    found = typed("train", *TOY, *line)
    assert found["losses"]["relative_difference"] <= train.SAME
    assert len(set(found["losses"]["ours"])) == 3
    assert found["floor"]["ratio"] == pytest.approx((4 + 2 * 2) / (3 * 2))
    assert found["all_pairs"]["pairs"] > 2
    assert found["peak"]["ours"]["memory_mb"] > 1


def test_store_from_end_to_end(typed, tmp_path):
    (tmp_path / "disk").mkdir()
    line = [
        "--entries=2",
        "--tokens=5",
        "--channels=6",
        "--encode-ms=10",
        f"--root={tmp_path / 'disk'}",
        "--device=cpu",
    ]
    found = typed("store", *line, "--together")
    assert found["entry_bytes"] == 5 * 6 * 2
    assert found["images_per_second"]["encoded"] == 100
    assert set(found["floor"]) == {"write", "first read", "later read"}
    assert not list((tmp_path / "disk").iterdir())


def test_scaling_from_end_to_end(typed, tmp_path, monkeypatch):
    """At its smallest, with processes of training that are only asked for: two that train are below."""
    requested: list[tuple] = []

    def together(work, arguments):
        requested.append((work, *arguments))
        return [measure.Measurement({"pairs": 2, "step": 0.5}, 10**9, None) for _ in arguments]

    monkeypatch.setattr(scaling, "measure_together", together)
    line = [
        "--images=2",
        "--size=1",
        "--size=2",
        "--tries=1",
        "--processes=1",
        "--processes=3",
        "--steps=3",
        "--side=32",
    ]
    found = typed("scaling", *line, "--together", f"--folder={tmp_path / 'trees'}")

    small, large = found["evaluate"]
    assert (small["images"], small["pairs"]) == (36, 36)
    assert (large["images"], large["pairs"]) == (72, 72)
    assert large["features_mb"] == 2 * small["features_mb"] == pytest.approx(72 * 4 * 4 * 48 * 4 / 1e6)
    slope = math.log(large["seconds"]["all"] / small["seconds"]["all"]) / math.log(2)
    assert found["ratio"] == pytest.approx(slope)
    assert {count: part["speedup"] for count, part in found["train"].items()} == {"1": 1.0, "3": 3.0}
    assert found["floor"]["speedups"] == {"1": 1, "3": min(3, count_cores())}
    assert [len(each) - 1 for each in requested] == [1, 3]


@pytest.mark.slow
def test_processes_that_are_measured_together_train_together(tmp_path):
    tree = spair_scale.write_spair_counts(tmp_path / "tree", 2, 1)
    run = RunSpec("spair", str(tree), "cpu", ("backbone=tiny", "backbone.size=32", "data.workers=0"))
    shape = scaling.ScalingShape(2, [1, 2], 1, [1, 2], 3, 2, 32)

    (alone,), pair = (scaling.measure_processes(run, shape, count) for count in (1, 2))

    first, second = (each.value["losses"] for each in pair)
    assert alone.value["losses"][0] == pytest.approx(first[0])  # of the same first batch
    assert first != second
    assert alone.value["losses"][1] != pytest.approx(first[1])  # whose second batch another process has


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_processes_that_wait_for_one_that_has_failed_are_ended(failing):
    began = time.monotonic()
    lines = ["import time; time.sleep(600)"] * 3
    lines[failing] = "import os; os._exit(3)"
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        measure.measure_together(exec, [(line,) for line in lines])
    assert time.monotonic() - began < 300


@pytest.mark.slow
def test_results_of_processes_are_in_the_order_of_their_arguments_whichever_ends_first():
    found = measure.measure_together(eval, [("__import__('time').sleep(3) or 'late'",), ("'soon'",)])
    assert [each.value for each in found] == ["late", "soon"]


def test_a_growth_of_one_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="--size: growth is seen from two numbers on"):
        scaling.benchmark_scaling(scaling.ScalingShape(2, [4], 1, [1, 2], 3, 2, 32), tmp_path)
    with pytest.raises(UserError, match=r"--processes: growth .* got 2 1"):
        scaling.benchmark_scaling(scaling.ScalingShape(2, [1, 4], 1, [2, 1], 3, 2, 32), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_startup_from_end_to_end(typed, monkeypatch):
    from semcorr.benchmark import startup

    monkeypatch.setattr(startup, "LINES", dict.fromkeys(startup.LINES, ("-c", "pass")))
    monkeypatch.setattr(startup, "VERBS", {"evaluate": ()})
    found = typed("startup", "--tries=1")
    assert len(found["seconds"]) == len(found["peak"]) == 4
    assert found["ratio"] > 0
    assert found["seconds"][startup.FIRST_IMAGE.format(verb="evaluate")] > found["seconds"][startup.TORCH]


def test_a_process_that_encodes_is_timed_until_its_first_image():
    from semcorr.benchmark.startup import MARK, time_process

    line = f"import time; print('{MARK}', time.monotonic() + 100, flush=True); print('{MARK}', 1e9)"
    assert 100 <= time_process(("-c", line)).seconds < 1e6
    assert time_process(("-c", "import time; time.sleep(0.5)")).seconds >= 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("match --pairs 7 --images 3", "--pairs 7: 3 images make up to 6 pairs"),
        ("match --naive-pairs 0", "--naive-pairs must be between 1 and"),
        ("match --device tpu", "--device must be one of auto, cpu, cuda, got 'tpu'"),
        ("match --out missing/b.json", "--out: missing is not a folder"),
        ("evaluate --scale huge", "--scale must be one of demo, spair, got 'huge'"),
        ("evaluate --root missing", "--root: missing is not a folder"),
        ("evaluate --backbone nosuch", "--backbone: no backbone is called 'nosuch'"),
        ("evaluate --scale spair --part 2", "more than 0 and at most 1, got 2.0"),
        ("evaluate --pairs 0", "--pairs and --naive-pairs must be at least 1"),
        ("train --steps 2", "--steps must be more than 2"),
        ("store --dtype int4", "--dtype must be one of float16, bfloat16, float32"),
        ("store --entries 0", "--entries, --tokens and --channels must be at least 1, got 0"),
        ("store --encode-ms 0", "--encode-ms must be more than 0"),
        ("scaling --images 1", "--images must be at least 2, --tries and --pairs"),
        ("scaling --size 4", "--size: growth is seen from two numbers on"),
        ("startup --tries 0", "--tries must be at least 1"),
    ],
)
def test_bad_input_ends_in_a_user_error_and_exit_code_2(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_loading_from_end_to_end(typed, creatures):
    """Two processes, each with two batches ahead: of 2 images to encode, of 3 pairs to train on."""
    line = ["--size=56", "--workers=2", "--images=2", "--pairs=3", "--batches=4", "--together", f"--root={creatures}"]
    found = typed("loading", *line)

    pixels = 3 * 56 * 56
    for key, images in (("encode", 2), ("train", 6)):
        floats, ours = found["floats"][key], found["bytes"][key]
        assert floats["bytes"] - ours["bytes"] == 3 * images * pixels  # all else of a batch is the same
        assert ours["bytes"] > images * pixels
        assert ours["memory"] > 0
        if sys.platform == "linux":
            assert 4 * images * pixels <= ours["shared"] < floats["shared"]


def test_memory_of_other_processes_counts_shared_pages_once():
    hoard = torch.zeros(50_000_000, dtype=torch.uint8).share_memory_()
    with measure.MemoryWatch() as watch:
        hoard.fill_(1)
    assert watch.memory > 50_000_000


def test_memory_that_a_process_has_for_a_while_is_seen_without_shared_memory(monkeypatch):
    monkeypatch.setattr(measure, "used_shared_bytes", lambda: 0)
    began = time.monotonic()
    with measure.MemoryWatch() as watch:
        before = watch.memory
        hoard = torch.ones(200_000_000, dtype=torch.uint8)
        while watch.memory < before + 150_000_000 and time.monotonic() - began < 60:
            time.sleep(0.05)
        del hoard
    assert watch.memory > before + 150_000_000


# -- a head --


def test_what_a_head_adds_is_the_difference_from_cosines(typed):
    found = typed("head", "--head=aggregation", "--backbone=tiny", "--size=64", "--tries=2", "--points=3", *TOY)

    seconds = found["seconds"]
    assert set(seconds) == {"encode", "cosine", "head"}
    assert min(seconds.values()) > 0
    whole, plain = (seconds["encode"] + seconds[name] for name in ("head", "cosine"))
    assert found["added"] == pytest.approx((whole - plain) / plain)
    assert found["parameters"] > 1000
    assert found["settings"]["head"] == "aggregation"


def test_a_head_that_there_is_not_is_reported_before_anything_is_built(tmp_path):
    result = CliRunner().invoke(app, ["head", "--head=none_such", "--out", str(tmp_path / "benchmark.json")])
    assert result.exit_code == 2
    assert "none_such" in result.output
