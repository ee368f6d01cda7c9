"""Random augmentation of training pairs: mirrored, warped and recoloured, annotations with the pixels."""

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Shaped
from numpy.random import Generator
from torch import Tensor

from semcorr.core.coords import cell_centres
from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, require_fields
from semcorr.core.types import PairBatch, View
from semcorr.data.image_variants import mirrored_name
from semcorr.data.keypoints import geometry_aware_mask
from semcorr.data.record import PairRecord
from semcorr.data.views import to_unit_range
from semcorr.data.warp import (
    CONTROLS,
    ImageWarp,
    affine_matrix,
    box_outline,
    thin_plate_coefficients,
    warp_image,
    warp_points,
)

log = logging.getLogger(__name__)


class GeometricChange(NamedTuple):
    """A geometric change of an image: mirrored, then warped."""

    mirrored: bool = False
    warp: ImageWarp | None = None


class ColourChange(NamedTuple):
    """A change of an image's colours: three factors, a fraction of the colour circle, a choice."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False


def mirror_view(view: View, permutation: Sequence[int]) -> View:
    """Mirror keypoints, visibility, box and name, not pixels: row i is what row permutation[i] was.

    Args:
        view: View of one image, not a batch.
        permutation: The row of the view's keypoints that each row of the mirrored ones is.
    """
    assert isinstance(view.name, str), "one image, not a batch of them"
    order, last = list(permutation), view.image.shape[-1] - 1
    x, y = view.keypoints[order].unbind(-1)
    x1, y1, x2, y2 = view.box
    return view._replace(
        keypoints=torch.stack((last - x, y), dim=-1),
        visible=view.visible[order],
        box=torch.stack((last - x2, y1, last - x1, y2)),
        name=mirrored_name(view.name),
    )


def mirror_annotations(view: View, permutation: Sequence[int] | None) -> View:
    """Mirror the annotations as `mirror_view` does, without pixels: they are the view's own, mirrored."""
    assert permutation is not None, "augment.require_flips comes first"
    return mirror_view(view, permutation)._replace(image=view.image[:, :0])


def transform_annotations(view: View, geometry: GeometricChange, permutation: Sequence[int] | None) -> View:
    """Transform keypoints, visibility, box and name by `geometry`; `transform_pixels` does the same to the pixels.

    A keypoint that leaves the square is not visible any more. The box is that of the warped box's outline,
    within the square. `scale` and `offset` go on describing the view as it was: training stays in its pixels.

    Args:
        view: View of one image, a square.
        geometry: The change.
        permutation: As of `mirror_view`; None if `geometry` mirrors nothing.
    """
    if geometry.mirrored:
        assert permutation is not None, "augment.require_flips comes first"
        view = mirror_view(view, permutation)
    if geometry.warp is None:
        return view
    side, count = view.image.shape[-1], len(view.keypoints)
    warped = warp_points(torch.cat((view.keypoints, box_outline(view.box))), geometry.warp, side)
    keypoints, edges = warped[:count], warped[count:].clamp(-0.5, side - 0.5)
    inside = ((keypoints >= -0.5) & (keypoints <= side - 0.5)).all(-1)
    box = torch.cat((edges.amin(0), edges.amax(0)))
    return view._replace(keypoints=keypoints, visible=view.visible & inside, box=box)


def transform_pixels(image: Shaped[Tensor, "3 h s"], geometry: GeometricChange) -> Shaped[Tensor, "3 h s"]:
    """Mirror exactly and warp by one interpolation. An image without pixels, of height 0, can be mirrored alone."""
    image = image.flip(-1) if geometry.mirrored else image
    return image if geometry.warp is None else warp_image(image, geometry.warp)


def transform_mask(mask: Bool[Tensor, "s s"], geometry: GeometricChange) -> Bool[Tensor, "s s"]:
    """Mirror and warp the mask of an object; a pixel that the object fills at least by half belongs to it."""
    return transform_pixels(mask.float().expand(3, -1, -1), geometry)[0] >= 0.5


def transform_colours(image: Shaped[Tensor, "3 h w"], colours: ColourChange) -> Shaped[Tensor, "3 h w"]:
    """Change colours, from RGB in [0, 1] to RGB in [0, 1]; an image may be of any type if nothing is to change.

    Letterbox bars count as image: less contrast lifts them above black.
    """
    from torchvision.transforms.v2 import functional  # takes as long as PyTorch itself, and only training needs it

    steps = (
        (functional.adjust_brightness, colours.brightness, 1.0),
        (functional.adjust_contrast, colours.contrast, 1.0),
        (functional.adjust_saturation, colours.saturation, 1.0),
        (functional.adjust_hue, colours.hue, 0.0),
    )
    for adjust, amount, neutral in steps:
        image = image if amount == neutral else adjust(image, amount)
    return functional.rgb_to_grayscale(image, num_output_channels=3) if colours.grey else image


