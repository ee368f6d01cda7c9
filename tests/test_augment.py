"""Augmented pairs: keypoints stay on what they name, and a sample follows from the seed and its number."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from semcorr.coords import from_unit, to_unit
from semcorr.data.alter import Colours, Geometry, carry, mirror, recolour, redraw
from semcorr.data.augment import Augment
from semcorr.data.dataset import PairDataset, TrainingPairs
from semcorr.data.pf_willow import PFWillow
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.sampler import Draw
from semcorr.data.warp import Warp, affine, backward, displacement, forward, thin_plate, warp_image, warp_points
from semcorr.errors import UserError
from semcorr.module import Correspondence
from semcorr.run import build
from semcorr.train import train
from semcorr.types import PairBatch, View

SIDE = 128
PLACES = torch.tensor([[44.0, 40.0], [83.5, 40.0], [40.0, 70.25], [64.0, 90.0], [88.0, 75.0]])
SWAP = (1, 0, 4, 3, 2)  # left and right in PLACES
STRONGEST = Augment(flip=0.5, rotate=180, scale=1, shift=0.2, shear=45, crop=0.5, thin_plate=0.2)
KINDS = {
    "flip": Augment(flip=1),
    "rotate": Augment(rotate=60),
    "scale": Augment(scale=0.5),
    "shift": Augment(shift=0.2),
    "shear": Augment(shear=20),
    "crop": Augment(crop=0.5),
    "thin plate": Augment(thin_plate=0.08),
    "all": Augment(flip=0.5, rotate=30, scale=0.3, shift=0.1, shear=10, crop=0.2, thin_plate=0.05, contrast=0.3),
}


def chance(number: int) -> np.random.Generator:
    return np.random.default_rng([0, number])


def blobs(places: torch.Tensor) -> torch.Tensor:
    """A bright Gaussian of its own at every place, each alone in its image."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    squared = (x - places[:, 0, None, None]) ** 2 + (y - places[:, 1, None, None]) ** 2
    return torch.exp(-squared / (2 * 2.0**2))


def seen(image: torch.Tensor | None = None, places: torch.Tensor = PLACES) -> View:
    image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) if image is None else image
    box = torch.tensor([20.0, 30.0, 100.0, 105.0])
    return View(image, places, torch.ones(len(places), dtype=torch.bool), box, torch.ones(2), torch.zeros(2), "one")


def pair_of(source: View, target: View) -> PairBatch:
    return PairBatch(source, target, torch.zeros_like(source.visible), torch.tensor(80.0), "cat", "one-two")


def record(**changes: object) -> PairRecord:
    points, visible = torch.zeros(len(PLACES), 2), torch.ones(len(PLACES), dtype=torch.bool)
    image = ImageRecord("one", Path("one"), (SIDE, SIDE), points, visible, (0.0, 0.0, 9.0, 9.0))
    return PairRecord("one-two", "cat", image, image, 80.0, groups=((0, 1),), flip=SWAP)._replace(**changes)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(map(equal, a, b)) if isinstance(a, tuple) else a == b


def away(x: float) -> Warp:
    """Shows what is `x` sides to the right."""
    return Warp(affine(window=(2 * x, 0.0, 1.0)))


# -- warps --


