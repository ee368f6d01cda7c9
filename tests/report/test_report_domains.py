"""The matrix of domains has the digits of metrics.json, and is there only where images have domains."""

import json
import re

import pytest
from tiny_runs import made, run_dir, typed

from semcorr.evaluate import evaluate
from semcorr.report.domains import plot_domains

pytestmark = pytest.mark.integration
STYLES = ("photo", "drawing")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two finished runs on creatures drawn in two styles."""
    from hydra import compose, initialize_config_dir
    from repository import SMALL

    from semcorr.engine.known_targets import conf_dir

    root = tmp_path_factory.mktemp("runs")
    line = ["data=synthetic", f"data.root={root / 'creatures'}", *SMALL, f"data.styles=[{','.join(STYLES)}]"]
    for readout in ("argmax", "soft_argmax"):
        with initialize_config_dir(str(conf_dir()), version_base=None):
            options = [
                "data.workers=0",
                "backbone=tiny",
                "trainer=cpu",
                f"localise={readout}",
                f"run_dir={root / readout}",
            ]
            evaluate(compose("evaluate", [*line, *options]))
    return [root / "argmax", root / "soft_argmax"]


def test_the_table_has_the_scores_of_metrics_json(folders):
    entries = made(*folders)
    (figure,) = plot_domains(entries).parts

    rows = {tuple(row[:3]): row[3:] for row in figure.table.rows}
    assert len(rows) == len(entries) * len(STYLES) ** 2
    for entry in entries:
        domains = json.loads((entry.runs[0].folder / "metrics.json").read_text())["classes"]["domains"]
        for source in STYLES:
            for target in STYLES:
                one = domains[f"{source} to {target}"]
                percents = [f"{100 * one[by]['0.1']:.1f}" for by in ("image", "point")]
                assert rows[entry.label, source, target] == [f"{one['pairs']:,}", *percents]


def test_the_matrix_shows_them_row_by_row(folders):
    entries = made(*folders)
    (figure,) = plot_domains(entries).parts

    for entry, panel in zip(entries, figure.panels, strict=True):
        drawn = re.findall(r"<title>(\w+) to (\w+): ([\d.]+)</title>", panel)
        cells = [row[4] for row in figure.table.rows if row[0] == entry.label]
        assert [cell for *_, cell in drawn] == cells
        assert [way[:2] for way in drawn] == [(s, t) for s in sorted(STYLES) for t in sorted(STYLES)]


def test_a_benchmark_without_domains_has_no_such_section(tmp_path):
    assert plot_domains(made(run_dir(tmp_path / "a"))) is None


def test_the_command_writes_the_section_and_the_terminal_the_table(folders, tmp_path, capsys):
    from semcorr.evaluation.results import print_scores

    code, output = typed(*folders, "--out", tmp_path / "out", "--no-maps")
    assert code == 0, output
    assert "## Across domains" in (tmp_path / "out/report.md").read_text()

    metrics = json.loads((folders[0] / "metrics.json").read_text())
    print_scores(metrics, "title")
    printed = capsys.readouterr().out
    value = metrics["classes"]["domains"]["drawing to photo"]["image"]["0.1"]
    (line,) = (line for line in printed.splitlines() if re.match(r"│ drawing +│", line))
    assert line.split("│")[3].strip() == f"{100 * value:.1f}"
