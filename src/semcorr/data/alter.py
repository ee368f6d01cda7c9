"""Changes of a view for training: geometry and colours, the annotations with the pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional

from semcorr.core.types import View
from semcorr.data.image_variants import mirrored_name
from semcorr.data.warp import ImageWarp, box_outline, warp_image, warp_points


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
    """Mirror keypoints, visibility, box and name, not pixels: row i is what row permutation[i] was."""
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
    """Transform keypoints, visibility, box and name by `geometry`; pixels are `transform_pixels`'s.

    A keypoint that leaves the square is not visible any more. The box is that of the warped box's outline,
    within the square. `scale` and `offset` go on describing the view as it was: training stays in its pixels.
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


def transform_pixels(image: Float[Tensor, "3 h s"], geometry: GeometricChange) -> Float[Tensor, "3 h s"]:
    """Mirror exactly and warp by one interpolation. An image without pixels stays without if mirrored."""
    image = image.flip(-1) if geometry.mirrored else image
    return image if geometry.warp is None else warp_image(image, geometry.warp)


def transform_colours(image: Float[Tensor, "3 h w"], colours: ColourChange) -> Float[Tensor, "3 h w"]:
    """Change colours, RGB in [0, 1] to RGB in [0, 1].

    Letterbox bars count as image: less contrast lifts them above black.
    """
    steps = (
        (functional.adjust_brightness, colours.brightness, 1.0),
        (functional.adjust_contrast, colours.contrast, 1.0),
        (functional.adjust_saturation, colours.saturation, 1.0),
        (functional.adjust_hue, colours.hue, 0.0),
    )
    for adjust, amount, neutral in steps:
        image = image if amount == neutral else adjust(image, amount)
    return functional.rgb_to_grayscale(image, num_output_channels=3) if colours.grey else image
