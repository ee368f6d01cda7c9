"""Small files that would become large ones are a sentence each, within two gigabytes of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bombs
import packed_bombs
import pytest
from repository import ROOT

HERE = ROOT / "tests" / "helpers"
KINDS = {  # what is read, its bombs, and the ending of the file
    **dict.fromkeys(("load_image", "image_size", "picture"), (bombs.IMAGES, ".png")),
    **dict.fromkeys(("coco", "annotation", "sheet", "config", "index", "metrics"), (bombs.JSON, ".json")),
    "cvat": (bombs.XML, ".xml"),
    "notes": (bombs.JSON, ".json"),
    **dict.fromkeys(("pairs_csv", "willow", "pascal", "history"), (bombs.CSV, ".csv")),
    "weights": (packed_bombs.WEIGHTS, ".pt"),
    "checkpoint": (packed_bombs.TORCH, ".ckpt"),
    "videos": (packed_bombs.ARRAYS, ".pkl"),
    "mat": (packed_bombs.MAT, ".mat"),
    **dict.fromkeys(("predictions", "run"), (packed_bombs.TABLES, ".parquet")),
    "unpack": (packed_bombs.ARCHIVES, ".zip"),
}
CASES = [(reader, bomb) for reader, (made, _) in KINDS.items() for bomb in made]
CASES += [("weights", f"safetensors, {bomb}") for bomb in packed_bombs.SAFETENSORS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list]:
    """What came of each, from one process that reads them all."""
    root = tmp_path_factory.mktemp("bombs")
    made_files: dict[object, Path] = {}
    lines = []
    for i, (reader, bomb) in enumerate(CASES):
        made, ending = (packed_bombs.SAFETENSORS, ".safetensors") if "safetensors, " in bomb else KINDS[reader]
        path = root / f"{i}" / f"bomb{ending}"
        path.parent.mkdir()
        (path.parent / "out").mkdir()
        make = made[bomb.removeprefix("safetensors, ")]
        if make not in made_files:
            made_files[make] = root / f"{len(made_files)}{ending}"
            make(made_files[make])
        os.link(made_files[make], path)
        lines.append(json.dumps([reader, str(path)]))
    done = subprocess.run(
        [sys.executable, str(HERE / "bounded_reading.py")], input="\n".join(lines), capture_output=True, text=True,
        check=False, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    message = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(message) == len(CASES), f"after {CASES[len(message)]}: {done.returncode} {done.stderr[-2000:]}"
    return dict(zip(CASES, message, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "bomb"), CASES, ids=[f"{reader}: {bomb}" for reader, bomb in CASES])
def test_a_bomb_is_a_user_error_within_two_gigabytes(outcomes, reader, bomb):
    kind, message, seconds, _ = outcomes[reader, bomb]

    assert kind == "UserError", message
    assert len(message.splitlines()) <= 1
    assert len(message) < 900
    assert seconds < 60
