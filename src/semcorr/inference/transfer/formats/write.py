"""Writing labels in the format of an annotation tool."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from semcorr.core.extras import require_extra
from semcorr.core.files import replace_file, write_text
from semcorr.inference.transfer.formats.coco import labels_to_coco
from semcorr.inference.transfer.formats.cvat_labels import format_cvat, require_xml_names
from semcorr.inference.transfer.formats.deeplabcut_h5 import write_hdf5_table
from semcorr.inference.transfer.formats.deeplabcut_labels import format_deeplabcut, label_table
from semcorr.inference.transfer.formats.kinds import Format
from semcorr.inference.transfer.formats.label_studio_labels import format_label_studio
from semcorr.inference.transfer.labels import KeypointLabel
from semcorr.inference.transfer.objects import Annotations


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
    elif kind == "cvat":
        require_xml_names(annotations)
