"""Labels through a clip: each frame is matched with the annotated ones, so nothing drifts, and a cut does no harm."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.terminal import Stage
from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import Id
from semcorr.data.pictures import warn_stored_orientation
from semcorr.inference import Matcher
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.transfer.annotations import group_sources, read_objects
from semcorr.inference.transfer.frames import Clip, ClipFrame, open_clip, require_clip
from semcorr.inference.transfer.labels import KeypointLabel, contributing_sources
from semcorr.inference.transfer.objects import (
    AnnotatedObject,
    Annotations,
    TransferImage,
    build_object,
    category_name,
)
from semcorr.inference.transfer.pipeline import limit_points, open_or_skip, require_sources
from semcorr.inference.transfer.propagate import LabelledSource, check_readout, propagate
from semcorr.visualization.clip_sheet import ClipSheet
from semcorr.visualization.predictions import save_plot

log = logging.getLogger(__name__)

OVERVIEW = "overview.png"
MAJORITY = 0.5  # share of the sources' weight to which a visible point matches back


class Track(NamedTuple):
    """An object that is followed: its category, and what is annotated of it in some frames."""

    category: JsonMapping
    sources: Sequence[AnnotatedObject]

    def target(self, photo: TransferImage) -> AnnotatedObject:
        """Return the object in a frame, of which nothing is annotated."""
        points = [None] * len(self.category["keypoints"])
        return build_object(None, photo, self.category["id"], None, points, self.sources[0].individual)


class AnnotatedClip(NamedTuple):
    """A clip and the objects that are followed through it."""

    clip: Clip
    tracks: Sequence[Track]
    annotations: Annotations  # targets: of a folder all; of a file, whose length is not known, those of the first frame


def read_clip(path: Path, folder: Path, video: Path, layout: str = "xywh", first: int | None = None) -> AnnotatedClip:
    """Read the annotated frames of a clip, and which frames are to be labelled.

    Args:
        path: Annotation file, as for `semcorr.inference.transfer.annotations.read_annotations`.
        folder: Folder of the annotated frames.
        video: Folder of all frames, or video file.
        layout: Layout of COCO's boxes: `xywh` or `xyxy`.
        first: Number of a video file's first frame in the names of frames; None: 0.

    Raises:
        UserError: The file contradicts itself or the folder, nothing is annotated, or there is no frame to label.
    """
    require_clip(video, first)
    content = read_objects(path, folder, layout)
    sources = group_sources(content.objects, path)
    boxes = len(content.objects) - sum(map(len, sources.values()))
    if boxes:
        log.warning("%s: boxes of %d objects without keypoints are not used: frames are matched whole", path, boxes)
    tracks = build_tracks(sources, content.categories, path)
    annotated = dict.fromkeys(source.photo.id for objects in sources.values() for source in objects)
    clip = open_clip(video, folder, content.images, annotated, first)
    targets = [
        track.target(photo)
        for track in tracks
        for photo in (clip.photos if clip.photos is not None else [clip.first_photo])
        if clip.photos is None or not is_annotated(track, photo)
    ]
    if not targets:
        raise UserError(f"Every frame of {video} is annotated in {path}: there is none to be labelled. Add some")
    return AnnotatedClip(clip, tracks, Annotations(list(content.categories.values()), sources, targets, content.tool))


def build_tracks(
    sources: Mapping[Id, Sequence[AnnotatedObject]], categories: Mapping[Id, JsonMapping], path: Path
) -> list[Track]:
    """Return the objects to follow: each individual that has a name; else one of each category, or all of one frame.

    Raises:
        UserError: Several objects of a category are annotated in several frames: which is which, no file says.
    """
    tracks = []
    for category_id, objects in sources.items():
        category = categories[category_id]
        photos = {item.photo.path.resolve() for item in objects}
        names = dict.fromkeys(item.individual for item in objects)
        if None not in names:
            tracks += [Track(category, [item for item in objects if item.individual == name]) for name in names]
        elif len(photos) == len(objects):
            tracks.append(Track(category, objects))
        elif len(photos) == 1:
            tracks += [Track(category, [item]) for item in objects]
        else:
            raise UserError(
                f"{path}: several objects of {category_name(category)} are annotated in several frames, and which of "
                "them are the same is not known. Annotate them in one frame, or give each a category of its own"
            )
    return tracks


def is_annotated(track: Track, photo: TransferImage) -> bool:
    """Tell whether an object is annotated in a frame."""
    return any(source.photo.id == photo.id or source.photo.path == photo.path for source in track.sources)


def label_clip(
    matcher: Matcher,
    content: AnnotatedClip,
    use: str = "vote",
    min_score: float = 0.0,
    skipped_images: list[dict[str, str]] | None = None,
    sheet: ClipSheet | None = None,
) -> Iterator[KeypointLabel]:
    """Label the frames of a clip in order, with those of one batch in memory at a time.

    A keypoint is found if, matched back, it returns to the annotated ones (occlusion by cycle consistency, as
    `data.occlusion=cycle` of TAP-Vid), and its score is sufficient.

    Args:
        matcher: Matcher that finds the keypoints.
        content: The clip and its annotated frames.
        use: `vote` for all annotated frames, weighted by their fit; `best` for the best-fitting one.
        min_score: Score above which a keypoint counts as found.
        skipped_images: List to which broken frames are added; None refuses them.
        sheet: Overview to which all frames are added.

    Raises:
        UserError: A frame is broken, or none is left to label.
    """
    check_readout(matcher)
    unrotated_images: list[str] = []
    count = None if content.clip.photos is None else len(content.clip.photos)
    text = "frames" if count is None else f"{count:,} frame{'s'[: count != 1]}"
    with Stage(f"Labelling {text} on {matcher.device}", count) as stage:
        sources, labelled = encode_sources(matcher, content.tracks, skipped_images, unrotated_images), False
        for frame, target in encode_frames(matcher, content.clip.read(skipped_images, unrotated_images)):
            labels = [
                label_frame(matcher, track, track_sources, frame, target, use, min_score)
                for track, track_sources in zip(content.tracks, sources, strict=True)
                if not is_annotated(track, frame.photo)
            ]
            if sheet is not None:
                add_to_sheet(sheet, content.tracks, frame, labels)
            yield from labels
            labelled |= bool(labels)
            stage.advance()
    if not labelled:
        raise UserError(f"No frame of {content.clip.path} is labelled: all are annotated, or broken. Add some")
    warn_stored_orientation("transfer", list(dict.fromkeys(unrotated_images)))


def encode_sources(
    matcher: Matcher,
    tracks: Sequence[Track],
    skipped_images: list[dict[str, str]] | None,
    unrotated_images: list[str],
) -> list[list[LabelledSource]]:
    """Encode every annotated frame once and whole, as the others are; return the sources of each track.

    Args:
        matcher: Matcher that encodes the frames.
        tracks: Objects that are followed.
        skipped_images: List to which broken frames are added, while a track has others; None refuses them.
        unrotated_images: List to which the names of frames are added whose annotations are as stored.
    """
    encoded: dict[Id, EncodedPicture | None] = {}  # None: broken
    sources: list[list[LabelledSource]] = []
    for track in tracks:
        sources.append([])
        for item in track.sources:
            if item.photo.id not in encoded:
                opened = open_or_skip(item, skipped_images, unrotated_images)
                encoded[item.photo.id] = None if opened is None else matcher.encode(opened)
            if (picture := encoded[item.photo.id]) is None:
                continue
            points = picture.placement.to_view(limit_points(item, picture.size)).to(matcher.device)
            sources[-1].append(LabelledSource(picture, points, item.keypoint_mask.to(matcher.device), item.id))
        require_sources(sources[-1], track.category)
    return sources


def encode_frames(matcher: Matcher, frames: Iterable[ClipFrame]) -> Iterator[tuple[ClipFrame, EncodedPicture]]:
    """Encode frames, `matcher.batch` at once."""
    iterator = iter(frames)
    while chunk := list(islice(iterator, matcher.batch)):
        yield from zip(chunk, matcher.encode_all([frame.picture for frame in chunk]), strict=True)


def label_frame(
    matcher: Matcher,
    track: Track,
    sources: Sequence[LabelledSource],
    frame: ClipFrame,
    target: EncodedPicture,
    use: str,
    min_score: float,
) -> KeypointLabel:
    """Label an object in a frame by those where it is annotated.

    Args:
        matcher: Matcher that finds the keypoints.
        track: The object.
        sources: Its annotated frames, encoded.
        frame: The frame.
        target: The same frame, encoded.
        use: `vote` for all annotated frames, weighted by their fit; `best` for the best-fitting one.
        min_score: Score above which a keypoint counts as found, if it is also visible.
    """
    keypoints = propagate(matcher, sources, target, use)
    scores = keypoints.scores.round(decimals=4)  # rounded as in the file
    valid = is_visible(keypoints.returned) & (scores > min_score)
    contributions = contributing_sources(sources, keypoints.weights)
    return KeypointLabel(track.target(frame.photo), frame.picture.size, keypoints.points, scores, valid, contributions)


def is_visible(returned: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Tell which keypoints are visible: those that match back to most of what they were matched from.

    >>> is_visible(torch.tensor([1.0, 0.5, 0.4]))
    tensor([ True,  True, False])
    """
    return returned >= MAJORITY


