"""Published conventions, keypoint by keypoint and cell by cell: what the fast ones are tested against.

Written from what is known of the released evaluators, with none of semcorr's functions. Every function takes both
maps (c, g, g), a source point, both image sizes (width, height), the truth, the target's box and the side of the view,
and whether the extent is the image's; it returns the prediction in original pixels, the error and the
comparison with alpha (`is_right`).
"""

import math

import numpy as np

SIDE = 96


def cosines(vector, target):
    _, h, w = target.shape
    found = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            found[y, x] = vector @ target[:, y, x] / (np.linalg.norm(vector) * np.linalg.norm(target[:, y, x]))
    return found


def bilinear(features, x, y):
    """Between cells, the border repeated."""
    _, h, w = features.shape
    x, y = min(max(x, 0), w - 1), min(max(y, 0), h - 1)
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, w - 1), min(y0 + 1, h - 1)
    top = features[:, y0, x0] * (1 - x + x0) + features[:, y0, x1] * (x - x0)
    low = features[:, y1, x0] * (1 - x + x0) + features[:, y1, x1] * (x - x0)
    return top * (1 - y + y0) + low * (y - y0)


def unit_cells(features):
    """Every cell of length one."""
    made = np.zeros_like(features)
    for y in range(features.shape[1]):
        for x in range(features.shape[2]):
            made[:, y, x] = features[:, y, x] / np.linalg.norm(features[:, y, x])
    return made


def best(scores):
    place = int(np.argmax(scores))
    return place % scores.shape[1], place // scores.shape[1]


def expectation(weights):
    total = x_sum = y_sum = 0.0
    for y in range(weights.shape[0]):
        for x in range(weights.shape[1]):
            total, x_sum, y_sum = total + weights[y, x], x_sum + weights[y, x] * x, y_sum + weights[y, x] * y
    return x_sum / total, y_sum / total


def kernel(scores, sigma, temperature):
    """A Gaussian around the best cell multiplies the map, and a softmax over all of it."""
    bx, by = best(scores)
    weights = np.zeros_like(scores)
    for y in range(scores.shape[0]):
        for x in range(scores.shape[1]):
            near = math.exp(-((x - bx) ** 2 + (y - by) ** 2) / (2 * sigma**2))
            weights[y, x] = math.exp(near * scores[y, x] / temperature)
    return expectation(weights)


def window(scores, half, temperature, outside):
    bx, by = best(scores)
    weights = np.zeros_like(scores)
    for y in range(scores.shape[0]):
        for x in range(scores.shape[1]):
            if abs(x - bx) <= half and abs(y - by) <= half:
                weights[y, x] = math.exp(scores[y, x] / temperature)
            else:
                weights[y, x] = outside
    return expectation(weights)


def letterboxed(x, y, size):
    """Longest side to the view, zero padding on both ends of the other; whole pixels of padding."""
    w, h = size
    scale = SIDE / max(w, h)
    ox = int((SIDE - round(w * scale)) / 2)
    oy = int((SIDE - round(h * scale)) / 2)
    return x * scale + ox, y * scale + oy, scale, ox, oy


def padded(source, target, point, sizes, truth, box, by_image, read, shift):
    g = source.shape[1]
    x, y, *_ = letterboxed(*point, sizes[0])
    cell = source[:, min(math.floor(g / SIDE * y), g - 1), min(math.floor(g / SIDE * x), g - 1)]
    cx, cy = read(cosines(cell, target))
    px, py = cx * SIDE / g + shift, cy * SIDE / g + shift
    tx, ty, scale, ox, oy = letterboxed(*truth, sizes[1])
    extent = SIDE if by_image else max(box[2] - box[0], box[3] - box[1]) * scale
    return ((px - ox) / scale, (py - oy) / scale), math.hypot(px - tx, py - ty) / extent, "<32"


def geoaware(*what):
    g = what[0].shape[1]
    return padded(*what, lambda scores: window(scores, 7, 0.02, outside=1.0), SIDE / g / 2)


def sd_dino(*what):
    g = what[0].shape[1]
    return padded(*what, best, SIDE / g / 2 - 0.5)


def dift(source, target, point, sizes, truth, box, by_image):
    """Features upsampled to the original's pixels, every pixel normalised, the best one."""

    def upsampled(features, x, y, size):
        g = features.shape[1]
        return bilinear(features, (x + 0.5) * g / size[0] - 0.5, (y + 0.5) * g / size[1] - 0.5)

    vector = upsampled(source, *point, sizes[0])
    scores = np.zeros((sizes[1][1], sizes[1][0]))
    for y in range(sizes[1][1]):
        for x in range(sizes[1][0]):
            pixel = upsampled(target, x, y, sizes[1])
            scores[y, x] = vector @ pixel / np.linalg.norm(pixel)
    px, py = best(scores)
    extent = max(sizes[1]) if by_image else max(box[2] - box[0], box[3] - box[1])
    return (px, py), math.hypot(px - truth[0], py - truth[1]) / extent, "<="


