"""Articulated figures of round parts, and the z-buffer that a weak-perspective camera sees.

Axes of the world and of every bone: x forward, y to the animal's left, z up; the trunk is about 1
long. Each part is rigid: the hull of two spheres, squashed along its bone's axes, whose crossing
with a viewing ray has a closed form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Vector = Float[np.ndarray, "3"]
Matrix = Float[np.ndarray, "3 3"]
Angles = tuple[float, float, float]  # degrees: pitch (nose down), yaw (to its left), roll (left side up)
Pose = Mapping[str, Angles]  # by bone; a bone left out keeps its rest angles (0, 0, 0)

BLEND = 0.02  # depth over which touching parts melt into each other, in trunk lengths


class Bone(NamedTuple):
    """A rigid frame; `joint` is where it turns, in its parent's axes."""

    parent: str | None
    joint: Vector
    coat: Vector  # where the bone's origin lies in coat space
    limb: bool = False  # a limb's coat space has x and z exchanged: its stripes become rings


class BodyPart(NamedTuple):
    """The hull of two spheres, its radii multiplied per axis by `squash`; in its bone's axes."""

    bone: str
    start: Vector
    end: Vector
    radius: tuple[float, float]
    squash: Vector
    material: int
    tip: float  # 0 on the trunk to 1 at the extremities, for darker faces and paws


class Landmark(NamedTuple):
    """A keypoint in its bone's axes; seen if the surface is within `slack` of its depth."""

    bone: str
    point: Vector
    slack: float
    facing: Vector  # never seen from behind this direction; 0: from anywhere


@dataclass
class Creature:
    """One individual. Bones come parents first."""

    bones: dict[str, Bone] = field(default_factory=dict)
    parts: list[BodyPart] = field(default_factory=list)
    landmarks: dict[str, Landmark] = field(default_factory=dict)

    def add_bone(self, name: str, parent: str | None, joint: Vector, *, limb: bool = False) -> None:
        """Add a bone; the first bone of a limb starts the coat space its bones share.

        Args:
            name: Name of the bone.
            parent: Name of the bone that it hangs on, which was added before; None: the root.
            joint: Where it turns, in its parent's axes, in trunk lengths.
            limb: Whether it is part of a limb.
        """
        above = self.bones[parent] if parent else Bone(None, joint, joint)
        coat = above.coat + joint
        if limb:
            coat = above.coat + joint * (0, 0, 1) if above.limb else np.zeros(3)
        self.bones[name] = Bone(parent, joint, coat, limb)

    def add_part(
        self,
        bone: str,
        start: Vector,
        end: Vector,
        radius: float | tuple[float, float],
        *,
        squash: tuple[float, float, float] = (1.0, 1.0, 1.0),
        material: int = 0,
        tip: float = 0.0,
    ) -> None:
        """Add a part to a bone. Lengths are in trunk lengths.

        Args:
            bone: Name of the bone.
            start: Centre of the first sphere, in the bone's axes.
            end: Centre of the second sphere, in the bone's axes.
            radius: Radii of both spheres, or one of both.
            squash: Factors of the radii along the bone's axes.
            material: Material, by its number in `anatomy`.
            tip: How far out the part is: 0 on the trunk to 1 at the extremities.
        """
        ends = radius if isinstance(radius, tuple) else (radius, radius)
        self.parts.append(BodyPart(bone, start, end, ends, np.array(squash, float), material, tip))

    def add_landmark(self, name: str, bone: str, point: Vector, slack: float, facing: Vector | None = None) -> None:
        """Add a landmark to a bone. Lengths are in trunk lengths.

        Args:
            name: Name of the keypoint.
            bone: Name of the bone.
            point: Position in the bone's axes.
            slack: Largest difference between the depths of the landmark and of the visible surface.
            facing: Direction in the bone's axes from behind which it is never seen; None: it is seen from anywhere.
        """
        self.landmarks[name] = Landmark(bone, point, slack, np.zeros(3) if facing is None else facing)

    def surface(self, bone: str, origin: Vector, direction: Vector) -> Vector:
        """Return where a ray from inside `bone`'s parts leaves the last of them."""
        ray = direction / np.linalg.norm(direction)
        parts = [part for part in self.parts if part.bone == bone]
        hits = [ray_hit(p, ((origin - p.start) / p.squash)[:, None], ray / p.squash)[0][0] for p in parts]
        return origin + max(hits) * ray


