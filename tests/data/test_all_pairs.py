"""Batches of images of one category: every pair of them, as the pairs of a benchmark would have it."""

from collections import Counter
from itertools import chain, permutations
from pathlib import Path

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.data.all_pairs import CategoryImages, ImageStream, TrainingImages, find_queries, images_by_category
from semcorr.data.augment import Augmentation
from semcorr.data.dataset import PairDataset
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.synthetic import Synthetic

pytestmark = pytest.mark.integration

SIDE = 32


def image(name: str, visible: str = "11", **changes) -> ImageRecord:
    seen = torch.tensor([digit == "1" for digit in visible])
    return ImageRecord(name, Path(name), (8, 8), torch.ones(len(seen), 2), seen, (0.0, 0.0, 4.0, 4.0))._replace(
        **changes
    )


def gallery(category: str, count: int, pairs: int) -> CategoryImages:
    return CategoryImages(category, [image(f"{category}{i}") for i in range(count)], pairs, (0, 1))


def stream(*categories: CategoryImages, count: int = 4, steps: int | None = 8, seed: int = 0, **where) -> ImageStream:
    return ImageStream(categories, count, steps, seed, **where)


def pair(source: ImageRecord, target: ImageRecord, category: str = "cat") -> PairRecord:
    return PairRecord(f"{source.name}-{target.name}", category, source, target, 4.0)


@pytest.fixture
def data(creatures) -> Synthetic:
    return Synthetic(root=str(creatures), size=SIDE, train=3, val=2, test=3, pixels=96, workers=0, all_pairs=3, steps=4)


@pytest.mark.parametrize(
    "augment", [None, Augmentation(flip=0.5), Augmentation(flip=0.5, rotate=60, crop=0.5, hue=0.1)]
)
def test_queries_are_the_shared_keypoints_of_all_ordered_pairs(data, augment):
    """The test of truth: each of the m (m - 1) pairs, as its own sample, has the same keypoints to be matched."""
    data.augment = augment
    for batch in data.train_dataloader():
        view, m = batch.view, len(batch.view.name)
        expected = {
            (source, keypoint, target)
            for source, target in permutations(range(m), 2)
            for keypoint in range(view.visible.shape[1])
            if view.visible[source, keypoint] and view.visible[target, keypoint]
        }
        found = [tuple(row) for row in batch.queries.tolist()]
        assert len(found) == len(set(found)) > 0
        assert set(found) == expected


def test_a_batch_has_the_keypoints_and_pixels_of_the_listed_pairs(data):
    """Each pair that the benchmark lists, made by `PairDataset`, is in the batch bit for bit."""
    pairs = data.pairs("train")
    dataset, listed = (
        PairDataset(pairs, SIDE, "squash"),
        {(p.source.name, p.target.name): i for i, p in enumerate(pairs)},
    )
    met = 0
    for batch in data.train_dataloader():
        for (s, source), (t, target) in permutations(enumerate(batch.view.name), 2):
            if (source, target) not in listed:
                continue
            sample = dataset[listed[source, target]]
            queries = batch.queries[(batch.queries[:, 0] == s) & (batch.queries[:, 2] == t), 1]
            assert queries.tolist() == sample.shared.nonzero().flatten().tolist()
            for place, end in ((s, sample.source), (t, sample.target)):
                assert all(
                    torch.equal(column[place], own) for column, own in zip(batch.view[:-1], end[:-1], strict=True)
                )
            assert batch.category == sample.category
            met += 1
    assert met > 4


def test_without_pixels_a_batch_is_the_same_but_for_them(data):
    data.augment = Augmentation(flip=0.5)
    whole = list(data.train_dataloader())
    data.train_pixels = False

    for batch, bare in zip(whole, data.train_dataloader(), strict=True):
        assert bare.view.image.shape == (len(batch.view.name), 3, 0, SIDE)
        assert bare.view.name == batch.view.name
        assert torch.equal(bare.view.keypoints, batch.view.keypoints)
        assert torch.equal(bare.queries, batch.queries)


def test_what_is_to_be_trained_on_is_what_the_batches_show(data):
    data.augment, data.train_pixels = Augmentation(flip=0.5), False

    listed = {one.name for one in data.images_to_train_on(1)}

    loaded = {name for batch in data.train_dataloader() for name in batch.view.name}
    assert loaded <= listed
    assert {name.removesuffix(" mirrored") for name in loaded} == {name for name in listed if "mirrored" not in name}


@pytest.mark.slow
def test_the_batches_do_not_depend_on_the_number_of_loader_processes(data):
    data.augment = Augmentation(flip=0.5, rotate=30)
    batches = []
    for data.workers in (0, 2):
        batches.append(list(data.train_dataloader()))

    for alone, helped in zip(*batches, strict=True):
        assert alone.view.name == helped.view.name
        assert torch.equal(alone.view.image, helped.view.image)
        assert torch.equal(alone.queries, helped.queries)


