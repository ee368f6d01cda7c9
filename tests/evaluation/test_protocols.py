"""Every protocol equals a slow version of what its authors do; and protocols side by side are each as alone."""

import math
import statistics
from functools import partial

import numpy as np
import pyarrow.compute as pc
import pytest
import slow_protocols
import torch
from painted_pairs import SIDE, SIZES, Blots, Painted, run
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from semcorr.cli.compose import compose_config
from semcorr.core.errors import UserError
from semcorr.engine.run_config import resolve_protocol_resize
from semcorr.evaluation.protocols import (
    AXES,
    PRESETS,
    Protocol,
    build_scoring_specs,
    protocol_list,
    protocol_preset,
    shared_resize,
)
from semcorr.matching.readouts import ReadoutList, bilinear_nn, kernel_soft_argmax, list_readouts, parse_readout
from semcorr.metrics.pck import ALPHAS, INCLUSIVE, PCK, Tolerance
from semcorr.models.heads.continuous import ContinuousQuery
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.decoder import WindowDecoder

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """slow(preset, extent): every row by the slow version, from maps made outside of the evaluation."""
    root = tmp_path_factory.mktemp("slow")

    def of(protocol, extent, grid, fraction):
        from semcorr.data.views import make_view, to_unit_range

        data = Blots(root=str(root), size=SIDE, workers=0)
        data.extent, data.fraction = extent, fraction
        found = {}
        for pair in data.records("test"):
            maps = [
                Painted(grid)(to_unit_range(make_view(image, SIDE, protocol.resize).image[None]))
                .values[0]
                .double()
                .numpy()
                for image in (pair.source, pair.target)
            ]
            for i in (pair.source.visible & pair.target.visible).nonzero()[:, 0].tolist():
                points = (pair.source.keypoints[i].tolist(), pair.target.keypoints[i].tolist())
                sizes = (pair.source.size, pair.target.size)
                how = getattr(slow_protocols, SLOW.get((protocol.name, protocol.resize), protocol.name))
                found[pair.name, i] = how(*maps, points[0], sizes, points[1], pair.target.box, extent == "image")
        return found

    return of


SLOW = {("marco", "corner"): "marco_corner", ("probe3d", "corner+4"): "probe3d_margin"}
PLACED = (*PRESETS, protocol_preset("marco").with_resize("corner"), protocol_preset("probe3d").with_resize("corner+4"))


@pytest.mark.parametrize(("extent", "grid", "fraction"), [("box", 20, 0.0), ("image", 20, 0.0), ("box", 13, 0.375)])
@pytest.mark.parametrize("protocol", PLACED, ids=lambda one: f"{one.name}-{one.resize}")
def test_a_protocol_equals_its_slow_version(tmp_path, slow, protocol, extent, grid, fraction):
    """Predictions to a thousandth of a pixel, and the same keypoints right at every alpha."""
    module, _ = run(tmp_path, [protocol], extent=extent, grid=grid, fraction=fraction)
    expected = slow(protocol, extent, grid, fraction)

    rows = module.result.tables["predictions"].to_pylist()
    assert len(rows) == len(expected) > 20
    assert {row["protocol"] for row in rows} == {protocol.name}
    per_pair: dict = {}
    for row in rows:
        (x, y), error, comparison = expected[row["pair"], row["keypoint"]]
        assert math.hypot(row["predicted_x"] - x, row["predicted_y"] - y) < 1e-3
        assert row["error"] == pytest.approx(error, abs=1e-5)
        per_pair.setdefault((row["category"], row["pair"]), []).append((error, comparison))
    for alpha in ALPHAS:
        hits = {key: [slow_protocols.is_right(e, alpha, how) for e, how in some] for key, some in per_pair.items()}
        by_image = sum(sum(some) / len(some) for some in hits.values()) / len(hits)
        everything = [hit for some in hits.values() for hit in some]
        scores = module.result.scores["pck"]["all"]
        assert scores["image"][f"{alpha:g}"] == pytest.approx(by_image, abs=1e-12)
        assert scores["point"][f"{alpha:g}"] == pytest.approx(sum(everything) / len(everything), abs=1e-12)
        assert module.result.scores["headline"][f"{alpha:g}"] == pytest.approx(
            pooled(hits, protocol.pooling), abs=1e-12
        )


