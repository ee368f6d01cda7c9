"""CUB-200-2011 (Wah et al. 2011, CNS-TR-2011-001): birds of 200 species with 15 parts, in pairs of our own; PCK@bbox.

Its README documents every file that is read, and does not say whether pixels count from 0 or from 1. Readers differ:
CMR subtracts 1, ThinkMatch does not. Official boxes begin at 0 here and there (image 272: 0 0 500 375), so coordinates
stay as they are. That some images are grey (CMR) and some boxes reach beyond their image (ThinkMatch) is what those
readers provide for; the images themselves were not available where this was written.
"""

import random
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, Unpack

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.data.coco_keypoints import choose_coco_pairs, name_pairs
from semcorr.data.cub_tables import Bird, read_birds
from semcorr.data.datamodule import PairDataModule, PairOptions
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.keypoints import flip_from_names, groups_from_names
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    build_image_record,
    image_size,
    longer_side,
    require_root,
)

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
TRIES = 20  # pairs across species that are examined for each one wanted, at most


class CUB(PairDataModule):
    """The official tree, CUB_200_2011, at `root`.

    Test images are the official ones; every tenth training image of a species validates. There is no official list of
    pairs: they are drawn by a seed, among all ordered pairs of images of a split.

    Args:
        pairs: `within` pairs birds of one species, which is the pair's category; `cross` pairs each species with any
            other, and all pairs are of one category, `bird`.
        pairs_per_category: Most pairs of a species in each split; across species, those with their source in it.
        min_shared: Parts a pair must share.
        pairs_seed: Seed of the choice of pairs.
        **options: As for every benchmark.
    """

    name = "cub"
    recipe = DownloadRecipe(
        licence="research use; images from Flickr, of their photographers",
        archives=(ArchiveInfo("CUB_200_2011.tgz", URL),),
        marker_file="parts/part_locs.txt",
    )

    @check_arguments("data")
    def __init__(
        self,
        *,
        pairs: Literal["within", "cross"] = "within",
        pairs_per_category: Count = 100,
        min_shared: Count = 3,
        pairs_seed: int = 0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(**options)
        self.across, self.cap = pairs == "cross", pairs_per_category
        self.min_shared, self.pairs_seed = min_shared, pairs_seed
        self.birds = cache(lambda: read_birds(self.root))  # read once for all splits

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs sorted by the source's species, source and target."""
        require_root(self.root, "CUB-200-2011", "Run `python -m semcorr.prepare cub`, or give data.root=DIR.")
        birds, parts = self.birds()
        species: dict[str, list[ImageRecord]] = {}
        for bird in sorted(birds, key=lambda bird: (bird.species, bird.file)):
            if bird.split == split:
                species.setdefault(bird.species, []).append(self._build_image(bird))
        groups, flip = groups_from_names(parts), flip_from_names(parts)
        pairs: list[PairRecord] = []
        for name, images in species.items():
            seed = f"{self.pairs_seed}/{name}/{split}"
            if self.across:
                others = [image for other, members in species.items() if other != name for image in members]
                chosen = choose_pairs_across(images, others, self.min_shared, self.cap, seed)
            else:
                chosen = choose_coco_pairs(images, self.min_shared, self.cap, seed)
            category = "bird" if self.across else name
            pairs += [
                PairRecord(f"{a.name}-{b.name}", category, a, b, longer_side(b.box), groups, flip) for a, b in chosen
            ]
        if not pairs:
            count = sum(map(len, species.values()))
            kind = "two species" if self.across else "one species"
            raise UserError(
                f"{self.root / 'train_test_split.txt'}: data.split={split} has {count} images, and no two of {kind} "
                f"share data.min_shared={self.min_shared} parts. Give another split, or a smaller data.min_shared."
            )
        return name_pairs(pairs)

    def _build_image(self, bird: Bird) -> ImageRecord:
        path, name = self.root / "images" / bird.file, Path(bird.file).with_suffix("").as_posix()
        size = image_size(path) if path.is_file() else (1, 1)  # what is absent is refused below
        return build_image_record(name, path, size, bird.points, bird.box, self.root / "images.txt")


def choose_pairs_across(
    sources: Sequence[ImageRecord], targets: Sequence[ImageRecord], min_shared: int, cap: int, seed: str
) -> list[tuple[ImageRecord, ImageRecord]]:
    """Return at most `cap` pairs of a source and a target that share enough keypoints, by a seeded choice, sorted.

    Of many pairs only `TRIES` for each one wanted are examined: CUB-200-2011 has 33 million across species.

    Args:
        sources: Images that may be sources.
        targets: Images that may be targets.
        min_shared: Least number of keypoints that are visible in both images of a pair.
        cap: Most pairs that are returned.
        seed: Text that the choice is drawn by.
    """
    count = len(sources) * len(targets)
    sampled = random.Random(seed).sample(range(count), min(count, TRIES * cap))
    fit = (i for i in sampled if _count_shared(sources[i // len(targets)], targets[i % len(targets)]) >= min_shared)
    return [(sources[i // len(targets)], targets[i % len(targets)]) for i in sorted(islice(fit, cap))]


def _count_shared(source: ImageRecord, target: ImageRecord) -> int:
    return int((source.visible & target.visible).sum())
