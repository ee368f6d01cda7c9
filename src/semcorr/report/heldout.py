"""Scores of the keypoints that were held out of a training, beside those of the keypoints that it saw."""

from collections.abc import Sequence

from semcorr.core.text_files import JsonMapping
from semcorr.report.configurations import Configuration, seed_statistics
from semcorr.report.document import ReportSection, ReportTable, format_spread
from semcorr.report.runs import FinishedRun

HALVES = {"trained": "trained", "held_out": "held out"}  # names in metrics.json and for a reader


def tabulate_heldout(entries: Sequence[Configuration]) -> ReportSection | None:
    """Tabulate PCK of trained and of held-out keypoints at each alpha; None where no run held any out."""
    scored = [entry for entry in entries if all(_read_halves(run) for run in entry.runs)]
    if not scored:
        return None
    alphas = [*_read_halves(scored[0].runs[0])["trained"]["all"]["image"]]
    rows = [
        [entry.label, name, f"{_read_halves(entry.runs[0])[half]['keypoints']:,}", *_format_scores(entry, half, alphas)]
        for entry in scored
        for half, name in HALVES.items()
    ]
    caption = (
        "PCK per image in percent, at each α. Trained: keypoints whose names the training saw; held out: those of "
        "data.heldout_keypoints, which neither training nor validation saw."
    )
    columns = ["configuration", "half", "keypoints", *alphas]
    table = ReportTable("heldout", "PCK of trained and held-out keypoints", caption, columns, rows, words=2)
    text = "What a training on some points of an object has made of the points that nobody annotated."
    return ReportSection("Held-out keypoints", text, [table])


def _read_halves(run: FinishedRun) -> JsonMapping:
    """Return the scores of both halves of a run; empty where it held none out."""
    halves: JsonMapping = run.metrics.get("heldout_keypoints", {})
    return halves


def _format_scores(entry: Configuration, half: str, alphas: Sequence[str]) -> list[str]:
    scores = [_read_halves(run)[half]["all"]["image"] for run in entry.runs]
    return [format_spread(seed_statistics([score[alpha] for score in scores])) for alpha in alphas]
