"""The command python -m semcorr.report RUNS...: a page, and the same tables as Markdown, CSV and LaTeX."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from semcorr.cli.errors import report_user_errors
from semcorr.core.errors import UserError
from semcorr.core.files import atomic_output_dir, require_output_dir
from semcorr.core.terminal import Terminal, escape_controls, print_line
from semcorr.data.record import PairRecord
from semcorr.report.categories import plot_categories
from semcorr.report.choices import plot_choices
from semcorr.report.configurations import Configuration, build_configurations
from semcorr.report.confusion import plot_confusion
from semcorr.report.cost import plot_cost
from semcorr.report.curves import plot_curves
from semcorr.report.difficulty import plot_difficulty
from semcorr.report.document import ReportSection
from semcorr.report.domains import plot_domains
from semcorr.report.examples import plot_examples, plot_similarity_maps
from semcorr.report.heldout import tabulate_heldout
from semcorr.report.leaderboard import build_leaderboard, build_settings_table
from semcorr.report.robustness import plot_robustness
from semcorr.report.runs import FinishedRun, find_runs, read_runs, require_comparable
from semcorr.report.writers import render_csv, render_html, render_latex, render_markdown

PAIRS_UNAVAILABLE = "the benchmark's files were not available"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ReportOptions(NamedTuple):
    """The options of the command line that the sections depend on."""

    root: Path | None  # folder of the benchmark, if it has moved
    seconds: bool  # whether seconds and memory are shown
    maps: bool  # whether similarity maps are drawn, for which the network is built again


@app.command()
def write_report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", readable=False, help="run_dirs, or folders of sweeps.")
    ],
    out: Annotated[Path, typer.Option("--out", readable=False, help="Output folder.")] = Path("report"),
    root: Annotated[
        Path | None, typer.Option("--root", readable=False, help="Folder of the benchmark, if it has moved.")
    ] = None,
    seconds: Annotated[
        bool, typer.Option(help="Show seconds and memory; without, equal runs give equal reports.")
    ] = True,
    maps: Annotated[bool, typer.Option(help="Draw similarity maps, for which the network is built again.")] = True,
) -> None:
    """Write one page about finished runs, and report.md, report.csv and report.tex with the same digits."""
    with report_user_errors("evaluate"):
        require_output_dir(out)
        if root is not None and not root.is_dir():
            raise UserError(f"--root: {root} is not a folder. Give the folder of the benchmark")
        folders = find_runs(runs)
        if out.resolve() in [folder.resolve() for folder in folders]:
            raise UserError(f"--out: {out} is one of the runs, and a run_dir holds nothing else. Give another folder")
        print_line(f"Reading {len(folders)} run{'s'[: len(folders) != 1]}")
        comparable = read_runs(folders)
        require_comparable(comparable)
        configurations = build_configurations(comparable)
        pairs = load_benchmark_pairs(configurations[0].runs[0], root)
        if isinstance(pairs, str):
            print(
                escape_controls(f"Without confusion matrices and pictures, and without scores by difficulty: {pairs}"),
                file=sys.stderr,
            )
            pairs = PAIRS_UNAVAILABLE  # pages hold no path
        write_formats(out, *build_sections(configurations, pairs, ReportOptions(root, seconds, maps)))
    Terminal().print(
        f"{len(comparable)} runs, {len(configurations)} configurations: {out / 'report.html'}, .md, .csv and .tex"
    )


def build_sections(
    entries: Sequence[Configuration], benchmark_pairs: Mapping[str, PairRecord] | str, options: ReportOptions
) -> tuple[str, list[str], list[ReportSection]]:
    """Build the title, the paragraphs of the introduction and the sections of a report.

    Args:
        entries: The configurations, the best first.
        benchmark_pairs: The benchmark's pairs by name, or the reason why they are not available.
        options: Options of the command line.
    """
    metrics = entries[0].runs[0].metrics
    runs = sum(len(entry.runs) for entry in entries)
    summary = f"{len(entries)} configurations in {runs} runs" if runs > len(entries) else f"{runs} run{'s'[: runs > 1]}"
    intro = [
        "Semantic correspondence finds, for a point in one image, the same part of another object in a second image: "
        "the left eye of this cat in that photograph. Networks describe the images; the point's description is "
        "compared with every place of the second image, and a readout turns those similarities into one place.",
        f"This report compares {summary} on the split `{metrics['split']}`: {metrics['pairs']:,} pairs of "
        f"{metrics['images']:,} images. The measure is PCK@α, the percentage of keypoints found within α times the "
        "extent (the longer side of the object's box, or of the image where a benchmark says so). All runs are scored "
        f"on the same pairs by the protocol `{metrics['protocol']}`: right if the error is "
        f"{'less than' if metrics.get('strict') else 'at most'} α.",
    ]
    readouts = sorted(
        {readout for entry in entries for run in entry.runs for readout in run.metrics.get("read_outs", {})}
    )
    if readouts:
        intro.append(f"Some runs hold several readouts ({', '.join(readouts)}); the first of each is reported.")
    sections = [
        build_leaderboard(entries),
        plot_curves(entries),
        plot_choices(entries),
        plot_categories(entries, benchmark_pairs),
        plot_difficulty(entries, benchmark_pairs),
        plot_domains(entries),
        tabulate_heldout(entries),
        plot_robustness(entries),
        plot_cost(entries, options.seconds),
        plot_confusion(entries, benchmark_pairs),
        _plot_pairs(entries, benchmark_pairs, options),
        build_settings_table(entries),
    ]
    return f"Semantic correspondence on {metrics['split']}", intro, [section for section in sections if section]


def _plot_pairs(
    configurations: Sequence[Configuration], pairs: Mapping[str, PairRecord] | str, options: ReportOptions
) -> ReportSection:
    section = plot_examples(configurations, pairs)
    if isinstance(pairs, str) or not options.maps:
        return section
    maps = plot_similarity_maps(configurations[0], pairs, options.root)
    if isinstance(maps, str):
        print(escape_controls(f"Without similarity maps: {maps}"), file=sys.stderr)
        message = "Similarity maps are left out: the network could not be built again."
        return section._replace(text=f"{section.text} {message}")
    return section._replace(parts=[*section.parts, maps])


def load_benchmark_pairs(run: FinishedRun, root: Path | None) -> Mapping[str, PairRecord] | str:
    """Read the pairs of a run's benchmark by their names, or return the reason why they cannot be read.

    Args:
        run: The run.
        root: Folder of the benchmark; None, the one in the run's configuration.

    Raises:
        UserError: The benchmark has no pairs, or not those of the run; or it cannot be read from `root`.
    """
    from semcorr.data.datamodule import PairDataModule
    from semcorr.engine.build import build_datamodule
    from semcorr.engine.saved_config import refuse_generating

    cfg = run.cfg.copy()
    if root is not None:
        cfg.data.root = str(root)
    try:
        if root is None:
            refuse_generating(cfg.data)
        data = build_datamodule(cfg, "data", ())
        pairs = {pair.name: pair for pair in data.pairs(data.split)} if isinstance(data, PairDataModule) else None
    except UserError as error:
        if root is not None:
            raise
        return f"{error} (--root says where the benchmark lies now)"
    if pairs is None:
        raise UserError(f"{run.folder} names a benchmark of videos, which has no pairs. Give run_dirs of runs on pairs")
    unknown = set(run.evaluated.rows.pairs) - set(pairs)
    if unknown:
        raise UserError(f"{cfg.data.root} does not have the pair {min(unknown)}, which was scored. Give --root")
    return pairs


def write_formats(out: Path, title: str, intro: Sequence[str], sections: Sequence[ReportSection]) -> None:
    """Write the report in its four formats: all of them, or none if one fails.

    Args:
        out: Folder of the files; made if it is missing.
        title: Title of the report.
        intro: Paragraphs of the introduction.
        sections: Sections of the report.
    """
    texts = {
        "html": render_html(title, intro, sections),
        "md": render_markdown(title, intro, sections),
        "csv": render_csv(sections),
        "tex": render_latex(title, sections),
    }
    with atomic_output_dir(out) as folder:
        for suffix, text in texts.items():
            (folder / f"report.{suffix}").write_text(text, encoding="utf-8")
