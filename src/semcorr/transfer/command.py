"""python -m semcorr.transfer ANNOTATIONS IMAGES: a few annotated images of a category label all the others."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semcorr.cli import explaining
from semcorr.core.files import require_writable_file, write_text
from semcorr.core.ranges import Within
from semcorr.core.terminal import Terminal, printable
from semcorr.errors import UserError
from semcorr.staged import refuse_inputs, require_folder, staged
from semcorr.verb_line import DEVICE, PRECISION, OneOf

if TYPE_CHECKING:  # they bring torch, which --help can do without
    from semcorr.transfer.coco import Sheet
    from semcorr.transfer.labels import Label

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def transfer(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", readable=False, help="COCO keypoints of some.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", readable=False, help="Folder of these and others.")],
    out: Annotated[Path, typer.Option("--out", readable=False, help="COCO keypoints of the others.")] = Path(
        "labels.json"
    ),
    use: Annotated[
        str, OneOf(("vote", "best")), typer.Option("--use", help="vote: of all sources; best: the best-fitting one.")
    ] = "vote",
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Sources also mirrored, left for right.")] = True,
    min_score: Annotated[
        float, Within(least=0, below=1), typer.Option("--min-score", help="A keypoint is found if it scores more.")
    ] = 0.0,
    place: Annotated[
        float, Within(least=0), typer.Option("--place", help="Worth of lying where sources have it in their boxes.")
    ] = 0.2,
    box: Annotated[
        str, OneOf(("xywh", "xyxy")), typer.Option("--box", help="Boxes are xywh, as COCO's; or xyxy.")
    ] = "xywh",
    category: Annotated[str | None, typer.Option("--category", help="Of images without any annotation.")] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out what is no image, if sources remain.")
    ] = False,
    draw: Annotated[Path | None, typer.Option("--draw", readable=False, help="Folder for pictures of labels.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A backbone, a run, or a line: 'backbone=dinov2 localise=window_9'.")
    ] = None,
    device: Annotated[str | None, DEVICE, typer.Option("--device", help="cpu or cuda; cuda, if there is one.")] = None,
    precision: Annotated[str, PRECISION, typer.Option("--precision", help="Of features: 32, bf16 or 16.")] = "32",
) -> None:
    """Label the images of a folder by those that are annotated."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with explaining("evaluate"):
        check(use, min_score, place, out, annotations)
        if draw is not None:
            check_drawn(draw, out, images)
        from semcorr.data.pictures import counting_frames
        from semcorr.matcher import Matcher
        from semcorr.matcher.restore import arguments, on

        arguments(model)
        on(device)
        from semcorr.transfer.coco import read_sheet, things_of
        from semcorr.transfer.folder import drawn_names, labelled_all
        from semcorr.transfer.labels import as_coco

        sheet = read_sheet(annotations, images, box, category)
        read = [thing.photo.path for thing in things_of(sheet)]
        refuse_inputs(out.parent, [out.name], read)
        if draw is not None:
            refuse_inputs(draw, drawn_names(sheet.targets), read, "--draw")
        matcher = Matcher.load(model, device=device, precision=precision)
        skipped: list[dict[str, str]] | None = [] if skip_broken else None
        with counting_frames(images), nullcontext() if draw is None else staged(draw, "--draw") as folder:
            labels = list(labelled_all(matcher, sheet, use, flip, min_score, place, skipped, folder))
        content = as_coco(sheet, labels, skipped or [], " ".join(arguments(model)))
        write_text(out, json.dumps(content, allow_nan=False) + "\n", "--out")
    tell(sheet, labels, skipped or [], flip, out)


def check(use: str, min_score: float, place: float, out: Path, annotations: Path) -> None:
    """Refuse a mistake before anything is read."""
    if use not in ("vote", "best"):
        raise UserError(f"--use must be vote or best, got {use!r}")
    if not 0 <= min_score < 1:
        raise UserError(f"--min-score must be from 0 to less than 1, got {min_score:g}")
    if not 0 <= place < float("inf"):
        raise UserError(f"--place must be 0 or more, got {place:g}")
    if os.path.isdir(out) or not os.path.isdir(out.parent):
        raise UserError(f"--out: {out} is a folder, or is in none. Give the name of a JSON file")
    require_writable_file(out, "--out")
    if out.resolve() == annotations.resolve():
        raise UserError(f"--out: {out} is the file of the annotations. Give another name")


def check_drawn(draw: Path, out: Path, images: Path) -> None:
    """Refuse a folder for pictures that cannot be written, or where they would stand in the way."""
    require_folder(draw, "--draw")
    if draw.resolve() == out.resolve():
        raise UserError(f"--draw: {draw} is the file of --out. Give a folder")
    if images.resolve() in (draw.resolve(), *draw.resolve().parents):
        raise UserError(
            f"--draw: {draw} lies in {images}, where the next transfer would label the pictures. Give another folder"
        )


def tell(sheet: "Sheet", labels: "Sequence[Label]", skipped: Sequence[dict[str, str]], flip: bool, out: Path) -> None:
    """By category, how many of what."""
    from semcorr.data.groups import flip_from_names
    from semcorr.transfer.coco import called

    broken = {one["file_name"] for one in skipped}
    for kind in sheet.categories:
        mine = [label for label in labels if label.thing.category == kind["id"]]
        if mine:
            count = len(kind["keypoints"])
            share = sum(float(label.found.float().mean()) for label in mine) / len(mine)
            sided = flip_from_names(kind["keypoints"]) != tuple(range(count))
            also = ", also mirrored" if flip and sided else ""
            note = "; not mirrored, as no keypoints are named left and right" if flip and not sided else ""
            sources = sum(thing.photo.name not in broken for thing in sheet.sources[kind["id"]])
            print(
                f"{printable(called(kind))}: {len(mine)} labelled by {sources}{also}; "
                f"{100 * share:.0f} % of {count} keypoints found{note}"
            )
    for one in skipped:
        print(printable(f"left out: {one['file_name']}: {one['reason']}"))
    Terminal().print(f"{len(labels)} objects labelled: {out}", soft_wrap=True)
