"""Benchmarks of speed and memory, as ratios to what others do and to what the machine allows, in one run.

`python -m semcorr.benchmark match|evaluate|readouts|head|train|loading|store|conv4d|scaling|startup`; each prints a
table and writes benchmark.json.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command `semcorr benchmark`."""
    from semcorr.cli.errors import report_user_errors
    from semcorr.cli.verb_line import run_app

    with report_user_errors("evaluate"):  # imports take seconds
        from semcorr.benchmark.command import app

        run_app(app, prog_name="semcorr benchmark")
