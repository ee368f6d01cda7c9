"""Measure what heads of pairs or of finer grids need: weights, memory to match a pair and to train on one, time.

    python scripts/measure_heads.py                          # all of them, at 30 x 30 cells of 768 channels
    python scripts/measure_heads.py --cells 60 consensus     # one of them, at other sizes
    python scripts/measure_heads.py chm 'cats_plus_plus integrate=true'
    python scripts/measure_heads.py --cells 60 --match cosine upsample decoder 'decoder window=5' continuous

Every head runs in a process of its own, in float32 on the CPU, on random features and 20 points; what counts is the
peak of resident memory above what there was before the pass: features and weights are not in it, gradients of weights
are. It is much the same on a busy machine. Seconds are those of the processor, of one thread, to match a pair.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from semcorr.benchmark.measurement import peak_resident_bytes
from semcorr.core.types import FeatureMap
from semcorr.engine.known_targets import conf_dir
from semcorr.models.heads.consensus import Consensus

HEADS = (
    "consensus",
    "consensus_dual",
    "chm",
    "cats",
    "cats_plus_plus",
    "cats_plus_plus integrate=true",
    "match_to_match",
    "consensus_adaptive",
    "consensus_original",
)
STRIDE, POINTS = 14, 20


def measure_head(name: str, cells: int, channels: int, trains: bool) -> dict[str, float]:
    """Build a head in this process; return its weights, megabytes to match and to train, and seconds to match.

    Args:
        name: Name of the head, with options after spaces, as `cats_plus_plus integrate=true`.
        cells: Cells along a side of both maps.
        channels: Channels of the features.
        trains: Whether training is measured; otherwise its megabytes are NaN, as for a head without weights.
    """
    choice, *options = name.split()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("evaluate", [f"head={choice}", *(f"head.{option}" for option in options)]).head
    given = {key: value for key, value in {"channels": channels, "grid": cells}.items() if key in cfg}
    head = instantiate(OmegaConf.merge(cfg, given))
    source, target = (draw_features(channels, cells) for _ in range(2))
    points = torch.rand(1, POINTS, 2) * cells * STRIDE
    small = draw_features(1, 3)
    Consensus()(small, small, points).sum().backward()  # what PyTorch imports and allocates at the first pass

    def match() -> None:
        with torch.inference_mode():
            head.eval()(source, target, points)

    def train() -> None:
        head.train()(source, target, points).square().sum().backward()

    start = time.process_time()
    megabytes = measure_growth(match)
    seconds = time.process_time() - start
    return {
        "weights": sum(parameter.numel() for parameter in head.parameters()),
        "match": megabytes,
        "train": measure_growth(train) if trains and any(True for _ in head.parameters()) else float("nan"),
        "seconds": seconds,
    }


def draw_features(channels: int, cells: int) -> FeatureMap:
    """Draw the features of one image at random."""
    return FeatureMap(torch.randn(1, channels, cells, cells), STRIDE)


def measure_growth(work: Callable[[], object]) -> float:
    """Return the megabytes of memory that a call takes at its peak, above what there was."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far becomes what is resident now
    before = peak_resident_bytes()
    work()
    return (peak_resident_bytes() - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", default=HEADS, help="names, with options after a space")
    parser.add_argument("--cells", type=int, default=30, help="cells along a side of both maps")
    parser.add_argument("--channels", type=int, default=768, help="channels of the features")
    parser.add_argument("--match", action="store_true", help="leave training out")
    parser.add_argument("--one", action="store_true", help="measure the first in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_head(args.heads[0], args.cells, args.channels, not args.match)))
        return
    print(f"| `head=` | weights | MB to match, {args.cells} x {args.cells} cells | MB to train | s |")
    print("|---|---|---|---|---|")
    for name in args.heads:
        sizes = ["--cells", str(args.cells), "--channels", str(args.channels), *(["--match"] if args.match else [])]
        command = [sys.executable, __file__, "--one", name, *sizes]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(f"{name}: {process.stderr.strip().splitlines()[-1]}")
        row = json.loads(process.stdout.strip().splitlines()[-1])
        choice, *options = name.split()
        command = " ".join([choice, *(f"head.{option}" for option in options)])
        train = "" if math.isnan(row["train"]) else f"{row['train']:.0f}"
        print(f"| `{command}` | {row['weights']:,} | {row['match']:.0f} | {train} | {row['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
