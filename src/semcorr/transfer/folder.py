"""Every target of a sheet, streamed: opened, cut out, encoded, and labelled by the sources of its category."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from semcorr.data.groups import flip_from_names
from semcorr.data.pictures import Picture, read_annotated, tell_stored
from semcorr.draw import save
from semcorr.encoding import chunked
from semcorr.errors import UserError
from semcorr.matcher import Matcher
from semcorr.staged import distinct
from semcorr.transfer.carry import Labelled, carry, check_rule, labelled
from semcorr.transfer.coco import Sheet, Thing, called
from semcorr.transfer.cut import cut, holding
from semcorr.transfer.labels import Label, believed, bones, drawn
from semcorr.transfer.vote import PLACE

UNFIT = re.compile(r'[/\\:*?"<>|\x00-\x1f]')  # for a file's name, on one system or another


def labelled_all(
    matcher: Matcher,
    sheet: Sheet,
    use: str = "vote",
    flip: bool = True,
    min_score: float = 0.0,
    place: float = PLACE,
    skipped: list[dict[str, str]] | None = None,
    folder: Path | None = None,
) -> Iterator[Label]:
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
    named = list(zip(sheet.targets, drawn_names(sheet.targets), strict=True))
    with Progress(transient=True) as bar:
        task = bar.add_task("Labelling", total=len(sheet.targets))
        for kind, things in sheet.sources.items():
            targets = [(thing, name) for thing, name in named if thing.category == kind]
            if not targets:
                continue
            sources = _sources(matcher, things, kinds[kind], flip, skipped, stored)
            for some in chunked(targets, matcher.batch):
                yield from _some(matcher, sources, some, kinds[kind], (use, min_score, place), skipped, stored, folder)
                bar.advance(task, len(some))
    tell_stored("transfer", list(dict.fromkeys(stored)))


def drawn_names(targets: Sequence[Thing]) -> list[str]:
    """Of the pictures of labels, each its own: the image's and the object's."""
    wished = [thing.photo.name if thing.id is None else f"{thing.photo.name}.{thing.id}" for thing in targets]
    return [f"{name}.png" for name in distinct([UNFIT.sub("_", name)] for name in wished)]


def _sources(
    matcher: Matcher,
    things: Sequence[Thing],
    kind: Mapping[str, Any],
    flip: bool,
    skipped: list[dict[str, str]] | None,
    stored: list[str],
) -> list[Labelled]:
    """All whose images can be read."""
    found: list[Labelled] = []
    for thing in things:
        if (whole := _opened(thing, skipped, stored)) is not None:
            found += source(matcher, thing, kind, flip, whole)
    if not found:
        raise UserError(f"None of the annotated images of {called(kind)} can be read. Restore one of them, at least")
    return found


def source(
    matcher: Matcher, thing: Thing, kind: Mapping[str, Any], flip: bool, whole: Picture | None = None
) -> list[Labelled]:
    """An annotated object, and with `flip` its mirror image; cut out so that every keypoint is inside.

    Args:
        matcher: Encodes both.
        thing: The object.
        kind: Its category.
        flip: Where its keypoints have sides.
        whole: Its image, if that is open.
    """
    whole = whole or opened(thing)
    width, height = whole.size
    most = torch.tensor([width, height]) - 0.5
    shown = thing.points[thing.shown]
    if bool(((shown < -1.5) | (shown > most + 1)).any()):  # within a pixel: other conventions of what 0 is
        raise UserError(
            f"The annotation {thing.id} of {thing.photo.name} has keypoints outside the image, which is "
            f"{width} x {height} pixels. Correct them"
        )
    points = thing.points.clamp(min=-0.5).minimum(most)
    part = cut(whole, None if thing.box is None else holding(thing.box, points[thing.shown]))
    order = flip_from_names(kind["keypoints"])
    also = order if flip and order != tuple(range(len(order))) else None  # no sides, no mirror image
    return labelled(matcher, part, points, thing.shown, thing.id, also, boxed=thing.box is not None)


def _some(
    matcher: Matcher,
    sources: Sequence[Labelled],
    targets: Sequence[tuple[Thing, str]],
    kind: Mapping[str, Any],
    how: tuple[str, float, float],
    skipped: list[dict[str, str]] | None,
    stored: list[str],
    folder: Path | None,
) -> Iterator[Label]:
    """As many as are encoded at once."""
    use, min_score, place = how
    things = [(thing, name, one) for thing, name in targets if (one := _opened(thing, skipped, stored)) is not None]
    parts = [cut(one, thing.box) for thing, _, one in things]
    for (thing, name, one), part, target in zip(
        things, parts, matcher.encoded([part.picture for part in parts]), strict=True
    ):
        found = carry(matcher, sources, target, use, 0.0 if thing.box is None else place)
        points, scores = part.out_of(found.points), found.scores.round(decimals=4)  # as they are written
        said = believed(sources, found.weights)
        label = Label(thing, one.size, points, scores, scores > min_score, said)
        if folder is not None:
            save(drawn(part.picture, found.points, label, bones(kind)), folder / name)
        yield label


def opened(thing: Thing, stored: list[str] | None = None) -> Picture:
    """Its image, the way round that its annotations are of, by the size that they give.

    Args:
        thing: The object.
        stored: The image's name is added, if that is as it is stored, and not upright.
    """
    found, upright = read_annotated(thing.photo.path, thing.photo.size)
    if stored is not None and not upright:
        stored.append(thing.photo.name)
    return found


def _opened(thing: Thing, skipped: list[dict[str, str]] | None, stored: list[str]) -> Picture | None:
    try:
        return opened(thing, stored)
    except UserError as error:
        if skipped is None:
            raise UserError(f"{error}. With --skip-broken it is left out") from None
        if (note := {"file_name": thing.photo.name, "reason": str(error)}) not in skipped:  # of its other objects
            skipped.append(note)
        return None