def pooled(hits, pooling):
    per_pair = [sum(some) / len(some) for some in hits.values()]
    if pooling == "image":
        return sum(per_pair) / len(per_pair)
    if pooling == "point":
        return sum(map(sum, hits.values())) / sum(map(len, hits.values()))
    categories: dict = {}
    for (category, _), some in hits.items():
        categories.setdefault(category, []).append(some)
    terms = [
        (1 if pooling == "category" else len(pairs), sum(map(sum, pairs)) / sum(map(len, pairs)))
        for pairs in categories.values()
    ]
    return sum(n * value for n, value in terms) / sum(n for n, _ in terms)


@pytest.mark.parametrize("resize", AXES["resize"])
def test_protocols_side_by_side_give_what_each_gives_alone(tmp_path, resize):
    together, _ = run(tmp_path, protocol_list(None, resize))
    names = {one.name for one in together.specs and [spec.protocol for spec in together.specs]}
    assert names == {one.name for one in PRESETS if one.resize == resize} | {"semcorr"}

    for protocol in protocol_list(None, resize):
        alone, _ = run(tmp_path, [protocol])
        rows = together.result.tables["predictions"].filter(
            pc.equal(together.result.tables["predictions"]["protocol"], protocol.name)
        )
        assert rows.equals(alone.result.tables["predictions"])
        assert together.result.scores["protocols"][protocol.name].popitem()[1]["pck"] == alone.result.scores["pck"]


@pytest.mark.parametrize("at_once", [1, 3])
def test_pairs_in_any_batches_give_the_same_digits(tmp_path, monkeypatch, at_once):
    """Errors of every protocol of a geometry are the same bits, whichever pairs are scored together."""
    whole, _ = run(
        tmp_path,
        protocol_list(None, "squash"),
        ReadoutList([parse_readout(one) for one in ("window_5", "argmax", "soft")]),
    )
    monkeypatch.setattr("semcorr.data.datamodule.PAIRS_PER_BATCH", at_once)
    parts, _ = run(
        tmp_path,
        protocol_list(None, "squash"),
        ReadoutList([parse_readout(one) for one in ("window_5", "argmax", "soft")]),
    )

    assert parts.result.scores == whole.result.scores
    a, b = (torch.tensor(module.result.tables["predictions"]["error"].to_numpy().copy()) for module in (whole, parts))
    assert_close(a, b, atol=1e-6, rtol=0)


def test_the_scores_of_a_table_are_those_of_the_metric(tmp_path):
    """Right is error <= alpha, or < alpha where the protocol is strict: nothing else is needed."""
    module, _ = run(
        tmp_path, protocol_list(None, "letterbox"), ReadoutList([parse_readout("argmax"), parse_readout("window_5")])
    )

    assert [one.tolerance.strict for one in module.evaluator.pck] == [False, False, True, True, True, True]
    for name, readouts in module.result.scores["protocols"].items():
        for readout, view in readouts.items():
            rows = module.result.tables["predictions"].filter(
                pc.and_(
                    pc.equal(module.result.tables["predictions"]["protocol"], name),
                    pc.equal(module.result.tables["predictions"]["localise"], readout),
                )
            )
            errors = rows["error"].to_numpy()
            for alpha in ALPHAS:
                right = errors < alpha if view["strict"] else errors <= alpha
                assert view["pck"]["all"]["point"][f"{alpha:g}"] == pytest.approx(right.mean(), abs=1e-12)


def test_our_own_error_is_that_of_the_points_in_the_table(tmp_path):
    """In double precision, from single precision columns: bit for bit."""
    rows = run(tmp_path, [Protocol()])[0].result.tables["predictions"].to_pylist()

    for row in rows:
        dx, dy = (
            np.float64(np.float32(row[f"predicted_{c}"])) - np.float64(np.float32(row[f"target_{c}"])) for c in "xy"
        )
        assert row["error"] == np.sqrt(dx * dx + dy * dy) / np.float64(np.float32(row["extent"]))


