"""SIFT, HOG and DAISY, against loops over pixels written from their papers, and where their values are known."""

import math

import numpy as np
import pytest
import torch
from backbone_cases import FORMULAS, IMAGE
from torch import nn
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.models.backbones.handcrafted import DAISY, HOG, SIFT, HandCrafted
from semcorr.models.finetune.adapters import adaptformer, houlsby
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.peft_tuners import lora, peft_tuner
from semcorr.store.frozen import frozen_depth
from semcorr.train import train

pytestmark = pytest.mark.integration

KINDS = pytest.mark.parametrize("kind", [SIFT, HOG, DAISY])
EACH = pytest.mark.parametrize("promise", FORMULAS.values(), ids=FORMULAS)


def painted(height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth picture with an edge and some noise, (height, width, 3)."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + y / b) for a, b in ((5, 9), (-7, 4), (11, -3))]
    image = 0.5 + 0.2 * np.stack(waves, -1) + 0.02 * random.standard_normal((height, width, 3))
    image[12:26, 20:38] += 0.25
    return image.clip(0, 1)


def central_differences(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = np.pad(channel, 1, mode="edge")
    return (wide[1:-1, 2:] - wide[1:-1, :-2]) / 2, (wide[2:, 1:-1] - wide[:-2, 1:-1]) / 2


def slowly_blurred(grey: np.ndarray, sigma: float) -> np.ndarray:
    if sigma == 0:
        return grey
    result = np.empty_like(grey)
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    for i, j in np.ndindex(grey.shape):
        weights = np.exp(-((y - i) ** 2 + (x - j) ** 2) / (2 * sigma**2))
        result[i, j] = (weights * grey).sum() / weights.sum()
    return result


def grey_of(image: np.ndarray) -> np.ndarray:
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def clipped(values: np.ndarray) -> np.ndarray:
    values = np.minimum(values / np.linalg.norm(values), 0.2)
    return values / np.linalg.norm(values)


def slow_sift(image: np.ndarray, window: int, x: float, y: float) -> np.ndarray:
    """The descriptor of the point (x, y), each pixel divided among the eight nearest bins (Lowe 2004)."""
    side = window / 4
    dx, dy = central_differences(slowly_blurred(grey_of(image), math.sqrt(max((side / 3) ** 2 - 0.25, 0))))
    bins = np.zeros((8, 4, 4))
    for i, j in np.ndindex(dx.shape):
        across, down = j + 0.5 - x, i + 0.5 - y
        length = math.hypot(dx[i, j], dy[i, j]) * math.exp(-(across**2 + down**2) / (2 * (window / 2) ** 2))
        place = [math.atan2(dy[i, j], dx[i, j]) / (math.pi / 4), down / side + 1.5, across / side + 1.5]
        first = [math.floor(value) for value in place]
        for o, r, c in np.ndindex(2, 2, 2):
            row, column = first[1] + r, first[2] + c
            if 0 <= row < 4 and 0 <= column < 4:
                share = [1 - abs(value - low - step) for value, low, step in zip(place, first, (o, r, c), strict=True)]
                bins[(first[0] + o) % 8, row, column] += length * math.prod(share)
    return clipped(bins.ravel())


def slow_hog(image: np.ndarray, window: int, x: float, y: float) -> np.ndarray:
    """Nine blocks around (x, y), each with its own pixels, window and length (Dalal and Triggs 2005)."""
    side, blocks = window / 4, []
    colours = [central_differences(image[..., channel]) for channel in range(3)]
    for block_y in (y - side, y, y + side):
        for block_x in (x - side, x, x + side):
            bins = np.zeros((9, 2, 2))
            for i, j in np.ndindex(image.shape[:2]):
                across, down = j + 0.5 - block_x, i + 0.5 - block_y
                if max(abs(across), abs(down)) > side:
                    continue
                gx, gy = max(((gx[i, j], gy[i, j]) for gx, gy in colours), key=lambda pair: math.hypot(*pair))
                length = math.hypot(gx, gy) * math.exp(-(across**2 + down**2) / (2 * side**2))
                degrees = math.degrees(math.atan2(gy, gx)) % 180
                place = [degrees / 20 - 0.5, down / side + 0.5, across / side + 0.5]
                first = [math.floor(value) for value in place]
                for o, r, c in np.ndindex(2, 2, 2):
                    row, column = first[1] + r, first[2] + c
                    if row in (0, 1) and column in (0, 1):
                        share = [
                            1 - abs(value - low - step)
                            for value, low, step in zip(place, first, (o, r, c), strict=True)
                        ]
                        bins[(first[0] + o) % 9, row, column] += length * math.prod(share)
            blocks.append(clipped(bins.ravel()))
    return np.concatenate(blocks)


def slow_daisy(image: np.ndarray, window: int, x: float, y: float) -> np.ndarray:
    """Blurred orientation maps read at 25 places around (x, y) (Tola et al. 2010)."""
    dx, dy = central_differences(grey_of(image))
    i, j = np.mgrid[: dx.shape[0], : dx.shape[1]]
    places = [(0.0, 0.0, window / 12)]
    for radius in (window / 6, window / 3, window / 2):
        places += [
            (radius * math.cos(k * math.pi / 4), radius * math.sin(k * math.pi / 4), radius / 2) for k in range(8)
        ]
    histograms = []
    for across, down, sigma in places:
        weights = np.exp(-((j + 0.5 - x - across) ** 2 + (i + 0.5 - y - down) ** 2) / (2 * sigma**2))
        directions = [(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)]
        histogram = np.array([(weights * np.maximum(a * dx + b * dy, 0)).sum() for a, b in directions])
        histograms.append(histogram / np.linalg.norm(histogram))
    return np.concatenate(histograms)


SLOW = {SIFT: slow_sift, HOG: slow_hog, DAISY: slow_daisy}


@pytest.mark.parametrize(("stride", "window"), [(8, 16), (4, 24), (8, 6)])
@KINDS
def test_a_descriptor_is_that_of_a_loop_over_pixels_around_the_middle_of_its_cell(kind, stride, window):
    image = painted()
    values = kind(size=40, stride=stride, window=window)(torch.from_numpy(image).movedim(-1, 0)[None]).values[0]

    for row, column in [(0, 0), (2, 3), (40 // stride - 1, 56 // stride - 1)]:  # corners and middle
        expected = SLOW[kind](image, window, (column + 0.5) * stride, (row + 0.5) * stride)
        assert_close(values[:, row, column], torch.from_numpy(expected), atol=1e-7, rtol=1e-6)


@KINDS
def test_brighter_pictures_of_less_contrast_are_described_alike(kind):
    backbone = kind(size=64)

    assert_close(backbone(0.3 + 0.4 * IMAGE).values, backbone(IMAGE).values, atol=1e-4, rtol=1e-3)


@KINDS
def test_a_picture_moved_by_a_cell_has_its_descriptors_moved_by_a_cell(kind):
    image = torch.from_numpy(painted(128, 128)).movedim(-1, 0)[None].float()
    backbone = kind(size=128, window=16)

    values, moved = backbone(image).values, backbone(image.roll((8, -8), (2, 3))).values

    inner = slice(5, 11)  # no window reaches the border
    assert_close(moved[:, :, 6:12, 4:10], values[:, :, inner, inner], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [16, 32, 96, 400, 1024])
@KINDS
def test_what_has_no_edge_has_a_descriptor_of_zeros_and_not_of_rounding(kind, window):
    """A head would bring rounding, however small, to unit length. A larger window sums more of it."""
    for level in (76, 178, 255):
        assert not kind(size=320, stride=32, window=window)(torch.full((1, 3, 320, 320), level / 255)).values.any()


@pytest.mark.parametrize("window", [16, 32, 96, 400, 1024])
@KINDS
def test_an_edge_of_one_byte_is_counted_in_every_histogram_whose_pixels_hold_it(kind, window):
    """The descriptor of a faint edge is that of a strong one."""
    image, edge = torch.full((1, 3, 320, 320), 76 / 255), torch.zeros(1, 3, 320, 320)
    edge[..., 145:] = 1  # next to the middle of cell 4
    backbone = kind(size=320, stride=32, window=window)

    faint, strong = (backbone(image + step * edge).values[0, :, 4, 4] for step in (1 / 255, 0.5))

    assert strong.norm() > 1 - 1e-5
    assert_close(faint, strong, atol=0.02, rtol=0)


@pytest.mark.parametrize("window", [16, 96, 400])
@KINDS
def test_descriptors_are_computed_in_single_precision_also_where_a_gpu_would_take_a_smaller_type(kind, window):
    """Precision bf16-mixed is the default there. A picture of little contrast loses its edges in 8 bits."""
    image = 0.6 + 0.2 * torch.from_numpy(painted(128, 128)).movedim(-1, 0)[None].float()
    backbone = kind(size=128, window=window)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = backbone(image).values

    assert torch.equal(values, backbone(image).values)
    small = image.bfloat16()
    assert torch.equal(backbone(small).values, backbone(small.float()).values)


def test_a_step_is_counted_in_its_direction_alone():
    """Dark on the left, bright on the right: gradients along x, which are bin 0 of SIFT and DAISY."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1
    sift = SIFT(size=64, window=32)(image).values[0, :, 3, 3].unflatten(0, (8, 16))
    hog = HOG(size=64, window=32)(image).values[0, :, 3, 3].unflatten(0, (9, 9, 4)).sum((0, 2))
    daisy = DAISY(size=64, window=32)(image).values[0, :, 3, 3].unflatten(0, (25, 8))

    assert sift[0].max() > 0.1
    assert sift[1:].max() < 1e-6
    assert hog[0] == pytest.approx(hog[8].item(), rel=1e-5)  # 0 degrees lie between 10 and 170
    assert hog[1:8].max() < 1e-6
    cosines = torch.tensor([1, 0.5**0.5, 0, 0, 0, 0, 0, 0.5**0.5])
    assert_close(daisy[0], cosines / cosines.norm(), atol=1e-5, rtol=1e-5)


def test_hog_does_not_tell_a_step_from_its_opposite_and_sift_does():
    image = torch.from_numpy(painted()).movedim(-1, 0)[None].float()

    assert_close(HOG(size=40)(1 - image).values, HOG(size=40)(image).values, atol=1e-4, rtol=1e-3)
    assert (SIFT(size=40)(1 - image).values - SIFT(size=40)(image).values).abs().max() > 0.1


def test_scikit_images_hog_and_daisy_are_alike():
    """Where it is installed. It votes for the nearest bin and has no window; its DAISY divides gradients otherwise."""
    feature = pytest.importorskip("skimage.feature")
    image = painted(96, 96)
    grey = torch.from_numpy(np.repeat(grey_of(image)[None, None], 3, axis=1))
    hog = feature.hog(grey[0, 0].numpy(), pixels_per_cell=(8, 8), cells_per_block=(2, 2), feature_vector=False)
    daisy = feature.daisy(grey[0, 0].numpy(), step=8, radius=16, normalization="daisy")[4, 4]  # at (48, 48)

    # Four cells of 8 pixels around a corner between cells; our cells have their middles there at an even stride.
    ours = HOG(size=96, stride=16, window=32)(grey).values[0, :, 2, 2]
    reference = hog[3:6, 3:6].transpose(0, 1, 4, 2, 3).ravel()
    assert np.corrcoef(ours, reference)[0, 1] > 0.85
    rings = DAISY(size=96, stride=32, window=32)(grey).values[0, :, 1, 1]
    assert np.corrcoef(rings, np.roll(daisy.reshape(25, 8), 4, axis=1).ravel())[0, 1] > 0.9  # it begins at 180 degrees


@EACH
def test_nothing_is_to_be_run_before_the_rest(promise):
    backbone = promise.build()

    assert torch.equal(backbone.suffix(backbone.prefix(IMAGE, 0), 0).values, backbone(IMAGE).values)
    assert torch.equal(backbone.join_maps(backbone.read_maps(IMAGE)).values, backbone(IMAGE).values)
    assert not [*backbone.parameters(), *backbone.state_dict()]
    assert frozen_depth(backbone) is None


@EACH
def test_a_hash_is_of_the_formula_and_its_numbers(promise):
    backbone = promise.build()

    hashes = {other.sha256 for other in (backbone, promise.build(window=48), promise.build(stride=16))}
    hashes |= {other.build().sha256 for other in FORMULAS.values()}
    assert len(hashes) == 2 + len(FORMULAS)
    assert promise.build(size=128).sha256 == backbone.sha256


@pytest.mark.parametrize(
    "tune",
    [
        lambda backbone: last_blocks(backbone, blocks=2),
        lora,
        lambda backbone: lora(backbone, targets=["qkv"], blocks=1),
        lambda backbone: peft_tuner(backbone, tuner="loha"),
        lambda backbone: peft_tuner(backbone, tuner="ln_tuning"),
        houlsby,
        adaptformer,
    ],
)
def test_a_hand_crafted_backbone_is_not_tuned(tune):
    with pytest.raises(UserError, match=r"^`finetune`: sift .* no weights to tune\. Give finetune=frozen"):
        tune(SIFT(size=64))


def test_a_hand_crafted_backbone_is_frozen():
    last_blocks(SIFT(size=64), blocks=0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_head_is_trained_on_a_hand_crafted_backbone_and_alone_is_saved(config, tiny, tmp_path, name):
    line = [word for word in tiny if word != "backbone=tiny"] + [f"backbone={name}", "backbone.size=64"]
    line += ["finetune=frozen", "head=bottleneck", f"run_dir={tmp_path / 'trained'}"]

    train(config("train", *line, "data.steps=2", "data.batch_size=2", "trainer.max_epochs=1"))
    scores = evaluate(config("evaluate", *line[:-1], f"checkpoint={tmp_path / 'trained'}"))

    saved = torch.load(tmp_path / "trained/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert all(key.startswith("head.") for key in saved)
    assert scores["trained_parameters"] == sum(value.numel() for value in saved.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "`backbone.size`: the image side of sift must be a multiple of 8 pixels, got 100"),
        ({"size": 64, "stride": 0}, "`backbone.stride` must be between 1 and 128, got 0"),
        ({"size": 64, "window": 2}, "`backbone.window` must be between 4 and 1024, got 2"),
        ({"size": 64, "window": 8.5}, "`backbone.window` must be a whole number, between 4 and 1024, got 8.5"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(UserError) as error:
        SIFT(**options)

    assert message in str(error.value)


def test_a_descriptor_of_ones_own_states_its_name_its_channels_and_what_it_computes():
    class Mean(HandCrafted):
        name, channels = "mean", 3

        def describe(self, image):
            return nn.functional.avg_pool2d(image, self.stride)

    assert Mean(size=64)(IMAGE).values.shape == (2, 3, 8, 12)
