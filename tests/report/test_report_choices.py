"""Bars stand where their axis says; a group has what differs in one part, and what was not trained joins it."""

import re
from pathlib import Path

import pytest
from tiny_runs import made, run_dir, typed

from semcorr.report.choices import find_choice_groups, plot_choices
from semcorr.report.curves import plot_curves

pytestmark = pytest.mark.integration

HEADS = {
    "cosine": {"_target_": "semcorr.models.heads.cosine.Cosine"},
    "bottleneck": {"_target_": "semcorr.models.heads.bottleneck.BottleneckHead", "width": None},
    "consensus": {"_target_": "semcorr.models.heads.consensus.Consensus", "widths": [8, 8, 1]},
}
TRAINING = {
    "loss": {"_target_": "semcorr.models.losses.GaussianCrossEntropy", "sigma": 1.5},
    "optimizer": {"_target_": "semcorr.engine.optim.adamw", "_partial_": True, "lr": 0.1},
    "scheduler": {"_target_": "semcorr.engine.optim.constant_rate", "_partial_": True},
}


def run(root: Path, head: str, blocks: int, off: float = 0.0, is_trained: bool = True, **config) -> Path:
    """A run with a head and tuned blocks; one that is not trained is an evaluation, which knows of no training."""
    parts = {"head": HEADS[head], "finetune": {"blocks": blocks}, **(TRAINING if is_trained else {}), **config}
    return run_dir(root / f"{head}_{blocks}", off, config=parts, trained_parameters=1000 * is_trained)


@pytest.fixture
def eight(tmp_path: Path) -> list[Path]:
    """Figure 8 of the unified benchmark: no head, a bottleneck, consensus; on a frozen network and on a tuned one."""
    frozen = [
        run(tmp_path, head, 0, off, head != "cosine")
        for head, off in (("cosine", 9), ("bottleneck", 3), ("consensus", 6))
    ]
    return frozen + [run(tmp_path, head, 1, off) for head, off in (("cosine", 5), ("bottleneck", 0), ("consensus", 2))]


def test_heads_are_compared_on_the_frozen_and_on_the_tuned_network(eight):
    groups = find_choice_groups(made(*eight), "head")

    assert len({group.name for group in groups}) == len(groups) == 2
    for group in groups:
        values = [entry.value("all", "0.1").mean for entry in group.choices.values()]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 3
    found = [{name: entry.runs[0].folder.name for name, entry in group.choices.items()} for group in groups]
    kinds = {"BottleneckHead": "bottleneck", "Consensus": "consensus", "Cosine": "cosine"}
    wanted = [{kind: f"{head}_{blocks}" for kind, head in kinds.items()} for blocks in (0, 1)]
    assert all(one in found for one in wanted)


def test_what_else_differs_keeps_choices_apart(tmp_path):
    """Another loss is another group; where nothing was trained, the loss does not count."""
    other = {**TRAINING, "loss": {**TRAINING["loss"], "sigma": 9.0}}
    one, two = run(tmp_path / "a", "bottleneck", 0), run(tmp_path / "b", "consensus", 0, **other)
    assert find_choice_groups(made(one, two), "head") == []

    bare = run(tmp_path / "c", "cosine", 0, is_trained=False)
    groups = find_choice_groups(made(one, two, bare), "head")
    assert sorted(sorted(group.choices) for group in groups) == [["BottleneckHead", "Cosine"], ["Consensus", "Cosine"]]


def test_a_loss_brings_its_teacher(tmp_path):
    """It is no other difference beside the loss, and none to what was not trained."""
    teachers = [{"callbacks": {"ema_teacher": {"_target_": "a.EMATeacher", "momentum": each}}} for each in (0.9, 1.0)]
    distillation = {**TRAINING, "loss": {"_target_": "semcorr.models.losses.WeightedSum"}}
    runs = [run(tmp_path / f"t{i}", "bottleneck", 1, i, **distillation, **each) for i, each in enumerate(teachers)]
    plain = run(tmp_path / "plain", "bottleneck", 1, 5)
    assert find_choice_groups(made(*runs), "loss") == []

    (group,) = find_choice_groups(made(*runs, plain), "loss")
    assert sorted(group.choices) == ["GaussianCrossEntropy", "WeightedSum, momentum 0.9", "WeightedSum, momentum 1.0"]

    bare = run(tmp_path / "bare", "cosine", 1, is_trained=False)
    (group,) = find_choice_groups(made(runs[0], bare), "head")
    assert sorted(group.choices) == ["BottleneckHead", "Cosine"]


