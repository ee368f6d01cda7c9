"""The synthetic benchmark: rendered creatures on disk, in SPair-71k's own layout and words.

Every image draws from its own generator, seeded by (seed, category, split, index): it is the same whatever else is
written, in any order. Views and pairs are named in `semcorr.data.creatures.annotation`. In other styles than the
photograph's the same creatures are drawn again, with the same keypoints, and each pair is there in every two styles.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Unpack

import numpy as np
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.core.files import require_writable, temporary_folder, write_error
from semcorr.core.ranges import Count, Range, Whole, check_arguments
from semcorr.core.terminal import Stage
from semcorr.core.text_files import JsonMapping, JsonObject, read_mapping
from semcorr.data.creatures.anatomy import CATEGORIES
from semcorr.data.creatures.annotation import Annotation, annotate_image, annotate_pair, choose_creature_pairs
from semcorr.data.creatures.photograph import Photo, render_photo
from semcorr.data.creatures.styles import STYLES, Style, draw_scene
from semcorr.data.datamodule import OfficialCounts, PairOptions
from semcorr.data.keypoints import benchmark_metadata
from semcorr.data.record import PairRecord
from semcorr.data.spair import FOLDERS, SPair, read_spair_pairs

FORMAT = 1  # of the rendering and the files; part of the manifest
MANIFEST = "synthetic.json"
SPLITS = ("trn", "val", "test")
PHOTOS: Sequence[Style] = ("photo",)
IMAGES: Mapping[str, int] = MappingProxyType({"trn": 24, "val": 6, "test": 10})


class Synthetic(SPair):
    """Creatures drawn into `root` on first use, then read as SPair-71k is.

    Args:
        train: Images per category; a pair is any two that share three keypoints.
        val: Validation images per category.
        test: Test images per category.
        pairs_per_category: Most pairs of a category in each split, a seeded choice; with several styles, as many in
            each two of them.
        drawing: Seed of the drawings.
        pixels: Image sides are drawn from 7/8 to 5/4 of it, in pixels.
        styles: Styles that every creature is drawn in: `photo`, `painting`, `drawing`, `cartoon`. With other than
            `photo` alone, each pair is there from every style to every style, and says so.
        **options: As for every benchmark.
    """

    name = "synthetic"
    recipe = None  # drawn, not downloaded
    official = OfficialCounts()

    @check_arguments("data")
    def __init__(
        self,
        *,
        train: Count = 24,
        val: Count = 6,
        test: Count = 10,
        pairs_per_category: Count | None = None,
        drawing: Whole = 0,
        pixels: Annotated[int, Range(least=16, most=4096)] = 256,
        styles: Sequence[Style] = PHOTOS,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(**options)
        _check_styles(styles)
        self.drawing: JsonObject = {
            "seed": drawing,
            "images": {"trn": train, "val": val, "test": test},
            "pairs_per_category": pairs_per_category,
            "size": pixels,
            "styles": list(styles),
        }

    def records(self, split: str) -> Sequence[PairRecord]:
        """Render the images that are absent, and read the pairs."""
        write_synthetic(self.root, **self.drawing)
        return read_spair_pairs(self.root, FOLDERS[split])


def _write(root: Path, manifest: JsonMapping) -> None:
    categories, images, styles = sorted(manifest["categories"]), manifest["images"], manifest.get("styles", PHOTOS)
    jobs = [(split, category, i) for split in images for category in categories for i in range(images[split])]
    for folder in ("JPEGImages", "Segmentation", "ImageAnnotation"):
        for category in categories:
            (root / folder / category).mkdir(parents=True)
    by_split: dict[tuple[str, str], list[dict[Style, Annotation]]] = {(s, c): [] for s in images for c in categories}
    with Stage(f"Drawing {len(jobs):,} creatures", len(jobs)) as stage:
        for split, category, index in stage.track(jobs):
            seeds = [manifest["seed"], CATEGORIES.index(category), SPLITS.index(split), index]
            photo = render_photo(category, index % 8, manifest["size"], np.random.default_rng(seeds))
            annotations: dict[Style, Annotation] = {}
            for style in styles:
                stem, image = f"{split}_{index:06d}", photo
                if style != "photo":  # of its own generator: it is the same whichever other styles are drawn
                    rng = np.random.default_rng([*seeds, STYLES.index(style)])
                    stem, image = f"{stem}_{style}", photo._replace(image=draw_scene(photo.scene, style, rng))
                domain = None if tuple(styles) == PHOTOS else style
                annotations[style] = _write_photo(root, image, category, stem, index % 8, domain)
            by_split[split, category].append(annotations)
    (root / "Layout/large").mkdir(parents=True)
    for split in images:
        chosen_pairs: list[tuple[Annotation, Annotation]] = []
        for category in categories:
            rng = np.random.default_rng([manifest["seed"], CATEGORIES.index(category), SPLITS.index(split)])
            creatures = by_split[split, category]
            indices = choose_creature_pairs(
                [creature[styles[0]] for creature in creatures], manifest["pairs_per_category"], rng
            )
            chosen_pairs += [
                (creatures[source][source_style], creatures[target][target_style])
                for source, target in indices
                for source_style, target_style in product(styles, styles)
            ]
        _write_pairs(root, split, [annotate_pair(*pair, i) for i, pair in enumerate(chosen_pairs, 1)])
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _write_photo(
    root: Path, photo: Photo, category: str, stem: str, azimuth_id: int, domain: Style | None
) -> Annotation:
    annotation = annotate_image(photo, category, stem, azimuth_id, domain)
    voc = benchmark_metadata("spair71k")["categories"][category]["voc_class_id"]
    photo.image.save(root / f"JPEGImages/{category}/{stem}.jpg", quality=92)
    Image.fromarray(np.where(photo.mask, voc, 0).astype(np.uint8)).save(root / f"Segmentation/{category}/{stem}.png")
    (root / f"ImageAnnotation/{category}/{stem}.json").write_text(json.dumps(annotation))
    return annotation


def _write_pairs(root: Path, split: str, pairs: Sequence[Annotation]) -> None:
    folder = root / "PairAnnotation" / split
    folder.mkdir(parents=True)
    for pair in pairs:
        (folder / f"{pair['filename']}.json").write_text(json.dumps(pair))
    (root / f"Layout/large/{split}.txt").write_text("".join(f"{pair['filename']}\n" for pair in pairs))


def _check(images: Mapping[str, int], categories: Sequence[str], styles: Sequence[str]) -> None:
    if unknown := set(images) - set(SPLITS):
        raise UserError(f"`images` may name the splits {', '.join(SPLITS)}, got {', '.join(sorted(unknown))}")
    if unknown := set(categories) - set(CATEGORIES):
        raise UserError(f"`categories` may be {', '.join(CATEGORIES)}, got {', '.join(sorted(unknown))}")
    _check_styles(styles)


def _check_styles(styles: Sequence[str]) -> None:
    if not styles or len(set(styles)) < len(styles) or set(styles) - set(STYLES):
        raise UserError(
            f"`data.styles` must name one or more of {', '.join(STYLES)}, each once, got [{', '.join(styles)}]. "
            "Correct it."
        )


def _is_complete(root: Path, manifest: JsonMapping) -> bool:
    """Return whether `root` is this benchmark (True) or free (False); anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    remedy = "delete it or choose another `root`"
    if not (root / MANIFEST).is_file():
        raise UserError(f"{root} exists and is not a synthetic benchmark (no {MANIFEST}): {remedy}")
    content = read_mapping(root / MANIFEST, remedy)
    stored, wanted = ({"styles": list(PHOTOS), **values} for values in (content, manifest))
    differences = [f"{k} is {stored.get(k)!r}, asked for {v!r}" for k, v in wanted.items() if stored.get(k) != v]
    if differences:
        raise UserError(f"{root} holds another synthetic benchmark ({'; '.join(differences)}): {remedy}")
    return True


