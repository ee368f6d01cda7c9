"""Corruptions: strengths of ImageNet-C's code restated on their own, randomness by the image alone, keys."""

import colorsys
import math
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.corruptions.blur import blur_along_line, disk_kernel, displace_pixels, magnify
from semcorr.data.corruptions.corruption import Corruption
from semcorr.data.corruptions.weather import Fog, draw_plasma
from semcorr.data.image_variants import (
    ImageVariant,
    content_hash,
    corrupt_pairs,
    list_variants,
    uncorrupted_name,
    unique_images,
)
from semcorr.data.object_masks import view_mask
from semcorr.data.synthetic import Synthetic
from semcorr.data.views import load_record, make_view
from semcorr.engine.known_targets import conf_dir

NAMES = sorted(path.stem for path in (conf_dir() / "corrupt").glob("*.yaml") if path.stem not in ("common", "none"))
HEIGHT, WIDTH = 30, 41  # not square
kinds = pytest.mark.parametrize("name", NAMES)
severities = pytest.mark.parametrize("severity", range(1, 6))


def corruption(name: str, severity: int = 3, **options) -> Corruption:
    node = yaml.safe_load((conf_dir() / "corrupt" / f"{name}.yaml").read_text())
    return instantiate({"_target_": node["_target_"], "severity": severity, **options})