@pytest.mark.parametrize(
    ("tolerance", "right"), [(INCLUSIVE, "111"), (Tolerance(strict=True), "000"), (Tolerance(True, single=True), "011")]
)
def test_a_tie_is_right_unless_the_protocol_is_strict(tolerance, right):
    """A prediction exactly alpha x extent away. In single precision 0.05 and 0.1 become larger, 0.01 smaller."""
    yes, results = torch.ones(1, 1, dtype=torch.bool), ""
    for distance, alpha in ((1.0, "0.01"), (5.0, "0.05"), (10.0, "0.1")):
        metric = PCK(["cat"], 1, tolerance=tolerance)
        points = torch.tensor([[[distance, 0.0]]])
        metric.update(points, torch.zeros(1, 1, 2), torch.tensor([100.0]), yes, ~yes, torch.zeros(1).long())
        results += str(int(metric.compute()["pck"]["all"]["image"][alpha]))
    assert results == right


# -- presets --


def test_presets_differ_from_ours_and_from_each_other():
    assert len({tuple(map(str, vars(one).values())) for one in PRESETS}) == len(PRESETS)
    assert [one.name for one in PRESETS if one.exact] == ["semcorr"]


def test_an_axis_that_is_changed_is_in_the_name():
    assert protocol_preset("geoaware", strict=False).name == "geoaware (strict=False)"
    assert protocol_preset("visual_ai", resize="squash").name == "visual_ai"
    assert protocol_preset("visual_ai").with_resize("letterbox").name == "visual_ai (letterbox)"
    assert protocol_preset("semcorr").with_resize("letterbox").name == "semcorr"
    assert protocol_preset("probe3d").with_resize("corner+6").name == "probe3d"
    assert protocol_preset("marco").with_resize("letterbox").name == "marco (letterbox)"


@pytest.mark.parametrize(
    ("line", "resize", "test"),
    [
        ("data=pf_pascal protocol=marco", "corner", None),
        ("data=spair protocol=marco", "squash", None),
        ("data=spair data@test=ap10k protocol=marco", "squash", "corner"),
        ("data=ap10k protocol=marco data.resize=squash", "squash", None),
        ("data=ap10k protocol=[semcorr,marco]", "corner", None),
        ("data=spair protocol=probe3d data.resize=corner+6", "corner+6", None),
    ],
)
def test_images_are_placed_as_a_protocol_places_those_of_a_benchmark(line, resize, test):
    cfg = compose_config("train", line.split())
    resolve_protocol_resize(cfg)

    assert (cfg.data.resize, cfg.test.resize if "test" in cfg else None) == (resize, test)


def test_a_head_that_sees_both_images_reads_the_map_as_it_is(tmp_path):
    class Whole(nn.Module):
        def forward(self, source, target, points):
            return Cosine()(source, target, points)

    after = protocol_preset("visual_ai", normalise="after")
    by_name, renamed, siamese = (
        run(tmp_path, [protocol], head=head)[0].result.tables["predictions"]
        for protocol, head in ((protocol_preset("visual_ai"), Whole()), (after, Whole()), (after, None))
    )

    assert by_name.equals(renamed)
    for column in ("predicted_x", "predicted_y", "score"):  # products of all queries at once are rounded otherwise
        assert_close(
            *(torch.tensor(table[column].to_numpy().copy()) for table in (by_name, siamese)), atol=1e-5, rtol=0
        )
    assert set(by_name["protocol"].to_pylist()) == {"visual_ai (normalise=after)"}


def test_products_need_a_head_that_compares_features(tmp_path):
    class Whole(nn.Module):
        def forward(self, source, target, points):
            return Cosine()(source, target, points)

    with pytest.raises(UserError, match="compares features by their product"):
        run(tmp_path, [protocol_preset("marco", comparison="product")], head=Whole())
    with pytest.raises(UserError, match="decodes natively"):
        run(tmp_path, [protocol_preset("dift", comparison="product")])


@pytest.mark.parametrize("localise", [bilinear_nn, ReadoutList(["argmax", "bilinear_nn"])])
def test_matches_of_four_cells_are_not_blended_where_features_are_upsampled(localise):
    with pytest.raises(UserError, match=r"`localise`: bilinear_nn .*protocol=dift .*localise=argmax"):
        build_scoring_specs([protocol_preset("geoaware"), protocol_preset("dift")], localise)
    assert len(build_scoring_specs([protocol_preset("geoaware")], localise)[0]) == len(list_readouts(localise))


