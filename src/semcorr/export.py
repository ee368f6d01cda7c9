"""python -m semcorr.export RUN: the backbone that a training run tuned, for use elsewhere.

Whatever is written is read back, and its features compared with the run's, before it gets its name.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from omegaconf import DictConfig
from rich.console import Console

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import OneOf, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import move_files, require_writable, temporary_folder, write_error
from semcorr.core.ranges import Pattern
from semcorr.engine.run_lock import lock_folder

if TYPE_CHECKING:  # it brings torch, which --help can do without
    from semcorr.engine.module import CorrespondenceModule

FORMATS = {"merged": "backbone.safetensors", "peft": "peft", "onnx": "backbone.onnx"}  # and where they go in RUN/export
CHECKPOINTS = ("best", "last")
SIDES = Pattern(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", "a side in pixels, or HEIGHTxWIDTH, as 448 or 448x672")
TOLERANCE = 1e-4  # of the largest feature

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ExportOptions(NamedTuple):
    """What was asked for."""

    run: Path
    format: str
    out: Path
    which: str = "best"
    size: str | None = None
    weights: Path | None = None
    force: bool = False


@app.command()
def export_backbone(
    run: Annotated[Path, typer.Argument(metavar="RUN", readable=False, help="The run_dir of a training run.")],
    format: Annotated[str, OneOf(tuple(FORMATS)), typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "merged",
    out: Annotated[
        Path | None, typer.Option(readable=False, help="Where it goes, if not into RUN/export_backbone.")
    ] = None,
    which: Annotated[
        str, OneOf(CHECKPOINTS), typer.Option(help=f"Which checkpoint: {' or '.join(CHECKPOINTS)}.")
    ] = "best",
    size: Annotated[
        str | None, SIDES, typer.Option(help="onnx: image side in pixels, or HEIGHTxWIDTH, if not the run's.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(readable=False, help="The base's file, if it has moved.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Write the backbone that a training run tuned.

    merged: a safetensors file of the network's own keys, which backbone.weights=FILE reads.
    peft: a folder with the adapter alone, which PeftModel.from_pretrained loads onto the plain network.
    onnx: a graph from an image (1, 3, height, width), RGB in [0, 1], to features (1, c, h, w); it normalises
    the image itself and leaves the features as the backbone gives them, not of unit length.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with report_user_errors("train"):
        if format not in FORMATS:
            raise UserError(f"--format must be one of {', '.join(FORMATS)}, got {format}")
        _export(ExportOptions(run, format, out or run / "export" / FORMATS[format], which, size, weights, force))


def _export(typed: ExportOptions) -> None:
    if typed.which not in CHECKPOINTS:
        raise UserError(f"--which must be one of {', '.join(CHECKPOINTS)}, got {typed.which}")
    if typed.size is not None and typed.format != "onnx":
        raise UserError("--size goes with --format onnx: only a graph has a fixed size")
    ending = Path(FORMATS[typed.format]).suffix
    if ending and typed.out.suffix != ending:  # readers go by it
        raise UserError(f"--out must end with {ending} for --format {typed.format}, got {typed.out}")
    from semcorr.engine.rebuild import load_trained_module, read_trained_config

    cfg = read_trained_config(typed.run, typed.weights)
    _require_weights(typed)
    final = typed.out / "adapter_config.json" if typed.format == "peft" else typed.out
    require_writable(final.parent, "--out")
    _refuse(final, typed.force)
    _refuse_read(final, cfg)
    with Console(file=sys.stderr).status("") as status:
        status.update(f"Building the backbone of {typed.run}")
        module = load_trained_module(cfg, typed.run, typed.which)
        facts = _facts(module, typed)  # before merging, after which nothing moves
        status.update(f"Writing {typed.out}")
        inside = typed.run.resolve() in final.resolve().parents
        with lock_folder(typed.run, "export") if inside else nullcontext(), place_export(final, typed.force) as beside:
            difference = _write(module, cfg, typed, beside, facts)
            if difference is not None and not difference <= TOLERANCE:
                raise UserError(
                    f"What {typed.out} would hold gives other features than the run (they differ by {difference:.1e} "
                    "of the largest), so it was not written. Try another --format."
                )
            names = sorted(path.name for path in beside.parent.iterdir())
    _tell(typed, facts, [final.with_name(name) for name in names], difference)


def _require_weights(typed: ExportOptions) -> None:
    """Refuse, before the network is built, a run that has no such checkpoint, and a file of weights that is none."""
    from semcorr.engine.checkpoints import checkpoint_path

    paths = {which: checkpoint_path(typed.run, which) for which in CHECKPOINTS}
    there = [which for which, path in paths.items() if path.is_file()]
    is_frozen = not paths["best"].parent.is_dir() and (typed.run / "metrics.json").is_file()
    if is_frozen and typed.which != CHECKPOINTS[0]:
        raise UserError(f"--which has no effect: {typed.run} is a frozen run, which trained nothing. Leave it out.")
    if typed.which not in there and not is_frozen:
        hint = (
            f"Give --which {there[0]}." if there else f"Go on with it: python -m semcorr.train checkpoint={typed.run}"
        )
        raise UserError(f"{paths[typed.which]} does not exist: the training has not come so far. {hint}")
    if typed.weights is not None and not typed.weights.exists():
        raise UserError(f"--weights: {typed.weights} does not exist. Give the file of the base's weights.")


def _facts(module: "CorrespondenceModule", typed: ExportOptions) -> dict[str, str]:
    """Where the numbers come from."""
    from semcorr import __version__

    return {
        "semcorr": __version__,
        "base": module.backbone.name,
        "base_sha256": module.backbone.sha256,
        "run": str(typed.run.resolve()),
        "checkpoint": typed.which if module.trainable_state_dict() else "none",
    }


def _write(
    module: "CorrespondenceModule", cfg: DictConfig, typed: ExportOptions, path: Path, facts: dict[str, str]
) -> float | None:
    """The files, into the folder of `path`. By how much the features that come out of them differ, if that is known."""
    from semcorr.engine.export import export_adapter, export_head, export_merged

    backbone: Any = module.backbone
    export_head(module.head, path.with_name("head.safetensors"), facts)
    if typed.format == "onnx":
        from semcorr.engine.onnx import export_onnx, parse_sides

        return export_onnx(backbone, path, parse_sides(backbone, typed.size), facts)
    if not module.trainable_state_dict():
        raise UserError(
            f"{typed.run} is a frozen run: it trained nothing, and its backbone has the weights it was built with. "
            "Use those, by backbone.weights=FILE or by name; or --format onnx."
        )
    return (export_adapter if typed.format == "peft" else export_merged)(backbone, cfg, path, facts)


def _tell(typed: ExportOptions, facts: dict[str, str], files: list[Path], difference: float | None) -> None:
    for path in files:
        print(f"Wrote {path} ({path.stat().st_size:,} bytes)")
    tuned = f"tuned as {typed.run}/checkpoints/{typed.which}.ckpt says" if facts["checkpoint"] != "none" else "frozen"
    print(f"{facts['base']} with base weights of sha256 {facts['base_sha256'][:12]}, {tuned}")
    use = {
        "merged": f"backbone.weights={typed.out}",
        "peft": f'PeftModel.from_pretrained(network, "{typed.out}")',
        "onnx": "image: RGB in [0, 1], normalised inside; features: as the backbone gives them, not of unit length",
    }
    print(use[typed.format])
    if difference is None:
        print("Not checked: onnxruntime is not installed. pip install semcorr[onnx]")
    else:
        print(f"Read back, its features differ from the run's by at most {difference:.1e} of the largest")


@contextmanager
def place_export(final: Path, force: bool = False) -> Iterator[Path]:
    """A place to write `final` and what goes with it; all get their names when that is done, `final` last."""
    home = next(folder for folder in final.absolute().parents if folder.is_dir())
    try:
        with temporary_folder(home, final.name) as folder:
            yield folder / final.name
            made = [*folder.iterdir()]
            for path in made:
                _refuse(final.with_name(path.name), force)
                path.chmod(0o666 & ~_umask())  # safetensors' own are for their owner's eyes only
            move_files(folder, final.parent, last=final.name)
    except OSError as error:
        raise UserError(write_error(final, error, "--out")) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refuse(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UserError(f"{path} exists. Replace it with --force, or choose another place with --out")


def _refuse_read(path: Path, cfg: DictConfig) -> None:
    """Refuse to replace the weights that the run was built on."""
    base = cfg.backbone.get("weights")
    if base and path.resolve() == Path(base).resolve():
        raise UserError(f"--out: {path} is the file of the base's weights, which is read. Choose another place")


def main() -> None:
    """The command."""
    run_app(app, prog_name="semcorr export")


if __name__ == "__main__":
    main()
