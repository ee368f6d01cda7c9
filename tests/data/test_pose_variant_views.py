"""A pair's mirror images: keypoints, rows, names and pixels, alone and in a benchmark's batches."""

from pathlib import Path

import pytest
import torch
from posed_pairs import PAPER, SIDE, SWAP, made_pair, made_view
from torch.utils.data import default_collate

from semcorr.core.errors import UserError
from semcorr.data.augment import mirror_annotations
from semcorr.data.pose_variants import PoseVariant
from semcorr.data.synthetic import Synthetic
from semcorr.engine.loss_inputs import batch_views, view_extent

# -- views --


def test_keypoints_change_sides_and_rows():
    """By hand: of a 48 pixel image, x becomes 47 - x, and the left ear is where the right one was seen."""
    view = made_view("a", "10110")._replace(
        keypoints=torch.tensor([[1.0, 2.0], [30.0, 3.0], [20.0, 9.0], [5.0, 40.0], [0.0, 0.0]])
    )

    turned = mirror_annotations(view, SWAP)

    assert turned.keypoints.tolist() == [[17.0, 3.0], [46.0, 2.0], [27.0, 9.0], [47.0, 0.0], [42.0, 40.0]]
    assert turned.visible.tolist() == [False, True, True, False, True]
    assert turned.box.tolist() == [13.0, 6.0, 43.0, 26.0]
    assert turned.name == "a mirrored"
    assert turned.image.shape == (3, 0, SIDE)


def test_mirrored_twice_is_as_it_was():
    view = made_view("a", "10110", pixels=False)

    again = mirror_annotations(mirror_annotations(view, SWAP), SWAP)

    assert again.name == view.name
    for one, other in zip(again[:-1], view[:-1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("variants", [PoseVariant(), PoseVariant(self_flip=1.0), PAPER])
def test_pixels_are_turned_where_they_are_used(variants):
    pairs = [made_pair(made_view("a"), made_view("b"), variants), made_pair(made_view("c"), made_view("d"), variants)]
    batch = default_collate(pairs)

    names, image = batch_views(batch)

    assert names == ["a", "c", "b", "d", "a mirrored", "c mirrored", "b mirrored", "d mirrored"][: len(image)]
    assert len(image) == 4 + 2 * variants.mirrored
    assert torch.equal(image[4:], image[: len(image) - 4].flip(-1))


def test_the_extent_is_measured_in_original_pixels():
    """A box of 30 x 20 pixels of a view half as wide and a quarter as high as the image is 60 x 80 in the image."""
    view = default_collate([made_view("a")])

    assert view_extent(view).tolist() == [[40.0, 20.0]]


# -- data --


@pytest.fixture
def data(creatures: Path) -> Synthetic:
    data = Synthetic(
        root=str(creatures), size=SIDE, train=3, val=2, test=3, pixels=96, workers=0, steps=3, batch_size=2
    )
    data.pose_variant = PAPER
    return data


def test_a_batch_has_its_mirror_images_with_pixels_and_without(data):
    whole = list(data.train_dataloader())
    data.train_pixels = False
    for batch, bare in zip(whole, data.train_dataloader(), strict=True):
        for view, turned, without in zip(batch[:2], batch.mirrored, bare.mirrored, strict=True):
            flip = {pair.category: list(pair.flip) for pair in data.pairs("train")}
            for i, category in enumerate(batch.category):
                order = flip[category]
                assert torch.equal(turned.visible[i], view.visible[i][order])
                expected = torch.stack((SIDE - 1 - view.keypoints[i, order, 0], view.keypoints[i, order, 1]), -1)
                assert torch.equal(turned.keypoints[i], expected)
            assert [*turned.name] == [f"{name} mirrored" for name in view.name] == [*without.name]
            assert turned.image.shape == (2, 3, 0, SIDE)
            assert torch.equal(turned.keypoints, without.keypoints)


def test_what_is_to_be_trained_on_has_every_mirror_image(data):
    for data.all_pairs in (None, 3):
        listed = {one.name for one in data.images_to_train_on(1)}
        loaded = {name for batch in data.train_dataloader() for name in batch_views(batch)[0]}
        assert loaded <= listed
        assert any(name.endswith(" mirrored") for name in loaded)


def test_a_benchmark_without_left_and_right_has_no_variants(data):
    data.restrict_split("train", [pair._replace(flip=None) for pair in data.pairs("train")])

    with pytest.raises(UserError, match=r"`pairs`: synthetic does not say .* Set pairs=plain"):
        data.setup("fit")
