"""python -m semcorr.transfer ANNOTATIONS IMAGES: label images, or the frames of a video, by a few annotated ones."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import DEVICE, PRECISION, Needs, OneOf, Without, run_app
from semcorr.core.errors import UserError
from semcorr.core.files import require_output_dir, require_writable_file
from semcorr.core.ranges import Range
from semcorr.core.terminal import escape_controls, print_line

if TYPE_CHECKING:  # they import torch, which --help does not need
    from semcorr.inference.transfer.labels import KeypointLabel
    from semcorr.inference.transfer.objects import Annotations

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def transfer_labels(
    context: typer.Context,
    annotations: Annotated[
        Path,
        typer.Argument(
            metavar="ANNOTATIONS",
            readable=False,
            help="File with the annotated images: COCO, CVAT, Label Studio or DeepLabCut.",
        ),
    ],
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", readable=False, help="Folder with the annotated images and those to label."),
    ],
    video: Annotated[
        Path | None,
        typer.Option("--video", readable=False, help="Video file, or folder of frames, to label in place of images."),
    ] = None,
    first: Annotated[
        int | None,
        Range(least=0),
        Needs("video"),
        typer.Option("--first", help="Number that frame names of a video file start at; default 0."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", readable=False, help="Output file; default labels.json, .xml or .csv, by format."),
    ] = None,
    output_format: Annotated[
        str | None,
        OneOf(("coco", "cvat", "label-studio", "deeplabcut")),
        typer.Option(
            "--format",
            help="Format of --out: coco, cvat, label-studio or deeplabcut; default: the format of ANNOTATIONS.",
        ),
    ] = None,
    use: Annotated[
        str,
        OneOf(("vote", "best")),
        typer.Option("--use", help="vote: all annotated objects vote; best: the best-fitting one alone decides."),
    ] = "vote",
    flip: Annotated[
        bool,
        Without("video"),
        typer.Option("--flip/--no-flip", help="Also match mirrored sources, with left and right swapped."),
    ] = True,
    min_score: Annotated[
        float, Range(least=0, below=1), typer.Option("--min-score", help="Leave out keypoints that score this or less.")
    ] = 0.0,
    place: Annotated[
        float,
        Range(least=0),
        Without("video"),
        typer.Option("--place", help="Weight of the location prior: a keypoint's position within its box."),
    ] = 0.2,
    box: Annotated[
        str,
        OneOf(("xywh", "xyxy")),
        typer.Option("--box", help="Layout of boxes in a COCO file: xywh (standard) or xyxy."),
    ] = "xywh",
    category: Annotated[
        str | None, Without("video"), typer.Option("--category", help="Category of images without annotations.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Skip unreadable images, if annotated ones remain.")
    ] = False,
    draw: Annotated[
        Path | None, typer.Option("--draw", readable=False, help="Folder for pictures of the labels.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Backbone, run_dir, or settings: 'backbone=dinov2 localise=window_9'.")
    ] = None,
    device: Annotated[
        str | None, DEVICE, typer.Option("--device", help="cpu or cuda; default: cuda if available.")
    ] = None,
    precision: Annotated[
        str, PRECISION, typer.Option("--precision", help="Precision of the backbone: 32, bf16 or 16.")
    ] = "32",
) -> None:
    """Label the images of a folder, or the frames of a video, by those that are annotated."""
    with report_user_errors("evaluate"):
        check_transfer_options(use, min_score, place)
        from semcorr.inference.transfer.formats.kinds import resolve_output

        out, kind = resolve_output(out, output_format, annotations)
        check_output(out, annotations)
        if draw is not None:
            check_draw_folder(draw, out, images)
            if video is not None and video.is_dir():
                check_draw_folder(draw, out, video)
        print_line(f"Reading {annotations} and {images}")
        from semcorr.inference.transfer.files import TransferFiles, TransferOptions, label_annotated

        files = TransferFiles(annotations, images, out, kind, video, draw)
        source = context.get_parameter_source("place")
        has_typed_place = source is not None and source.name == "COMMANDLINE"
        options = TransferOptions(use, flip, min_score, place, has_typed_place, box, category, first, skip_broken)
        result = label_annotated(files, options, model, device, precision)
    print_transfer_summary(*result, flip and video is None, f"{out} ({kind})")


def check_transfer_options(use: str, min_score: float, place: float) -> None:
    """Refuse options out of their range, before anything is read; the arguments are those of `transfer_labels`.

    Raises:
        UserError: An option is out of its range.
    """
    if use not in ("vote", "best"):
        raise UserError(f"--use must be vote or best, got {use!r}")
    if not 0 <= min_score < 1:
        raise UserError(f"--min-score must be from 0 to less than 1, got {min_score:g}")
    if not 0 <= place < float("inf"):
        raise UserError(f"--place must be 0 or more, got {place:g}")


def check_output(out: Path, annotations: Path) -> None:
    """Refuse, before anything is read, an output that cannot be written, or is the file of the annotations."""
    if os.path.isdir(out):
        raise UserError(f"--out: {out} is a folder. Give the name of a file")
    if not os.path.isdir(out.parent):
        raise UserError(
            f"--out: {out.parent} is not a folder, so {out} cannot be written. Make it, or give another name"
        )
    require_writable_file(out, "--out")
    if out.resolve() == annotations.resolve():
        raise UserError(f"--out: {out} is the file of the annotations. Give another name")


def check_draw_folder(draw: Path, out: Path, images: Path) -> None:
    """Refuse a folder for pictures that cannot be written, or whose pictures would be labelled by the next transfer.

    Args:
        draw: Folder for the pictures; may be missing.
        out: File of the labels.
        images: Folder of the images that are labelled.

    Raises:
        UserError: The folder cannot be used.
    """
    require_output_dir(draw, "--draw")
    if draw.resolve() == out.resolve():
        raise UserError(f"--draw: {draw} is the file of --out. Give a folder")
    if images.resolve() in (draw.resolve(), *draw.resolve().parents):
        raise UserError(
            f"--draw: {draw} lies in {images}, where the next transfer would label the pictures. Give another folder"
        )


def print_transfer_summary(
    annotations: "Annotations",
    labels: "Sequence[KeypointLabel]",
    skipped_images: Sequence[dict[str, str]],
    flip: bool,
    out: str,
) -> None:
    """Print how many objects were labelled by how many sources, and the share of keypoints found, by category.

    Args:
        annotations: Categories and sources of the labels.
        labels: Labels of all objects.
        skipped_images: `file_name` and `reason` of each image that was left out.
        flip: Whether sources were to be mirrored, too.
        out: File of the labels and its format, as they are printed.
    """
    from semcorr.data.keypoints import flip_from_names
    from semcorr.inference.transfer.objects import category_name

    broken = {entry["file_name"] for entry in skipped_images}
    for category in annotations.categories:
        category_labels = [label for label in labels if label.target.category == category["id"]]
        if category_labels:
            count = len(category["keypoints"])
            share = sum(float(label.valid.float().mean()) for label in category_labels) / len(category_labels)
            order = flip_from_names(category["keypoints"])
            is_mirrored = flip and order is not None and order != tuple(range(count))
            reason = "a keypoint of one side has no twin" if order is None else "no keypoints are named left and right"
            mirrored_note = ", also mirrored" if is_mirrored else ""
            note = f"; not mirrored, as {reason}" if flip and not is_mirrored else ""
            sources = sum(item.photo.name not in broken for item in annotations.sources[category["id"]])
            print(
                f"{escape_controls(category_name(category))}: {len(category_labels)} labelled by "
                f"{sources}{mirrored_note}; {100 * share:.0f} % of {count} keypoints found{note}"
            )
    for entry in skipped_images:
        print(escape_controls(f"left out: {entry['file_name']}: {entry['reason']}"))
    print_line(f"Wrote {out}: {len(labels)} object{'s'[: len(labels) != 1]}")


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr transfer`, and return its exit code."""
    return run_app(app, words, "semcorr transfer")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
