"""What a run directory holds: the results of one run or none, and what is read of them."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semcorr.core.files import REASONS, part_path, write_error
from semcorr.core.text_files import read_mapping
from semcorr.errors import UserError
from semcorr.run_lock import is_first_process

METRICS = "metrics.json"  # is written last: a run is finished when it is there
RESULTS = (
    METRICS, "predictions.parquet", "matches.png", "tracks.png", "poses.parquet", "detections.parquet", "audit.json",
    "metrics.csv",
)  # fmt: skip
LOGS = ("wandb/id.txt", "tensorboard/events.*", "*-profile*.txt")  # what loggers would go on with


@contextmanager
def replace_results(run_dir: Path) -> Iterator[Path]:
    """Yield a folder for the results of a run; in the end they take the place of those that the directory had.

    After an error the directory holds what it held. While files are exchanged there is no metrics.json, without which
    a run counts as unfinished.

    Raises:
        UserError: The disk is full, ...
    """
    folder = part_path(run_dir / "results")
    try:
        folder.mkdir(parents=True)
        try:
            yield folder
        except UserError as error:  # of a file in it, which the user knows by its own name
            raise UserError(str(error).replace(str(folder), str(run_dir))) from error
        written = sorted(path.name for path in folder.iterdir() if path.name != METRICS)
        remove_results(run_dir, keep=written)
        for name in (*written, METRICS):
            (folder / name).replace(run_dir / name)
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise UserError(write_error(run_dir, error, "run_dir")) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_results(run_dir: Path, keep: list[str] | None = None) -> None:
    """Remove the results of a run, metrics.json first: without it no other file counts."""
    for name in RESULTS:
        if name not in (keep or []):
            (run_dir / name).unlink(missing_ok=True)


def remove_logs(run_dir: Path) -> None:
    """Remove what W&B and TensorBoard would add to the logs of an earlier run in the same directory."""
    if is_first_process():
        for path in (path for pattern in LOGS for path in run_dir.glob(pattern)):
            path.unlink(missing_ok=True)


def read_scores(path: Path, remedy: str = "Evaluate again") -> dict[str, Any]:
    """Read a metrics.json; `remedy` ends the message of one that is damaged.

    Raises:
        UserError: It cannot be read, is no JSON, or holds no scores of pairs or tracks.
    """
    content = read_mapping(path, remedy)
    scores = [content.get(key) for key in ("pck", "tracking") if key in content]
    if len(scores) != 1 or not isinstance(scores[0], dict) or not all(map(_is_score, flatten(scores[0]).values())):
        raise UserError(f"{path} is damaged (it holds no scores). {remedy}")
    return content


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by their keys.

    >>> flatten({"backbone": {"size": 64, "layers": [-1]}})
    {'backbone.size': 64, 'backbone.layers': [-1]}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _is_score(value: Any) -> bool:
    """Tell a share of keypoints from a number that is none; null: there were no keypoints."""
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)
