"""The command python -m semcorr.prepare NAME: a benchmark from official archives to a tree that is read and counted.

No data are redistributed: archives come from their authors' addresses, or with --archive.
"""

import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from hydra import compose
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from semcorr.cli.compose import initialize_hydra
from semcorr.cli.errors import report_user_errors, user_message
from semcorr.cli.verb_line import Needs, Without, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import require_writable_file, write_json
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.ranges import NotEmpty, require
from semcorr.core.terminal import Terminal
from semcorr.engine.packages import list_choices

if TYPE_CHECKING:  # a benchmark's class imports torch, which --help does not need
    from semcorr.data.download.install import ArchiveSource, TreeReport
    from semcorr.data.download.recipe import DownloadRecipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class PrepareOptions(NamedTuple):
    """The options of the command line, without the benchmark's name.

    Attributes:
        given: Official files that the user has; they are not downloaded.
        root: Folder of the benchmark; None: its `data.root`.
        verify: Whether to read and count what is there, and to get nothing.
        report: File for the report of `verify`; None: verify.json in the folder.
        yes: Whether to download without a question.
    """

    given: Sequence[Path] = ()
    root: Path | None = None
    verify: bool = False
    report: Path | None = None
    yes: bool = False


@app.command()
def prepare_benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a benchmark, such as spair; or `all`.")],
    archive: Annotated[
        list[Path] | None,
        Without("verify"),
        typer.Option(readable=False, help="Official archive to use instead of a download; repeatable."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of the benchmark; default: its data.root (SEMCORR_DATA)."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Download nothing; verify the existing files.")] = False,
    report: Annotated[
        Path | None, Needs("verify"), typer.Option(help="Output file of --verify; default: ROOT/verify.json.")
    ] = None,
    yes: Annotated[
        bool,
        Without("verify"),
        typer.Option("--yes", "-y", help="Do not ask before downloading; asked only in a terminal."),
    ] = False,
) -> None:
    """Download, unpack and check a benchmark.

    It appears at its root whole or not at all; if it was killed, run the same line again. The exit
    code is 0 if it is there with its official counts, 1 if they differ, 2 if it could not be prepared.
    """
    options = PrepareOptions(archive or [], root, verify, report, yes)
    with report_user_errors("evaluate"):
        code = _prepare_all(options) if name == "all" else _prepare_benchmark(name, options)
    raise typer.Exit(code)


def _prepare_benchmark(name: str, options: PrepareOptions) -> int:
    cfg = compose_benchmark(name)
    if options.root is None:
        require("data_root", cfg.data_root, NotEmpty)
    folder = options.root or Path(cfg.data.root)
    is_official = _verify(name, cfg, folder, options.report) if options.verify else _install(name, cfg, folder, options)
    if not is_official:
        print(f"Error: {name} at {folder} does not have its official counts; --verify shows them", file=sys.stderr)
    return 0 if is_official else 1


def _prepare_all(options: PrepareOptions) -> int:
    """Prepare all benchmarks one after another; a failure does not stop the others."""
    if options.root or options.report:
        raise UserError("`all` goes to every benchmark's own data.root. SEMCORR_DATA=DIR moves them together")
    files = {name: {archive.file for archive in recipe.archives} for name, recipe in list_obtainable().items()}
    expected = set().union(*files.values())
    if unknown := [path for path in options.given if path.name not in expected]:
        raise UserError(f"--archive {unknown[0]}: no benchmark has such a file, only {', '.join(sorted(expected))}")
    codes: dict[str, int] = {}
    advice = "Run the same line again" if options.verify else "Run the same line again to go on"
    with advise_on_interrupt(lambda: f"{len(codes)} of {len(files)} benchmarks are done. {advice}"):
        _prepare_each(options, files, codes)
    if failed := [name for name, code in codes.items() if code]:
        print(f"Error: {len(failed)} of {len(codes)} not as they should be: {', '.join(failed)}", file=sys.stderr)
    return max(codes.values())


def _prepare_each(options: PrepareOptions, files: Mapping[str, Collection[str]], codes: dict[str, int]) -> None:
    """Prepare each benchmark, and store its exit code at once."""
    for name in files:
        try:
            codes[name] = _prepare_benchmark(
                name, options._replace(given=[path for path in options.given if path.name in files[name]])
            )
        except Exception as error:
            if (message := user_message(error, "evaluate")) is None:
                raise
            print(f"Error: {name}: {message}", file=sys.stderr)
            codes[name] = 2


