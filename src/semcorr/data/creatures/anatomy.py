"""Quadrupeds in five kinds: a random individual's anatomy, and a random pose.

Left and right parts are built by one loop that only changes the sign of y, and the coat is looked
up at (x, |y|, z): nothing but the pose tells the sides apart. The four legs share one coat, and
their feet one shape, so front and back paws look alike too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from semcorr.data.creatures.raster import Angles, Creature, Vector

FUR, DARK, HORN, HOOF, MANE, SKIN, IRIS = range(7)  # materials; only FUR carries the coat's pattern
SIDES = (("left", 1.0), ("right", -1.0))


@dataclass(frozen=True)
class Proportions:
    """Proportions of a category's average animal, in trunk lengths and degrees."""

    leg: float
    limb: float
    chest: float
    hip: float
    narrow: float  # trunk width over trunk height
    neck: float
    rise: float  # the neck's angle above the horizontal
    skull: float
    muzzle: float
    snout: float
    droop: float  # the face's angle below the horizontal
    ear: float
    ear_width: float
    ear_lift: float  # the ears' angle above the horizontal
    tail: float
    tail_radius: float
    tail_lift: float
    eyes_aside: float  # 0: eyes look forward; 1: sideways
    horn: float = 0.0
    hoofed: bool = True
    maned: bool = False


BUILDS: Mapping[str, Proportions] = {
    "cat": Proportions(
        leg=0.60, limb=0.095, chest=0.21, hip=0.21, narrow=0.88, neck=0.20, rise=42, skull=0.20,
        muzzle=0.10, snout=0.095, droop=10, ear=0.21, ear_width=0.10, ear_lift=66, tail=0.85,
        tail_radius=0.045, tail_lift=35, eyes_aside=0.15, hoofed=False,
    ),
    "dog": Proportions(
        leg=0.74, limb=0.10, chest=0.24, hip=0.18, narrow=0.80, neck=0.30, rise=48, skull=0.165,
        muzzle=0.23, snout=0.085, droop=16, ear=0.21, ear_width=0.085, ear_lift=20, tail=0.50,
        tail_radius=0.04, tail_lift=40, eyes_aside=0.3, hoofed=False,
    ),
    "horse": Proportions(
        leg=0.98, limb=0.10, chest=0.27, hip=0.27, narrow=0.80, neck=0.60, rise=48, skull=0.14,
        muzzle=0.36, snout=0.085, droop=48, ear=0.16, ear_width=0.045, ear_lift=72, tail=0.62,
        tail_radius=0.06, tail_lift=-68, eyes_aside=0.75, maned=True,
    ),
    "cow": Proportions(
        leg=0.72, limb=0.115, chest=0.30, hip=0.29, narrow=0.82, neck=0.36, rise=20, skull=0.165,
        muzzle=0.27, snout=0.11, droop=42, ear=0.21, ear_width=0.075, ear_lift=-4, tail=0.66,
        tail_radius=0.024, tail_lift=-78, eyes_aside=0.75, horn=0.20,
    ),
    "sheep": Proportions(
        leg=0.58, limb=0.085, chest=0.31, hip=0.32, narrow=0.95, neck=0.24, rise=38, skull=0.135,
        muzzle=0.19, snout=0.075, droop=36, ear=0.18, ear_width=0.055, ear_lift=-8, tail=0.26,
        tail_radius=0.055, tail_lift=-72, eyes_aside=0.75, horn=0.18,
    ),
}  # fmt: skip
CATEGORIES = tuple(BUILDS)


def vector(x: float, y: float, z: float) -> Vector:
    """Build a vector from forward, left, up."""
    return np.array([x, y, z], float)


def direction_at_angle(degrees: float) -> Vector:
    """Return the direction that many degrees above straight ahead."""
    return vector(np.cos(np.radians(degrees)), 0, np.sin(np.radians(degrees)))


