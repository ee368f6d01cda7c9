"""The command python -m semcorr.export RUN: the backbone that a training run tuned, for use elsewhere.

What is written is read back, and its features are compared with the run's, before it gets its final name.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from omegaconf import DictConfig

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import OneOf, run_app
from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.files import move_files, require_writable, temporary_folder, write_error
from semcorr.core.ranges import Pattern
from semcorr.core.terminal import print_line
from semcorr.engine.hub import push_run, require_token
from semcorr.engine.run_lock import lock_folder

if TYPE_CHECKING:  # this imports torch, which --help does not need
    from semcorr.engine.module import CorrespondenceModule

# Their paths in RUN/export.
FORMATS = {"merged": "backbone.safetensors", "peft": "peft", "onnx": "backbone.onnx", "hf": "hf"}
LAST = {"peft": "adapter_config.json", "hf": "config.yaml"}  # in a folder, the file without which it counts for none
HEAD = "head.safetensors"  # beside it, of a head that has weights
CHECKPOINTS = ("best", "last")
SIDES = Pattern(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", "a side in pixels, or HEIGHTxWIDTH, as 448 or 448x672")
LICENSE = Pattern(r"[a-z0-9][a-z0-9.-]{0,63}", "an identifier of a licence, as apache-2.0, cc-by-nc-4.0 or other")
TOLERANCE = 1e-4  # relative to the largest feature

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ExportOptions(NamedTuple):
    """The options of the command line."""

    run: Path  # directory of the run
    format: str  # a key of `FORMATS`
    out: Path  # the file; for peft and hf, the folder
    which: str = "best"  # checkpoint that is exported, one of `CHECKPOINTS`
    size: str | None = None  # of a graph's image, as `448` or `448x672`; None, the run's
    weights: Path | None = None  # file of the base weights; None, the one in the configuration
    force: bool = False  # whether files that exist are replaced
    push: str | None = None  # repository on the Hugging Face Hub to upload to, `user/name`
    license: str = "other"  # identifier of the licence on the model card
    private: bool = False  # whether the repository must be private


@app.command()
def export_backbone(
    run: Annotated[Path, typer.Argument(metavar="RUN", readable=False, help="run_dir of a training run.")],
    format: Annotated[
        str, OneOf(tuple(FORMATS)), typer.Option(help=f"Output format: {', '.join(FORMATS)}.")
    ] = "merged",
    out: Annotated[
        Path | None, typer.Option(readable=False, help="Output file or folder; default: in RUN/export.")
    ] = None,
    which: Annotated[
        str, OneOf(CHECKPOINTS), typer.Option(help=f"Checkpoint to export: {' or '.join(CHECKPOINTS)}.")
    ] = "best",
    size: Annotated[
        str | None, SIDES, typer.Option(help="onnx: image side in pixels, or HEIGHTxWIDTH; default: the run's.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(readable=False, help="File of the pretrained weights, if it has moved.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="hf: upload to this repository, with HF_TOKEN; public or private by USER's default.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="hf: with --push, to a private repository.")] = False,
    license: Annotated[
        str | None, LICENSE, typer.Option(help="hf: licence on the model card, such as apache-2.0; default: other.")
    ] = None,
) -> None:
    """Write the backbone that a training run tuned.

    merged: a safetensors file of the network's own keys, which backbone.weights=FILE reads.
    peft: a folder with the adapter alone, which PeftModel.from_pretrained loads onto the plain network.
    onnx: a graph from an image (1, 3, height, width), RGB in [0, 1], to features (1, c, h, w); it normalises
    the image itself and leaves the features as the backbone gives them, not of unit length.
    hf: a folder for the Hugging Face Hub, which Matcher.load reads: configuration, the trained weights of backbone
    and head as safetensors, and a model card.
    """
    with report_user_errors("train"):
        if format not in FORMATS:
            raise UserError(f"--format must be one of {', '.join(FORMATS)}, got {format}")
        out = out or run / "export" / FORMATS[format]
        of_hub = [name for name, value in (("push", push), ("private", private), ("license", license)) if value]
        if format != "hf" and of_hub:
            raise UserError(f"--{of_hub[0]} goes with --format hf, got --format {format}. Give that, or leave it out")
        if private and not push:
            raise UserError("--private goes with --push. Give --push USER/NAME, or leave it out")
        _run_export(ExportOptions(run, format, out, which, size, weights, force, push, license or "other", private))


def _run_export(options: ExportOptions) -> None:
    if options.which not in CHECKPOINTS:
        raise UserError(f"--which must be one of {', '.join(CHECKPOINTS)}, got {options.which}")
    if options.size is not None and options.format != "onnx":
        raise UserError("--size goes with --format onnx: only a graph has a fixed size")
    if options.format == "onnx":
        require_extra("--format onnx", "onnx", "onnx", "onnxscript")
    token = require_token(options.push) if options.push else ""
    ending = Path(FORMATS[options.format]).suffix
    if ending and options.out.suffix != ending:  # readers recognise the format by it
        raise UserError(f"--out must end with {ending} for --format {options.format}, got {options.out}")
    if options.format == "hf" and options.out.resolve() == options.run.resolve():
        raise UserError(f"--out: {options.out} is the run itself, whose config.yaml would be replaced. Give another")
    from semcorr.engine.rebuild import load_trained_module, read_trained_config

    cfg = read_trained_config(options.run, options.weights)
    _require_weights(options)
    final = options.out / LAST[options.format] if options.format in LAST else options.out
    require_writable(final.parent, "--out")
    _refuse_existing(final, options.force)
    _refuse_base_weights(final, cfg)
    print_line(f"Building the backbone of {options.run}")
    module = load_trained_module(cfg, options.run, options.which)
    provenance = _collect_provenance(module, options)  # before merging, after which no parameter is trainable
    print_line(f"Writing {options.out}, and reading it back")
    in_run = options.run.resolve() in final.resolve().parents
    with (
        lock_folder(options.run, "export") if in_run else nullcontext(),
        place_export(final, options.force) as staged,
    ):
        if options.format != "hf":
            _write_head(module, staged, final, provenance, options.force)
        difference = _write_files(module, cfg, options, staged, provenance)
        if difference is not None and not difference <= TOLERANCE:
            raise UserError(
                f"What {options.out} would hold gives other features than the run (they differ by {difference:.1e} "
                "of the largest), so it was not written. Try another --format."
            )
        names = sorted(path.name for path in staged.parent.iterdir())
    _print_summary(options, provenance, [final.with_name(name) for name in names], difference)
    if options.push:
        print_line(f"Uploading to {options.push}")
        print_line(f"Uploaded: {push_run(options.out, options.push, token, options.private)}")


def _require_weights(options: ExportOptions) -> None:
    """Refuse a run without that checkpoint and a missing file of weights, before the network is built."""
    from semcorr.engine.run_dir import checkpoint_path

    paths = {which: checkpoint_path(options.run, which) for which in CHECKPOINTS}
    existing = [which for which, path in paths.items() if path.is_file()]
    is_frozen = not paths["best"].parent.is_dir() and (options.run / "metrics.json").is_file()
    if is_frozen and options.which != CHECKPOINTS[0]:
        raise UserError(f"--which has no effect: {options.run} is a frozen run, which trained nothing. Leave it out.")
    if options.which not in existing and not is_frozen:
        hint = (
            f"Give --which {existing[0]}."
            if existing
            else f"Go on with it: python -m semcorr.train checkpoint={options.run}"
        )
        raise UserError(f"{paths[options.which]} does not exist: the training has not come so far. {hint}")
    if options.weights is not None and not options.weights.exists():
        raise UserError(f"--weights: {options.weights} does not exist. Give the file of the base's weights.")


def _collect_provenance(module: "CorrespondenceModule", options: ExportOptions) -> dict[str, str]:
    """Return the provenance of the weights."""
    from semcorr import __version__

    return {
        "semcorr": __version__,
        "base": module.backbone.name,
        "base_sha256": module.backbone.sha256,
        "run": str(options.run.resolve()),
        "checkpoint": options.which if module.trainable_state_dict() else "none",
    }


def _write_head(
    module: "CorrespondenceModule", staged: Path, final: Path, provenance: dict[str, str], force: bool
) -> None:
    """Write the weights of the head, unless another format of the same run has left them beside `final`."""
    from semcorr.engine.export import export_head, holds_weights

    path = final.with_name(HEAD)
    if not module.head.state_dict() or (not force and path.is_file() and holds_weights(path, module.head)):
        return
    _refuse_existing(path, force)
    export_head(module.head, staged.with_name(HEAD), provenance)


def _write_files(
    module: "CorrespondenceModule", cfg: DictConfig, options: ExportOptions, path: Path, provenance: dict[str, str]
) -> float | None:
    """Write the files into the folder of `path`; return by how much their features differ, None if unknown."""
    from semcorr.engine.export import export_adapter, export_merged

    backbone = module.backbone
    if options.format == "onnx":
        from semcorr.engine.export import export_onnx, parse_sides

        return export_onnx(backbone, path, parse_sides(backbone, options.size), provenance)
    if not module.trainable_state_dict():
        raise UserError(
            f"{options.run} is a frozen run: it trained nothing, and its backbone has the weights it was built with. "
            "Use those, by backbone.weights=FILE or by name; or --format onnx."
        )
    if options.format == "hf":
        return _write_shared_run(module, cfg, options, path)
    return (export_adapter if options.format == "peft" else export_merged)(backbone, cfg, path, provenance)


def _write_shared_run(module: "CorrespondenceModule", cfg: DictConfig, options: ExportOptions, path: Path) -> float:
    """Write what `Matcher.load` reads, and read it back."""
    from semcorr.engine.export import export_shared_run
    from semcorr.engine.model_card import format_model_card

    name = f"hf://{options.push or 'USER/' + options.run.resolve().name}"
    trained = sum(value.numel() for value in module.trainable_state_dict().values())
    facts = {"trained": f"{trained:,}", "checkpoint": options.which}
    card = format_model_card(cfg, options.run, name, options.license, facts)
    return export_shared_run(cfg, path.parent, options.run, options.which, card)


def _print_summary(
    options: ExportOptions, provenance: dict[str, str], files: list[Path], difference: float | None
) -> None:
    from semcorr.engine.run_dir import checkpoint_path

    for path in files:
        print(f"Wrote {path} ({path.stat().st_size:,} bytes)")
    origin = (
        f"tuned as {checkpoint_path(options.run, options.which)} says"
        if provenance["checkpoint"] != "none"
        else "frozen"
    )
    print(f"{provenance['base']} with base weights of sha256 {provenance['base_sha256'][:12]}, {origin}")
    usage = {
        "merged": f"backbone.weights={options.out}",
        "peft": f'PeftModel.from_pretrained(network, "{options.out}")',
        "onnx": "image: RGB in [0, 1], normalised inside; features: as the backbone gives them, not of unit length",
        "hf": f'Matcher.load("{options.out}")',
    }
    print(usage[options.format])
    if difference is None:
        print("Not checked: onnxruntime is not installed. pip install 'semcorr[onnx]'")
    elif options.format == "hf":
        print("Read back, its weights are those of the run to the bit")
    else:
        print(f"Read back, its features differ from the run's by at most {difference:.1e} of the largest")


@contextmanager
def place_export(final: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file and those beside it; all get their names in the end, the file last.

    Args:
        final: The file.
        force: Whether files that exist are replaced.

    Raises:
        UserError: A file exists and is not to be replaced, or cannot be written.
    """
    parent = next(folder for folder in final.absolute().parents if folder.is_dir())
    try:
        with temporary_folder(parent, final.name) as folder:
            yield folder / final.name
            files = [*folder.iterdir()]
            for path in files:
                _refuse_existing(final.with_name(path.name), force)
                path.chmod(0o666 & ~_get_umask())  # safetensors writes files that only their owner can read
            move_files(folder, final.parent, last=final.name)
    except OSError as error:
        raise UserError(write_error(final, error, "--out")) from None


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UserError(f"{path} exists. Replace it with --force, or choose another place with --out")


def _refuse_base_weights(path: Path, cfg: DictConfig) -> None:
    """Refuse to replace the weights that the run was built on."""
    base = cfg.backbone.get("weights")
    if base and path.resolve() == Path(base).resolve():
        raise UserError(f"--out: {path} is the file of the base's weights, which is read. Choose another place")


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr export`, and return its exit code."""
    return run_app(app, words, "semcorr export")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
