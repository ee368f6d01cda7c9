"""Verification that a benchmark on disk is the official one: counts, sizes, and every known irregularity.

`verify_benchmark` reads a benchmark as training and evaluation do, and compares. A check that the official
counts decide is `ok` or `differs`; what nobody published is a `note`, reported and not judged.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from semcorr.core.errors import UserError
from semcorr.core.terminal import Stage, escape_controls
from semcorr.core.text_files import JsonObject
from semcorr.data.datamodule import OfficialCounts, PairDataModule, PairListEntry
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.image_variants import unique_images
from semcorr.data.open_image import open_image
from semcorr.data.pictures import measure_picture, stored_size
from semcorr.data.record import ImageRecord, PairRecord, count_outside_image
from semcorr.data.tapvid import TapVid, TapVidVideo, count_outside_frame

OK, NOTE, DIFFERS = "ok", "note", "differs"
COLOURS = {OK: "green", NOTE: "yellow", DIFFERS: "bold red"}
UPRIGHT = (None, 1)  # values of EXIF's orientation that turn nothing
EXIF_ORIENTATION = 0x0112
UNWANTED = ("exact duplicates", "images in both")  # worth a note where no number was published
MAX_EXAMPLES = 3  # examples in the table; verify.json has them all


class VerificationCheck(NamedTuple):
    """One line of the report."""

    what: str
    where: str  # split, or splits
    found: int | str
    official: int | None  # None: nothing was published
    verdict: str
    examples: tuple[str, ...] = ()


class VerificationReport(NamedTuple):
    """The result of verifying a benchmark."""

    benchmark: str
    root: str
    checks: tuple[VerificationCheck, ...]
    categories: Mapping[str, Mapping[str, int]] = {}  # split to category to pairs

    @property
    def failed(self) -> bool:
        """Whether anything differs from what was published."""
        return any(check.verdict == DIFFERS for check in self.checks)

    def table(self) -> Table:
        """Format the report for the terminal."""
        table = Table(title=f"{self.benchmark} at {self.root}", title_justify="left")
        sides: Sequence[JustifyMethod] = ("left", "left", "right", "right", "left")
        for header, side in zip(("", "split", "found", "official", ""), sides, strict=True):
            table.add_column(header, justify=side, overflow="fold")
        for check in self.checks:
            colour = COLOURS[check.verdict]
            official = "" if check.official is None else f"{check.official:,}"
            found_text = f"{check.found:,}" if isinstance(check.found, int) else check.found
            table.add_row(check.what, check.where, found_text, official, Text(check.verdict, colour))
            examples = () if check.verdict == OK else check.examples[:MAX_EXAMPLES]
            for example in examples:
                table.add_row(Text(f"  {escape_controls(example)}", "dim"))
            if examples and len(check.examples) > MAX_EXAMPLES:
                table.add_row(Text(f"  and {len(check.examples) - MAX_EXAMPLES:,} more", "dim"))
        return table

    def as_json(self) -> JsonObject:
        """Format the report for verify.json."""
        return {
            "benchmark": self.benchmark,
            "root": self.root,
            "failed": self.failed,
            "checks": [check._asdict() for check in self.checks],
            "pairs_per_category": {split: dict(counts) for split, counts in self.categories.items()},
        }


def verify_benchmark(data: PairDataModule | EvaluationBenchmark) -> VerificationReport:
    """Read every split of a benchmark and compare it with what was published.

    Raises:
        UserError: There is no readable pair list at all, or no readable video.
    """
    if isinstance(data, TapVid):
        return VerificationReport(data.name, str(data.root), tuple(check_videos(data.videos().values(), data.official)))
    if isinstance(data, EvaluationBenchmark):
        return VerificationReport(data.name, str(data.root), tuple(check_counts(data)))
    checks: list[VerificationCheck] = []
    rows: dict[str, Sequence[PairListEntry]] = {}
    for split in data.splits:
        try:
            rows[split] = data.pair_list(split)
        except UserError as error:
            checks.append(VerificationCheck("pair list", split, "unreadable", None, DIFFERS, (str(error),)))
    if not rows:
        raise UserError(checks[0].examples[0])
    categories = {split: dict(sorted(Counter(row.category for row in rows[split]).items())) for split in rows}
    checks += check_lists(rows, categories, data.official)
    images: dict[str, ImageRecord] = {}
    for split in rows:
        try:
            checks += check_agreement(split, data.annotation_conflicts(split), len(rows[split]))
            pairs = data.records(split)
        except UserError as error:
            checks.append(VerificationCheck("annotations", split, "unreadable", None, DIFFERS, (str(error),)))
        else:
            checks.append(
                _build_note("pairs with one keypoint", split, [pair.name for pair in pairs if _count_shared(pair) == 1])
            )
            images |= {image.name: image for image in unique_images(pairs)}
    if images:
        checks += check_images(images.values())
    return VerificationReport(data.name, str(data.root), tuple(checks), categories)


def check_lists(
    rows: Mapping[str, Sequence[PairListEntry]],
    categories: Mapping[str, Mapping[str, int]],
    official: OfficialCounts,
) -> list[VerificationCheck]:
    """Check what the pair lists alone state: counts, duplicates, images in more than one split.

    Args:
        rows: Pair list of each split.
        categories: Number of pairs by split and category.
        official: Published counts; what is left out was not published.
    """
    checks = []
    official_counts, tolerance = official.get("pairs", {}), official.get("tolerance", 0)
    for split, entries in rows.items():
        checks.append(_compare_count("pairs", split, len(entries), official_counts.get(split), tolerance))
    pictures = {
        split: {name for row in entries for name in (row.source, row.target)} for split, entries in rows.items()
    }
    official_counts = official.get("images", {})
    for split, names in pictures.items():
        checks.append(_compare_count("images", split, len(names), official_counts.get(split)))
    if "all" in official_counts:
        checks.append(_compare_count("images", "all", len(set().union(*pictures.values())), official_counts["all"]))
    for split, published in official.get("pairs_per_category", {}).items():
        if split in rows:
            wrong = {c: categories[split].get(c, 0) for c in published if categories[split].get(c, 0) != published[c]}
            examples = tuple(f"{c}: {count} pairs, official {published[c]}" for c, count in wrong.items())
            num_right = len(published) - len(wrong)
            checks.append(
                _compare_count("categories as published", split, num_right, len(published))._replace(examples=examples)
            )
    for split, entries in rows.items():
        repeated = [row for row, times in Counter(entries).items() if times > 1]
        examples = tuple(f"{row.source} -> {row.target}" for row in repeated)
        expected = official.get("duplicates", {}).get(split)
        checks.append(
            _compare_count("exact duplicates", split, len(entries) - len(set(entries)), expected)._replace(
                examples=examples
            )
        )
    for first, second in combinations([split for split in rows if not re.search("_cross_|_held_out", split)], 2):
        shared = sorted(pictures[first] & pictures[second])
        split_pair = f"{first} & {second}"
        expected = official.get("shared_images", {}).get(split_pair)
        checks.append(
            _compare_count("images in both", split_pair, len(shared), expected)._replace(examples=tuple(shared))
        )
    return checks


def check_agreement(split: str, contradictions: Sequence[str] | None, pairs: int) -> list[VerificationCheck]:
    """Check whether annotations that state the same thing twice agree.

    Args:
        split: The split.
        contradictions: Messages for pairs whose annotations differ; None: nothing is annotated twice.
        pairs: Number of pairs of the split.
    """
    if contradictions is None:
        return []
    check = _compare_count("pair and image annotations agree", split, pairs - len(contradictions), pairs)
    return [check._replace(examples=tuple(contradictions))]


def check_images(images: Iterable[ImageRecord]) -> list[VerificationCheck]:
    """Check every image once: its file against its annotation, and its keypoints against both."""
    wrong, turned, outside, unboxed = [], [], [], []
    images = sorted(images, key=lambda image: image.name)
    with Stage(f"Checking {len(images):,} images", len(images)) as stage:
        for image in stage.track(images):
            size, orientation = _read_header(image)
            if size != image.size:
                wrong.append(f"{image.name}: file {size[0]} x {size[1]}, annotation {image.size[0]} x {image.size[1]}")
            if orientation not in UPRIGHT:
                turned.append(f"{image.name}: orientation {orientation}")
            if count := count_outside_image(image):
                outside.append(f"{image.name}: {count}")
            if count := _count_outside_box(image):
                unboxed.append(f"{image.name}: {count}")
    sizes = _compare_count("file sizes as annotated", "all", len(images) - len(wrong), len(images))
    return [
        sizes._replace(examples=tuple(wrong)),
        _build_note("images that EXIF would turn (it is not applied)", "all", turned),
        _build_note("images with keypoints outside", "all", outside),
        _build_note("images with keypoints outside the box", "all", unboxed),
    ]


def check_counts(data: EvaluationBenchmark) -> list[VerificationCheck]:
    """Check what a benchmark without pairs of keypoints has in each split.

    Raises:
        UserError: A split cannot be read.
    """
    return [
        _compare_count(what, split, found, data.official.get(f"{what}, {split}"))
        for split in data.splits
        for what, found in data.count(split).items()
    ]


def check_videos(videos: Iterable[TapVidVideo], official: Mapping[str, int]) -> list[VerificationCheck]:
    """Check point tracking, which has videos and tracks in place of pairs.

    Args:
        videos: All videos.
        official: Published number of `videos`.
    """
    videos = list(videos)
    never_visible = [f"{video.name}: {count}" for video in videos if (count := int(video.occluded.all(1).sum()))]
    outside = [f"{video.name}: {count}" for video in videos if (count := count_outside_frame(video))]
    return [
        _compare_count("videos", "test", len(videos), official.get("videos")),
        _compare_count("frames", "test", sum(len(video.frames) for video in videos), None),
        _compare_count("tracks", "test", sum(len(video.points) for video in videos), None),
        _build_note("videos with tracks that are never visible", "test", never_visible),
        _build_note("videos with visible points outside the frame", "test", outside),
    ]


def _compare_count(what: str, where: str, count: int, official: int | None, tolerance: float = 0) -> VerificationCheck:
    if official is None:
        return VerificationCheck(what, where, count, None, NOTE if what in UNWANTED and count else OK)
    is_right = abs(count - official) <= tolerance * official
    return VerificationCheck(what, where, count, official, OK if is_right else DIFFERS)


def _build_note(what: str, where: str, examples: Sequence[str]) -> VerificationCheck:
    return VerificationCheck(what, where, len(examples), None, NOTE if examples else OK, tuple(examples))


def _count_shared(pair: PairRecord) -> int:
    return int((pair.source.visible & pair.target.visible).sum())


def _read_header(image: ImageRecord) -> tuple[tuple[int, int], int | None]:
    if image.upright:  # EXIF is applied, so there is nothing to report
        return measure_picture(image.path).size, None
    with open_image(image.path, "Unpack it again.") as file:
        return stored_size(file), file.getexif().get(EXIF_ORIENTATION)


def _count_outside_box(image: ImageRecord) -> int:
    points = image.keypoints[image.visible]
    x1, y1, x2, y2 = image.box
    low, high = torch.tensor([x1, y1]), torch.tensor([x2, y2])
    return int(((points < low) | (points > high)).any(-1).sum())