def _install(name: str, cfg: DictConfig, folder: Path, options: PrepareOptions) -> bool:
    """Install a benchmark unless it is installed, and tell whether its counts are the official ones."""
    from semcorr.data.download.install import has_official_counts, install_dataset

    recipe = find_recipe(cfg)
    if recipe is None:
        raise UserError(f"`{name}` has nothing to download. There are {', '.join(list_obtainable())}")
    with advise_on_interrupt(lambda: _describe_interruption(name, folder)):
        report = install_dataset(
            name,
            recipe,
            folder,
            options.given,
            check=lambda tree: check_splits(cfg, tree, folder),
            announce=lambda sources: _announce(name, recipe, folder, sources, options.yes),
        )
        if report is None:
            print(f"{name} is at {folder} already; there is nothing to do")
            return has_official_counts(folder)
        Terminal().print_table(report.table())
        print(f"{name} is at {folder}")
        return not report.failed


def _describe_interruption(name: str, folder: Path) -> str:
    """Describe what an interruption has left."""
    from semcorr.data.download.install import PREPARED

    if (folder / PREPARED).is_file():
        return f"{name} is at {folder}"
    downloads = folder.resolve().with_name(f".{folder.resolve().name}.downloads")
    if any(downloads.glob("*")):
        return "What was downloaded is kept. Run the same line again to go on"
    return "Nothing was written. Run the same line again"


def _announce(name: str, recipe: "DownloadRecipe", folder: Path, sources: "Sequence[ArchiveSource]", yes: bool) -> None:
    from semcorr.data.download.install import format_announcement

    Terminal().print(format_announcement(name, recipe, folder, sources))
    must_ask = sys.stdin.isatty() and not yes and not all(source.local_file for source in sources)
    if must_ask and not typer.confirm("Download?", default=True):
        raise UserError("nothing is downloaded. Give the files with --archive FILE")


def _verify(name: str, cfg: DictConfig, folder: Path, path: Path | None) -> bool:
    """Read an installed benchmark, write the report, and tell whether its counts are the official ones."""
    from semcorr.data.download.install import VERIFIED

    if not folder.is_dir():
        raise UserError(f"{name} is not at {folder}: no such folder. Give --root DIR, or get it without --verify")
    path = path or folder / VERIFIED
    require_writable_file(path, "--report")
    report = check_splits(cfg, folder, folder)
    Terminal().print_table(report.table())
    write_json(path, report.as_json(), "--report")
    return not report.failed


def check_splits(cfg: DictConfig, tree: Path, place: Path) -> "TreeReport":
    """Read and count every split of a benchmark.

    Args:
        cfg: Configuration of the benchmark, as `compose_benchmark` returns it.
        tree: Folder that holds it now.
        place: Its final folder, which the report names in place of `tree`.
    """
    from semcorr.data.download.verify import verify_benchmark

    verified = verify_benchmark(instantiate(cfg.data, root=str(tree), size=cfg.backbone.size))
    checks = [
        check._replace(examples=tuple(example.replace(str(tree), str(place)) for example in check.examples))
        for check in verified.checks
    ]
    report: TreeReport = verified._replace(root=str(place), checks=tuple(checks))
    return report


def compose_benchmark(name: str) -> DictConfig:
    """Compose the configuration of `python -m semcorr.evaluate data=NAME`.

    Raises:
        UserError: No benchmark has this name.
    """
    cfg = _compose(name) if name in _benchmark_names() else None
    if cfg is None or "_target_" not in cfg.data:  # common.yaml is a part of the other files
        similar = difflib.get_close_matches(name.lower(), [*_benchmark_names(), "all"], n=1)
        if similar and similar[0] != name:
            raise UserError(f"no benchmark is called `{name}`. Did you mean {similar[0]}?")
        raise UserError(f"no benchmark is called `{name}`. There are {', '.join(list_obtainable())}, or all")
    return cfg


def list_obtainable() -> "dict[str, DownloadRecipe]":
    """List the benchmarks of conf/data that have a recipe, with their recipes."""
    recipes = {name: find_recipe(_compose_data(name)) for name in _benchmark_names()}
    return {name: recipe for name, recipe in recipes.items() if recipe}


def find_recipe(cfg: DictConfig) -> "DownloadRecipe | None":
    """Return the download recipe of the benchmark's class, or None if it has none."""
    return getattr(get_class(cfg.data._target_), "recipe", None) if "_target_" in cfg.data else None


def _benchmark_names() -> list[str]:
    return list_choices("data")


def _compose(name: str) -> DictConfig:
    with initialize_hydra():
        return compose("evaluate", [f"data={name}"])


def _compose_data(name: str) -> DictConfig:
    """Compose the benchmark's section alone, which takes a tenth of the time."""
    with initialize_hydra():
        return compose(overrides=[f"+data={name}"])


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr prepare`, and return its exit code."""
    return run_app(app, words, "semcorr prepare")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