def write_synthetic(
    root: Path,
    *,
    seed: int = 0,
    images: Mapping[str, int] = IMAGES,
    pairs_per_category: int | None = None,
    categories: Sequence[str] = CATEGORIES,
    size: int = 256,
    styles: Sequence[Style] = PHOTOS,
) -> Path:
    """Write the benchmark unless `root` already holds exactly this one; return `root`.

    The files appear all at once: they are written beside `root` and renamed, so that neither a
    killed writer nor two at the same time leave half a benchmark behind.

    Args:
        root: Folder of the benchmark, absent or empty unless it holds this one.
        seed: Seed of the drawings and of the choice of pairs.
        images: Images per category, by split: `trn`, `val`, `test`. Splits share no individual.
        pairs_per_category: Most random pairs of a category and split, in order; None: all ordered pairs with at least
            three shared keypoints.
        categories: Categories to draw, of `anatomy.CATEGORIES`.
        size: Image sides are drawn from 7/8 to 5/4 of it, in pixels.
        styles: Styles that every creature is drawn in; each pair is written from every style to every style.

    Raises:
        UserError: The folder holds something else or cannot be written, or an argument is not allowed.
    """
    root = Path(root)
    _check(images, categories, styles)
    manifest = {
        "format": FORMAT,
        "seed": seed,
        "images": dict(images),
        "pairs_per_category": pairs_per_category,
        "categories": list(categories),
        "size": size,
    }
    if tuple(styles) != PHOTOS:  # left out, so that benchmarks from before there were styles are found complete
        manifest["styles"] = list(styles)
    if _is_complete(root, manifest):
        return root
    require_writable(root, "data.root")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(root.parent, root.name) as staging:
            _write(staging, manifest)
            _rename(staging, root, manifest)
    except OSError as error:
        raise UserError(write_error(root, error, "data.root")) from error
    return root


def _rename(staging: Path, root: Path, manifest: JsonMapping) -> None:
    try:
        staging.rename(root)
    except OSError:  # another writer was faster
        if not _is_complete(root, manifest):
            raise
