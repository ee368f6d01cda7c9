"""Writing labels in the format of an annotation tool."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.files import replace_file, write_text
from semcorr.core.paths import quote_value
from semcorr.inference.transfer.formats.coco import labels_to_coco
from semcorr.inference.transfer.formats.cvat_labels import format_cvat
from semcorr.inference.transfer.formats.deeplabcut_h5 import write_hdf5_table
from semcorr.inference.transfer.formats.deeplabcut_labels import format_deeplabcut, label_table
from semcorr.inference.transfer.formats.kinds import Format
from semcorr.inference.transfer.formats.label_studio_labels import format_label_studio
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations, category_name

UNFIT: dict[Format, tuple[re.Pattern[str], str]] = {  # characters that a format has no place for
    "cvat": (re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"), "CVAT's XML"),
    "label-studio": (re.compile("[\ud800-\udfff]"), "a task of Label Studio"),
    "deeplabcut": (re.compile("[\0\ud800-\udfff]"), "a table of DeepLabCut"),
}


def write_labels(
    out: Path,
    kind: Format,
    annotations: Annotations,
    labels: Sequence[KeypointLabel],
    skipped_images: Sequence[Mapping[str, str]] = (),
    config_line: str = "",
) -> None:
    """Write labels to a file, or nothing at all.

    Args:
        out: The file; DeepLabCut's is HDF5 if it ends in .h5, else CSV.
        kind: Its format.
        annotations: What was read, for names and ids.
        labels: Labels of its targets.
        skipped_images: Images that were left out, which COCO lists.
        config_line: The model, for the record.

    Raises:
        UserError: The format cannot hold the labels, or the file cannot be written.
    """
    require_writer(out, kind, annotations)
    if kind == "deeplabcut":
        columns, rows = label_table(annotations, labels)
        if out.suffix.lower() == ".h5":
            with replace_file(out, "--out") as beside:
                write_hdf5_table(beside, columns, rows)
            return
        text = format_deeplabcut(columns, rows)
    elif kind == "cvat":
        text = format_cvat(annotations, labels)
    elif kind == "label-studio":
        text = format_label_studio(annotations, labels, config_line)
    else:
        text = json.dumps(labels_to_coco(annotations, labels, skipped_images, config_line), allow_nan=False) + "\n"
    write_text(out, text, "--out")


def require_writer(out: Path, kind: Format, annotations: Annotations) -> None:
    """Refuse, before any work, a file for which something is not installed, or that cannot hold what will be labelled.

    Args:
        out: The file.
        kind: Its format.
        annotations: What was read.
    """
    if kind == "deeplabcut":
        if out.suffix.lower() == ".h5":
            require_extra(f"Writing {out}", "deeplabcut", "pandas", "tables")
        label_table(annotations, ())
    if kind in UNFIT:
        _require_names(annotations, *UNFIT[kind])


def _require_names(annotations: Annotations, unfit: re.Pattern[str], content: str) -> None:
    """Refuse names of categories, keypoints and images to be labelled that hold a character of a pattern."""
    names = [(f"The image {quote_value(target.photo.name)}", target.photo.name) for target in annotations.targets]
    for category in annotations.categories:
        name = category_name(category)
        names.append((f"The category {quote_value(name)}", name))
        for keypoint in category.get("keypoints") or ():
            names.append((f"The keypoint {quote_value(keypoint)} of {quote_value(name)}", str(keypoint)))
    for description, name in names:
        if fault := unfit.search(name):
            raise UserError(
                f"{description} holds the character {fault.group()!r}, which {content} cannot hold. Rename it, or "
                "choose another --format"
            )
