"""What aligning poses gains where they differ by a mirror: two runs on the synthetic benchmark, by azimuth.

    python -m semcorr.evaluate data=synthetic ... run_dir=A
    python -m semcorr.evaluate data=synthetic ... run_dir=B pose=adaptive
    python scripts/pose_gain.py data/synthetic A B

Azimuths are the annotation's, in steps of 45 degrees: k and 8 - k are each other's mirror images.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from semcorr.core.parquet import read_parquet
from semcorr.core.text_files import read_mapping
from semcorr.evaluation.pose import alignment as adaptive
from semcorr.metrics import predictions_table as table

KINDS = ("mirror", "same", "other")


def main(root: Path, runs: list[Path]) -> None:
    """Geometry-aware PCK@0.1 and choices, by how the poses of a pair differ."""
    azimuth = {
        f"{path.parent.name}/{path.stem}": read_mapping(path)["azimuth_id"]
        for path in (root / "ImageAnnotation").glob("*/*.json")
    }
    shown = Table(title="Geometry-aware PCK@0.1 in percent, per image / per point; pairs whose source was mirrored")
    for header in ("poses", "pairs", *map(str, runs)):
        shown.add_column(header, justify="left" if header == "poses" else "right")
    columns = [told(run, azimuth) for run in runs]
    for kind in KINDS:
        shown.add_row(kind, *(str(columns[0][kind][0]),), *(column[kind][1] for column in columns))
    Console().print(shown)


def told(run: Path, azimuth: dict[str, int]) -> dict[str, tuple[int, str]]:
    """Of one run, pairs with an ambiguous keypoint, and their score, by kind."""
    hits: dict[str, dict[str, list[bool]]] = {kind: defaultdict(list) for kind in KINDS}
    for row in table.read_predictions(run / "predictions.parquet").to_pylist():
        if row["ambiguous"]:
            dx, dy = (row[f"predicted_{axis}"] - row[f"target_{axis}"] for axis in "xy")
            right = (dx * dx + dy * dy) ** 0.5 <= 0.1 * row["extent"]
            hits[kind_of(azimuth[row["source"]], azimuth[row["target"]])][row["pair"]].append(right)
    chosen: Counter[tuple[str, str]] = Counter()
    if (run / "poses.parquet").is_file():
        rows = (row for row in read_parquet(run / "poses.parquet", adaptive.SCHEMA).to_pylist() if row["chosen"])
        chosen.update((kind_of(azimuth[row["source"]], azimuth[row["target"]]), row["variant"]) for row in rows)
    found = {}
    for kind, pairs in hits.items():
        per_image = sum(sum(one) / len(one) for one in pairs.values()) / max(1, len(pairs))
        points = [hit for one in pairs.values() for hit in one]
        share = f"{100 * per_image:.1f} / {100 * sum(points) / max(1, len(points)):.1f}"
        found[kind] = (len(pairs), f"{share}; {chosen[kind, 'mirrored']}")
    return found


def kind_of(source: int, target: int) -> str:
    """How two azimuths differ.

    >>> kind_of(2, 6), kind_of(7, 1), kind_of(4, 4), kind_of(0, 4)
    ('mirror', 'mirror', 'same', 'other')
    """
    return "same" if source == target else "mirror" if (source + target) % 8 == 0 else "other"


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