def test_numbers_of_one_kind_of_part_are_a_curve_and_no_choice(tmp_path):
    windows = [run_dir(tmp_path / f"w{size}", size, config={"localise": {"window": size}}) for size in (5, 9)]
    assert find_choice_groups(made(*windows), "localise") == []
    assert plot_choices(made(*windows)) is None

    argmax = run_dir(tmp_path / "argmax", 3, config={"localise": {"_target_": "semcorr.matching.readouts.argmax"}})
    (group,) = find_choice_groups(made(*windows, argmax), "localise")
    assert sorted(group.choices) == ["argmax", "window_soft_argmax, window 5", "window_soft_argmax, window 9"]


def test_bars_end_where_the_axis_says(eight):
    """Lengths are read back with the help of the upright rules and their ticks alone."""
    entries = made(*eight)
    figure = next(part for part in plot_choices(entries).parts if part.title == "PCK over choices of head")

    assert len(figure.panels) == 2
    for panel, group in zip(figure.panels, find_choice_groups(entries, "head"), strict=True):
        rules = [float(x) for x in re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="\1"', panel)]
        ticks = [float(tick) for tick in re.findall(r'text-anchor="middle">(\d+)<', panel)]
        scale = (ticks[-1] - ticks[0]) / (rules[-1] - rules[0]) / 100
        bars = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', panel)
        assert [float(x) for x, _ in bars] == [pytest.approx(rules[0], abs=0.06)] * 3
        assert [float(width) * scale for _, width in bars] == pytest.approx(
            [entry.value("all", "0.1").mean for entry in group.choices.values()], abs=0.002
        )
        assert panel.count('class="range"') == 3
        low, high = (float(x) for x in re.search(r"M([\d.]+) [\d.]+v8M[\d.]+ [\d.]+H([\d.]+)", panel).groups())
        interval = next(iter(group.choices.values())).value("all", "0.1").interval
        assert [(x - rules[0]) * scale for x in (low, high)] == pytest.approx(interval, abs=0.002)


def sized(root: Path, backbone: str, size: int, cells: int | None, off: float) -> Path:
    config = {"backbone": {"size": size}, "provenance": {"backbone": backbone}, "head": {"grid": cells}}
    return run_dir(root / f"{backbone}_{size}", off, config=config, cells=cells and [cells, cells])


@pytest.mark.parametrize("has_cells", [True, False])
def test_backbones_stand_together_over_the_size_of_their_maps(tmp_path, has_cells):
    """Figure 7 of the unified benchmark: sides of 14- and 16-pixel patches become the same cells."""
    sizes = {"dinov2": (224, 448, 840), "dino": (256, 512, 960)}
    folders = [
        sized(tmp_path, name, size, cells if has_cells else None, 3 * i + 5 * (name == "dino"))
        for name, three in sizes.items()
        for i, (size, cells) in enumerate(zip(three, (16, 32, 60), strict=True))
    ]
    entries = made(*folders)

    joint, single = plot_curves(entries).parts

    assert single.title == "PCK over size"
    (panel,) = joint.panels
    lines = re.findall(r'<polyline points="([^"]+)"', panel)
    assert len(lines) == 2
    places = [[float(point.partition(",")[0]) for point in line.split(" ")] for line in lines]
    assert (places[0] == places[1]) == has_cells
    assert re.search(r">dinov2</text>", panel)
    assert joint.table.columns[:-1] == (["shared", "cells", "size"] if has_cells else ["shared", "size"])
    values = {(entry.name, str(entry.settings["backbone.size"])): entry.value("all", "0.1").mean for entry in entries}
    assert {(row[0], row[-2]): row[-1] for row in joint.table.rows} == {
        key: f"{100 * value:.1f}" for key, value in values.items()
    }
    rules = [float(y) for y in re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="\1" class="rule"', panel)]
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">(\d+)<', panel)]
    scale = (ticks[-1] - ticks[0]) / (rules[-1] - rules[0]) / 100
    drawn = [[(float(y) - rules[0]) * scale for y in re.findall(r",([\d.]+)", line)] for line in lines]
    names = [row[0] for row in joint.table.rows][::3]
    for name, line in zip(names, drawn, strict=True):
        assert line == pytest.approx([values[name, str(size)] for size in sizes[name]], abs=0.002)


def test_one_command_draws_figures_seven_and_eight(eight, tmp_path):
    sizes = [("dinov2", 448, 32, 2), ("dinov2", 224, 16, 4), ("dino", 512, 32, 6), ("dino", 256, 16, 8)]
    code, output = typed(*eight, *(sized(tmp_path, *size) for size in sizes), "--out", tmp_path / "out")

    assert code == 0, output
    text = (tmp_path / "out/report.html").read_text()
    for title in (
        "PCK over the size of the feature map, together",
        "PCK over choices of head",
        "PCK over choices of finetune",
    ):
        assert f"<h3>{title}</h3>" in text
