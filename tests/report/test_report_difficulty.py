"""Difficulties by category are those of metrics.json and of a count by hand; every keypoint of every run is listed."""

import json
import re

import pytest
from tiny_runs import made, run_dir, typed

from semcorr.evaluate import evaluate
from semcorr.metrics.breakdown import LABELS
from semcorr.report.command import load_benchmark_pairs
from semcorr.report.difficulty import ALPHAS, KINDS, plot_difficulty

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folders(tmp_path_factory, creatures):
    """Two finished runs on the drawn benchmark, whose pairs have viewpoints, scales, truncations, occlusions."""
    from hydra import compose, initialize_config_dir
    from repository import SMALL

    from semcorr.engine.known_targets import conf_dir

    root = tmp_path_factory.mktemp("runs")
    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny", "trainer=cpu"]
    for readout in ("argmax", "soft_argmax"):
        with initialize_config_dir(str(conf_dir()), version_base=None):
            evaluate(compose("evaluate", [*line, f"localise={readout}", f"run_dir={root / readout}"]))
    return [root / "argmax", root / "soft_argmax"]


def figures(folders):
    entries = made(*folders)
    pairs = load_benchmark_pairs(entries[0].runs[0], None)
    return entries, pairs, plot_difficulty(entries, pairs)


def test_all_categories_have_the_scores_of_metrics_json(folders):
    entries, _, section = figures(folders)
    table = section.parts[0].table
    found = {tuple(row[:4]): row for row in table.rows}

    for entry in entries:
        classes = json.loads((entry.runs[0].folder / "metrics.json").read_text())["classes"]
        for kind, short in KINDS.items():
            for name in LABELS[kind]:
                want = classes[kind][name]
                row = found.get((entry.label, "all", short, name))
                assert (row is None) == (want["pairs"] == 0)
                if row:
                    at = [column for column in table.columns if column.endswith(" 0.1")]  # per image, per keypoint
                    cells = dict(zip(table.columns, row, strict=True))
                    assert cells["pairs"] == str(want["pairs"])
                    assert [cells[column] for column in at] == [
                        f"{100 * want[by]['0.1']:.1f}" for by in ("image", "point")
                    ]


def test_a_category_and_class_are_counted_by_hand(folders):
    entries, pairs, section = figures(folders)
    table = section.parts[1].table
    counted = 0
    for row in table.rows:
        label, category, short, name = row[:4]
        kind = next(kind for kind, word in KINDS.items() if word == short)
        rows = next(entry for entry in entries if entry.label == label).runs[0].evaluated.rows
        in_class = [
            p
            for p, pair in enumerate(rows.pairs)
            if pairs[pair].category == category and pairs[pair].details[kind] == LABELS[kind].index(name)
        ]
        assert row[4] == str(len(in_class))
        right = [[rows.error[rows.pair == p] <= alpha for p in in_class] for alpha in ALPHAS]
        image = [100 * sum(r.mean() for r in each) / len(each) for each in right]
        point = [100 * sum(r.sum() for r in each) / sum(map(len, each)) for each in right]
        assert [float(cell) for cell in row[5:]] == pytest.approx([*image, *point], abs=0.0501)
        counted += len(in_class)
    assert counted == 2 * len(KINDS) * len(pairs)


def test_bars_have_the_three_ends_of_their_tolerances(folders):
    _, _, section = figures(folders)
    overall, by_category = section.parts[:2]

    assert len(overall.panels) == len(by_category.panels) == 2 * len(KINDS)
    panel = overall.panels[0]
    assert ">viewpoint, per image</text>" in panel
    rules = [float(x) for x in re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="\1"', panel)]
    ticks = [float(tick) for tick in re.findall(r'text-anchor="middle">(\d+)<', panel)]
    scale = (ticks[-1] - ticks[0]) / (rules[-1] - rules[0])
    bars = re.findall(r'width="([\d.]+)" height="12" class="bar (a\d)"', panel)
    assert [css for _, css in bars] == ["a5", "a3", "a1"] * (len(bars) // 3)  # the finer over the coarser
    rows = [row for row in overall.table.rows if row[2] == "viewpoint"]
    names = [name for name in LABELS["viewpoint_variation"] if any(row[3] == name for row in rows)]
    wanted = [float(cell) for name in names for row in rows if row[3] == name for cell in reversed(row[5:8])]
    assert [float(width) * scale for width, _ in bars] == pytest.approx(wanted, abs=0.3)


def test_every_keypoint_of_every_configuration_has_a_row(folders):
    entries, _, section = figures(folders)
    table = section.parts[-1]

    assert table.key == "keypoints"
    for entry in entries:
        rows = entry.runs[0].evaluated.rows
        own = [row for row in table.rows if row[0] == entry.label]
        assert sum(int(row[3].replace(",", "")) for row in own) == len(rows.pair)
        assert len({tuple(row[1:3]) for row in own}) == len(own)  # names are not shared
        assert any(re.search(r"[a-z]{3}", row[2]) for row in own)  # names, not numbers
        hits = sum(int(row[3].replace(",", "")) * float(row[5]) / 100 for row in own)
        assert hits == pytest.approx((rows.error <= 0.1).sum(), abs=0.0005 * len(rows.pair) + 1)


def test_without_the_benchmark_keypoints_are_still_there(tmp_path):
    section = plot_difficulty(made(run_dir(tmp_path / "a")), "its files are gone")

    assert [part.key for part in section.parts] == ["keypoints"]
    assert "left out: its files are gone" in section.text


def test_an_error_on_the_tolerance_is_counted_as_the_protocol_does(tmp_path):
    """Made-up distances are often exactly on a tolerance: right by `<=` and wrong by `<`."""
    counts = []
    for strict in (False, True):
        rows = plot_difficulty(made(run_dir(tmp_path / str(strict), strict=strict)), "gone").parts[0].rows
        counts.append(sum(int(row[3]) * float(row[5]) for row in rows))
    assert counts[0] > counts[1] + 50


def test_the_command_writes_difficulties(folders, tmp_path):
    code, output = typed(*folders, "--out", tmp_path / "out", "--no-maps")

    assert code == 0, output
    text = (tmp_path / "out/report.md").read_text()
    for title in ("PCK by difficulty", "PCK by category and difficulty", "PCK of every keypoint"):
        assert f"### {title}" in text


def test_metrics_json_has_the_cells_that_curves_stand_at(folders):
    """64 pixels, patches of 8."""
    metrics = json.loads((folders[0] / "metrics.json").read_text())
    assert (metrics["cells"], made(folders[0])[0].settings["backbone.size"]) == ([8, 8], 64)
