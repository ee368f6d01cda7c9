"""Benchmarks of speed and memory, as ratios to what others do and to what the machine allows, in one run.

`python -m semcorr.benchmark match|evaluate|readouts|head|train|loading|store|conv4d|scaling|startup`; each prints a
table and writes benchmark.json.
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr benchmark`, and return its exit code."""
    from semcorr.cli.verb_line import run_lazy_app

    return run_lazy_app("semcorr.benchmark.command", words, "semcorr benchmark")