def test_a_temperature_on_products_is_one_on_cosines_where_lengths_are_alike(tmp_path):
    """MARCO's 10 on vectors of length 32 is 10 / 1024 on their cosines."""

    class Unit(Cosine):
        def transform(self, maps):
            return maps._replace(values=32 * normalize(maps.values, dim=1))

    exact = {"lookup": "containing"}  # a cell as it is, of length 32
    on_cosines = run(tmp_path, [protocol_preset("marco", **exact)])[0].result
    products = protocol_preset("marco", comparison="product", **exact)
    readout = partial(kernel_soft_argmax, sigma=7.0, temperature=10.0)
    on_products = run(tmp_path, [products], ReadoutList([readout]), head=Unit())[0].result

    a, b = (result.tables["predictions"]["error"].to_numpy() for result in (on_cosines, on_products))
    np.testing.assert_allclose(a, b, atol=1e-4)


# -- mistakes --


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: protocol_preset("geo"), "must be one of semcorr, geoaware"),
        (lambda: protocol_preset("geoaware", stric=True), "`protocol.stric` is not an axis"),
        (lambda: Protocol(frame="pixels"), "`protocol.frame` must be one of original, view, unit, got 'pixels'"),
        (lambda: protocol_list([], "squash"), "must name one"),
        (lambda: protocol_list(["dift", "dift"], "squash"), "several different ones"),
        (lambda: shared_resize(["geoaware", "visual_ai"]), "geoaware needs letterbox, visual_ai needs squash"),
        (lambda: protocol_preset("dift").with_resize("letterbox"), "must be squash for dift"),
        (lambda: parse_readout("window_4"), "must be odd"),
        (lambda: parse_readout("windows"), "no readout is called 'windows'. There are argmax"),
        (lambda: parse_readout("kernel_0"), "no readout is called"),
        (lambda: ReadoutList(["argmax", "argmax"]), "names argmax twice"),
    ],
)
def test_a_user_error_is_reported(mistake, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        mistake()


def test_a_head_that_does_not_compare_by_cosine_cannot_be_read_natively(tmp_path):
    class Whole(nn.Module):
        def forward(self, source, target, points):
            return Cosine()(source, target, points)

    with pytest.raises(UserError, match="dift upsamples features"):
        run(tmp_path, [protocol_preset("dift")], head=Whole())


def test_an_extent_that_is_of_neither_box_nor_image_cannot_be_scaled(tmp_path):
    from semcorr.evaluation.conventions import extent_is_of_image

    pair = Blots(root=str(tmp_path), size=SIDE, workers=0).records("test")[0]
    with pytest.raises(UserError, match="Use protocol=semcorr"):
        extent_is_of_image(pair._replace(extent=17.0))


@pytest.mark.parametrize(
    "head",
    [ContinuousQuery(6, fineness=16, depth=0), WindowDecoder(6, fineness=16, window=5)],
    ids=lambda head: type(head).__name__,
)
@pytest.mark.parametrize("resize", AXES["resize"])
def test_a_head_on_a_finer_grid_matches_an_image_with_itself(tmp_path, resize, head):
    """Untrained, most points to a fine cell, half a pixel, under every protocol; in cells of the features, to two."""
    protocols = [protocol for protocol in PRESETS if protocol.resize == resize and protocol.decode != "native"]

    module, _ = run(tmp_path, protocols, ReadoutList(["argmax"]), head=head.eval(), grid=8, with_itself=True)

    errors: dict[str, list[float]] = {}
    for row in module.result.tables["predictions"].to_pylist():
        places = [(row[f"target_{x}"], side) for x, side in zip("xy", SIZES[int(row["pair"][0])], strict=True)]
        if all(0.1 * side < place < 0.9 * side for place, side in places):  # those beyond the cells' centres are moved
            errors.setdefault(row["protocol"], []).extend(abs(row[f"predicted_{x}"] - row[f"target_{x}"]) for x in "xy")
    assert len(errors) == len(protocols)
    assert max(statistics.median(each) for each in errors.values()) < 0.7
