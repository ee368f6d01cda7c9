"""Every target of a sheet, streamed: opened, cut out, encoded, and labelled by the sources of its category."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from semcorr.core.errors import UserError
from semcorr.core.output_dir import unique_names
from semcorr.data.keypoints import flip_from_names
from semcorr.data.pictures import Picture, read_annotated, warn_stored_orientation
from semcorr.inference import Matcher
from semcorr.inference.transfer.annotations import AnnotatedObject, CocoAnnotations, category_name
from semcorr.inference.transfer.crop import crop_picture, enlarge_box
from semcorr.inference.transfer.labels import KeypointLabel, contributing_sources, draw_label_picture, skeleton_edges
from semcorr.inference.transfer.propagate import LabelledSource, check_rule, encode_source, propagate
from semcorr.inference.transfer.vote import PLACE
from semcorr.store.encode import split_into_chunks
from semcorr.visualization.predictions import save_plot

UNFIT = re.compile(r'[/\\:*?"<>|\x00-\x1f]')  # for a file's name, on one system or another


def label_folder(
    matcher: Matcher,
    sheet: CocoAnnotations,
    use: str = "vote",
    flip: bool = True,
    min_score: float = 0.0,
    place: float = PLACE,
    skipped: list[dict[str, str]] | None = None,
    folder: Path | None = None,
) -> Iterator[KeypointLabel]:
    """Targets one after the other; of one category at a time the sources are kept.

    Args:
        matcher: What finds keypoints.
        sheet: Sources and targets.
        use: `vote` or `best`.
        flip: Sources are also used mirrored, where keypoints are named left and right.
        min_score: Keypoints with more are found.
        place: What lying where the sources have it in their boxes is worth, in similarity; of targets with a box.
        skipped: Broken images are noted here and left out, while a source remains; None: they are refused.
        folder: For pictures.
    """
    check_rule(matcher)
    stored: list[str] = []
    kinds = {kind["id"]: kind for kind in sheet.categories}
    named = list(zip(sheet.targets, label_picture_names(sheet.targets), strict=True))
    with Progress(transient=True) as bar:
        task = bar.add_task("Labelling", total=len(sheet.targets))
        for kind, things in sheet.sources.items():
            targets = [(thing, name) for thing, name in named if thing.category == kind]
            if not targets:
                continue
            sources = _sources(matcher, things, kinds[kind], flip, skipped, stored)
            for some in split_into_chunks(targets, matcher.batch):
                yield from _some(matcher, sources, some, kinds[kind], (use, min_score, place), skipped, stored, folder)
                bar.advance(task, len(some))
    warn_stored_orientation("transfer", list(dict.fromkeys(stored)))


def label_picture_names(targets: Sequence[AnnotatedObject]) -> list[str]:
    """Of the pictures of labels, each its own: the image's and the object's."""
    wished = [thing.photo.name if thing.id is None else f"{thing.photo.name}.{thing.id}" for thing in targets]
    return [f"{name}.png" for name in unique_names([UNFIT.sub("_", name)] for name in wished)]


def _sources(
    matcher: Matcher,
    things: Sequence[AnnotatedObject],
    kind: Mapping[str, Any],
    flip: bool,
    skipped: list[dict[str, str]] | None,
    stored: list[str],
) -> list[LabelledSource]:
    """All whose images can be read."""
    found: list[LabelledSource] = []
    for thing in things:
        if (whole := _opened(thing, skipped, stored)) is not None:
            found += open_source(matcher, thing, kind, flip, whole)
    if not found:
        raise UserError(
            f"None of the annotated images of {category_name(kind)} can be read. Restore one of them, at least"
        )
    return found


def open_source(
    matcher: Matcher, thing: AnnotatedObject, kind: Mapping[str, Any], flip: bool, whole: Picture | None = None
) -> list[LabelledSource]:
    """An annotated object, and with `flip` its mirror image; cut out so that every keypoint is inside.

    Args:
        matcher: Encodes both.
        thing: The object.
        kind: Its category.
        flip: Where its keypoints have sides.
        whole: Its image, if that is open.
    """
    whole = whole or open_object_image(thing)
    width, height = whole.size
    most = torch.tensor([width, height]) - 0.5
    shown = thing.points[thing.shown]
    if bool(((shown < -1.5) | (shown > most + 1)).any()):  # within a pixel: other conventions of what 0 is
        raise UserError(
            f"The annotation {thing.id} of {thing.photo.name} has keypoints outside the image, which is "
            f"{width} x {height} pixels. Correct them"
        )
    points = thing.points.clamp(min=-0.5).minimum(most)
    part = crop_picture(whole, None if thing.box is None else enlarge_box(thing.box, points[thing.shown]))
    order = flip_from_names(kind["keypoints"])
    also = order if flip and order != tuple(range(len(order))) else None  # no sides, no mirror image
    return encode_source(matcher, part, points, thing.shown, thing.id, also, boxed=thing.box is not None)


def _some(
    matcher: Matcher,
    sources: Sequence[LabelledSource],
    targets: Sequence[tuple[AnnotatedObject, str]],
    kind: Mapping[str, Any],
    how: tuple[str, float, float],
    skipped: list[dict[str, str]] | None,
    stored: list[str],
    folder: Path | None,
) -> Iterator[KeypointLabel]:
    """As many as are encoded at once."""
    use, min_score, place = how
    things = [(thing, name, one) for thing, name in targets if (one := _opened(thing, skipped, stored)) is not None]
    parts = [crop_picture(one, thing.box) for thing, _, one in things]
    for (thing, name, one), part, target in zip(
        things, parts, matcher.encoded([part.picture for part in parts]), strict=True
    ):
        found = propagate(matcher, sources, target, use, 0.0 if thing.box is None else place)
        points, scores = part.out_of(found.points), found.scores.round(decimals=4)  # as they are written
        said = contributing_sources(sources, found.weights)
        label = KeypointLabel(thing, one.size, points, scores, scores > min_score, said)
        if folder is not None:
            save_plot(draw_label_picture(part.picture, found.points, label, skeleton_edges(kind)), folder / name)
        yield label


def open_object_image(thing: AnnotatedObject, stored: list[str] | None = None) -> Picture:
    """Its image, the way round that its annotations are of, by the size that they give.

    Args:
        thing: The object.
        stored: The image's name is added, if that is as it is stored, and not upright.
    """
    found, upright = read_annotated(thing.photo.path, thing.photo.size)
    if stored is not None and not upright:
        stored.append(thing.photo.name)
    return found


def _opened(thing: AnnotatedObject, skipped: list[dict[str, str]] | None, stored: list[str]) -> Picture | None:
    try:
        return open_object_image(thing, stored)
    except UserError as error:
        if skipped is None:
            raise UserError(f"{error}. With --skip-broken it is left out") from None
        if (note := {"file_name": thing.photo.name, "reason": str(error)}) not in skipped:  # of its other objects
            skipped.append(note)
        return None
