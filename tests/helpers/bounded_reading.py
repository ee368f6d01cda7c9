"""Read files in a process that may take 2 GB more than its libraries do; print what came of each, one line of JSON."""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.download.archive import extract
from semcorr.data.download.install import has_official_counts
from semcorr.data.pairs_csv import PairsCSV
from semcorr.data.pictures import load_picture
from semcorr.data.proposal_flow import PFWillow, read_pair_list, read_pascal_annotation
from semcorr.data.record import image_size, read_annotation, require_field
from semcorr.data.tapvid import read_videos
from semcorr.data.views import load_image
from semcorr.engine.checkpoints import read_checkpoint
from semcorr.engine.finished_run import read_evaluated_run
from semcorr.inference.transfer.annotations import read_annotations
from semcorr.metrics.predictions import read_predictions as read_predictions
from semcorr.models.backbones.transformers_weights import load_image_encoder as load_transformers
from semcorr.models.weights.checkpoints import read_weights
from semcorr.report.runs import _history

ROOM = 2 << 30  # bytes


def read_coco(path: Path) -> object:
    return COCOKeypoints(root=str(path.parent), size=32, annotations=path.name).pairs("test")


def read_spair(path: Path) -> object:
    return require_field(read_annotation(path), "images", path)


def read_config(path: Path) -> object:
    """A network's own description, beside its weights."""
    path.rename(path.with_name("config.json"))
    path.with_name("model.safetensors").write_bytes(b"")
    return load_transformers("a", False, str(path.parent), None, {})


def read_index(path: Path) -> object:
    path.rename(path.with_name("model.safetensors.index.json"))
    return read_weights(path.parent)


def read_metrics(path: Path) -> object:
    path.rename(path.with_name("metrics.json"))
    path.with_name("predictions.parquet").write_bytes(b"")
    return read_evaluated_run(path.parent)


def read_rows(path: Path) -> object:
    path.rename(path.with_name("predictions.parquet"))
    path.with_name("metrics.json").write_text('{"protocol": "a", "localise": "a"}')
    return read_evaluated_run(path.parent)


def read_notes(path: Path) -> object:
    path.rename(path.with_name("prepared.json"))
    return has_official_counts(path.parent)


def read_willow(path: Path) -> object:
    path.rename(path.with_name("test_pairs.csv"))
    return PFWillow(root=str(path.parent), size=32).pairs("test")


def read_weights_file(path: Path) -> object:
    return read_weights(path)


def read_last(path: Path) -> object:
    (path.parent / "checkpoints").mkdir()
    path.rename(path.parent / "checkpoints" / "last.ckpt")
    return read_checkpoint(path.parent, "last")


READERS: dict[str, Callable[[Path], object]] = {
    "load_image": load_image,
    "image_size": image_size,
    "picture": load_picture,
    "coco": read_coco,
    "annotation": read_spair,
    "cvat": lambda path: read_annotations(path, path.parent),
    "sheet": lambda path: read_annotations(path, path.parent),
    "config": read_config,
    "index": read_index,
    "metrics": read_metrics,
    "notes": read_notes,
    "pairs_csv": lambda path: PairsCSV(root=str(path.parent), size=32, test=path.name).pairs("test"),
    "willow": read_willow,
    "pascal": read_pair_list,
    "history": _history,
    "weights": read_weights_file,
    "checkpoint": read_last,
    "videos": read_videos,
    "mat": read_pascal_annotation,
    "predictions": read_predictions,
    "run": read_rows,
    "unpack": lambda path: extract(path, path.parent / "out", "a.zip"),
}


def taken() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    """A line for each line of reader and path."""
    warnings.simplefilter("error")
    limit = taken() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        reader, name = json.loads(line)
        start, path = time.process_time(), Path(name)
        try:
            READERS[reader](path)
            came = ["nothing", ""]
        except UserError as error:
            came = ["UserError", str(error)]
        except BaseException as error:
            came = [type(error).__name__, str(error)[:300]]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([*came, time.process_time() - start, peak]), flush=True)


if __name__ == "__main__":
    main()
