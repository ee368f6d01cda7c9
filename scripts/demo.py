"""Compare a backbone frozen and fine-tuned, on synthetic creatures: `make demo`.

Writes two run directories under runs/demo/<time>, each with its metrics and matches.png.
"""

import sys
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from semcorr.engine.known_targets import conf_dir
from semcorr.evaluate import evaluate
from semcorr.metrics.pck import SUBSETS
from semcorr.train import train

SHARED = ("data", "backbone", "localise", "trainer", "seed")  # keys that the frozen run copies from the experiment


def main(out: Path) -> None:
    """Run both and print their scores side by side."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        tuned = compose("train", ["experiment=demo", f"run_dir={out / 'tuned'}"])
        frozen = compose("evaluate", ["data=synthetic", "backbone=efficientnet_lite0", f"run_dir={out / 'frozen'}"])
    for key in SHARED:
        frozen[key] = tuned[key]
    before, after = evaluate(frozen), train(tuned)
    alphas = list(after["pck"]["all"]["image"])
    table = Table(title="PCK per image, percent, on synthetic creatures never trained on: frozen -> fine-tuned")
    for header in ("", *alphas):
        table.add_column(header, justify="right" if header else "left")
    for subset in SUBSETS:
        rows = (metrics["pck"][subset]["image"] for metrics in (before, after))
        table.add_row(
            subset, *(f"{100 * a:.1f} -> {100 * b:.1f}" for a, b in zip(*(r.values() for r in rows), strict=True))
        )
    Console().print(table, f"Matches: {out / 'tuned' / 'matches.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/demo/{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