def ray_hit(
    part: BodyPart, origins: Float[np.ndarray, "3 n"], direction: Vector
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return in units of `direction` where each line leaves the part (-inf: misses it), and where on its axis (0 to 1).

    Lines are in the part's own space, (point - start) / squash, where it is round. One at distance
    d(t) from the sphere at t on the axis leaves that sphere slope * t + sqrt(radius(t)^2 - d(t)^2)
    along; this is concave in t unless the part is seen end on, so that the best t is known.

    Args:
        part: The part.
        origins: A point of each line, in the part's own space.
        direction: Direction of all lines, in the part's own space.
    """
    length = float(np.sqrt(direction @ direction))
    ray, axis = direction / length, (part.end - part.start) / part.squash
    slope, taper = float(axis @ ray), part.radius[1] - part.radius[0]
    sideways = axis - slope * ray
    along, linear = ray @ origins, sideways @ origins + part.radius[0] * taper
    constant = part.radius[0] ** 2 + along**2 - (origins * origins).sum(0)
    bend = float(sideways @ sideways) - taper**2
    if bend > 1e-9:
        middle = linear / bend
        lean = slope / np.sqrt(bend * (bend + slope**2))
        t = np.clip(middle + lean * np.sqrt(np.maximum(constant + linear * middle, 0)), 0, 1)
    else:  # one end covers the other
        wider = constant + 2 * linear - bend
        ahead = slope + np.sqrt(np.maximum(wider, 0)) > np.sqrt(np.maximum(constant, 0))
        t = np.where((wider >= 0) & (ahead | (constant < 0)), 1.0, 0.0)
    square = constant + t * (2 * linear - bend * t)
    reach = np.where(square >= 0, slope * t + np.sqrt(np.maximum(square, 0)), -np.inf)
    return (reach - along) / length, t


def rotation_matrix(angles: Angles) -> Matrix:
    """Return the rotation by roll, then pitch, then yaw."""
    (sp, sy, sr), (cp, cy, cr) = np.sin(np.radians(angles)), np.cos(np.radians(angles))
    pitch = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    roll = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return yaw @ pitch @ roll


class BoneFrame(NamedTuple):
    """The frame of a posed bone: its axes as columns, and its origin."""

    axes: Matrix
    origin: Vector


def pose_bones(creature: Creature, pose: Pose) -> dict[str, BoneFrame]:
    """Return every bone's frame in the world, by its name."""
    frames: dict[str, BoneFrame] = {}
    for name, bone in creature.bones.items():
        parent = frames[bone.parent] if bone.parent else BoneFrame(np.eye(3), np.zeros(3))
        turn = rotation_matrix(pose.get(name, (0.0, 0.0, 0.0)))
        frames[name] = BoneFrame(parent.axes @ turn, parent.origin + parent.axes @ bone.joint)
    return frames


@dataclass(frozen=True)
class Camera:
    """Weak perspective: rows of `axes` are image right, image down and towards the viewer."""

    axes: Matrix
    scale: float = 1.0  # pixels per trunk length
    centre: tuple[float, float] = (0.0, 0.0)  # the pixel where the world's origin falls

    @classmethod
    def towards(cls, azimuth: float, elevation: float = 0.0, tilt: float = 0.0) -> "Camera":
        """Return the camera that looks at the world's origin; all angles are in degrees.

        At azimuth 0 the animal faces the viewer, at 90 the image's left edge (its left side is
        seen), at 180 it is seen from behind. Elevation looks down on it; tilt turns the image.
        """
        a, e, r = np.radians([azimuth, elevation, tilt])
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        level = np.array([np.cos(a), np.sin(a), 0.0])  # towards a viewer at eye level
        viewer = np.cos(e) * level + np.sin(e) * np.array([0.0, 0.0, 1.0])
        down = np.sin(e) * level - np.cos(e) * np.array([0.0, 0.0, 1.0])
        return cls(np.stack([np.cos(r) * right + np.sin(r) * down, np.cos(r) * down - np.sin(r) * right, viewer]))

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Project world points to (x, y, depth): pixels, and trunk lengths towards the viewer."""
        projected = points @ self.axes.T
        projected[:, :2] = projected[:, :2] * self.scale + self.centre
        return projected


def bounding_boxes(creature: Creature, frames: Mapping[str, BoneFrame], camera: Camera) -> Float[np.ndarray, "n 4"]:
    """Return each part's bounding box in the image, never too small: x1, y1, x2, y2, in pixels."""
    boxes = []
    for part in creature.parts:
        frame = frames[part.bone]
        ends = camera.project(frame.origin + np.stack([part.start, part.end]) @ frame.axes.T)[:, :2]
        reach = camera.scale * part.squash.max() * np.array(part.radius)[:, None]
        boxes.append(np.concatenate([(ends - reach).min(0), (ends + reach).max(0)]))
    return np.stack(boxes)


class Raster(NamedTuple):
    """The camera's view of a creature. Pixel centres are at integers; the background's depth is -inf.

    All but depth have one row per pixel of the mask, in reading order.
    """

    depth: Float[np.ndarray, "h w"]
    normal: Float[np.ndarray, "n 3"]  # image right, image down, towards the viewer
    coat: Float[np.ndarray, "n 3"]  # where on the animal: (x, |y|, z) in coat space
    tip: Float[np.ndarray, " n"]
    material: Int[np.ndarray, " n"]

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The mask of the creature."""
        return np.isfinite(self.depth)


def rasterise(creature: Creature, frames: Mapping[str, BoneFrame], camera: Camera, shape: tuple[int, int]) -> Raster:
    """Compute the z-buffer: the nearest part gives depth and material, parts within BLEND share the rest.

    Args:
        creature: The creature.
        frames: Frames of its bones, in its pose.
        camera: The camera that sees it.
        shape: Height and width of the image, in pixels.
    """
    depth, material = np.full(shape[0] * shape[1], -np.inf), np.zeros(shape[0] * shape[1], int)
    total = np.zeros((8, len(depth)))
    boxes = bounding_boxes(creature, frames, camera)
    low = np.maximum(np.ceil(boxes[:, :2]), 0).astype(int)
    high = np.minimum(np.floor(boxes[:, 2:]), (shape[1] - 1, shape[0] - 1)).astype(int)
    middles = [frames[p.bone].origin + frames[p.bone].axes @ (p.start + p.end) / 2 for p in creature.parts]
    for i in np.argsort(middles @ -camera.axes[2], stable=True):  # near ones first: they hide much of the others
        part, x, y = creature.parts[i], np.arange(low[i, 0], high[i, 0] + 1), np.arange(low[i, 1], high[i, 1] + 1)
        if len(x) and len(y):
            pixels = (y[:, None] * shape[1] + x).ravel()
            near, visible, surface_values = rasterise_part(
                part, creature.bones[part.bone], frames[part.bone], camera, x, y, depth[pixels]
            )
            pixels = pixels[visible]
            total[:, pixels] += np.exp(near / BLEND) * surface_values
            material[pixels] = np.where(near > depth[pixels], part.material, material[pixels])
            depth[pixels] = np.maximum(near, depth[pixels])
    mask = np.flatnonzero(np.isfinite(depth))
    surface = total[:, mask]
    surface /= surface[7]
    normal = surface[:3] / np.maximum(np.sqrt((surface[:3] ** 2).sum(0)), 1e-9)
    return Raster(depth.reshape(shape), normal.T, surface[3:6].T, surface[6], material[mask])


def rasterise_part(
    part: BodyPart,
    bone: Bone,
    frame: BoneFrame,
    camera: Camera,
    x: np.ndarray,
    y: np.ndarray,
    depth: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, "8 k"]]:
    """Rasterise one part over a box of pixels, where it is not far behind what was rasterised before.

    Args:
        part: The part.
        bone: The part's bone.
        frame: Frame of the bone, in its pose.
        camera: The camera that sees it.
        x: Columns of the box.
        y: Rows of the box.
        depth: Depth of each of its pixels so far, row by row.

    Returns:
        Depth of the part where it is near enough.
        Indices of these pixels in `depth`.
        Their normal (3 values), coat position (3), tip, and 1.
    """
    to_bone = camera.axes @ frame.axes  # rows: the image's axes in the bone's
    view, squash, start = to_bone / part.squash, part.squash[:, None], part.start[:, None]
    origin = (frame.origin @ frame.axes + part.start) / part.squash
    across = np.multiply.outer(view[0], (x - camera.centre[0]) / camera.scale)
    downward = np.multiply.outer(view[1], (y - camera.centre[1]) / camera.scale) - origin[:, None]
    lines = (across[:, None, :] + downward[:, :, None]).reshape(3, -1)
    near, t = ray_hit(part, lines, view[2])
    visible = np.flatnonzero(near > np.maximum(depth - 8 * BLEND, -1e9))
    near = near[visible]
    point = lines[:, visible] + np.multiply.outer(view[2], near)
    away = (point - np.multiply.outer((part.end - part.start) / part.squash, t[visible])) / squash
    surface_values = np.ones((8, len(near)))
    surface_values[:3] = to_bone @ away / np.sqrt((away * away).sum(0))
    surface_values[3:6] = bone.coat[:, None] + (point * squash + start)[:: -1 if bone.limb else 1]
    surface_values[4] = np.abs(surface_values[4])
    surface_values[6] = part.tip
    return near, visible, surface_values


def project_landmarks(
    creature: Creature, frames: Mapping[str, BoneFrame], camera: Camera, raster: Raster
) -> dict[str, tuple[int, int] | None]:
    """Project landmarks to pixels (x, y), by their names; None where out of the image or behind something.

    A landmark takes the nearest of the nine pixels around it that show the surface it lies on.

    Args:
        creature: The creature.
        frames: Frames of its bones, in its pose.
        camera: The camera that sees it.
        raster: What the camera sees, as `rasterise` returns it.
    """
    pixels: dict[str, tuple[int, int] | None] = {}
    h, w = raster.depth.shape
    for name, landmark in creature.landmarks.items():
        frame = frames[landmark.bone]
        x, y, depth = camera.project((frame.origin + frame.axes @ landmark.point)[None])[0]
        neighbours = [(round(x) + i, round(y) + j) for j in (-1, 0, 1) for i in (-1, 0, 1)]
        inside = [(i, j) for i, j in neighbours if 0 <= i < w and 0 <= j < h]
        faces = frame.axes @ landmark.facing @ camera.axes[2] >= 0
        visible = [(i, j) for i, j in inside if faces and abs(raster.depth[j, i] - depth) < landmark.slack]
        pixels[name] = min(visible, key=lambda p: (p[0] - x) ** 2 + (p[1] - y) ** 2, default=None)
    return pixels
