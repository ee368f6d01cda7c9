"""Photographs of new individuals: body, pose, camera, light, scenery, and what is visible of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.random import Generator
from PIL import Image

from semcorr.data.creatures.anatomy import sample_creature, sample_pose
from semcorr.data.creatures.raster import (
    BoneFrame,
    Camera,
    Creature,
    bounding_boxes,
    pose_bones,
    project_landmarks,
    rasterise,
)
from semcorr.data.creatures.scenery import (
    Coat,
    Light,
    cast_shadow,
    draw_backdrop,
    draw_occluder,
    shade_creature,
)
from semcorr.data.creatures.styles import Scene, draw_scene
from semcorr.data.keypoints import keypoint_names


class Photo(NamedTuple):
    """An image and its annotations."""

    image: Image.Image
    scene: Scene  # what it shows, to be drawn in other styles
    mask: Bool[np.ndarray, "h w"]  # the creature's visible pixels
    keypoints: dict[str, tuple[int, int] | None]  # by name; None: hidden
    truncated: bool
    occluded: bool


def render_photo(category: str, azimuth_id: int, size: int, rng: Generator) -> Photo:
    """Render one photograph of a new individual.

    It draws again, from the same generator, until there is enough to see: five keypoints, 4 % of the
    image, a box of 24 pixels each way.

    Args:
        category: One of `anatomy.CATEGORIES`.
        azimuth_id: Bin of the azimuth, from 0 to 7, see `annotation`.
        size: Width and height are drawn from 0.875 to 1.25 of it, in pixels.
        rng: Source of everything random.

    Raises:
        RuntimeError: There is not enough to see in 200 draws.
    """
    for _ in range(200):
        creature, pose = sample_creature(category, rng), sample_pose(category, rng)
        width, height = (int(side) for side in rng.uniform(0.875, 1.25, 2) * size)
        frames, layer = pose_bones(creature, pose), draw_occluder((height, width), rng)
        camera = sample_camera(creature, frames, azimuth_id, (height, width), rng)
        raster = rasterise(creature, frames, camera, (height, width))
        mask = raster.mask & (np.asarray(layer)[..., 3] == 0)
        landmarks = project_landmarks(creature, frames, camera, raster)
        keypoints = {name: xy for name, xy in landmarks.items() if xy and mask[xy[1], xy[0]]}
        named_keypoints = {name: keypoints.get(name) for name in keypoint_names("spair71k", category).values()}
        extent = np.ptp(np.argwhere(mask), axis=0) if mask.any() else np.zeros(2)
        if sum(xy is not None for xy in named_keypoints.values()) >= 5 and mask.mean() >= 0.04 and extent.min() >= 24:
            light = Light.draw(rng)
            feet = camera.project(np.stack([frames[bone].origin for bone in frames if bone.endswith("foot")]))
            picture = cast_shadow(draw_backdrop(category, (height, width), light, rng), feet[:, :2], camera.scale, rng)
            creature_pixels = shade_creature(raster, Coat.draw(category, rng), light)
            picture = np.where(raster.mask[..., None], creature_pixels, picture)
            border = np.concatenate([*raster.mask[[0, -1]], *raster.mask.T[[0, -1]]])
            occluded = mask.sum() < 0.95 * raster.mask.sum()
            scene = Scene(picture, raster.depth, layer)
            image = draw_scene(scene, "photo", rng)
            return Photo(image, scene, mask, named_keypoints, bool(border.any()), bool(occluded))
    raise RuntimeError(f"no presentable {category} in 200 draws: `size` {size} is too small")


def sample_camera(
    creature: Creature, frames: Mapping[str, BoneFrame], azimuth_id: int, shape: tuple[int, int], rng: Generator
) -> Camera:
    """Sample a camera in the azimuth's bin; three in ten come so close that the border may cut the creature.

    Args:
        creature: The creature that it looks at.
        frames: Frames of the creature's bones, in its pose.
        azimuth_id: Bin of the azimuth, from 0 to 7.
        shape: Height and width of the image, in pixels.
        rng: Source of everything random.
    """
    azimuth = 45 * azimuth_id + rng.uniform(-22.5, 22.5)
    camera = Camera.towards(azimuth, elevation=rng.uniform(-4, 28), tilt=float(np.clip(rng.normal(0, 4), -12, 12)))
    boxes = bounding_boxes(creature, frames, camera)
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = np.array(shape[::-1])
    fill = rng.uniform(0.95, 1.6) if rng.random() < 0.3 else rng.uniform(0.55, 0.95)
    scale = fill * float((side / (high - low)).min())
    slack = np.abs(side - scale * (high - low)) / 2 + (0.06 * side if fill > 0.95 else 0)
    centre = side / 2 - scale * (low + high) / 2 + slack * rng.uniform(-0.9, 0.9, 2)
    return replace(camera, scale=scale, centre=(float(centre[0]), float(centre[1])))
