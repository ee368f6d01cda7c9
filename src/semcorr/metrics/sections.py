"""Sections of metrics.json that hold scores: `pck` of pairs of keypoints, or one of those below.

Attributes:
    HEADLINES: Numbers of each other section that tables show.
"""

from collections.abc import Mapping

PAIRS = "pck"
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "tracking": ("delta_avg", "OA", "AJ"),
    "segmentation": ("JF", "J", "F"),
    "flow": ("PCK",),
    "labels": ("LT_ACC", "IoU"),
}