# -- the stream --


def test_images_are_of_one_category_and_none_comes_twice():
    large, small = gallery("a", 9, 1), gallery("b", 3, 1)

    for draw in stream(large, small, steps=50):
        assert len(set(draw.images)) == len(draw.images) == (4 if draw.category_index == 0 else 3)


def test_categories_come_in_proportion_to_their_listed_pairs():
    counts = Counter(draw.category_index for draw in stream(gallery("a", 9, 300), gallery("b", 9, 100), steps=4000))

    assert counts[0] / 4000 == pytest.approx(0.75, abs=0.03)  # four standard deviations


def test_all_images_of_a_category_are_drawn_alike():
    counts = Counter(chain(*(draw.images for draw in stream(gallery("a", 8, 1), steps=2000))))

    assert all(count == pytest.approx(1000, abs=90) for count in counts.values())
    assert len(counts) == 8


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_epochs_are_slices_of_one_stream(world):
    categories = gallery("a", 9, 2), gallery("b", 9, 1)
    alone = list(stream(*categories, steps=12 * world))

    for rank in range(world):
        epochs = [stream(*categories, steps=4, rank=rank, world=world, epoch=lambda k=k: k) for k in range(3)]
        assert list(chain(*epochs)) == alone[rank::world]
    assert list(epochs[1].batches_ahead(3)) == alone[4 * world :]
    assert alone != list(stream(*categories, steps=12 * world, seed=1))


def test_without_steps_an_epoch_is_about_a_pass_over_the_images():
    categories = gallery("a", 9, 2), gallery("b", 9, 1)

    assert len(stream(*categories, steps=None)) == 4
    assert len(stream(*categories, steps=None, world=2)) == 2
    assert len(stream(*categories, steps=None, world=9)) == 1


def test_a_draw_that_shares_nothing_is_drawn_again():
    """Of the 45 pairs of these images one has something to say."""
    images = [image(f"{k}", "".join("1" if i == min(k, 8) else "0" for i in range(9))) for k in range(10)]

    draws = list(stream(CategoryImages("a", images, 1, None), count=2, steps=20))

    assert {frozenset(draw.images) for draw in draws} == {frozenset((8, 9))}


# -- categories --


def test_a_category_has_every_image_of_its_pairs_once():
    a, b, c = map(image, "abc")

    found = images_by_category([pair(b, a), pair(b, c), pair(c, a, "dog")])

    assert [(one.category, [i.name for i in one.images], one.pairs) for one in found] == [
        ("cat", ["a", "b", "c"], 2),
        ("dog", ["a", "c"], 1),
    ]


def test_images_that_the_benchmark_mirrored_are_left_out():
    a, b = image("a"), image("b")
    mirrored = [one._replace(name=f"{one.name}~mirrored", mirrored=True) for one in (a, b)]

    (found,) = images_by_category([pair(a, b), pair(*mirrored)])

    assert [one.name for one in found.images] == ["a", "b"]


def test_images_annotated_pair_by_pair_are_refused():
    a, b, again = image("a"), image("b"), image("a", "10")

    with pytest.raises(UserError, match=r"`data\.all_pairs`: a has other keypoints in other pairs"):
        images_by_category([pair(a, b), pair(b, again)])


def test_a_benchmark_without_two_images_of_a_kind_is_refused():
    with pytest.raises(UserError, match=r"no category has two images that share a keypoint"):
        images_by_category([pair(image("a"), image("a"))])


def test_one_image_makes_no_pairs(creatures):
    with pytest.raises(UserError, match=r"`data\.all_pairs` must be null or a number of images, at least 2, got 1"):
        Synthetic(root=str(creatures), size=SIDE, all_pairs=1)


@pytest.mark.parametrize("count", [2, 5])
def test_queries_of_images_with_everything_visible_are_all_there_are(count):
    found = find_queries(torch.ones(count, 3, dtype=torch.bool))

    assert len(found) == 3 * count * (count - 1)
    assert (found[:, 0] != found[:, 2]).all()


def test_no_augmentation_leaves_a_batch_without_queries(tmp_path):
    """Only the left keypoint is visible in both images: mirroring one alone would leave nothing."""
    images = [image(name, "10") for name in "ab"]
    dataset = TrainingImages(
        [CategoryImages("a", images, 1, (1, 0))], 8, "squash", Augmentation(flip=0.5), pixels=False
    )

    names = set()
    for draw in stream(*dataset.categories, count=2, steps=20):
        batch = dataset[draw]
        assert len(batch.queries) == 2
        names.update(batch.view.name)
    assert names == {"a", "b", "a mirrored", "b mirrored"}
