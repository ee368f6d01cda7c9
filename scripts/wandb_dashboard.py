"""python scripts/wandb_dashboard.py PROJECT [--entity NAME] [--dry-run]: the project's saved report in W&B.

Curves of all, geo and std, categories, costs and pages of matches of every run, sweeps by group, configurations side
by side. Needs pip install semcorr[dashboard]. Without a key, or with --dry-run, it prints what it would build.
"""

import argparse
import json
import os
import sys
from typing import Any

ALPHAS = ("0.01", "0.05", "0.1", "0.15", "0.2")
SUBSETS = ("all", "geo", "std")
NAMES = {"all": "all keypoints", "geo": "keypoints with a visible twin (geo)", "std": "the others (std)"}


def report(api: Any, project: str, entity: str) -> Any:
    """W&B's report, not saved yet."""
    runs: dict[str, Any] = {}  # those of the report's own project
    where = {"project": project, **({"entity": entity} if entity else {})}  # else W&B asks its server who we are
    made = api.Report(**where, title="Semantic correspondence", description="PCK per image.", width="fluid")
    made.blocks = [
        api.TableOfContents(),
        api.H1("Leaderboard"),
        api.P("PCK@0.1 per image on the test split, one bar a run, and what it cost to train."),
        grid(api, runs, leaderboard(api)),
        api.H1("Curves"),
        api.P("On the validation split while training; every tolerance, fractions in [0, 1]."),
        grid(api, runs, [curve(api, subset) for subset in SUBSETS]),
        api.H1("Categories and matches"),
        api.P("Of the last validation and of the test. Green lines end within 0.1 of the truth, red ones do not."),
        grid(api, runs, pictures(api)),
        api.H1("Training"),
        grid(api, runs, training(api)),
        api.H1("Sweeps"),
        api.P("Jobs of a sweep are one group; mean over its runs."),
        grid(api, runs | {"groupby": ["Group"]}, [curve(api, "all")]),
        grid(api, runs, [api.RunComparer(diff_only="split", layout=place(api, 0, 24))]),
    ]
    return made


def grid(api: Any, runs: dict[str, Any], panels: list[Any]) -> Any:
    """Panels over the runs of the project."""
    return api.PanelGrid(runsets=[api.Runset(**runs)], panels=panels)


def leaderboard(api: Any) -> list[Any]:
    """A bar chart per kind of keypoint; accuracy against parameters."""
    bars = [
        api.BarPlot(title=NAMES[subset], metrics=[f"test/{subset}/pck@0.1"], layout=place(api, 8 * i, 8))
        for i, subset in enumerate(SUBSETS)
    ]
    cost = api.ScatterPlot(
        title="accuracy against trained parameters",
        x=api.SummaryMetric("scores/trained_parameters"),
        y=api.SummaryMetric("scores/pck/all/image/0.1"),
        layout=place(api, 0, 24),
    )
    return [*bars, cost]


def curve(api: Any, subset: str) -> Any:
    """PCK over training at every tolerance."""
    return api.LinePlot(
        title=NAMES[subset],
        x="trainer/global_step",
        y=[f"val/{subset}/pck@{alpha}" for alpha in ALPHAS],
        layout=place(api, 8 * SUBSETS.index(subset), 8),
    )


def pictures(api: Any) -> list[Any]:
    """Tables of categories and pages of matches."""
    tables = [
        api.WeavePanelSummaryTable(table_name=f"{stage}/categories", layout=place(api, 12 * i, 12))
        for i, stage in enumerate(("val", "test"))
    ]
    return [*tables, api.MediaBrowser(media_keys=["val/matches", "test/matches"], layout=place(api, 0, 24, 14))]


def training(api: Any) -> list[Any]:
    """Loss, rates, speed and memory."""
    shown = {
        "loss": {"y": ["train/loss"]},
        "learning rates": {"metric_regex": "^lr-.*"},
        "images a second": {"y": ["cost/images_per_second"]},
        "memory in GB": {"y": ["cost/memory_gb", "cost/gpu_gb"]},
    }
    return [
        api.LinePlot(title=title, x="trainer/global_step", layout=place(api, 6 * i, 6), **what)
        for i, (title, what) in enumerate(shown.items())
    ]


def place(api: Any, x: int, width: int, height: int = 8) -> Any:
    """On a grid of 24 columns."""
    return api.Layout(x=x, y=0, w=width, h=height)


def main() -> int:
    """Build it; save it if there is a key."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project")
    parser.add_argument("--entity", default="")
    parser.add_argument("--dry-run", action="store_true", help="print W&B's specification of the report; send nothing")
    asked = parser.parse_args()
    try:
        from wandb_workspaces.reports import v2 as api
    except ImportError:
        print("Error: wandb-workspaces is not installed. pip install wandb-workspaces", file=sys.stderr)
        return 2
    keyless = not os.environ.get("WANDB_API_KEY")
    if asked.dry_run or keyless:
        made = report(api, asked.project, asked.entity or "ENTITY")
        print(json.dumps(json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)), indent=1))
        if not asked.dry_run:
            print("No WANDB_API_KEY: this is what would be built. Set it, and the report is saved.", file=sys.stderr)
        return 0
    made = report(api, asked.project, asked.entity)
    made.save(draft=False)
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
