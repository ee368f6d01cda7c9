"""Augmented pairs: keypoints stay on what they name, and an option does what it says."""

import pytest
import torch
from augmented_pairs import KINDS, PLACES, SIDE, SWAP, away, chance, equal, pair_of, record, seen
from torch.nn.functional import grid_sample
from torch.testing import assert_close

from semcorr.core.coords import to_unit
from semcorr.core.errors import UserError
from semcorr.data.augment import (
    Augmentation,
    GeometricChange,
    mirror_view,
    pair_with_itself,
    transform_annotations,
    transform_colours,
    transform_pixels,
)
from semcorr.data.pose_variants import PoseVariant
from semcorr.data.proposal_flow import PFWillow
from semcorr.data.views import fit_to_square


def blobs(places: torch.Tensor) -> torch.Tensor:
    """A bright Gaussian of its own at every place, each alone in its image."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    squared = (x - places[:, 0, None, None]) ** 2 + (y - places[:, 1, None, None]) ** 2
    return torch.exp(-squared / (2 * 2.0**2))


# -- a pair --


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(3))
def test_a_blob_painted_at_a_keypoint_is_found_at_the_augmented_keypoint(kind, number):
    geometry = KINDS[kind].sample_geometry(chance(number))
    painted, found = blobs(PLACES), 0
    moved = transform_annotations(seen(), geometry, SWAP)
    row_of = {i: i for i in range(5)} if not geometry.mirrored else dict(enumerate(SWAP))

    for i in moved.visible.nonzero().flatten().tolist():
        blob = transform_pixels(painted[row_of[i]].expand(3, -1, -1), geometry)[0]
        spread = 8  # of a blob, enlarged
        if ((moved.keypoints[i] < spread) | (moved.keypoints[i] > SIDE - spread)).any():
            continue  # cut off by the border: its centre of mass is elsewhere
        grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy"), -1)
        centre = (blob[..., None] * grid).sum((0, 1)) / blob.sum()
        assert_close(centre, moved.keypoints[i], atol=0.3, rtol=0)
        found += 1
    assert found >= 2


def test_an_augmented_pair_has_the_pixels_of_its_geometry_and_colours():
    """The whole call, against its parts drawn again: colours of both images, then their geometry."""
    augment, pair = KINDS["all"], pair_of(seen(), seen(image=torch.rand(3, SIDE, SIDE)))

    found = augment(pair, record(), chance(3))

    again = chance(3)
    colours = [augment.sample_colours(again) for _ in range(2)]
    for before, after, colour in zip(pair[:2], found[:2], colours, strict=True):
        geometry = augment.sample_geometry(again)
        expected = transform_annotations(before, geometry, SWAP)
        assert equal(
            after, expected._replace(image=transform_pixels(transform_colours(before.image, colour), geometry))
        )
    assert not equal(colours[0], colours[1])
    assert found.extent == pair.extent


def test_a_mirror_image_exchanges_left_and_right():
    hidden = seen()._replace(visible=torch.tensor([False, True, True, True, True]))

    found = mirror_view(hidden, SWAP)

    assert found.keypoints[0].tolist() == [127 - 83.5, 40.0]  # row 0 is what row 1 was
    assert found.visible.tolist() == [True, False, True, True, True]
    assert found.box.tolist() == [27.0, 30.0, 107.0, 105.0]


def test_mirroring_twice_changes_nothing():
    view, once = seen(), GeometricChange(mirrored=True)

    assert equal(mirror_view(mirror_view(view, SWAP), SWAP), view)
    assert torch.equal(transform_pixels(transform_pixels(view.image, once), once), view.image)


def test_a_symmetric_image_and_its_mirror_image_have_the_same_keypoints():
    """If rows were not exchanged, the left keypoint of one would be matched to the right one of the other."""
    places = torch.tensor([[40.0, 50.0], [87.0, 50.0], [30.0, 90.0], [63.5, 70.0], [97.0, 90.0]])
    image = blobs(places).sum(0).expand(3, -1, -1)
    view = seen(image, places)

    found = transform_annotations(view, GeometricChange(mirrored=True), SWAP)

    assert torch.equal(found.keypoints, view.keypoints)
    assert_close(transform_pixels(image, GeometricChange(mirrored=True)), image)


def test_a_keypoint_that_leaves_the_square_is_not_visible_any_more():
    moved = transform_annotations(seen(), GeometricChange(warp=away(0.5)), None)  # 64 pixels to the left

    assert moved.visible.tolist() == [False, True, False, True, True]
    assert_close(moved.keypoints[1], torch.tensor([19.5, 40.0]), atol=1e-4, rtol=0)
    assert_close(moved.box, torch.tensor([-0.5, 30.0, 36.0, 105.0]), atol=1e-4, rtol=0)


def test_a_keypoint_that_was_not_visible_does_not_appear():
    hidden = seen()._replace(visible=torch.zeros(5, dtype=torch.bool))

    assert not transform_annotations(hidden, GeometricChange(True, away(0.1)), SWAP).visible.any()


@pytest.mark.parametrize("number", range(6))
def test_the_box_stays_around_the_object(number):
    view, geometry = seen(), KINDS["all"].sample_geometry(chance(number))
    x1, y1, x2, y2 = view.box.long().tolist()
    image = torch.zeros(3, SIDE, SIDE)
    image[:, y1 : y2 + 1, x1 : x2 + 1] = 1

    box = transform_annotations(view, geometry, SWAP).box

    y, x = (transform_pixels(image, geometry)[0] > 0.5).nonzero().T
    object_box = torch.stack((x.min(), y.min(), x.max(), y.max())).float()
    assert_close(box, object_box, atol=1.5, rtol=0)


def test_ambiguity_is_that_of_what_is_still_visible(monkeypatch):
    """Row 1 has its twin, row 0, in the target; cut away, nothing can be mistaken for it."""
    for warp, expected in ((None, [True, True]), (away(0.5), [False, False])):
        drawn = iter([GeometricChange(), GeometricChange(warp=warp)])
        monkeypatch.setattr(Augmentation, "sample_geometry", lambda self, chance, drawn=drawn: next(drawn))
        found = Augmentation(shift=0.1)(pair_of(seen(), seen()), record(), chance(0))
        assert found.ambiguous[:2].tolist() == expected


def test_a_draw_that_leaves_nothing_shared_is_drawn_again(monkeypatch):
    draws = [GeometricChange(), GeometricChange(warp=away(2.0)), GeometricChange(), GeometricChange(warp=away(0.1))]
    drawn = iter(draws)
    monkeypatch.setattr(Augmentation, "sample_geometry", lambda self, chance: next(drawn))

    found = Augmentation(shift=0.1)(pair_of(seen(), seen()), record(), chance(0))

    assert found.shared.all()
    assert equal(found.target.image, transform_pixels(seen().image, draws[3]))


def test_a_pair_that_no_draw_leaves_anything_of_keeps_its_geometry(monkeypatch):
    monkeypatch.setattr(Augmentation, "sample_geometry", lambda self, chance: GeometricChange(warp=away(2.0)))
    pair = pair_of(seen(), seen())

    found = Augmentation(shift=0.1)(pair, record(groups=()), chance(0))

    assert equal(found, pair)


def test_mirroring_one_image_may_leave_nothing_shared_and_is_drawn_again():
    """Only the left keypoint is visible in both images: either both are mirrored, or neither."""
    left = seen()._replace(visible=torch.tensor([True, False, False, False, False]))

    for number in range(20):
        found = Augmentation(flip=0.5)(pair_of(left, left), record(), chance(number))
        assert found.shared.sum() == 1
        assert equal(found.source, found.target)


# -- without keypoints --


def test_a_grid_of_points_takes_the_place_of_keypoints_and_the_source_that_of_the_target():
    source, target = seen(), seen(image=torch.rand(3, SIDE, SIDE))

    found = pair_with_itself(pair_of(source, target), 4, (SIDE, SIDE))

    tiles = [tile * SIDE / 4 - 0.5 for tile in (0.5, 1.5, 2.5, 3.5)]  # centres of 4 x 4 tiles
    assert found.source.keypoints.tolist() == [[x, y] for y in tiles for x in tiles]
    assert found.source.visible.all()
    assert equal(found.source, found.target)
    assert torch.equal(found.source.image, source.image)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "corner", "corner+9"])
@pytest.mark.parametrize("size", [(90, 41), (30, 200)])
def test_points_of_a_grid_are_on_the_image_and_never_in_the_padding(resize, size):
    """White on black padding, with no interpolation: each point is the centre of its tile of the white."""
    fit = fit_to_square(size, SIDE, resize)
    (x, y), (width, height) = fit.offset, fit.size
    image = torch.zeros(3, SIDE, SIDE)
    image[:, y : y + height, x : x + width] = 1
    view = seen(image)._replace(scale=torch.tensor(fit.scale), offset=torch.tensor(fit.offset).float())
    pair = record()._replace(source=record().source._replace(size=size))

    found = Augmentation(grid=5)(pair_of(view, seen()), pair, chance(0))

    for points in (found.source.keypoints, found.target.keypoints):
        column, row = points.round().long().T
        assert (image[:, row, column] == 1).all()
        shares = (points + 0.5 - view.offset) / torch.tensor([width, height])
        expected = [[(i + 0.5) / 5, (j + 0.5) / 5] for j in range(5) for i in range(5)]
        assert_close(shares, torch.tensor(expected))


@pytest.mark.parametrize("number", range(4))
def test_points_of_a_grid_stay_on_the_same_pixels_of_both_images(number):
    """Colours are the pixel's own coordinates: at the two ends of a match they are the same."""
    grid = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy"))
    image = torch.cat((grid, torch.zeros(1, SIDE, SIDE))) / SIDE
    augment = Augmentation(grid=6, rotate=15, scale=0.25, shift=0.1, shear=5, thin_plate=0.05)

    found = augment(pair_of(seen(image), seen()), record(), chance(number))

    inside = found.source.visible & found.target.visible
    for view in (found.source, found.target):  # not half faded to the black beyond the border
        inside &= ((view.keypoints >= 2) & (view.keypoints <= SIDE - 3)).all(-1)
    colours = [
        grid_sample(view.image[None], to_unit(view.keypoints, SIDE)[None, None], align_corners=False)[0, :2, 0].T * SIDE
        for view in (found.source, found.target)
    ]
    clear = inside & ((colours[0] > 2) & (colours[0] < SIDE - 3)).all(-1)
    assert clear.sum() >= 10
    assert_close(colours[0][clear], colours[1][clear], atol=0.2, rtol=0)
    assert (found.source.keypoints - found.target.keypoints)[clear].norm(dim=-1).max() > 4  # warped apart
    assert not found.ambiguous.any()


