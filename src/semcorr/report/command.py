"""python -m semcorr.report RUNS...: a page, and the same tables as Markdown, CSV and LaTeX."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from semcorr.cli import explaining
from semcorr.core.terminal import Terminal, printable
from semcorr.data.record import PairRecord
from semcorr.errors import UserError
from semcorr.report.categories import categories
from semcorr.report.confused import confused
from semcorr.report.cost import cost
from semcorr.report.curves import curves
from semcorr.report.entries import Entry, entries
from semcorr.report.leaderboard import leaderboard
from semcorr.report.maps import similarity_maps
from semcorr.report.page import page
from semcorr.report.parts import Section
from semcorr.report.pictures import pictures
from semcorr.report.runs import Run, found, read, require_comparable
from semcorr.report.settings_table import settings_table
from semcorr.report.texts import latex, markdown, tidy
from semcorr.staged import require_folder, staged

GONE = "the benchmark's files were not at hand"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Wanted(NamedTuple):
    """What was typed."""

    root: Path | None  # of the benchmark, if it has moved
    seconds: bool
    maps: bool


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", readable=False, help="run_dirs, or a sweep's folder.")
    ],
    out: Annotated[Path, typer.Option("--out", readable=False, help="Folder of what is written.")] = Path("report"),
    root: Annotated[Path | None, typer.Option("--root", readable=False, help="The benchmark, if it has moved.")] = None,
    seconds: Annotated[
        bool, typer.Option(help="Seconds and memory; without, two reports of equal runs are equal.")
    ] = True,
    maps: Annotated[bool, typer.Option(help="Similarity maps, for which the network is built again.")] = True,
) -> None:
    """One page about finished runs, with report.md, report.csv and report.tex of the same digits."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with explaining("evaluate"):
        require_folder(out)
        if root is not None and not root.is_dir():
            raise UserError(f"--root: {root} is no folder. Give the folder of the benchmark")
        folders = found(runs)
        if out.resolve() in [folder.resolve() for folder in folders]:
            raise UserError(f"--out: {out} is one of the runs, and a run_dir holds nothing else. Give another folder")
        comparable = read(folders)
        require_comparable(comparable)
        made = entries(comparable)
        shown = benchmark(made[0].runs[0], root)
        if isinstance(shown, str):
            print(printable(f"Without confusion matrices and pictures: {shown}"), file=sys.stderr)
            shown = GONE  # pages hold no path
        write(out, *content(made, shown, Wanted(root, seconds, maps)))
    Terminal().print(f"{len(comparable)} runs, {len(made)} configurations: {out / 'report.html'}, .md, .csv and .tex")


def content(
    made: Sequence[Entry], shown: Mapping[str, PairRecord] | str, wanted: Wanted
) -> tuple[str, list[str], list[Section]]:
    """Title, what to know first, and the sections."""
    metrics = made[0].runs[0].metrics
    runs = sum(len(entry.runs) for entry in made)
    several = f"{len(made)} configurations in {runs} runs" if runs > len(made) else f"{runs} run{'s'[: runs > 1]}"
    intro = [
        "Semantic correspondence finds, for a point in one image, the same part of another object in a second image: "
        "the left eye of this cat in that photograph. Networks describe the images; the point's description is "
        "compared with every place of the second image, and a read-out turns those similarities into one place.",
        f"This report compares {several} on the split `{metrics['split']}`: {metrics['pairs']:,} pairs of "
        f"{metrics['images']:,} images. The measure is PCK@α, the percentage of keypoints found within α times the "
        "extent (the longer side of the object's box, or of the image where a benchmark says so). All runs are scored "
        f"on the same pairs by the protocol `{metrics['protocol']}`: right if the error is "
        f"{'less than' if metrics.get('strict') else 'at most'} α.",
    ]
    several_rules = sorted({rule for entry in made for run in entry.runs for rule in run.metrics.get("read_outs", {})})
    if several_rules:
        intro.append(f"Some runs hold several read-outs ({', '.join(several_rules)}); the first of each is reported.")
    sections = [leaderboard(made), curves(made), categories(made), cost(made, wanted.seconds), confused(made, shown),
                _pairs(made, shown, wanted), settings_table(made)]  # fmt: skip
    return f"Semantic correspondence on {metrics['split']}", intro, [one for one in sections if one]


def _pairs(made: Sequence[Entry], shown: Mapping[str, PairRecord] | str, wanted: Wanted) -> Section:
    section = pictures(made, shown)
    if isinstance(shown, str) or not wanted.maps:
        return section
    drawn = similarity_maps(made[0], shown, wanted.root)
    if isinstance(drawn, str):
        print(printable(f"Without similarity maps: {drawn}"), file=sys.stderr)
        said = "Similarity maps are left out: the network could not be built again."
        return section._replace(text=f"{section.text} {said}")
    return section._replace(parts=[*section.parts, drawn])


def benchmark(run: Run, root: Path | None) -> Mapping[str, PairRecord] | str:
    """The pairs as their files say, or why they cannot be had."""
    from semcorr.run import benchmark as built
    from semcorr.saved_config import refuse_drawing

    cfg = run.cfg.copy()
    if root is not None:
        cfg.data.root = str(root)
    try:
        if root is None:
            refuse_drawing(cfg.data)
        data = built(cfg, "data", ())
        pairs = {pair.name: pair for pair in data.pairs(data.split)}
    except UserError as error:
        if root is not None:
            raise
        return f"{error} (--root says where the benchmark lies now)"
    odd = set(run.evaluated.rows.pairs) - set(pairs)
    if odd:
        raise UserError(f"{cfg.data.root} does not have the pair {min(odd)}, which was scored. Give --root")
    return pairs


def write(out: Path, title: str, intro: Sequence[str], sections: Sequence[Section]) -> None:
    """All four or none of them."""
    texts = {
        "html": page(title, intro, sections),
        "md": markdown(title, intro, sections),
        "csv": tidy(sections),
        "tex": latex(title, sections),
    }
    with staged(out) as folder:
        for kind, text in texts.items():
            (folder / f"report.{kind}").write_text(text, encoding="utf-8")