MAX_TRIES = 10  # draws of the images' geometry until a keypoint is visible in two
UpTo1 = Annotated[float, Range(0, 1, off=True)]
UpToHalf = Annotated[float, Range(0, 0.5, off=True)]


@dataclass(frozen=True)
class Augmentation:
    """The extent to which training pairs may be changed. Everything is 0, and off, if left out.

    Each image of a pair has its own draw, uniform up to the number given. Geometry is that of
    the square the backbone sees: with `data.resize=squash` a turn is one of the stretched image.

    Args:
        flip: Probability of a mirror image, its left and right keypoints exchanged.
        rotate: Largest angle of a rotation, in degrees, either way.
        scale: Images are enlarged or shrunk by a factor of up to 1 + scale.
        shift: Largest displacement along x and y, as a fraction of the side.
        shear: Largest angle of a shear, in degrees, either way.
        crop: Fraction of the side that is cut away at most, anywhere; the rest is enlarged to the square.
        thin_plate: Fraction of the side by which each of 4 x 4 control points is displaced along x and y; less
            where the image would fold.
        brightness: Factor of the brightness, from 1 - brightness to 1 + brightness.
        contrast: Factor of the contrast, from 1 - contrast to 1 + contrast.
        saturation: Factor of the saturation, from 1 - saturation to 1 + saturation.
        hue: Largest turn of the colour circle, as a fraction of it, either way.
        grey: Probability of losing all colour.
        grid: Points along a side of a grid that takes the place of keypoints, see `pair_with_itself`; for training
            without keypoints, from warps that are known (Rocco et al. 2017, "CNNGeo").
    """

    flip: UpTo1 = 0.0
    rotate: Annotated[float, Range(0, 180, off=True)] = 0.0
    scale: UpTo1 = 0.0
    shift: UpToHalf = 0.0
    shear: Annotated[float, Range(0, 45, off=True)] = 0.0
    crop: Annotated[float, Range(0, 0.9, off=True)] = 0.0
    thin_plate: Annotated[float, Range(0, 0.2, off=True)] = 0.0
    brightness: UpTo1 = 0.0
    contrast: UpTo1 = 0.0
    saturation: UpTo1 = 0.0
    hue: UpToHalf = 0.0
    grey: UpTo1 = 0.0
    grid: Annotated[int, Range(0, 64, off=True)] = 0

    def __post_init__(self) -> None:
        require_fields(self, "augment")
        if self.grid and self.flip:
            raise UserError(
                "`augment.grid` has no left and right points that a mirror image could exchange. Set augment.flip=0."
            )

    def __bool__(self) -> bool:
        """Return whether anything is to be changed at all."""
        return any(astuple(self))

    @property
    def only_flips(self) -> bool:
        """Whether only mirror images are drawn: two images to encode, once."""
        return not any(astuple(replace(self, flip=0.0)))

    def __call__(self, pair: PairBatch, record: PairRecord, rng: Generator) -> PairBatch:
        """Augment a pair by one draw.

        Args:
            pair: One pair, not a batch.
            record: Record of the pair, which has the category's permutation and symmetry groups.
            rng: Source of everything random.
        """
        pair = pair_with_itself(pair, self.grid, record.source.size) if self.grid else pair
        (source, target), geometries = self._augment(pair[:2], record.flip, rng)
        masks = tuple(transform_mask(mask, geometry) for mask, geometry in zip(pair.masks, geometries, strict=False))
        groups = () if self.grid else record.groups
        twins = geometry_aware_mask(source.visible & target.visible, target.visible, groups)
        return pair._replace(source=source, target=target, ambiguous=twins, masks=masks)

    def augment_views(self, views: Sequence[View], permutation: Sequence[int] | None, rng: Generator) -> list[View]:
        """Augment images of one category, each by its own draw; some keypoint stays visible in two of them.

        If none does in `MAX_TRIES` draws, the geometry of the images stays as it is. Mirror images of bytes are bytes.
        Whatever else is drawn, all are floating point in [0, 1]: rounded to bytes, what is warped or recoloured would
        lose its last bits.

        Args:
            views: Views of single images.
            permutation: The category's, as of `mirror_view`; None if no image is mirrored.
            rng: Source of everything random.
        """
        return self._augment(views, permutation, rng)[0]

    def _augment(
        self, views: Sequence[View], permutation: Sequence[int] | None, rng: Generator
    ) -> tuple[list[View], list[GeometricChange]]:
        """Augment images of one category, and return the geometric change of each as well."""
        views = views if self.only_flips else [view._replace(image=to_unit_range(view.image)) for view in views]
        colours = [self.sample_colours(rng) for _ in views]
        geometries, transformed = self._draw_geometries(views, permutation, rng)
        augmented = [
            view._replace(image=transform_pixels(transform_colours(view.image, colour), geometry))
            for view, colour, geometry in zip(transformed, colours, geometries, strict=True)
        ]
        return augmented, geometries

    def sample_geometry(self, rng: Generator) -> GeometricChange:
        """Draw a geometric change; the count of random numbers is fixed, so that options are independent."""
        mirrored = bool(rng.random() < self.flip)
        rotate, zoom, shear, x, y, centre_x, centre_y = rng.uniform(-1, 1, 7).tolist()
        cut = self.crop * rng.random()
        offsets = rng.uniform(-1, 1, (CONTROLS**2, 2))
        if not any((self.rotate, self.scale, self.shift, self.shear, self.crop, self.thin_plate)):
            return GeometricChange(mirrored)
        matrix = affine_matrix(
            rotate=self.rotate * rotate,
            zoom=(1 + self.scale) ** zoom,
            shift=(2 * self.shift * x, 2 * self.shift * y),  # the side is 2 units
            shear=self.shear * shear,
            window=(cut * centre_x, cut * centre_y, 1 - cut),  # anywhere within the square
        )
        spline = thin_plate_coefficients(torch.from_numpy(2 * self.thin_plate * offsets)) if self.thin_plate else None
        return GeometricChange(mirrored, ImageWarp(matrix, spline))

    def sample_colours(self, rng: Generator) -> ColourChange:
        """Draw a colour change, from a fixed count of random numbers, too."""
        brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4).tolist()
        return ColourChange(
            1 + self.brightness * brightness,
            1 + self.contrast * contrast,
            1 + self.saturation * saturation,
            self.hue * hue,
            bool(rng.random() < self.grey),
        )

    def _draw_geometries(
        self, views: Sequence[View], permutation: Sequence[int] | None, rng: Generator
    ) -> tuple[list[GeometricChange], list[View]]:
        """Draw until a keypoint is visible in two images; return the images unchanged if none is."""
        for _ in range(MAX_TRIES):
            geometries = [self.sample_geometry(rng) for _ in views]
            transformed = [
                transform_annotations(view, geometry, permutation)
                for view, geometry in zip(views, geometries, strict=True)
            ]
            if share_keypoint(torch.stack([view.visible for view in transformed])):
                return geometries, transformed
        return [GeometricChange() for _ in views], list(views)