@pytest.mark.parametrize("number", range(8))
def test_the_way_there_and_back_ends_within_a_thousandth_of_a_pixel(number):
    warp = STRONGEST.geometry(chance(number)).warp
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(number)).double() * 840

    there = from_unit(backward(warp, to_unit(points, 840)), 840)
    back = from_unit(forward(warp, to_unit(there, 840)), 840)

    assert_close(back, points, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.0]),
        ({"rotate": 90.0}, [0.0, 0.5]),  # clockwise, y points down
        ({"zoom": 2.0}, [1.0, 0.0]),
        ({"shift": (0.25, -0.125)}, [0.75, -0.125]),
        ({"window": (0.5, 0.25, 0.5)}, [0.0, -0.5]),  # the window's centre fills the middle
        ({"rotate": 90.0, "zoom": 2.0, "shift": (0.25, 0.0)}, [0.25, 1.0]),
    ],
)
def test_an_affine_warp_takes_a_point_where_it_says(options, expected):
    found = forward(Warp(affine(**options)), torch.tensor([[0.5, 0.0]], dtype=torch.float64))

    assert_close(found[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_shear_leans_vertical_lines_and_keeps_horizontal_ones():
    points = torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64)

    found = forward(Warp(affine(shear=45.0)), points)

    assert_close(found, torch.tensor([[0.5, 0.5], [0.5, 0.0]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_thin_plate_takes_the_given_offsets_at_its_control_points():
    line = torch.linspace(-1, 1, 4, dtype=torch.float64)
    offsets = 0.02 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).double()

    found = displacement(thin_plate(offsets), torch.cartesian_prod(line, line))

    assert_close(found, offsets, atol=1e-9, rtol=0)


@pytest.mark.parametrize("number", range(8))
def test_no_thin_plate_folds(number):
    """A fold would turn the determinant of the slopes negative; fourfold what `augment` allows."""
    spline = thin_plate(torch.from_numpy(chance(number).uniform(-1.6, 1.6, (16, 2))))
    line = torch.linspace(-1.2, 1.2, 241, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)

    bent = (points + displacement(spline, points)).unflatten(0, (241, 241))

    x, y = (bent.diff(dim=k) / 0.01 for k in (0, 1))
    area = x[:, :-1, 0] * y[:-1, :, 1] - x[:, :-1, 1] * y[:-1, :, 0]
    assert area.min() > 0.2


def test_a_warp_that_does_nothing_changes_no_pixel():
    image = torch.rand(3, 37, 37)

    assert_close(warp_image(image, Warp(affine(), thin_plate(torch.zeros(16, 2)))), image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [63, 600])
@pytest.mark.parametrize("number", range(4))
def test_every_pixel_comes_from_where_the_warp_says(side, number):
    """An image whose colours are its own coordinates, within 1/20 px."""
    line = torch.arange(side).float()
    y, x = torch.meshgrid(line, line, indexing="ij")
    warp = KINDS["all"].geometry(chance(number)).warp

    found = warp_image(torch.stack((x, y, torch.ones_like(x))), warp).flatten(1).T

    there = from_unit(backward(warp, to_unit(torch.stack((x, y), -1).flatten(0, 1).double(), side)), side).float()
    inside = ((there >= 1) & (there <= side - 2)).all(-1)  # not fading to black
    assert inside.float().mean() > 0.3
    assert_close(found[inside, :2], there[inside], atol=0.05, rtol=0)


def test_what_lies_outside_is_black():
    image = warp_image(torch.ones(3, 8, 8), away(0.5))

    assert_close(image, torch.ones(3, 8, 8).index_fill(2, torch.arange(4, 8), 0.0))


# -- a pair --


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(3))
def test_a_blob_painted_at_a_keypoint_is_found_at_the_augmented_keypoint(kind, number):
    geometry = KINDS[kind].geometry(chance(number))
    painted, found = blobs(PLACES), 0
    moved = carry(seen(), geometry, SWAP)
    row_of = {i: i for i in range(5)} if not geometry.mirrored else dict(enumerate(SWAP))

    for i in moved.visible.nonzero().flatten().tolist():
        blob = redraw(painted[row_of[i]].expand(3, -1, -1), geometry)[0]
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
    colours = [augment.colours(again) for _ in range(2)]
    for before, after, colour in zip(pair[:2], found[:2], colours, strict=True):
        geometry = augment.geometry(again)
        expected = carry(before, geometry, SWAP)
        assert equal(after, expected._replace(image=redraw(recolour(before.image, colour), geometry)))
    assert not equal(colours[0], colours[1])
    assert found.extent == pair.extent


def test_a_mirror_image_exchanges_left_and_right():
    hidden = seen()._replace(visible=torch.tensor([False, True, True, True, True]))

    found = mirror(hidden, SWAP)

    assert found.keypoints[0].tolist() == [127 - 83.5, 40.0]  # row 0 is what row 1 was
    assert found.visible.tolist() == [True, False, True, True, True]
    assert found.box.tolist() == [27.0, 30.0, 107.0, 105.0]


def test_mirroring_twice_changes_nothing():
    view, once = seen(), Geometry(mirrored=True)

    assert equal(mirror(mirror(view, SWAP), SWAP), view)
    assert torch.equal(redraw(redraw(view.image, once), once), view.image)


def test_a_symmetric_image_and_its_mirror_image_have_the_same_keypoints():
    """If rows were not exchanged, the left keypoint of one would be matched to the right one of the other."""
    places = torch.tensor([[40.0, 50.0], [87.0, 50.0], [30.0, 90.0], [63.5, 70.0], [97.0, 90.0]])
    image = blobs(places).sum(0).expand(3, -1, -1)
    view = seen(image, places)

    found = carry(view, Geometry(mirrored=True), SWAP)

    assert torch.equal(found.keypoints, view.keypoints)
    assert_close(redraw(image, Geometry(mirrored=True)), image)


def test_a_keypoint_that_leaves_the_square_is_not_visible_any_more():
    moved = carry(seen(), Geometry(warp=away(0.5)), None)  # 64 pixels to the left

    assert moved.visible.tolist() == [False, True, False, True, True]
    assert_close(moved.keypoints[1], torch.tensor([19.5, 40.0]), atol=1e-4, rtol=0)
    assert_close(moved.box, torch.tensor([-0.5, 30.0, 36.0, 105.0]), atol=1e-4, rtol=0)


def test_a_keypoint_that_was_not_visible_does_not_appear():
    hidden = seen()._replace(visible=torch.zeros(5, dtype=torch.bool))

    assert not carry(hidden, Geometry(True, away(0.1)), SWAP).visible.any()


@pytest.mark.parametrize("number", range(6))
def test_the_box_stays_around_the_object(number):
    view, geometry = seen(), KINDS["all"].geometry(chance(number))
    x1, y1, x2, y2 = view.box.long().tolist()
    image = torch.zeros(3, SIDE, SIDE)
    image[:, y1 : y2 + 1, x1 : x2 + 1] = 1

    box = carry(view, geometry, SWAP).box

    y, x = (redraw(image, geometry)[0] > 0.5).nonzero().T
    object_box = torch.stack((x.min(), y.min(), x.max(), y.max())).float()
    assert_close(box, object_box, atol=1.5, rtol=0)


def test_ambiguity_is_that_of_what_is_still_visible(monkeypatch):
    """Row 1 has its twin, row 0, in the target; cut away, nothing can be mistaken for it."""
    for warp, expected in ((None, [True, True]), (away(0.5), [False, False])):
        drawn = iter([Geometry(), Geometry(warp=warp)])
        monkeypatch.setattr(Augment, "geometry", lambda self, chance, drawn=drawn: next(drawn))
        found = Augment(shift=0.1)(pair_of(seen(), seen()), record(), chance(0))
        assert found.ambiguous[:2].tolist() == expected


def test_a_draw_that_leaves_nothing_shared_is_drawn_again(monkeypatch):
    draws = [Geometry(), Geometry(warp=away(2.0)), Geometry(), Geometry(warp=away(0.1))]
    drawn = iter(draws)
    monkeypatch.setattr(Augment, "geometry", lambda self, chance: next(drawn))

    found = Augment(shift=0.1)(pair_of(seen(), seen()), record(), chance(0))

    assert found.shared.all()
    assert equal(found.target.image, redraw(seen().image, draws[3]))


def test_a_pair_that_no_draw_leaves_anything_of_keeps_its_geometry(monkeypatch):
    monkeypatch.setattr(Augment, "geometry", lambda self, chance: Geometry(warp=away(2.0)))
    pair = pair_of(seen(), seen())

    found = Augment(shift=0.1)(pair, record(groups=()), chance(0))

    assert equal(found, pair)


def test_mirroring_one_image_may_leave_nothing_shared_and_is_drawn_again():
    """Only the left keypoint is visible in both images: either both are mirrored, or neither."""
    left = seen()._replace(visible=torch.tensor([True, False, False, False, False]))

    for number in range(20):
        found = Augment(flip=0.5)(pair_of(left, left), record(), chance(number))
        assert found.shared.sum() == 1
        assert equal(found.source, found.target)


# -- colours --


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue", "grey"])
def test_colours_move_nothing_and_stay_between_0_and_1(kind):
    augment = replace(Augment(), **{kind: 0.5 if kind == "hue" else 1.0})
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
        (Colours(brightness=0.5), [0.4, 0.2, 0.1]),
        (Colours(hue=1 / 3), [0.2, 0.8, 0.4]),  # each channel takes the place of the next
        (Colours(grey=True), [0.495] * 3),  # 0.2989 R + 0.587 G + 0.114 B
        (Colours(), [0.8, 0.4, 0.2]),
    ],
)
def test_known_colours(colours, expected):
    image = torch.tensor([0.8, 0.4, 0.2])[:, None, None].expand(3, 2, 2)

    found = recolour(image, colours)

    assert_close(found[:, 0, 0], torch.tensor(expected), atol=2e-3, rtol=0)


