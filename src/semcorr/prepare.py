"""python -m semcorr.prepare NAME: a benchmark from its official archives to a tree that is read and counted.

None of it is ours to pass on: archives come from their authors' addresses, or with --archive.
"""

import difflib
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from semcorr.cli.errors import report_user_errors, user_message
from semcorr.cli.verb_line import Needs, Without, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import require_writable_file, write_json
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.terminal import Terminal
from semcorr.engine.known_targets import conf_dir

if TYPE_CHECKING:  # a benchmark's class brings torch, which --help can do without
    from semcorr.data.download.installed import TreeReport
    from semcorr.data.download.recipe import DownloadRecipe
    from semcorr.data.download.sources import ArchiveSource

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class PrepareOptions(NamedTuple):
    """What was asked for, besides the benchmark."""

    given: Sequence[Path] = ()
    root: Path | None = None
    verify: bool = False
    report: Path | None = None
    yes: bool = False


@app.command()
def prepare_benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of conf/data, or `all`, one after another.")],
    archive: Annotated[
        list[Path] | None,
        Without("verify"),
        typer.Option(readable=False, help="An official file you have, instead of a download. Repeatable."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(readable=False, help="Where it goes, if not to its data.root (SEMCORR_DATA).")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Get nothing; read and count what is there.")] = False,
    report: Annotated[
        Path | None, Needs("verify"), typer.Option(help="Where --verify writes, if not to ROOT/verify.json.")
    ] = None,
    yes: Annotated[
        bool, Without("verify"), typer.Option("--yes", "-y", help="Download unasked. Only a terminal is asked.")
    ] = False,
) -> None:
    """Download, unpack and check a benchmark.

    It appears at its root whole or not at all; if it was killed, run the same line again. The exit
    code is 0 if it is there with its official counts, 1 if they differ, 2 if it could not be prepared.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    typed = PrepareOptions(archive or [], root, verify, report, yes)
    with report_user_errors("evaluate"):
        code = _all(typed) if name == "all" else _one(name, typed)
    raise typer.Exit(code)


def _one(name: str, typed: PrepareOptions) -> int:
    cfg = compose_benchmark(name)
    place = typed.root or Path(cfg.data.root)
    official = _verified(name, cfg, place, typed.report) if typed.verify else _installed(name, cfg, place, typed)
    if not official:
        print(f"Error: {name} at {place} does not have its official counts; --verify shows them", file=sys.stderr)
    return 0 if official else 1


def _all(typed: PrepareOptions) -> int:
    """One after another; what fails stops no other."""
    if typed.root or typed.report:
        raise UserError("`all` goes to every benchmark's own data.root. SEMCORR_DATA=DIR moves them together")
    files = {name: {archive.file for archive in recipe.archives} for name, recipe in list_obtainable().items()}
    expected = set().union(*files.values())
    if strange := [path for path in typed.given if path.name not in expected]:
        raise UserError(f"--archive {strange[0]}: no benchmark has such a file, only {', '.join(sorted(expected))}")
    codes: dict[str, int] = {}
    onward = "Run the same line again" if typed.verify else "Run the same line again to go on"
    with advise_on_interrupt(lambda: f"{len(codes)} of {len(files)} benchmarks are done. {onward}"):
        _each(typed, files, codes)
    if failed := [name for name, code in codes.items() if code]:
        print(f"Error: {len(failed)} of {len(codes)} not as they should be: {', '.join(failed)}", file=sys.stderr)
    return max(codes.values())


def _each(typed: PrepareOptions, files: Mapping[str, Collection[str]], codes: dict[str, int]) -> None:
    """Exit codes of all, as they come."""
    for name in files:
        try:
            codes[name] = _one(name, typed._replace(given=[path for path in typed.given if path.name in files[name]]))
        except Exception as error:
            if (message := user_message(error, "evaluate")) is None:
                raise
            print(f"Error: {name}: {message}", file=sys.stderr)
            codes[name] = 2


def _installed(name: str, cfg: DictConfig, place: Path, typed: PrepareOptions) -> bool:
    """Get it, unless it is there. Whether its counts are the official ones."""
    from semcorr.data.download.install import install_dataset
    from semcorr.data.download.installed import has_official_counts

    recipe = find_recipe(cfg)
    if recipe is None:
        raise UserError(f"`{name}` has nothing to download. To be had: {', '.join(list_obtainable())}")
    with advise_on_interrupt(lambda: _told(name, place)):
        report = install_dataset(
            name,
            recipe,
            place,
            typed.given,
            check=lambda tree: check_splits(cfg, tree, place),
            announce=lambda chosen: _announce(name, recipe, place, chosen, typed.yes),
        )
        if report is None:
            print(f"{name} is at {place} already; there is nothing to do")
            return has_official_counts(place)
        Terminal().print(report.table())
        print(f"{name} is at {place}")
        return not report.failed


def _told(name: str, place: Path) -> str:
    """What an interruption left."""
    from semcorr.data.download.installed import PREPARED

    if (place / PREPARED).is_file():
        return f"{name} is at {place}"
    downloads = place.resolve().with_name(f".{place.resolve().name}.downloads")
    if any(downloads.glob("*")):
        return "What was downloaded is kept. Run the same line again to go on"
    return "Nothing was written. Run the same line again"


def _announce(name: str, recipe: "DownloadRecipe", place: Path, chosen: "Sequence[ArchiveSource]", yes: bool) -> None:
    from semcorr.data.download.sources import format_announcement

    Terminal().print(format_announcement(name, recipe, place, chosen))
    asked = sys.stdin.isatty() and not yes and not all(source.given for source in chosen)
    if asked and not typer.confirm("Download?", default=True):
        raise UserError("nothing is downloaded. Give the files with --archive FILE")


def _verified(name: str, cfg: DictConfig, place: Path, path: Path | None) -> bool:
    """Read what is there, write what was found. Whether its counts are the official ones."""
    from semcorr.data.download.installed import VERIFIED

    if not place.is_dir():
        raise UserError(f"{name} is not at {place}: no such folder. Give --root DIR, or get it without --verify")
    path = path or place / VERIFIED
    require_writable_file(path, "--report")
    report = check_splits(cfg, place, place)
    Terminal().print(report.table())
    write_json(path, report.as_json(), "--report")
    return not report.failed


def check_splits(cfg: DictConfig, tree: Path, place: Path) -> "TreeReport":
    """Every split of `tree`, read and counted; told as what lies at `place`, where it is about to go."""
    from semcorr.data.download.verify import verify_benchmark

    found = verify_benchmark(instantiate(cfg.data, root=str(tree), size=cfg.backbone.size))
    checks = [
        check._replace(examples=tuple(example.replace(str(tree), str(place)) for example in check.examples))
        for check in found.checks
    ]
    report: TreeReport = found._replace(root=str(place), checks=tuple(checks))
    return report


def compose_benchmark(name: str) -> DictConfig:
    """The configuration that `python -m semcorr.evaluate data=NAME` has."""
    cfg = _composed(name) if name in _files() else None
    if cfg is None or "_target_" not in cfg.data:  # common.yaml is a part of the others
        near = difflib.get_close_matches(name.lower(), [*_files(), "all"], n=1)
        if near and near[0] != name:
            raise UserError(f"no benchmark is called `{name}`. Did you mean {near[0]}?")
        raise UserError(f"no benchmark is called `{name}`. To be had: {', '.join(list_obtainable())}, or all")
    return cfg


def list_obtainable() -> "dict[str, DownloadRecipe]":
    """Every benchmark of conf/data with a recipe."""
    recipes = {name: find_recipe(_composed(name)) for name in _files()}
    return {name: recipe for name, recipe in recipes.items() if recipe}


def find_recipe(cfg: DictConfig) -> "DownloadRecipe | None":
    """What the benchmark's class says of where it is to be had."""
    return getattr(get_class(cfg.data._target_), "recipe", None) if "_target_" in cfg.data else None


def _files() -> list[str]:
    return sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml"))


def _composed(name: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("evaluate", [f"data={name}"])


def main() -> None:
    """The command."""
    run_app(app, prog_name="semcorr prepare")


if __name__ == "__main__":
    main()