def add_to_sheet(sheet: ClipSheet, tracks: Sequence[Track], frame: ClipFrame, labels: Sequence[KeypointLabel]) -> None:
    """Add a frame to an overview, with the keypoints of all tracks: labelled, or as annotated.

    Args:
        sheet: The overview.
        tracks: Objects that are followed.
        frame: The frame.
        labels: Labels of the tracks that are not annotated in the frame, in their order.
    """
    remaining = iter(labels)
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # points, scores, valid, annotated
    for track in tracks:
        item = next((item for item in track.sources if is_annotated(Track(track.category, [item]), frame.photo)), None)
        if item is not None:
            mask = item.keypoint_mask
            rows.append((item.points, mask.float(), mask, torch.ones_like(mask)))
        else:
            label = next(remaining)
            rows.append((label.points, label.scores, label.valid, torch.zeros_like(label.valid)))
    points, scores, valid, annotated = (torch.cat(values) for values in zip(*rows, strict=True))
    sheet.add(frame.picture, frame.photo.name, points, scores, valid, annotated)


@contextmanager
def draw_clip(tracks: Sequence[Track], folder: Path | None) -> Iterator[ClipSheet | None]:
    """Yield an overview, which is drawn in the end.

    Args:
        tracks: Objects that are followed, whose keypoints it names.
        folder: Folder that it is drawn into, as overview.png; None yields None.
    """
    if folder is None:
        yield None
        return
    several = len(tracks) > 1
    sheet = ClipSheet(
        [
            f"{track.sources[0].individual or f'{category_name(track.category)} {number}'}: {name}"
            if several
            else str(name)
            for number, track in enumerate(tracks, 1)
            for name in track.category["keypoints"]
        ]
    )
    yield sheet
    save_plot(sheet.draw(), folder / OVERVIEW)