def sample_creature(category: str, rng: Generator) -> Creature:
    """Sample an individual of a category."""
    build = jitter_proportions(BUILDS[category], rng)
    if category == "dog":  # some dogs' ears hang, others' stand
        build = replace(build, ear_lift=float(rng.choice([-62.0, -40.0, 55.0, 68.0])))
    if rng.random() < 0.25:
        build = replace(build, horn=0.0)
    creature = Creature()
    add_trunk(creature, build)
    add_head(creature, build)
    add_snout(creature, build, black=category == "dog")
    for side, sign in SIDES:
        add_face(creature, build, side, sign)
        add_ear(creature, build, side, sign)
        if build.horn:
            add_horn(creature, build, side, sign, curled=category == "sheep")
        add_leg(creature, build, f"front-{side}", sign)
        add_leg(creature, build, f"back-{side}", sign)
    add_tail(creature, build)
    return creature


def jitter_proportions(build: Proportions, rng: Generator) -> Proportions:
    """Vary an animal's lengths by about 9 % and its angles by about 5 degrees."""
    changed = {}
    for name, value in vars(build).items():
        if not isinstance(value, bool):
            step = float(np.clip(rng.normal(), -2, 2))
            is_angle = name in ("rise", "droop", "ear_lift", "tail_lift")
            changed[name] = value + 5 * step if is_angle else value * float(np.exp(0.09 * step))
    return replace(build, **changed)


def add_trunk(creature: Creature, b: Proportions) -> None:
    """Add the root bone, its origin halfway between shoulders and hips."""
    squash, low = (1.0, b.narrow, 1.0), -0.05
    creature.add_bone("trunk", None, vector(0, 0, 0))
    creature.add_part("trunk", vector(0.36, 0, -0.02), vector(-0.38, 0, 0), (b.chest, b.hip), squash=squash)
    creature.add_part(
        "trunk", vector(0.10, 0, low), vector(-0.12, 0, low), (b.chest, b.hip), squash=(1.0, 1.05 * b.narrow, 1.0)
    )
    creature.add_part("trunk", vector(0.42, 0, 0.02), vector(0.30, 0, 0.06), 0.85 * b.chest, squash=squash)


def skull_geometry(b: Proportions) -> tuple[Vector, Vector, Vector, Vector]:
    """Return the facing direction, the up direction, and the centres of skull and snout."""
    face, crown = direction_at_angle(-b.droop), direction_at_angle(90 - b.droop)
    centre = b.skull * (0.45 * face + 0.2 * crown)
    return face, crown, centre, centre + (0.65 * b.skull + b.muzzle) * face - 0.35 * b.skull * crown


def add_head(creature: Creature, b: Proportions) -> None:
    """Add neck, skull, muzzle and jaw, and a horse's mane."""
    neck, above = b.neck * direction_at_angle(b.rise), direction_at_angle(90 + b.rise)
    creature.add_bone("neck", "trunk", vector(0.40, 0, 0.35 * b.chest))
    creature.add_part("neck", vector(-0.02, 0, 0), neck, (0.78 * b.chest, 0.78 * b.skull), squash=(1.0, 0.75, 1.0))
    creature.add_bone("head", "neck", neck)
    face, crown, centre, snout = skull_geometry(b)
    jaw, chin = centre - 0.35 * b.skull * crown, snout - 0.3 * b.snout * crown
    creature.add_part("head", centre, centre, b.skull, squash=(1.0, 0.95, 0.92), tip=0.35)
    creature.add_part("head", centre + 0.1 * b.skull * face, snout, (0.72 * b.skull, b.snout), tip=0.8)
    creature.add_part("head", jaw, chin, (0.62 * b.skull, 0.8 * b.snout), squash=(1.0, 0.95, 1.0), tip=0.8)
    if b.maned:
        crest, top = 0.75 * b.skull * above, centre + b.skull * crown
        lock = centre + b.skull * (0.6 * crown + 0.85 * face)
        creature.add_part("neck", 1.5 * crest, neck + crest, (0.085, 0.06), squash=(1.0, 0.45, 1.0), material=MANE)
        creature.add_part("head", top, lock, (0.05, 0.03), material=MANE)
    creature.add_landmark("nape", "neck", creature.surface("neck", 0.8 * neck, above), 0.04)
    brow = 0.9 * face + 0.75 * crown
    creature.add_landmark("forehead", "head", creature.surface("head", centre, brow), 0.03, brow)


