"""SPair-71k's exact shape: the images and pairs of each category in each split, and which pairs those are.

The counts follow what is known of the original: pairs per split, pairs per category of the test split, 1,800 images,
25 to 30 test images per category (the fewest that make so many ordered pairs). Each category has 100 images, 18 of
them for validation.
"""

import math
from collections.abc import Mapping
from itertools import permutations
from typing import NamedTuple

from semcorr.data.keypoints import benchmark_metadata

SPLITS = {"trn": "train", "val": "val", "test": "test"}  # the layout's names of the splits, and ours
PER_CATEGORY, VALIDATED = 100, 18  # images


class SplitCounts(NamedTuple):
    """The numbers of images and pairs of a category, by split."""

    images: Mapping[str, int]
    pairs: Mapping[str, int]


class SyntheticImage(NamedTuple):
    """An image, identified by category, split and number."""

    category: str
    split: str
    number: int

    @property
    def stem(self) -> str:
        """The name of its file, without suffix."""
        return f"{self.split}_{self.number:06d}"


def official_counts() -> dict[str, SplitCounts]:
    """Return the counts of SPair-71k by category."""
    official = benchmark_metadata("spair71k")["official"]
    test = official["pairs_per_category"]["test"]
    images = {category: _images_per_split(_fewest_images(pairs)) for category, pairs in test.items()}
    capacity = {
        split: {name: counts[split] * (counts[split] - 1) for name, counts in images.items()}
        for split in ("trn", "val")
    }
    shares = {split: _distribute(official["pairs"][SPLITS[split]], capacity[split]) for split in capacity}
    return {
        name: SplitCounts(
            images[name], {split_name: shares[split_name][name] for split_name in shares} | {"test": test[name]}
        )
        for name in test
    }


def shrink_counts(counts: Mapping[str, SplitCounts], part: float) -> dict[str, SplitCounts]:
    """Reduce the images to a part, and the pairs in proportion; at least two of each per category and split.

    >>> shrink_counts({"cat": SplitCounts({"trn": 50, "test": 25}, {"trn": 2400, "test": 600})}, 0.1)
    {'cat': Counts(images={'trn': 5, 'test': 2}, pairs={'trn': 20, 'test': 2})}
    """
    reduced = {}
    for category, (images, pairs) in counts.items():
        fewer_images = {split: max(2, round(count * part)) for split, count in images.items()}
        share = {
            name: pairs[name] / (count * (count - 1)) * fewer_images[name] * (fewer_images[name] - 1)
            for name, count in images.items()
        }
        reduced[category] = SplitCounts(fewer_images, {split: max(2, round(count)) for split, count in share.items()})
    return reduced


def make_pair_lists(counts: Mapping[str, SplitCounts]) -> dict[str, list[tuple[SyntheticImage, SyntheticImage]]]:
    """Return the ordered pairs by split; the pairs that are left out are spread evenly."""
    lists: dict[str, list[tuple[SyntheticImage, SyntheticImage]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for category, (images, pairs) in sorted(counts.items()):
            ordered_pairs = list(permutations([SyntheticImage(category, split, i) for i in range(images[split])], 2))
            lists[split] += [ordered_pairs[i * len(ordered_pairs) // pairs[split]] for i in range(pairs[split])]
    return lists


def _fewest_images(pairs: int) -> int:
    """Return the fewest images that make so many ordered pairs."""
    return math.ceil((1 + math.sqrt(1 + 4 * pairs)) / 2)


def _images_per_split(test: int) -> dict[str, int]:
    return {"trn": PER_CATEGORY - VALIDATED - test, "val": VALIDATED, "test": test}


def _distribute(total: int, capacity: Mapping[str, int]) -> dict[str, int]:
    """Distribute `total` over the categories in proportion to their capacity."""
    shares = {key: total * largest // sum(capacity.values()) for key, largest in capacity.items()}
    for key in sorted(shares)[: total - sum(shares.values())]:
        shares[key] += 1
    return shares