def squashed(source, target, point, sizes, truth, box, by_image, corners, half_off, read):
    """`corners`: original to view by (S - 1) / (W - 1). `half_off`: read the source at x g / S."""
    g = source.shape[1]

    def factors(size):
        return [(SIDE - 1) / (length - 1) if corners else SIDE / length for length in size]

    def into(place, size):
        return [min(max(p * f, 1e-4), SIDE - 1 - 1e-4) for p, f in zip(place, factors(size), strict=True)]

    x, y = into(point, sizes[0])
    step = g / SIDE if half_off else (g - 1) / (SIDE - 1)
    cx, cy = read(cosines(bilinear(source, x * step, y * step), target))
    px, py = cx * (SIDE - 1) / (g - 1), cy * (SIDE - 1) / (g - 1)
    (fx, fy), (tx, ty) = factors(sizes[1]), into(truth, sizes[1])
    extent = SIDE if by_image else max((box[2] - box[0]) * fx, (box[3] - box[1]) * fy)
    return (px / fx, py / fy), math.hypot(px - tx, py - ty) / extent, "<="


def visual_ai(source, target, point, sizes, truth, box, by_image):
    """Whole pixels; cells of length one before the source is read between them."""
    point, truth, box = ([math.floor(value) for value in values] for values in (point, truth, box))
    return squashed(
        unit_cells(source), target, point, sizes, truth, box, by_image, True, False,
        lambda scores: kernel(scores, 7, 0.03),
    )  # fmt: skip


def sd4match(*what):
    return squashed(*what, False, False, lambda scores: kernel(scores, 7, 0.04))


def marco(*what):
    return squashed(*what, False, True, lambda scores: kernel(scores, 7, 10 / 1024))


def marco_corner(source, target, point, sizes, truth, box, by_image):
    """The aspect kept, padded at the right and below; each axis by its own whole number of pixels."""
    g = source.shape[1]

    def inner(size):
        return [round(length * SIDE / max(size)) for length in size]

    def into(place, size):
        return [
            min(max(p * n / length, 1e-4), n - 1 - 1e-4) for p, n, length in zip(place, inner(size), size, strict=True)
        ]

    x, y = into(point, sizes[0])
    cx, cy = kernel(cosines(bilinear(source, x * g / SIDE, y * g / SIDE), target), 7, 10 / 1024)
    px, py = cx * (SIDE - 1) / (g - 1), cy * (SIDE - 1) / (g - 1)
    tx, ty = into(truth, sizes[1])
    fx, fy = (n / length for n, length in zip(inner(sizes[1]), sizes[1], strict=True))
    extent = SIDE if by_image else max((box[2] - box[0]) * fx, (box[3] - box[1]) * fy)
    return (px / fx, py / fy), math.hypot(px - tx, py - ty) / extent, "<="


def probe3d(source, target, point, sizes, truth, box, by_image, side=SIDE):
    """Padded at the right and below; whole pixels; a unit square; a cell is its corner."""
    g = source.shape[1]
    x, y = (int(p * side / max(sizes[0])) / side for p in point)
    cx, cy = best(cosines(bilinear(unit_cells(source), x * (g - 1), y * (g - 1)), target))
    tx, ty = (int(p * side / max(sizes[1])) / side for p in truth)
    extent = 1 if by_image else max(box[2] - box[0], box[3] - box[1]) / max(sizes[1])
    original = (cx / g * max(sizes[1]), cy / g * max(sizes[1]))
    return original, math.hypot(cx / g - tx, cy / g - ty) / extent, "<"


def probe3d_margin(*what):
    """A margin of 4 pixels around what is 88: points and cells stay in the 88."""
    return probe3d(*what, side=SIDE - 8)


def semcorr(source, target, point, sizes, truth, box, by_image):
    """Pixel centres at integers everywhere; squashed."""
    g = source.shape[1]
    x, y = ((p + 0.5) / length * g - 0.5 for p, length in zip(point, sizes[0], strict=True))
    cx, cy = window(cosines(bilinear(source, x, y), target), 7, 0.02, outside=0.0)
    px, py = ((c + 0.5) / g * length - 0.5 for c, length in zip((cx, cy), sizes[1], strict=True))
    extent = max(sizes[1]) if by_image else max(box[2] - box[0], box[3] - box[1])
    return (px, py), math.hypot(px - truth[0], py - truth[1]) / extent, "<="


def is_right(error, alpha, comparison):
    """At most alpha; less; or less than alpha in single precision."""
    return {"<=": error <= alpha, "<": error < alpha, "<32": error < float(np.float32(alpha))}[comparison]


EVERY = (semcorr, geoaware, sd_dino, dift, visual_ai, sd4match, probe3d, marco)