def add_snout(creature: Creature, b: Proportions, *, black: bool) -> None:
    """Add mouth and nose."""
    face, crown, _, snout = skull_geometry(b)
    mouth, half = creature.surface("head", snout, face - 0.75 * crown), vector(0, 0.35 * b.snout, 0)
    nose = creature.surface("head", snout, face + 0.45 * crown)
    creature.add_landmark("mouth", "head", mouth, 0.03, face)
    creature.add_landmark("nose", "head", nose + 0.3 * b.snout * face, 0.04)
    creature.add_part("head", mouth - half, mouth + half, 0.012, material=DARK)
    if not b.hoofed:
        size, material = (0.42 * b.snout, DARK) if black else (0.28 * b.snout, SKIN)
        creature.add_part("head", nose, nose, size, squash=(0.8, 1.2, 0.8), material=material)


def add_face(creature: Creature, b: Proportions, side: str, sign: float) -> None:
    """Add an eye and a nostril.

    Args:
        creature: Individual that has its head and snout; changed.
        b: Proportions of the individual.
        side: `left` or `right`, as in the names of landmarks.
        sign: Sign of y on this side: 1 on the left, -1 on the right.
    """
    face, crown, centre, snout = skull_geometry(b)
    outward = (1.05 - b.eyes_aside) * face + vector(0, sign * (0.42 + 0.55 * b.eyes_aside), 0) + 0.38 * crown
    eye, outward = creature.surface("head", centre, outward), outward / np.linalg.norm(outward)
    radius = 0.022 + 0.11 * b.skull
    ball, pupil = eye - 0.45 * radius * outward, eye + 0.28 * radius * outward
    creature.add_part("head", ball, ball, radius, material=IRIS)
    creature.add_part("head", pupil, pupil, 0.5 * radius, material=DARK)
    creature.add_landmark(f"{side} eye", "head", pupil + 0.5 * radius * outward, 0.02, outward)
    nostril = creature.surface("head", snout, face + vector(0, 0.5 * sign, 0) + 0.3 * crown)
    creature.add_part("head", nostril, nostril, 0.008 + 0.07 * b.snout, material=DARK)
    creature.add_landmark(f"{side} nostril", "head", nostril, 0.03, face + vector(0, 0.5 * sign, 0) + 0.3 * crown)


def add_ear(creature: Creature, b: Proportions, side: str, sign: float) -> None:
    """Add an ear: a flat cone with bare skin in front. Like feet and horns, seen from behind it still counts.

    Args:
        creature: Individual that has its head; changed.
        b: Proportions of the individual.
        side: `left` or `right`, as in the names of bones and landmarks.
        sign: Sign of y on this side: 1 on the left, -1 on the right.
    """
    ear, lift = f"{side} ear", np.radians(b.ear_lift)
    root = creature.surface("head", skull_geometry(b)[2], vector(-0.15, sign * (0.35 + 0.4 * np.cos(lift)), 0.75))
    tip, front = b.ear * vector(0, sign * np.cos(lift), np.sin(lift)), vector(0.024, 0, 0)
    creature.add_bone(ear, "head", root)
    creature.add_part(ear, -0.1 * tip, tip, (b.ear_width, 0.014), squash=(0.4, 0.9, 1.0), tip=0.9)
    skin = (0.68 * b.ear_width, 0.008)
    creature.add_part(ear, 0.05 * tip + front, 0.85 * tip + front / 3, skin, squash=(0.3, 0.9, 1.0), material=SKIN)
    creature.add_landmark(ear, ear, 0.2 * tip, 0.06)
    creature.add_landmark(f"{ear}-tip", ear, tip, 0.05)


