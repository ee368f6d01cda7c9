"""The table of every configuration's parts, from which a number can be reproduced."""

from collections.abc import Sequence

from semcorr.report.configurations import Configuration, format_value
from semcorr.report.document import NONE, ReportSection, ReportTable

PARTS = {
    "size": "backbone.size",
    "layers": "backbone.layers",
    "tuned": "finetune._target_",
    "head": "head._target_",
    "resize": "resize",
    "weights": "weights",
}


def build_settings_table(entries: Sequence[Configuration]) -> ReportSection:
    """Build a table with a row per configuration."""
    rows = []
    for number, entry in enumerate(entries, 1):
        cells = [str(number), entry.label, ", ".join(str(run.cfg.get("seed")) for run in entry.runs)]
        for name, key in PARTS.items():
            value = entry.settings.get(key)
            cell = NONE if value is None else format_value(key, value)
            if name == "tuned" and cell == "last_blocks":
                blocks = entry.settings.get("finetune.blocks")
                cell = f"last {blocks} blocks" if blocks else "frozen"
            cells.append(cell)
        versions = {str(run.cfg.provenance.get("git") or NONE)[:7] for run in entry.runs}
        rows.append([*cells, str(entry.runs[0].metrics["localise"]), ", ".join(sorted(versions))])
    caption = (
        "size: side of the square that images are resized to, in pixels; layers: whose outputs are the features; "
        "weights: the first digits of their SHA-256; code: the git revision of semcorr. config.yaml in each run's "
        "folder has every other setting."
    )
    columns = ["place", "configuration", "seeds", *PARTS, "read-out", "code"]
    table = ReportTable("configurations", "Configurations", caption, columns, rows, words=len(columns))
    text = "All that a number depends on is in the run's own files; this is the part of it that tells runs apart."
    return ReportSection("What was run", text, [table])
