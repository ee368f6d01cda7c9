"""The page, served by a process of its own."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf
from repository import ROOT

from semcorr.cli.compose import compose_config


@contextmanager
def served_page(log: Path, *options: str) -> Iterator[str]:
    """The URL that it printed; ended at the end, as by `kill`."""
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    command = [sys.executable, "-m", "semcorr.app", "--port", "0", "--device", "cpu", *options]
    with log.open("w") as out:
        server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 300
        while not (found := re.search(r"Open (\S+) ", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield found[1]
    finally:
        server.terminate()
        server.wait()


def write_run(folder: Path, *line: str) -> Path:
    """A run directory of an evaluation, as far as a matcher needs it."""
    folder.mkdir(parents=True)
    cfg = OmegaConf.to_container(compose_config("evaluate", line), resolve=True)
    provenance = {"backbone": "random", "weights_sha256": None}
    OmegaConf.save({**cfg, "provenance": provenance}, folder / "config.yaml")
    return folder