def pixels(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Colours, with a grey, a black and a white corner."""
    values = np.random.default_rng(1).random((height, width, 3))
    values[0, 0], values[0, -1], values[-1, 0] = 0.4, 0.0, 1.0
    return values


def picture(height: int = 120, width: int = 90) -> Image.Image:
    y, x = np.mgrid[:height, :width] / 100
    return Image.fromarray((np.stack((x % 1, y % 1, (x * y) % 1), -1) * 255).astype(np.uint8))


def change(name: str, severity: int, image: np.ndarray, seed: int = 5) -> np.ndarray:
    return corruption(name, severity).change(image, np.random.default_rng(seed))


def test_there_are_fourteen_corruptions():
    assert len(NAMES) == 14


@kinds
def test_a_picture_keeps_its_size_and_changes_by_its_name_alone(name):
    image, change = picture(), corruption(name, 2)
    first, again = change(image, "cat/1"), change(image, "cat/1")

    assert (first.size, first.mode) == (image.size, "RGB")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, image)
    is_random = name in ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog")
    for other in (change(image, "cat/2"), corruption(name, 2, seed=1)(image, "cat/1")):
        assert np.array_equal(first, other) != is_random


@kinds
def test_a_greater_severity_is_farther_from_the_picture(name):
    """All but saturation, which takes colours away first and then adds some, and fog, which becomes patchy."""
    image = picture()
    far = [np.abs(np.asarray(corruption(name, s)(image, "a"), float) - np.asarray(image)).mean() for s in (1, 5)]
    assert min(far) > 0
    assert name in ("saturate", "fog") or far[0] < far[1]


@kinds
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 3)])
def test_a_picture_of_few_pixels_is_no_error(name, size):
    image = Image.new("RGB", size, (9, 99, 200))
    assert corruption(name, 5)(image, "a").size == size


# ImageNet-C's parameters, severities 1 to 5 from left to right, as in make_imagenet_c.py.


@severities
def test_gaussian_noise_has_its_standard_deviation(severity):
    noise = change("gaussian_noise", severity, np.zeros((200, 200, 3)))
    assert noise.std() == pytest.approx([0.08, 0.12, 0.18, 0.26, 0.38][severity - 1], rel=0.02)
    assert abs(noise.mean()) < 0.01


@severities
def test_shot_noise_has_the_variance_of_its_photons(severity):
    photons = [60, 25, 12, 5, 3][severity - 1]
    noise = change("shot_noise", severity, np.full((200, 200, 3), 0.6))
    assert noise.mean() == pytest.approx(0.6, rel=0.01)
    assert noise.var() == pytest.approx(0.6 / photons, rel=0.05)
    assert np.allclose(noise * photons, np.round(noise * photons))


@severities
def test_impulse_noise_replaces_its_share_of_values_by_as_many_of_0_as_of_1(severity):
    noise = change("impulse_noise", severity, np.full((200, 200, 3), 0.4))
    share = [0.03, 0.06, 0.09, 0.17, 0.27][severity - 1]
    assert [(noise == value).mean() for value in (0, 1)] == pytest.approx([share / 2] * 2, rel=0.1)
    assert set(np.unique(noise)) == {0, 0.4, 1}


@severities
def test_defocus_averages_over_its_disk(severity):
    radius, softening = [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)][severity - 1]
    half = 8 if radius <= 8 else 10
    disk = [[float(x * x + y * y <= radius**2) for x in range(-half, half + 1)] for y in range(-half, half + 1)]
    inside = sum(map(sum, disk))
    reach = 1 if radius <= 8 else 2
    bell = [math.exp(-(i**2) / (2 * softening**2)) for i in range(-reach, reach + 1)]
    mirror = lambda i, n: abs(i) if i < n else 2 * (n - 1) - i  # noqa: E731
    n = 2 * half + 1
    expected = [[
        sum(
            disk[mirror(y + j, n)][mirror(x + i, n)] * bell[j + reach] * bell[i + reach] / sum(bell) ** 2 / inside
            for j in range(-reach, reach + 1) for i in range(-reach, reach + 1)
        ) for x in range(n)] for y in range(n)]  # fmt: skip

    assert np.allclose(disk_kernel(radius, softening), expected)
    spot = np.zeros((41, 51, 3))
    spot[20, 25] = 1
    blurred = change("defocus_blur", severity, spot)[20 - half : 21 + half, 25 - half : 26 + half]
    assert np.allclose(blurred[..., 1], expected)


def test_displaced_pixels_are_copied_one_by_one_from_the_last_to_the_first():
    """The slow way, as published: an exchange of two views of one array, which copies."""
    for reach in (1, 2, 4):
        image, generator = pixels(), np.random.default_rng(3)
        slow = image.copy()
        rows, columns = range(reach + 1, HEIGHT - reach + 1), range(reach + 1, WIDTH - reach + 1)
        steps = generator.integers(-reach, reach, size=(2, len(rows), len(columns)))
        for h in reversed(rows):
            for w in reversed(columns):
                dy, dx = steps[:, h - rows[0], w - columns[0]]
                slow[h, w], slow[h + dy, w + dx] = slow[h + dy, w + dx], slow[h, w]
        assert np.array_equal(displace_pixels(image, reach, np.random.default_rng(3)), slow)


@severities
def test_glass_moves_colours_by_its_reach_in_its_passes(severity, monkeypatch):
    from semcorr.data.corruptions import blur

    deviation, reach, passes = [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)][severity - 1]
    calls = []
    monkeypatch.setattr(blur, "displace_pixels", lambda image, far, _: calls.append(far) or image)
    spot = np.zeros((31, 31, 3))
    spot[15, 15] = 1
    changed = change("glass_blur", severity, spot)[..., 0]
    assert calls == [reach] * passes
    across = (changed.sum(0) * (np.arange(31) - 15) ** 2).sum() / changed.sum()  # of two Gaussians, one cut to bytes
    assert across == pytest.approx(2 * deviation**2, rel=0.15)


@severities
def test_motion_takes_its_weights_along_its_line(severity):
    radius, deviation = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][severity - 1]
    angle = np.random.default_rng(5).uniform(-45, 45)
    assert np.allclose(
        change("motion_blur", severity, pixels(), 5), blur_along_line(pixels(), radius, deviation, angle)
    )
    weights = [math.exp(-(i**2) / (2 * deviation**2)) for i in range(2 * radius + 1)]
    image, expected = pixels(), np.zeros((HEIGHT, WIDTH, 3))
    for y in range(0, HEIGHT, 7):
        for x in range(0, WIDTH, 7):
            for i, weight in enumerate(weights):
                v = y + math.ceil(i * math.sin(math.radians(angle)) - 0.5)
                u = x + math.ceil(i * math.cos(math.radians(angle)) - 0.5)
                inside = image[min(max(v, 0), HEIGHT - 1), min(max(u, 0), WIDTH - 1)]
                expected[y, x] += weight / sum(weights) * inside
    assert np.allclose(blur_along_line(image, radius, deviation, angle)[::7, ::7], expected[::7, ::7])


@severities
def test_zoom_averages_its_magnifications(severity):
    # the twelfth of severity 1 is there because NumPy's steps are rounded upwards
    count, step = [(12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)][severity - 1]
    factors = [1 + i * ((1 + step) - 1) for i in range(count)]
    expected = (pixels() + sum(magnify(pixels(), factor) for factor in factors)) / (len(factors) + 1)
    assert np.allclose(change("zoom_blur", severity, pixels()), expected, atol=1e-6)


def test_a_magnified_image_has_its_centre_where_it_was_and_its_lines_farther_apart():
    y, x = np.mgrid[:101, :81].astype(float)
    zoomed = magnify(np.stack((x, y), -1), 2.0)
    assert zoomed.shape == (101, 81, 2)
    assert zoomed[50, 40] == pytest.approx([40, 50], abs=0.6)
    assert np.diff(zoomed[50, :, 0]).mean() == pytest.approx(0.5, abs=0.01)


@severities
def test_snow_whitens_and_adds_flakes_above_its_threshold(severity):
    c = [(0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
         (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)][severity - 1]  # fmt: skip
    image, generator = pixels(), np.random.default_rng(5)
    layer = magnify(generator.normal(size=(HEIGHT, WIDTH), loc=c[0], scale=c[1]), c[2])
    layer[layer < c[3]] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8) / 255
    layer = np.round(blur_along_line(layer, c[4], c[5], generator.uniform(-135, -45)) * 255) / 255
    grey = (0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2])[..., None]
    expected = c[6] * image + (1 - c[6]) * np.maximum(image, grey * 1.5 + 0.5)
    assert np.allclose(change("snow", severity, image), expected + (layer + np.rot90(layer, 2))[..., None])


@severities
def test_fog_adds_its_density_of_a_plasma(severity):
    density, decay = [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)][severity - 1]
    image = pixels() * 0.8
    plasma = draw_plasma(64, decay, np.random.default_rng(5))[:HEIGHT, :WIDTH, None]
    expected = (image + density * plasma) * image.max() / (image.max() + density)
    assert np.allclose(change("fog", severity, image), expected)


def test_a_plasma_is_smooth_where_it_decays_fast():
    rough, smooth = (draw_plasma(64, decay, np.random.default_rng(0)) for decay in (1.2, 3.0))
    assert (rough.min(), rough.max(), smooth.min(), smooth.max()) == (0, 1, 0, 1)
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(rough)).mean() / 3


def test_a_plasma_has_the_digits_of_the_algorithm_cell_by_cell():
    side, decay = 8, 1.7
    generator, fractal, step, roughness = np.random.default_rng(2), np.zeros((8, 8)), 8, 100.0
    while step >= 2:
        half = step // 2
        for rows, columns, around in (
            (range(half, side, step), range(half, side, step), ((-1, -1), (-1, 1), (1, -1), (1, 1))),
            (range(0, side, step), range(half, side, step), ((0, -1), (0, 1), (-1, 0), (1, 0))),
            (range(half, side, step), range(0, side, step), ((0, -1), (0, 1), (-1, 0), (1, 0))),
        ):
            noise = generator.uniform(-roughness, roughness, (len(rows), len(columns)))
            values = [[
                sum(fractal[(r + half * dy) % side, (c + half * dx) % side] for dy, dx in around) / 4
                + roughness * noise[i, j]
                for j, c in enumerate(columns)] for i, r in enumerate(rows)]  # fmt: skip
            for i, r in enumerate(rows):
                for j, c in enumerate(columns):
                    fractal[r, c] = values[i][j]
        step, roughness = half, roughness / decay
    expected = (fractal - fractal.min()) / (fractal.max() - fractal.min())
    assert np.allclose(draw_plasma(side, decay, np.random.default_rng(2)), expected)


@severities
def test_brightness_adds_to_the_value_of_hsv(severity):
    added = [0.1, 0.2, 0.3, 0.4, 0.5][severity - 1]
    image = pixels(6, 7)
    for old, new in zip(image.reshape(-1, 3), change("brightness", severity, image).reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*old)
        assert new == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1, v + added)))


@severities
def test_saturation_scales_the_saturation_of_hsv(severity):
    factor, added = [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)][severity - 1]
    image = pixels(6, 7)
    for old, new in zip(image.reshape(-1, 3), change("saturate", severity, image).reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*old)
        assert new == pytest.approx(colorsys.hsv_to_rgb(h, min(1, s * factor + added), v))


@severities
def test_contrast_draws_values_to_the_mean_of_their_channel(severity):
    share, image = [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1], pixels()
    means = [image[..., channel].mean() for channel in range(3)]
    assert np.allclose(change("contrast", severity, image), (image - means) * share + means)


@severities
def test_pixelate_averages_over_boxes(severity):
    share, image = [0.6, 0.5, 0.4, 0.3, 0.25][severity - 1], picture(100, 80)
    small = image.resize((int(80 * share), int(100 * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((80, 100), Image.Resampling.BOX))
    assert np.array_equal(corruption("pixelate", severity)(image, "a"), expected)


@severities
def test_jpeg_has_its_quality(severity):
    image, file = picture(), BytesIO()
    image.save(file, "JPEG", quality=[25, 18, 15, 10, 7][severity - 1])
    assert np.array_equal(corruption("jpeg_compression", severity)(image, "a"), np.asarray(Image.open(file)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"severity": 0}, "corrupt.severity.*1 and 5"), ({"images": "source"}, "corrupt.images.*both, target")],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Fog(**options)


@pytest.fixture
def data(creatures):
    made = Synthetic(root=str(creatures), size=32, workers=0, train=3, val=2, test=3, pixels=96)
    made.corruption = corruption("gaussian_noise", 3)
    return made


def test_only_the_split_that_is_scored_is_corrupted(data):
    assert all(image.corruption for pair in data.pairs("test") for image in (pair.source, pair.target))
    assert not any(image.corruption for pair in data.pairs("val") for image in (pair.source, pair.target))


def test_an_image_of_several_pairs_stays_one(data):
    pairs = data.pairs("test")
    assert len({id(i) for p in pairs for i in (p.source, p.target)}) == len({i.name for p in pairs for i in p[2:4]})


def test_a_corrupted_image_has_a_key_and_a_name_of_its_own(data):
    image = data.pairs("test")[0].source
    clean, other = image._replace(corruption=None), image._replace(corruption=corruption("gaussian_noise", 4))
    keys = {content_hash(ImageVariant(one)) for one in (image, clean, other)}
    keys |= {content_hash(ImageVariant(image._replace(name="other")))}  # its noise depends on its name

    assert len(keys) == 4
    assert ImageVariant(image).name != ImageVariant(clean).name == uncorrupted_name(ImageVariant(image).name)


def test_a_mirrored_image_is_corrupted_first(data):
    image = data.pairs("test")[0].source
    turned = np.asarray(load_record(image._replace(mirrored=True)))
    assert np.array_equal(turned, np.asarray(load_record(image))[:, ::-1])


@kinds
def test_no_corruption_moves_a_point_a_box_or_a_mask_or_changes_a_size(data, name):
    (clean, *_), kept = data.pairs("val"), ("keypoints", "visible", "box", "size", "segmentation", "azimuth", "path")
    (pair,) = corrupt_pairs([clean], corruption(name, 5))

    for before, after in ((clean.source, pair.source), (clean.target, pair.target)):
        assert all(getattr(before, key) is getattr(after, key) for key in kept)
        assert torch.equal(view_mask(before, 32, "letterbox"), view_mask(after, 32, "letterbox"))
        views = [make_view(image, 32, "letterbox") for image in (before, after)]
        assert all(map(torch.equal, views[0][1:6], views[1][1:6]))
        assert not torch.equal(views[0].image, views[1].image)
    assert pair[4:] == clean[4:]


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "fog"])
def test_an_image_is_corrupted_alike_in_any_order_batch_and_process(data, name):
    data.corruption = corruption(name)
    variants = list_variants(unique_images(data.pairs("test")))[:5]
    alone = {variant.name: make_view(variant.record, 32, "squash").image for variant in variants}
    for workers, chunks in ((0, [[4, 2], [0], [3, 1]]), (2, [[1, 3, 0], [2, 4]])):
        data.workers = workers
        for view in data.encoding_loader(variants, chunks):
            for image, title in zip(view.image, view.name, strict=True):
                assert torch.equal(image, alone[title])


def test_the_target_alone_leaves_sources_as_they_are(data):
    data.corruption = corruption("fog", images="target")
    pairs = data.pairs("test")
    assert not any(pair.source.corruption for pair in pairs)
    assert all(pair.target.corruption for pair in pairs)
    variants = [variant.name for variant in data.images_to_evaluate("test", 10**6)]
    ends = {ImageVariant(image).name for pair in pairs for image in (pair.source, pair.target)}
    assert sorted(ends) == variants
    assert len(variants) > len({image.name for pair in pairs for image in (pair.source, pair.target)})


def test_training_on_the_split_that_is_corrupted_is_refused(creatures):
    made = Synthetic(root=str(creatures), size=32, workers=0, train=3, val=2, test=3, pixels=96, split="val")
    made.corruption = corruption("fog")
    with pytest.raises(UserError, match=r"data\.split=val is trained on or validated"):
        made.setup("fit")


def test_pairs_of_another_corruption_are_the_same_pairs(data):
    clean = Synthetic(root=data.root.as_posix(), size=32, workers=0, train=3, val=2, test=3, pixels=96).pairs("test")
    assert [pair.name for pair in corrupt_pairs(clean, corruption("snow"))] == [pair.name for pair in clean]
