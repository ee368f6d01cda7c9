"""What an evaluation of point tracking leaves behind."""

from pathlib import Path

from rich.table import Table

from semcorr.core.files import write_json
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.tapvid import TapVid
from semcorr.engine.tracking import TrackingResult
from semcorr.evaluation.results import write_picture
from semcorr.metrics.predictions_table import write_predictions
from semcorr.metrics.tracking import THRESHOLDS
from semcorr.visualization import tracks as draw_tracks

SHOWN = 6  # videos in the picture


def write_tracks(result: TrackingResult, data: TapVid, run_dir: Path) -> JsonObject:
    """Write metrics.json, predictions.parquet and tracks.png, and return the metrics."""
    table, videos = result.table, {name: data.videos()[name].frames for name in result.videos}
    cycle = f"cycle(threshold={data.cycle_threshold:g})"
    metrics = {
        "tracking": result.scores,
        "video": result.videos,
        "queries": table.group_by(["video", "query"]).aggregate([]).num_rows,
        "frames": sum(len(frames) for frames in videos.values()),
        "videos": len(videos),
        "query_mode": data.query,
        "occlusion": data.occlusion if data.occlusion == "visible" else cycle,
        "localise": result.localise,
        "protocol": "tapvid",
        "split": f"{data.name} {data.split}",
        "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
    }
    write_predictions(table, run_dir / "predictions.parquet")
    write_json(run_dir / "metrics.json", metrics, "run_dir")
    step = max(1, len(videos) // SHOWN)
    shown = dict(list(videos.items())[::step][:SHOWN])
    write_picture(run_dir / "tracks.png", lambda: draw_tracks.plot_tracks(shown, table))
    return metrics


def print_tracks(metrics: JsonMapping, title: str) -> None:
    """The three scores, and what delta_avg and AJ are the means of, in percent."""
    scores = metrics["tracking"]
    table = Table(
        title=title,
        caption=f"TAP-Vid in percent, mean over {metrics['videos']} videos, {metrics['queries']} queries "
        f"({metrics['query_mode']}), occlusion: {metrics['occlusion']}, {metrics['localise']}",
    )
    for header in ("", "mean", *(f"{threshold} px" for threshold in THRESHOLDS)):
        table.add_column(header, justify="right" if header else "left")
    for name, mean, parts in (("delta", "delta_avg", "delta"), ("Jaccard", "AJ", "jaccard")):
        table.add_row(name, *(_percent(value) for value in (scores[mean], *scores[parts].values())))
    table.add_row("occlusion accuracy", _percent(scores["OA"]))
    Terminal().print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
