"""Compare runs with and without pose alignment on the synthetic benchmark, by how the azimuths of a pair differ.

    python -m semcorr.evaluate data=synthetic ... run_dir=A
    python -m semcorr.evaluate data=synthetic ... run_dir=B pose=adaptive
    python scripts/measure_pose_gain.py data/synthetic A B

Azimuths are those of the annotation, in steps of 45 degrees: k and 8 - k are mirror images of each other.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from semcorr.core.parquet import read_parquet
from semcorr.core.text_files import read_mapping
from semcorr.evaluation.pose import alignment as adaptive
from semcorr.metrics import predictions as table

KINDS = ("mirror", "same", "other")


def main(root: Path, runs: list[Path]) -> None:
    """Print geometry-aware PCK@0.1 and the pairs whose source was mirrored, by how the poses of a pair differ."""
    azimuth = {
        f"{path.parent.name}/{path.stem}": read_mapping(path)["azimuth_id"]
        for path in (root / "ImageAnnotation").glob("*/*.json")
    }
    summary = Table(title="Geometry-aware PCK@0.1 in percent, per image / per point; pairs whose source was mirrored")
    for header in ("poses", "pairs", *map(str, runs)):
        summary.add_column(header, justify="left" if header == "poses" else "right")
    columns = [score_kinds(run, azimuth) for run in runs]
    for kind in KINDS:
        summary.add_row(kind, *(str(columns[0][kind][0]),), *(column[kind][1] for column in columns))
    Console().print(summary)


def score_kinds(run: Path, azimuth: dict[str, int]) -> dict[str, tuple[int, str]]:
    """Count the pairs of a run with an ambiguous keypoint and format their score, by kind."""
    correct: dict[str, dict[str, list[bool]]] = {kind: defaultdict(list) for kind in KINDS}
    for row in table.read_predictions(run / "predictions.parquet").to_pylist():
        if row["ambiguous"]:
            dx, dy = (row[f"predicted_{axis}"] - row[f"target_{axis}"] for axis in "xy")
            is_correct = (dx * dx + dy * dy) ** 0.5 <= 0.1 * row["extent"]
            correct[classify_azimuths(azimuth[row["source"]], azimuth[row["target"]])][row["pair"]].append(is_correct)
    chosen: Counter[tuple[str, str]] = Counter()
    if (run / "poses.parquet").is_file():
        rows = (row for row in read_parquet(run / "poses.parquet", adaptive.SCHEMA).to_pylist() if row["chosen"])
        chosen.update(
            (classify_azimuths(azimuth[row["source"]], azimuth[row["target"]]), row["variant"]) for row in rows
        )
    results = {}
    for kind, pairs in correct.items():
        per_image = sum(sum(points) / len(points) for points in pairs.values()) / max(1, len(pairs))
        pooled = [point for points in pairs.values() for point in points]
        score = f"{100 * per_image:.1f} / {100 * sum(pooled) / max(1, len(pooled)):.1f}"
        results[kind] = (len(pairs), f"{score}; {chosen[kind, 'mirrored']}")
    return results


def classify_azimuths(source: int, target: int) -> str:
    """Classify how two azimuths differ.

    >>> kind_of(2, 6), kind_of(7, 1), kind_of(4, 4), kind_of(0, 4)
    ('mirror', 'mirror', 'same', 'other')
    """
    return "same" if source == target else "mirror" if (source + target) % 8 == 0 else "other"


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