# -- options --


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "`augment.flip` must be between 0, which is off, and 1, got 1.5"),
        ({"rotate": -5}, "`augment.rotate` must be between 0, which is off, and 180, got -5"),
        ({"thin_plate": float("nan")}, "`augment.thin_plate` must be between 0, which is off, and 0.2, got nan"),
        ({"hue": 1}, "`augment.hue` must be between 0, which is off, and 0.5, got 1"),
    ],
)
def test_an_option_out_of_range_is_told_its_range(options, message):
    with pytest.raises(UserError) as error:
        Augment(**options)

    assert str(error.value) == message


def test_turning_one_option_changes_no_other():
    plain, more = Augment(rotate=30), Augment(rotate=30, flip=0.5, brightness=0.4)

    assert torch.equal(plain.geometry(chance(5)).warp.affine, more.geometry(chance(5)).warp.affine)


def test_mirroring_without_a_permutation_is_refused_as_the_pairs_are_read(monkeypatch):
    data = PFWillow(root=".", size=32)
    monkeypatch.setattr(data, "pairs", lambda split: [record(flip=None)])
    data.augment = Augment(rotate=10)
    data.setup("fit")

    data.augment = Augment(flip=0.5)
    with pytest.raises(UserError, match=r"`augment\.flip`: pf_willow does not say .* cat\. Set augment\.flip=0"):
        data.setup("fit")


