"""Writing labels in the format of an annotation tool."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from semcorr.core.files import replace_file, write_text
from semcorr.inference.transfer.formats.coco import labels_to_coco
from semcorr.inference.transfer.formats.cvat_labels import format_cvat
from semcorr.inference.transfer.formats.deeplabcut_h5 import require_extra, write_hdf5_table
from semcorr.inference.transfer.formats.deeplabcut_labels import format_deeplabcut, label_table
from semcorr.inference.transfer.formats.kinds import Format
from semcorr.inference.transfer.formats.label_studio_labels import format_label_studio
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations


def write_labels(
    out: Path,
    written: Format,
    annotations: Annotations,
    labels: Sequence[KeypointLabel],
    skipped_images: Sequence[Mapping[str, str]] = (),
    config_line: str = "",
) -> None:
    """Write labels to a file, or nothing at all.

    Args:
        out: The file; DeepLabCut's is HDF5 if it ends in .h5, else CSV.
        written: Its format.
        annotations: What was read, for names and ids.
        labels: Labels of its targets.
        skipped_images: Images that were left out, which COCO lists.
        config_line: The model, for the record.

    Raises:
        UserError: The format cannot hold the labels, or the file cannot be written.
    """
    if written == "deeplabcut":
        columns, rows = label_table(annotations, labels)
        if out.suffix.lower() == ".h5":
            with replace_file(out, "--out") as beside:
                write_hdf5_table(beside, columns, rows)
            return
        text = format_deeplabcut(columns, rows)
    elif written == "cvat":
        text = format_cvat(annotations, labels)
    elif written == "label-studio":
        text = format_label_studio(annotations, labels, config_line)
    else:
        text = json.dumps(labels_to_coco(annotations, labels, skipped_images, config_line), allow_nan=False) + "\n"
    write_text(out, text, "--out")


def require_writer(out: Path, written: Format) -> None:
    """Refuse, before any work, a file for which something is not installed."""
    if written == "deeplabcut" and out.suffix.lower() == ".h5":
        require_extra(out, ["pandas", "tables"])
