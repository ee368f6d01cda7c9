"""The worked diffs of docs/adding, applied to a copy of the tree and used as their pages say."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from repository import ROOT

LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*_cache")
CONTRACTS = {
    "backbone": ("vgg16", ["models/backbones", "models/finetune/test_tuning_grid.py"]),
    "head": ("linear", ["models/heads/test_heads.py"]),
}
PARTS = {0: (20, 30), 1: (90, 25), 2: (60, 70)}  # of a bird
Command = Callable[..., subprocess.CompletedProcess]


def read_diff(page: str) -> str:
    """The diff of a page."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "docs/adding" / f"{page}.md").read_text(), re.M | re.S)
    return diff


@pytest.fixture
def added(tmp_path: Path) -> Callable[[str], Command]:
    """added("head") applies the page's diff to a copy; what it gives runs `python -m` there."""

    def apply(page: str) -> Command:
        tree = tmp_path / "tree"
        for folder in ("src", "conf", "tests"):
            shutil.copytree(ROOT / folder, tree / folder, ignore=LEFT_OUT)
        shutil.copy(ROOT / "pyproject.toml", tree)
        alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}  # not of a repository around it
        subprocess.run(["git", "apply", "-"], cwd=tree, env=alone, input=read_diff(page), text=True, check=True)
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}

        def run(*line: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", *line]
            return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

        return run

    return apply


@pytest.mark.parametrize("page", ["backbone", "head", "benchmark"])
def test_the_diff_of_a_page_applies(page, tmp_path):
    done = subprocess.run(
        ["git", "apply", "--check", "-"], cwd=ROOT, input=read_diff(page), text=True, capture_output=True
    )

    assert done.returncode == 0, done.stderr


def scores(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def write_nabirds(root: Path) -> Path:
    """One picture under four names: three of them test, and whoever finds the same place again is right."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    rows = {name: [] for name in ("images", "sizes", "bounding_boxes", "train_test_split", "parts/part_locs")}
    for image in range(1, 5):
        path = root / "images" / "0817" / f"{image:032x}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize((128, 96), Image.Resampling.NEAREST).save(path)
        rows["images"].append(f"{image} 0817/{path.name}")
        rows["sizes"].append(f"{image} 128 96")
        rows["bounding_boxes"].append(f"{image} 10 20 100 60")
        rows["train_test_split"].append(f"{image} {int(image == 1)}")
        rows["parts/part_locs"] += [f"{image} {part} {x} {y} 1" for part, (x, y) in PARTS.items()]
        rows["parts/part_locs"].append(f"{image} 3 -1 -1 0")
    rows["parts/parts"] = ["0 bill", "1 left wing", "2 right wing", "3 tail"]
    for name, lines in rows.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.slow
def test_the_backbone_is_scored(added, tiny, tmp_path):
    line = [*tiny, "backbone=vgg16", "backbone.pretrained=false", "backbone.size=64", "run_dir=run"]
    done = added("backbone")("semcorr.evaluate", *line)

    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / "run")["pck"]["all"]["image"]["0.1"] > 0
    assert "backbone: vgg16" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_head_trains(added, tiny, tmp_path):
    line = [*tiny, "head=linear", "finetune=frozen", "data.steps=2", "trainer.max_epochs=1", "run_dir=run"]
    done = added("head")("semcorr.train", *line)

    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    (weight,) = (value for key, value in checkpoint["state_dict"].items() if key.endswith("map.weight"))
    assert weight.shape == (48, 48, 1, 1)  # the backbone's channels
    assert not torch.equal(weight[..., 0, 0], torch.eye(48))


@pytest.mark.slow
def test_the_benchmark_is_read_as_it_is_annotated(added, tmp_path):
    root = write_nabirds(tmp_path / "nabirds")
    line = ["data=nabirds", f"data.root={root}", "backbone=tiny", "localise=argmax", "trainer=cpu", "data.workers=0"]
    done = added("benchmark")("semcorr.evaluate", *line, "run_dir=run")

    assert done.returncode == 0, done.stderr
    found = scores(tmp_path / "run")
    assert (found["pairs"], found["keypoints"]) == (6, 18)
    assert found["geometry_aware"]["keypoints"] == pytest.approx(2 / 3)  # the wings
    assert found["pck"]["all"]["image"]["0.15"] == 1
    table = parquet.read_table(tmp_path / "run/predictions.parquet").to_pydict()
    assert set(zip(table["target_x"], table["target_y"], strict=True)) == set(PARTS.values())
    assert set(table["extent"]) == {100}


@pytest.mark.slow
@pytest.mark.parametrize("page", CONTRACTS)
def test_a_new_plug_in_keeps_every_contract(added, tmp_path, page):
    name, files = CONTRACTS[page]
    run = added(page)

    done = run("pytest", "-q", "-p", "no:cacheprovider", "-k", name, *files, cwd=tmp_path / "tree/tests")

    assert done.returncode == 0, done.stdout
