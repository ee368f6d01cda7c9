"""Label transfer as the command does it: from a file of annotations to a file of labels."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.files import atomic_output_dir, require_inputs_kept
from semcorr.core.terminal import print_line
from semcorr.data.pictures import warn_about_frames
from semcorr.inference import Matcher
from semcorr.inference.load import format_overrides, resolve_device
from semcorr.inference.transfer.annotations import read_annotations
from semcorr.inference.transfer.clip import OVERVIEW, AnnotatedClip, draw_clip, label_clip, read_clip
from semcorr.inference.transfer.formats.kinds import Format
from semcorr.inference.transfer.formats.write import require_writer, write_labels
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations, list_objects
from semcorr.inference.transfer.pipeline import label_folder, label_picture_names


@dataclass(frozen=True)
class TransferFiles:
    """The files and folders that are read and written."""

    annotations: Path
    images: Path  # folder of the annotated images, and without a video of those to label
    out: Path
    kind: Format  # of `out`
    video: Path | None = None  # video file or folder of frames, labelled in place of the images
    draw: Path | None = None  # folder for pictures of the labels


@dataclass(frozen=True)
class TransferOptions:
    """The options of reading and labelling."""

    use: str  # `vote` for all annotated objects, `best` for the best-fitting one
    flip: bool  # whether sources are also used mirrored
    min_score: float  # score above which a keypoint counts as found
    place: float  # weight of the location prior
    has_typed_place: bool  # whether the user gave the weight: one without effect is refused then
    box: str  # layout of COCO's boxes: `xywh` or `xyxy`
    category: str | None  # category of images without annotations
    first: int | None  # number that frame names of a video file start at; None: 0
    skip_broken: bool  # whether unreadable images are skipped


class TransferResult(NamedTuple):
    """The labels, and what they were made from."""

    annotations: Annotations  # of a clip with the targets that were labelled
    labels: list[KeypointLabel]
    skipped_images: list[dict[str, str]]  # `file_name` and `reason` of each image that was left out


def label_annotated(
    files: TransferFiles,
    options: TransferOptions,
    model: str | None = None,
    device: str | None = None,
    precision: str = "32",
) -> TransferResult:
    """Label images or frames by those that are annotated, and write the labels.

    Args:
        files: Files that are read and written.
        options: Options of reading and labelling.
        model: Backbone, run directory or settings, as for `Matcher.load`.
        device: Device of the model; None: the best there is.
        precision: Precision of the backbone: `32`, `bf16` or `16`.

    Raises:
        UserError: An input cannot be read or does not fit the others, or an output would replace an input.
    """
    config_line = " ".join(format_overrides(model))
    resolve_device(device)
    clip, annotations = _read_inputs(files, options)
    if options.has_typed_place:
        require_boxes_for_place(options.place, annotations, files.annotations)
    _check_outputs(files, clip, annotations)
    print_line(f"Loading {config_line}")
    matcher = Matcher.load(model, device=device, precision=precision)
    result = _label(matcher, files, options, clip, annotations)
    write_labels(files.out, files.kind, result.annotations, result.labels, result.skipped_images, config_line)
    return result


def _read_inputs(files: TransferFiles, options: TransferOptions) -> tuple[AnnotatedClip | None, Annotations]:
    """Read the annotations, and of a video which frames are to be labelled."""
    if files.video is None:
        return None, read_annotations(files.annotations, files.images, options.box, options.category)
    clip = read_clip(files.annotations, files.images, files.video, options.box, options.first)
    return clip, clip.annotations


def require_boxes_for_place(place: float, annotations: Annotations, path: Path) -> None:
    """Refuse a typed location prior where no object to be labelled has a box as one of its sources has.

    Args:
        place: Weight of the prior; 0 asks for none.
        annotations: What is labelled by what.
        path: The annotation file, for the message.

    Raises:
        UserError: No label depends on the prior.
    """
    with_boxes = {key for key, sources in annotations.sources.items() if any(item.box is not None for item in sources)}
    if place > 0 and not any(item.box is not None and item.category in with_boxes for item in annotations.targets):
        raise UserError(
            f"--place {place:g} has no effect: it compares places in boxes, and {path} has none around both an "
            "annotated object and one to be labelled of its category. Give both a box, or leave --place out"
        )


def _check_outputs(files: TransferFiles, clip: AnnotatedClip | None, annotations: Annotations) -> None:
    """Refuse, before the network is loaded, outputs that cannot be written or would replace an input."""
    require_writer(files.out, files.kind, annotations)
    inputs = [item.photo.path for item in list_objects(annotations)] + ([] if files.video is None else [files.video])
    require_inputs_kept(files.out.parent, [files.out.name], inputs)
    if files.draw is not None:
        pictures = label_picture_names(annotations.targets) if clip is None else [OVERVIEW]
        require_inputs_kept(files.draw, pictures, inputs, "--draw")


def _label(
    matcher: Matcher,
    files: TransferFiles,
    options: TransferOptions,
    clip: AnnotatedClip | None,
    annotations: Annotations,
) -> TransferResult:
    """Label all images or frames, and draw them if a folder is given."""
    skipped: list[dict[str, str]] = []
    kept = skipped if options.skip_broken else None  # None refuses broken images
    use, min_score = options.use, options.min_score
    drawing = nullcontext() if files.draw is None else atomic_output_dir(files.draw, "--draw")
    with warn_about_frames(files.images), drawing as folder:
        if clip is None:
            labels = list(label_folder(matcher, annotations, use, options.flip, min_score, options.place, kept, folder))
        else:
            with draw_clip(clip.tracks, folder) as sheet:
                labels = list(label_clip(matcher, clip, use, min_score, kept, sheet))
            annotations = annotations._replace(targets=[label.target for label in labels])
    return TransferResult(annotations, labels, skipped)
