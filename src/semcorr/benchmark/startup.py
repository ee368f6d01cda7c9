"""How long it takes until anything happens: fresh processes, beside the import of PyTorch alone."""

import subprocess
import sys
import time

from semcorr.benchmark.measure import resident_peak
from semcorr.benchmark.report import Outcome, Row, rate, times
from semcorr.errors import UserError

TORCH = ("-c", "import torch")
LINES = {
    "python -m semcorr.train --help": ("-m", "semcorr.train", "--help"),
    "python -c 'import semcorr'": ("-c", "import semcorr"),
    "python -c 'import semcorr.module'": ("-c", "import semcorr.module"),
}


def startup(tries: int) -> Outcome:
    """The best of some tries of each, in turns: what is busy beside them hits all of them."""
    if tries < 1:
        raise UserError(f"--tries must be at least 1, got {tries}")
    commands = {"python -c 'import torch'": TORCH, **LINES}
    seconds = {line: float("inf") for line in commands}
    for _ in range(tries):
        for line, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[line] = min(seconds[line], time.perf_counter() - start)
    torch, *ours = seconds.items()
    rows = [Row(line, "", f"{rate(found)} s", times(torch[1] / found), f"{rate(torch[1])} s") for line, found in ours]
    content = {
        "ratio": torch[1] / seconds["python -m semcorr.train --help"], "seconds": seconds,
        "floor": {"seconds": torch[1]}, "peak": {"memory_mb": resident_peak() / 1e6},
    }  # fmt: skip
    caption = f"Best of {tries} fresh processes each. Floor: {torch[0]}, which every framework on PyTorch waits for."
    return Outcome("Start", rows, caption, content)