# -- the training stream --


def fit_data(config, tiny, *line: str):
    data = build(config("train", *tiny, *line, "data.batch_size=3", "data.steps=2"))[1]
    data.setup("fit")
    return data


def test_augment_none_leaves_the_pairs_as_they_are(config, tiny):
    data = fit_data(config, tiny)
    assert data.augment is None

    dataset = data.train_dataloader().dataset
    plain = PairDataset(data.pairs("train"), data.size, data.resize)

    assert all(equal(dataset[Draw(pair=i, number=7)], plain[i]) for i in range(4))


@pytest.mark.parametrize("choice", ["flip", "colour", "geometric", "standard"])
def test_every_choice_changes_training_pairs_and_no_others(config, tiny, choice):
    plain, data = fit_data(config, tiny), fit_data(config, tiny, f"augment={choice}")

    assert not equal(*(next(iter(d.train_dataloader())) for d in (plain, data)))
    assert equal(*(next(iter(d.val_dataloader())) for d in (plain, data)))
    assert equal(*(next(iter(d.encoding(d.to_score("val", 2), [[0, 1]]))) for d in (plain, data)))


def test_the_batches_do_not_depend_on_the_number_of_loader_processes(config, tiny):
    batches = [list(fit_data(config, tiny, "augment=standard", f"data.workers={n}").train_dataloader()) for n in (0, 2)]

    assert equal(*map(tuple, batches))


def test_two_uses_of_a_pair_differ_and_a_use_repeated_does_not(config, tiny):
    data = fit_data(config, tiny, "augment=standard")
    pairs = PairDataset(data.pairs("train"), data.size, data.resize)
    dataset, other_seed = (TrainingPairs(pairs, data.augment, seed) for seed in (1, 2))

    assert equal(dataset[Draw(0, 5)], dataset[Draw(0, 5)])
    assert not equal(dataset[Draw(0, 5)], dataset[Draw(0, 6)])
    assert not equal(dataset[Draw(0, 5)], other_seed[Draw(0, 5)])


def test_a_run_broken_off_resumes_to_the_same_weights_with_augmentation(config, tiny, tmp_path, monkeypatch):
    line = ["augment=standard", "finetune.blocks=1", "data.steps=2", "data.batch_size=3", "trainer.max_epochs=2"]
    whole, broken = (config("train", *tiny, *line, f"run_dir={tmp_path / name}") for name in ("whole", "broken"))
    train(whole)

    def stop(module: Correspondence, batch: PairBatch, batch_idx: int) -> None:
        if module.global_step == 3:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Correspondence, "on_train_batch_end", lambda m, outputs, batch, i: stop(m, batch, i))
        with pytest.raises(InterruptedError):
            train(broken)
    broken.checkpoint = broken.run_dir
    train(broken)

    expected, found = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "broken")
    )
    assert all(value.equal(found[name]) for name, value in expected.items())


def test_points_of_every_image_size_keep_the_convention():
    """A point on a pixel centre of a doubled image is where that pixel centre went."""
    for side in (31, 64):
        found = warp_points(torch.tensor([[0.0, 0.0], [side - 1.0, 0.0]]), Warp(affine(zoom=2.0)), side)
        centre = (side - 1) / 2
        assert_close(found, torch.tensor([[-centre, -centre], [side - 1 + centre, -centre]]), atol=1e-4, rtol=0)
