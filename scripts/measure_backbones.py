"""Make the table of docs/backbones.md: the properties of every backbone, and its time for one image here.

    python scripts/measure_backbones.py                 # every file of conf/backbone, into docs/backbones.md
    python scripts/measure_backbones.py dinov2 sam      # these two, on the terminal

Every backbone is built in a process of its own, with random weights, and encodes a black image of 32 x 32 cells:
once with operations counted, then up to three times more within about ten seconds; the shortest time counts. A
network that does not fit into the free memory is counted on PyTorch's meta device, and not timed. The floor is the
time of the same number of multiplications and additions, at the rate of this machine's matrix product.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from semcorr.core.interfaces import Backbone
from semcorr.core.text_files import JsonObject
from semcorr.engine.known_targets import conf_dir
from semcorr.models.backbones.network_facts import read_network_facts

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
START, END = "<!-- made by scripts/measure_backbones.py -->", "<!-- end -->"
LEFT_OUT = ("timm", "transformers", "tiny")  # networks by name, and the one for tests
CELLS = 32
TIME = f"ms at {CELLS} cells"
COLUMNS = (
    "backbone",
    "network",
    "parameters",
    "patch",
    "channels",
    "layers read",
    "size",
    "cells",
    "weights",
    TIME,
    "floor",
)


def describe_backbone(name: str) -> dict[str, object]:
    """Build a backbone in this process and return its row of the table."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("evaluate", [f"backbone={name}"]).backbone
    if "pretrained" in cfg:
        cfg.pretrained = False
    network = cfg.get("name", name).partition(".")[0]
    licence = read_network_facts()[name].licence
    row = {"backbone": f"`{name}`", "network": network, "layers read": list(cfg.get("layers", [])), "weights": licence}
    if estimate_bytes(network) > free_bytes():
        return row | build_on_meta(cfg)
    backbone: Backbone = instantiate(cfg, size=None, grid=CELLS).eval()
    row |= {
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "patch": backbone.stride,
        "channels": backbone.channels,
        "size": cfg.size,
        "cells": cfg.size // backbone.stride,
    }
    return row | time_image(backbone)


def time_image(backbone: Backbone) -> dict[str, float]:
    """Return the milliseconds of one image, and those of its multiplications alone."""
    image, seconds = torch.zeros(1, 3, backbone.size, backbone.size), []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            seconds.append(measure_seconds(lambda: backbone(image)))
        while len(seconds) < 4 and sum(seconds) < 10:
            seconds.append(measure_seconds(lambda: backbone(image)))
    return {TIME: 1000 * min(seconds), "floor": 1000 * counter.get_total_flops() / measure_rate()}


def measure_seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_rate() -> float:
    """Measure the operations per second of a large matrix product."""
    a = torch.rand(2048, 2048)
    return 2 * 2048**3 / min(measure_seconds(lambda: a @ a) for _ in range(10))


def estimate_bytes(network: str) -> float:
    """Return the bytes that a network needs; 0 for all networks that are small enough to be built anywhere."""
    return 30e9 if "7b" in network else 0


def free_bytes() -> float:
    """Return the bytes of available memory."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_on_meta(cfg: DictConfig) -> dict[str, object]:
    """Return the properties of a timm network on the meta device, which takes no memory."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(cfg.name, num_classes=0)
    info = cast("list[JsonObject]", network.feature_info)[-1]
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "patch": info["reduction"],
        "channels": info["num_chs"],
        "size": cfg.size,
        "cells": cfg.size // info["reduction"],
    }


def format_markdown(rows: list[dict[str, object]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([format_cell(row, column) for column in COLUMNS] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def format_cell(row: dict[str, object], column: str) -> str:
    """Format a cell of the table."""
    value = row.get(column)
    if isinstance(value, int | float) and column == "parameters":
        return f"{value / 1e6:,.1f} M"
    if column in (TIME, "floor"):
        return f"{value:,.0f}" if isinstance(value, int | float) else "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(describe_backbone(sys.argv[2])))
        return
    names = sys.argv[1:] or sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml"))
    rows = []
    for name in track([name for name in names if name not in LEFT_OUT], "Backbones"):
        process = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(f"{name}: {process.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(process.stdout.strip().splitlines()[-1]))
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(format_cell(row, column) for column in COLUMNS))
    Console().print(table)
    if not sys.argv[1:]:
        machine = f"{torch.get_num_threads()} threads of {platform.machine()}, PyTorch {torch.__version__}"
        before, _, rest = PAGE.read_text().partition(START)
        after = rest.partition(END)[2]
        note = f"Measured in float32 on {machine}."
        PAGE.write_text(f"{before}{START}\n{format_markdown(rows)}\n\n{note}\n{END}{after}")


if __name__ == "__main__":
    main()