def add_horn(creature: Creature, b: Proportions, side: str, sign: float, *, curled: bool) -> None:
    """Add a horn of two pieces, turning up like a cow's or, curled, down like a ram's.

    Args:
        creature: Individual that has its head; changed.
        b: Proportions of the individual.
        side: `left` or `right`, as in the names of landmarks.
        sign: Sign of y on this side: 1 on the left, -1 on the right.
        curled: Whether it is a ram's.
    """
    root = creature.surface("head", skull_geometry(b)[2], vector(-0.1, 0.5 * sign, 0.8))
    bend = root + b.horn * (vector(-0.5, 0.45 * sign, 0.1) if curled else vector(0, 0.75 * sign, 0.25))
    tip = bend + b.horn * (vector(0.15, 0.4 * sign, -0.65) if curled else vector(0.1, 0.1 * sign, 0.7))
    creature.add_part("head", root, bend, (0.05, 0.036), material=HORN)
    creature.add_part("head", bend, tip, (0.036, 0.010), material=HORN)
    creature.add_landmark(f"{side} horn", "head", tip, 0.05)


def add_leg(creature: Creature, b: Proportions, leg: str, sign: float) -> None:
    """Add thigh, shin (a back leg's has a hock) and foot.

    Args:
        creature: Individual that has its trunk; changed.
        b: Proportions of the individual.
        leg: Name of the leg: `front` or `back`, a dash, `left` or `right`.
        sign: Sign of y on its side: 1 on the left, -1 on the right.
    """
    front = leg.startswith("front")
    girth, along, bulk = (b.chest, 0.32, 1.25) if front else (b.hip, -0.36, 1.7)
    hip = vector(along, sign * 0.58 * girth * b.narrow, -0.35 * girth)
    knee = vector(-0.03 if front else 0.05, 0, -0.47 * b.leg)
    hock = vector(0.03 if front else -0.10, 0, -0.22 * b.leg)
    ankle = vector(0.03 if front else -0.06, 0, -0.47 * b.leg)
    thigh, shin, foot = f"{leg} thigh", f"{leg} shin", f"{leg} foot"
    creature.add_bone(thigh, "trunk", hip, limb=True)
    creature.add_bone(shin, thigh, knee, limb=True)
    creature.add_bone(foot, shin, ankle, limb=True)
    above, radius = vector(0, 0, 0.02), (bulk * b.limb, 0.62 * b.limb)
    creature.add_part(thigh, above, knee, radius, squash=(1.0, 0.72, 1.0), tip=0.2)
    creature.add_part(shin, vector(0, 0, 0), hock, (0.62 * b.limb, 0.5 * b.limb), tip=0.6)
    creature.add_part(shin, hock, ankle, (0.5 * b.limb, 0.45 * b.limb), tip=0.9)
    size, length, material = (0.58, 0.25, HOOF) if b.hoofed else (0.66, 0.65, FUR)
    toe, heel = vector(length * b.limb, 0, -0.02), above if b.hoofed else vector(0, 0, 0)
    radius = (0.9 * size * b.limb, size * b.limb)
    creature.add_part(foot, heel, toe, radius, squash=(1.0, 1.0, 0.75), material=material, tip=1.0)
    creature.add_landmark(f"{leg} knee", shin, vector(0.55 * b.limb, 0, 0), 1.3 * b.limb)
    creature.add_landmark(foot, foot, toe + vector(0.7 * size * b.limb, 0, 0), 2.6 * size * b.limb)


