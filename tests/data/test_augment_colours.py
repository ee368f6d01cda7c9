"""Colours of augmented pairs: known ones, and nothing moves."""

from dataclasses import replace

import pytest
import torch
from augmented_pairs import chance, equal, pair_of, record, seen
from torch.testing import assert_close

from semcorr.data.augment import Augmentation, ColourChange, transform_colours


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue", "grey"])
def test_colours_move_nothing_and_stay_between_0_and_1(kind):
    augment = replace(Augmentation(), **{kind: 0.5 if kind == "hue" else 1.0})
    pair = pair_of(seen(), seen())

    found = augment(pair, record(groups=()), chance(1))

    for before, after in zip(pair[:2], found[:2], strict=True):
        assert not torch.equal(before.image, after.image)
        assert after.image.min() >= 0
        assert after.image.max() <= 1
        assert equal(before._replace(image=after.image), after)
    assert torch.equal(found.source.image, found.target.image) == (kind == "grey")  # each image has its own


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        (ColourChange(brightness=0.5), [0.4, 0.2, 0.1]),
        (ColourChange(hue=1 / 3), [0.2, 0.8, 0.4]),  # each channel takes the place of the next
        (ColourChange(grey=True), [0.495] * 3),  # 0.2989 R + 0.587 G + 0.114 B
        (ColourChange(), [0.8, 0.4, 0.2]),
    ],
)
def test_changes_of_colour_give_known_colours(colours, expected):
    image = torch.tensor([0.8, 0.4, 0.2])[:, None, None].expand(3, 2, 2)

    found = transform_colours(image, colours)

    assert_close(found[:, 0, 0], torch.tensor(expected), atol=2e-3, rtol=0)