def pair_with_itself(pair: PairBatch, count: int, size: tuple[int, int]) -> PairBatch:
    """Return the source of a pair twice, with count x count points over all of its image instead of keypoints.

    Each point is the centre of one of as many equal tiles; none is in the padding of a view. What is drawn for the two
    images then warps them apart.

    Args:
        pair: One pair, not a batch.
        count: Number of points along a side.
        size: Width and height of the source as stored, in pixels.
    """
    view = pair.source
    width, height = (torch.tensor(size) * view.scale).round().tolist()  # of the image within the square
    x, y = cell_centres((1, count), width / count)[0, :, 0], cell_centres((count, 1), height / count)[:, 0, 1]
    points = torch.cartesian_prod(y, x).flip(-1) + view.offset
    view = view._replace(keypoints=points, visible=torch.ones(len(points), dtype=torch.bool))
    return pair._replace(source=view, target=view, masks=[mask for mask in pair.masks[:1] for _ in range(2)])


def share_keypoint(visible: Bool[Tensor, "m n"]) -> bool:
    """Return whether any keypoint is visible in two of m images."""
    return bool((visible.sum(0) >= 2).any())


def require_flips(
    pairs: Sequence[PairRecord], benchmark: str, option: str = "augment.flip", remedy: str = "augment.flip=0"
) -> None:
    """Refuse to mirror images of categories whose left-right permutation is unknown; warn of those without sides.

    Args:
        pairs: The training pairs.
        benchmark: Name of the benchmark, for messages.
        option: Option that mirrors images, for messages.
        remedy: Setting that mirrors none, for the message.

    Raises:
        UserError: A category has no permutation.
    """
    flips = {pair.category: pair.flip for pair in pairs}
    lacking = sorted(category for category, flip in flips.items() if flip is None)
    if lacking:
        raise UserError(
            f"`{option}`: {benchmark} does not say which keypoints change places in a mirror image of "
            f"{', '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}. Set {remedy}, or name "
            "each by `left` or `right`, with its twin."
        )
    if unsided := sorted(category for category, flip in flips.items() if flip == tuple(range(len(flip or ())))):
        log.warning(
            "`%s`: no keypoints of %s are named left and right, so a mirror image keeps all names",
            *(option, ", ".join(unsided[:5]) + " ..." * (len(unsided) > 5)),
        )
