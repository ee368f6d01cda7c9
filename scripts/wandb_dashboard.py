"""Save a report of a project in W&B: python scripts/wandb_dashboard.py PROJECT [--entity NAME] [--dry-run].

The report has curves of all, geo and std, categories, costs and pages of matches of every run, sweeps by group, and
configurations side by side. Needs pip install 'semcorr[dashboard]'. Without a key, or with --dry-run, it prints what it
would save.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

ALPHAS = ("0.01", "0.05", "0.1", "0.15", "0.2")
SUBSETS = ("all", "geo", "std")
NAMES = {"all": "all keypoints", "geo": "keypoints with a visible twin (geo)", "std": "the others (std)"}


def build_report(api: ModuleType, project: str, entity: str) -> Any:
    """Build the report without saving it."""
    runs: dict[str, list[str]] = {}  # all runs of the report's project
    # an empty entity would make W&B ask its server for the user's
    location = {"project": project, **({"entity": entity} if entity else {})}
    page = api.Report(**location, title="Semantic correspondence", description="PCK per image.", width="fluid")
    page.blocks = [
        api.TableOfContents(),
        api.H1("Leaderboard"),
        api.P("PCK@0.1 per image on the test split, one bar a run, and what it cost to train."),
        build_grid(api, runs, build_leaderboard(api)),
        api.H1("Curves"),
        api.P("On the validation split while training; every tolerance, fractions in [0, 1]."),
        build_grid(api, runs, [build_curve(api, subset) for subset in SUBSETS]),
        api.H1("Categories and matches"),
        api.P("Of the last validation and of the test. Blue discs lie within 0.1 of the truth, red crosses do not."),
        build_grid(api, runs, build_pictures(api)),
        api.H1("Training"),
        build_grid(api, runs, build_training(api)),
        api.H1("Sweeps"),
        api.P(
            "Jobs of a sweep are one group; mean over its runs. A run has the best of its validations in its summary."
        ),
        build_grid(api, runs | {"groupby": ["Group"]}, [build_curve(api, "all")]),
        build_grid(api, runs, [api.RunComparer(diff_only="split", layout=build_layout(api, 0, 24))]),
    ]
    return page


def build_grid(api: ModuleType, runs: dict[str, list[str]], panels: Sequence[object]) -> object:
    """Build a grid of panels over the runs of the project."""
    return api.PanelGrid(runsets=[api.Runset(**runs)], panels=panels)


def build_leaderboard(api: ModuleType) -> list[object]:
    """Build a bar chart per subset of keypoints, and accuracy against parameters."""
    bars = [
        api.BarPlot(title=NAMES[subset], metrics=[f"test/{subset}/pck@0.1"], layout=build_layout(api, 8 * i, 8))
        for i, subset in enumerate(SUBSETS)
    ]
    cost = api.ScatterPlot(
        title="accuracy against trained parameters",
        x=api.SummaryMetric("scores/trained_parameters"),
        y=api.SummaryMetric("test/all/pck@0.1"),
        layout=build_layout(api, 0, 24),
    )
    return [*bars, cost]


def build_curve(api: ModuleType, subset: str) -> object:
    """Build the curve of PCK over training at every tolerance."""
    return api.LinePlot(
        title=NAMES[subset],
        x="trainer/global_step",
        y=[f"val/{subset}/pck@{alpha}" for alpha in ALPHAS],
        layout=build_layout(api, 8 * SUBSETS.index(subset), 8),
    )


def build_pictures(api: ModuleType) -> list[object]:
    """Build the tables of categories and the pages of matches."""
    tables = [
        api.WeavePanelSummaryTable(table_name=f"{stage}/categories", layout=build_layout(api, 12 * i, 12))
        for i, stage in enumerate(("val", "test"))
    ]
    return [*tables, api.MediaBrowser(media_keys=["val/matches", "test/matches"], layout=build_layout(api, 0, 24, 14))]


def build_training(api: ModuleType) -> list[object]:
    """Build the curves of loss, learning rates, speed and memory."""
    curves: dict[str, dict[str, object]] = {
        "loss": {"y": ["train/loss"]},
        "learning rates": {"metric_regex": "^lr-.*"},
        "images a second": {"y": ["cost/images_per_second"]},
        "memory in GB": {"y": ["cost/memory_gb", "cost/gpu_gb"]},
    }
    return [
        api.LinePlot(title=title, x="trainer/global_step", layout=build_layout(api, 6 * i, 6), **options)
        for i, (title, options) in enumerate(curves.items())
    ]


def build_layout(api: ModuleType, x: int, width: int, height: int = 8) -> object:
    """Lay out a panel on a grid of 24 columns."""
    return api.Layout(x=x, y=0, w=width, h=height)


def main() -> int:
    """Build the report, and save it if there is a key."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project")
    parser.add_argument("--entity", default="")
    parser.add_argument("--dry-run", action="store_true", help="print W&B's specification of the report; send nothing")
    options = parser.parse_args()
    try:
        from wandb_workspaces.reports import v2 as api
    except ImportError:
        print("Error: wandb-workspaces is not installed. pip install 'semcorr[dashboard]'", file=sys.stderr)
        return 2
    is_keyless = not os.environ.get("WANDB_API_KEY")
    if options.dry_run or is_keyless:
        page = build_report(api, options.project, options.entity or "ENTITY")
        print(json.dumps(json.loads(page._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)), indent=1))
        if not options.dry_run:
            print("No WANDB_API_KEY: this is what would be built. Set it, and the report is saved.", file=sys.stderr)
        return 0
    page = build_report(api, options.project, options.entity)
    page.save(draft=False)
    print(page.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