# -- options --


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "`augment.flip` must be between 0, which is off, and 1, got 1.5"),
        ({"rotate": -5}, "`augment.rotate` must be between 0, which is off, and 180, got -5"),
        ({"thin_plate": float("nan")}, "`augment.thin_plate` must be between 0, which is off, and 0.2, got nan"),
        ({"hue": 1}, "`augment.hue` must be between 0, which is off, and 0.5, got 1"),
        ({"grid": 65}, "`augment.grid` must be between 0, which is off, and 64, got 65"),
        (
            {"grid": 5, "flip": 0.5},
            "`augment.grid` has no left and right points that a mirror image could exchange. Set augment.flip=0.",
        ),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(options, message):
    with pytest.raises(UserError) as error:
        Augmentation(**options)

    assert str(error.value) == message


def test_turning_one_option_changes_no_other():
    plain, more = Augmentation(rotate=30), Augmentation(rotate=30, flip=0.5, brightness=0.4)

    assert torch.equal(plain.sample_geometry(chance(5)).warp.affine, more.sample_geometry(chance(5)).warp.affine)


def test_mirroring_without_a_permutation_is_refused_as_the_pairs_are_read(monkeypatch):
    data = PFWillow(root=".", size=32)
    monkeypatch.setattr(data, "pairs", lambda split: [record(flip=None)])
    data.augment = Augmentation(rotate=10)
    data.setup("fit")

    data.augment = Augmentation(flip=0.5)
    with pytest.raises(UserError, match=r"`augment\.flip`: pf_willow does not say .* cat\. Set augment\.flip=0"):
        data.setup("fit")


def test_a_grid_is_refused_where_steps_are_made_of_keypoints(monkeypatch):
    data = PFWillow(root=".", size=32)
    monkeypatch.setattr(data, "pairs", lambda split: [record()])
    data.augment = Augmentation(grid=4)
    data.setup("fit")

    data.pose_variant = PoseVariant(self_flip=1.0)
    with pytest.raises(UserError, match=r"`pairs`: with augment\.grid .* Set pairs=plain or augment\.grid=0"):
        data.setup("fit")
    data.pose_variant, data.all_pairs = None, 3
    with pytest.raises(UserError, match=r"`data\.all_pairs`: with augment\.grid .* Set data\.all_pairs=null"):
        data.setup("fit")
