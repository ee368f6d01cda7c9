"""Masks of objects: of a segmentation or a box, in the pixels of the view, changed as the image is."""

import numpy as np
import pytest
import torch
from PIL import Image

from semcorr.data.augment import Augmentation
from semcorr.data.dataset import PairDataset, TrainingPairs
from semcorr.data.loaders import SampleIndex
from semcorr.data.object_masks import box_pixels, view_mask
from semcorr.data.record import ImageRecord, Segmentation
from semcorr.data.synthetic import Synthetic

SIDE = 32


@pytest.fixture
def data(creatures):
    return Synthetic(root=str(creatures), size=SIDE, train=3, val=2, test=3, pixels=96, workers=0, batch_size=2)


def record(path, **options) -> ImageRecord:
    points = torch.zeros(1, 2)
    box = options.pop("box", (10.0, 0.0, 29.0, 19.0))
    return ImageRecord("image", path, (40, 20), points, torch.ones(1).bool(), box, **options)


@pytest.mark.parametrize(("resize", "rows"), [("squash", (0, 20)), ("letterbox", (5, 15)), ("corner", (0, 10))])
def test_without_a_segmentation_the_mask_is_that_of_the_box(tmp_path, resize, rows):
    mask = view_mask(record(tmp_path), 20, resize)

    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[rows[0] : rows[1], 5:15] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((-30.0, -20.0, -11.0, -6.0), (0, 0), (0, 0)),  # beside the image: an end below 0 counted from the other side
        ((50.0, 30.0, 60.0, 40.0), (0, 0), (0, 0)),
        ((-9.0, -9.0, 4.0, 99.0), (0, 5), (0, 20)),
        ((3.4, 2.6, 3.45, 1e8), (3, 4), (3, 20)),
    ],
)
def test_a_box_may_reach_out_of_its_image(tmp_path, box, columns, rows):
    expected = torch.zeros(20, 40, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(box_pixels(record(tmp_path, box=box)), expected)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_segmentation_counts_within_the_box_and_an_empty_one_is_the_box(tmp_path, mirrored):
    path, classes = tmp_path / "mask.png", np.zeros((20, 40), dtype=np.uint8)
    classes[8:12, :16], classes[:4] = 3, 7
    Image.fromarray(classes[:, ::-1] if mirrored else classes).save(path)

    mask = view_mask(record(path, segmentation=Segmentation(path, 3), mirrored=mirrored), 40, "squash")
    box = view_mask(record(path, segmentation=Segmentation(path, 9)), 40, "squash")

    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[16:24, 10:16] = True
    assert torch.equal(mask, expected)
    assert torch.equal(box, view_mask(record(path), 40, "squash"))


def pairs_of(data: Synthetic, pixels: bool = True, **augment: float) -> TrainingPairs:
    pairs = PairDataset(data.pairs("train"), SIDE, "squash", pixels)
    return TrainingPairs(pairs, Augmentation(**augment) if augment else None, masks=True)


def test_training_pairs_have_masks_where_they_are_asked_for(data):
    dataset = pairs_of(data)

    pair, record = dataset[SampleIndex(4, 0)], data.pairs("train")[4]

    for mask, image in zip(pair.masks, (record.source, record.target), strict=True):
        assert torch.equal(mask, view_mask(image, SIDE, "squash"))
        assert 0.02 < mask.float().mean() < 0.9
    dataset.masks = False
    assert dataset[SampleIndex(4, 0)].masks == ()


@pytest.mark.parametrize("pixels", [True, False])
def test_masks_are_mirrored_with_their_images(data, pixels):
    plain, mirrored = (pairs_of(data, pixels, **options)[SampleIndex(2, 0)] for options in ({}, {"flip": 1.0}))

    for before, after in zip(plain.masks, mirrored.masks, strict=True):
        assert torch.equal(before.flip(-1), after)


def test_masks_are_warped_with_their_images(data):
    """Of an image that is its own mask."""
    dataset = pairs_of(data, rotate=30.0, scale=0.3, thin_plate=0.1)
    masks = dataset.pairs.views.__class__.__getitem__

    class Painted(dataset.pairs.views.__class__):
        def __getitem__(self, index: int):
            view = masks(self, index)
            mask = view_mask(self.records[index], SIDE, "squash")
            return view._replace(image=(255 * mask).to(torch.uint8).expand(3, -1, -1))

    dataset.pairs.views.__class__ = Painted

    pair = dataset[SampleIndex(3, 1)]

    for view, mask in zip((pair.source, pair.target), pair.masks, strict=True):
        assert torch.equal(view.image[0] >= 0.5, mask)
        assert mask.any()


def test_of_an_image_matched_with_itself_both_masks_are_its_own(data):
    pair = pairs_of(data, grid=4)[SampleIndex(1, 0)]

    assert torch.equal(pair.masks[0], pair.masks[1])
    assert torch.equal(pair.masks[0], view_mask(data.pairs("train")[1].source, SIDE, "squash"))
