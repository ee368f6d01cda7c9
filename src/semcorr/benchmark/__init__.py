"""Benchmarks of speed and memory, as ratios to what others do and to what the machine allows, in one run.

`python -m semcorr.benchmark match|evaluate|readouts|head|train|loading|store|conv4d|scaling|startup`; each prints a
table and writes benchmark.json.
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr benchmark`, and return its exit code."""
    from semcorr.cli.errors import run_and_report
    from semcorr.cli.verb_line import run_app

    def run() -> int:
        from semcorr.benchmark.command import app  # takes seconds

        return run_app(app, words, "semcorr benchmark")

    return run_and_report(run, words)