def add_tail(creature: Creature, b: Proportions) -> None:
    """Add three bones of a tail; a horse's is all hair, a cow's ends in a tuft."""
    piece, parent = b.tail / 3 * direction_at_angle(b.tail_lift) * (-1, 1, 1), "trunk"
    root = creature.surface("trunk", vector(-0.36, 0, 0), vector(-0.75, 0, 0.65)) + vector(0.02, 0, -0.02)
    for i, (thick, thin) in enumerate([(1.0, 0.92), (0.92, 0.85), (0.85, 0.6)]):
        bone = f"tail {i}"
        tuft = i == 2 and (b.maned or b.tail_radius < 0.03)
        radius = (thick * b.tail_radius, (1.2 if tuft else thin) * b.tail_radius)
        creature.add_bone(bone, parent, piece if i else root)
        creature.add_part(bone, 0 * piece, piece, radius, material=MANE if b.maned or tuft else FUR, tip=0.3 * (i + 1))
        parent = bone
    creature.add_landmark("tail-base", "tail 0", 0 * piece, b.tail_radius + 0.03)
    creature.add_landmark("tail-tip", "tail 2", 1.08 * piece, 2 * b.tail_radius + 0.02)


def sample_pose(category: str, rng: Generator) -> dict[str, Angles]:
    """Sample the angles of joints by bone: standing or walking; cats and dogs also sit, the others also graze."""
    hunts = category in ("cat", "dog")
    sits, grazes = hunts and rng.random() < 0.3, not hunts and rng.random() < 0.25
    slope = -38.0 if sits else rng.normal(0, 3)
    turn, nod = rng.normal(0, 18), rng.normal(0, 9)
    lower = 75.0 if grazes else (20.0 if sits else 0.0)
    level = -0.35 * lower if grazes else 0.8 * lower  # what of that the head takes back
    angles = {
        "trunk": (slope, 0.0, rng.normal(0, 2)),
        "neck": (nod + lower, turn, 0.0),
        "head": (rng.normal(level - 0.5 * nod, 8), 0.8 * turn + rng.normal(0, 12), rng.normal(0, 8)),
    }
    for side, sign in SIDES:
        angles[f"{side} ear"] = (rng.normal(0, 8), sign * rng.normal(12, 14), rng.normal(0, 8))
    curl, sway = rng.normal(0, 22), rng.normal(0, 22)
    angles |= {f"tail {i}": (curl - (slope if i == 0 else 0.0), sway, 0.0) for i in range(3)}
    angles |= sample_gait(slope, sits, rng)
    return {bone: (float(pitch), float(yaw), float(roll)) for bone, (pitch, yaw, roll) in angles.items()}


def sample_gait(slope: float, sits: bool, rng: Generator) -> dict[str, Angles]:
    """Sample the angles of the legs in a walk at a random moment, or of a sitting animal; feet stay level.

    Args:
        slope: Pitch of the trunk, in degrees.
        sits: Whether the animal sits.
        rng: Source of everything random.
    """
    angles: dict[str, Angles] = {}
    swing, phase = rng.uniform(0, 26), rng.uniform(0, 2 * np.pi)
    for beat, leg in enumerate(("front-left", "back-right", "front-right", "back-left")):
        front, moment = leg.startswith("front"), phase + np.pi * (beat // 2) + 0.4 * (beat % 2)
        reach = swing * np.sin(moment) + rng.normal(0, 3)
        bend = 0.9 * swing * max(0.0, np.cos(moment)) + abs(rng.normal(0, 3))
        if sits:
            thigh, shin = (-0.95 * slope, 0.0) if front else (-slope - 78, 140.0)
            thigh += 0.2 * reach
        else:
            thigh, shin = (reach - bend, 1.6 * bend) if front else (reach - 0.5 * bend, bend)
        outward = rng.normal(2, 3) if leg.endswith("left") else rng.normal(-2, 3)
        angles[f"{leg} thigh"], angles[f"{leg} shin"] = (thigh, 0.0, outward), (shin, 0.0, 0.0)
        angles[f"{leg} foot"] = (-slope - thigh - shin, 0.0, 0.0)
    return angles
