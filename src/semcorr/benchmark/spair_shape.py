"""SPair-71k's exact shape: how many images and pairs each category has in each split, and which pairs those are.

What is known of the original sets the counts: pairs per split, pairs per category of the test split, 1,800 images,
25 to 30 test images per category (the fewest that make so many ordered pairs). Each category is given 100 images, 18
of them for validation.
"""

import math
from collections.abc import Mapping
from itertools import permutations
from typing import NamedTuple

from semcorr.data.keypoints import benchmark_metadata

SPLITS = {"trn": "train", "val": "val", "test": "test"}  # the layout's words, and ours
PER_CATEGORY, VALIDATED = 100, 18  # images


class SplitCounts(NamedTuple):
    """Images and pairs of a category, by split."""

    images: Mapping[str, int]
    pairs: Mapping[str, int]


class SyntheticImage(NamedTuple):
    """An image by its place."""

    category: str
    split: str
    number: int

    @property
    def stem(self) -> str:
        """Its file's name."""
        return f"{self.split}_{self.number:06d}"


def official_counts() -> dict[str, SplitCounts]:
    """SPair-71k's, by category."""
    known = benchmark_metadata("spair71k")["official"]
    test = known["pairs_per_category"]["test"]
    images = {category: _split_up(_fewest(pairs)) for category, pairs in test.items()}
    room = {split: {c: n[split] * (n[split] - 1) for c, n in images.items()} for split in ("trn", "val")}
    shares = {split: _share_out(known["pairs"][SPLITS[split]], room[split]) for split in room}
    return {c: SplitCounts(images[c], {s: shares[s][c] for s in shares} | {"test": test[c]}) for c in test}


def shrink_counts(counts: Mapping[str, SplitCounts], part: float) -> dict[str, SplitCounts]:
    """The same with so many of the images, and as many of the pairs as go with them; at least two and two.

    >>> shrink_counts({"cat": SplitCounts({"trn": 50, "test": 25}, {"trn": 2400, "test": 600})}, 0.1)
    {'cat': Counts(images={'trn': 5, 'test': 2}, pairs={'trn': 20, 'test': 2})}
    """
    small = {}
    for category, (images, pairs) in counts.items():
        fewer = {split: max(2, round(n * part)) for split, n in images.items()}
        share = {s: pairs[s] / (n * (n - 1)) * fewer[s] * (fewer[s] - 1) for s, n in images.items()}
        small[category] = SplitCounts(fewer, {split: max(2, round(n)) for split, n in share.items()})
    return small


def make_pair_lists(counts: Mapping[str, SplitCounts]) -> dict[str, list[tuple[SyntheticImage, SyntheticImage]]]:
    """Ordered pairs by split; those that are left out lie evenly among all."""
    lists: dict[str, list[tuple[SyntheticImage, SyntheticImage]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for category, (images, pairs) in sorted(counts.items()):
            every = list(permutations([SyntheticImage(category, split, i) for i in range(images[split])], 2))
            lists[split] += [every[i * len(every) // pairs[split]] for i in range(pairs[split])]
    return lists


def _fewest(pairs: int) -> int:
    """Images that make so many ordered pairs."""
    return math.ceil((1 + math.sqrt(1 + 4 * pairs)) / 2)


def _split_up(test: int) -> dict[str, int]:
    return {"trn": PER_CATEGORY - VALIDATED - test, "val": VALIDATED, "test": test}


def _share_out(total: int, room: Mapping[str, int]) -> dict[str, int]:
    """`total` over the categories, as their room is."""
    shares = {key: total * most // sum(room.values()) for key, most in room.items()}
    for key in sorted(shares)[: total - sum(shares.values())]:
        shares[key] += 1
    return shares
