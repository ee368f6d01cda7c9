"""Images apart from pairs: which will be looked at, what identifies them, and pairs that travel without them."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from semcorr.core.errors import UserError
from semcorr.core.types import PairBatch
from semcorr.data import loaders as loading
from semcorr.data.augment import Augmentation
from semcorr.data.dataset import ImageDataset, PairBatches, PairDataset, TrainingPairs, make_view
from semcorr.data.image_variants import ImageVariant, content_hash, list_variants, unique_images
from semcorr.data.loaders import SampleIndex
from semcorr.data.record import ImageRecord, PairRecord, check_pairs
from semcorr.data.synthetic import Synthetic

SIDE = 32


def benchmark(root: Path, **options) -> Synthetic:
    return Synthetic(
        root=str(root), size=SIDE, **{"train": 3, "val": 2, "test": 3, "pixels": 96, "workers": 0} | options
    )


def processes(monkeypatch, world: int, epoch: int = 0):
    """Run a function of the data as every one of `world` processes would."""

    def each(data: Synthetic, ask):
        results = []
        for rank in range(world):
            monkeypatch.setattr(data, "_place", lambda rank=rank: (rank, world))
            monkeypatch.setattr(data, "_epoch", lambda: epoch)
            results.append(ask())
        return results

    return each


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, tuple | list) else a == b


def looked_at(batches) -> set[str]:
    return {name for batch in batches for name in (*batch.source.name, *batch.target.name)}


# -- identity --


def file_record(path: Path, content: bytes = b"one", **changes) -> ImageRecord:
    path.write_bytes(content)
    points = torch.zeros(1, 2)
    return ImageRecord(path.name, path, (8, 8), points, torch.ones(1).bool(), (0.0, 0.0, 4.0, 4.0))._replace(**changes)


def test_the_same_bytes_are_the_same_image_wherever_they_lie(tmp_path):
    here, there = file_record(tmp_path / "a.jpg"), file_record(tmp_path / "b.jpg", name="other")

    assert content_hash(ImageVariant(here)) == content_hash(ImageVariant(there))
    assert len(content_hash(ImageVariant(here))) == 32


def test_other_bytes_and_every_mirroring_are_other_images(tmp_path):
    one, two = file_record(tmp_path / "a.jpg"), file_record(tmp_path / "b.jpg", b"two")
    every = [
        ImageVariant(record._replace(mirrored=m), s)
        for record in (one, two)
        for m in (False, True)
        for s in (False, True)
    ]

    assert len({content_hash(image) for image in every}) == 8


def test_a_file_that_changes_is_another_image(tmp_path):
    before = content_hash(ImageVariant(file_record(tmp_path / "a.jpg", b"one")))

    assert content_hash(ImageVariant(file_record(tmp_path / "a.jpg", b"another"))) != before


def test_a_file_that_is_gone_is_named(tmp_path):
    gone = ImageVariant(file_record(tmp_path / "a.jpg"))
    gone.record.path.unlink()

    with pytest.raises(UserError, match=r"a\.jpg does not exist"):
        content_hash(gone)


# -- mirror images --


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_mirror_image_is_what_a_flip_shows(creatures, resize):
    """Pixels and name are those of augmentation, bit for bit; and so a flip finds its features."""
    data = benchmark(creatures, resize=resize)
    pairs = PairDataset(data.pairs("train"), SIDE, resize)

    flipped = TrainingPairs(pairs, Augmentation(flip=1.0))[SampleIndex(0, 0)].source

    mirrored = ImageDataset([ImageVariant(data.pairs("train")[0].source, mirrored=True)], SIDE, resize)[0]
    assert mirrored.name == flipped.name == f"{data.pairs('train')[0].source.name} mirrored"
    assert torch.equal(mirrored.image, flipped.image)
    assert torch.equal(mirrored.box, flipped.box)


def test_pairs_without_pixels_flip_as_those_with_pixels_do(creatures):
    records = benchmark(creatures).pairs("train")
    whole, bare = (
        TrainingPairs(PairDataset(records, SIDE, "squash", p), Augmentation(flip=0.5)) for p in (True, False)
    )

    for number in range(8):
        a, b = whole[SampleIndex(number % 3, number)], bare[SampleIndex(number % 3, number)]
        assert b.source.image.shape == b.target.image.shape == (3, 0, SIDE)
        strip = [view._replace(image=torch.zeros(())) for view in (*a[:2], *b[:2])]
        assert same(tuple(strip[:2]), tuple(strip[2:]))
        assert torch.equal(a.ambiguous, b.ambiguous)


@pytest.mark.parametrize(
    ("options", "only"), [({}, True), ({"flip": 0.5}, True), ({"flip": 0.5, "hue": 0.1}, False), ({"crop": 0.1}, False)]
)
def test_only_flips_leave_features_as_they_were(options, only):
    assert Augmentation(**options).only_flips == only


# -- what will be looked at --


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batches", [1, 2, 100])
def test_every_process_lists_the_images_that_any_of_them_will_score(creatures, monkeypatch, world, batches):
    data = benchmark(creatures)
    each = processes(monkeypatch, world)

    listed = each(data, lambda: data.images_to_evaluate("test", batches))

    seen = each(data, lambda: looked_at(list(data.test_dataloader())[:batches]))
    assert all(names == listed[0] for names in listed)
    assert [image.name for image in listed[0]] == sorted(set().union(*seen))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("epoch", "epochs"), [(0, 1), (1, 3), (2, 2)])
def test_every_process_lists_the_images_that_any_of_them_will_train_on(creatures, monkeypatch, world, epoch, epochs):
    data = benchmark(creatures, batch_size=2, steps=1)
    data.train_pixels = False

    listed = processes(monkeypatch, world, epoch)(data, lambda: data.images_to_train_on(epochs))

    seen = set()
    for ahead in range(epoch, epochs):
        seen.update(*processes(monkeypatch, world, ahead)(data, lambda: looked_at(data.train_dataloader())))
    assert all(names == listed[0] for names in listed)
    assert [image.name for image in listed[0]] == sorted(seen)


@pytest.mark.parametrize("all_pairs", [None, 3])
def test_steps_that_are_not_made_show_no_images(creatures, all_pairs):
    data = benchmark(creatures, batch_size=1, steps=4, all_pairs=all_pairs)

    listed = {one.name for one in data.images_to_train_on(2, steps=1)}

    first = list(data.stream().batches_ahead(2))[::4]  # of either epoch
    categories, pairs = data.category_images(), data.pairs("train")
    if all_pairs:
        assert listed == {categories[draw.category_index].images[i].name for draw in first for i in draw.images}
    else:
        assert listed == {one.name for one in unique_images(pairs[draw.pair] for (draw,) in first)}


def test_pairs_without_pixels_need_no_loader_processes(creatures):
    data = benchmark(creatures, workers=2)
    assert data.test_dataloader().num_workers == 0
    assert data.train_dataloader().num_workers == 2

    data.pixels, data.train_pixels = True, False
    assert data.test_dataloader().num_workers == 2
    assert data.train_dataloader().num_workers == 0


def test_where_training_flips_mirror_images_are_listed_too(creatures):
    data = benchmark(creatures)
    plain = data.images_to_train_on(1)
    data.augment, data.train_pixels = Augmentation(flip=0.5), False

    both = data.images_to_train_on(1)

    assert both == list_variants([image.record for image in plain], mirrored=True)
    assert len(both) == 2 * len(plain)
    assert looked_at(data.train_dataloader()) <= {image.name for image in both}


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_to_encode_are_claimed_one_after_the_other(creatures, workers):
    data = benchmark(creatures, workers=workers)
    images = list_variants(unique_images(data.pairs("test")), mirrored=True)
    claimed = []

    def claim():
        for start in range(0, len(images), 4):
            claimed.append(start)
            yield list(range(start, min(start + 4, len(images))))

    loader = iter(data.encoding_loader(images, claim()))
    found = [next(loader)]
    assert len(claimed) <= 1 + 2 * workers  # no more than the loader processes are busy with
    found += loader

    assert [name for views in found for name in views.name] == [image.name for image in images]
    assert all(
        torch.equal(pixels, make_view(image.record, SIDE, "squash").image.flip(-1 if image.mirrored else ()))
        for pixels, image in zip(torch.cat([views.image for views in found]), images, strict=True)
    )


# -- pairs without pixels --


def test_batches_from_the_table_are_the_pairs_collated(creatures):
    """Groups differ between these categories, and both ends of a pair have records of their own."""
    records = list(benchmark(creatures).pairs("test"))
    other = {name: tuple(groups) for name, groups in zip("ab", [((0, 1),), ((1, 2, 3),)], strict=True)}
    alien = [pair._replace(category=name, groups=other[name]) for pair in records[:6] for name in other]
    moved = records[0].source._replace(keypoints=records[0].source.keypoints + 1)  # annotated again, under its old name
    pairs = PairDataset([*records, *alien, records[0]._replace(source=moved)], SIDE, "letterbox", pixels=False)
    order = [list(range(4)), list(range(len(pairs) - 9, len(pairs))), [1, 0, 1]]

    fast = list(DataLoader(PairBatches(pairs), batch_size=None, sampler=order))

    slow = list(DataLoader(pairs, batch_sampler=order))
    assert len(fast) == len(slow) == 3
    assert all(map(same, fast, slow))
    assert all(type(batch) is PairBatch and batch.source.image.shape[1:] == (3, 0, SIDE) for batch in fast)


def test_an_image_annotated_again_for_every_pair_keeps_all_its_annotations(tmp_path):
    one, two = file_record(tmp_path / "a.jpg"), file_record(tmp_path / "a.jpg", keypoints=torch.ones(1, 2))
    pairs = [PairRecord(f"{k}", "cat", first, two, 4.0) for k, first in enumerate((one, two))]

    found = [pair.source.keypoints[0, 0].item() for pair in PairDataset(pairs, 8, "squash", pixels=False)]

    assert found == [0.0, 1.0]


@pytest.mark.parametrize(
    ("on_gpu", "processes", "expected"), [(True, 1, 16), (True, 8, 4), (False, 1, 8), (False, 8, 1)]
)
def test_who_decodes_follows_from_who_encodes(monkeypatch, on_gpu, processes, expected):
    monkeypatch.setattr(loading, "count_cores", lambda: 32)

    assert loading.num_loader_workers(None, on_gpu, processes) == expected
    assert loading.num_loader_workers(3, on_gpu, processes) == 3
    assert loading.encoding_batch_size(None, on_gpu) == (8 if on_gpu else 1)


def test_loader_processes_are_shared_out_by_machine(monkeypatch, creatures):
    """Four processes on two machines of 8 cores: two share a machine, and its shared memory."""
    data = benchmark(creatures, workers=None)
    data.trainer = Mock(spec=Trainer, world_size=4, num_devices=2)
    plans: list[tuple[object, ...]] = []
    monkeypatch.setattr(loading, "count_cores", lambda: 8)
    plan = loading.plan_loading
    monkeypatch.setattr("semcorr.data.benchmark.plan_loading", lambda *args: plans.append(args) or plan(*args))

    assert data.encoding_loader(list_variants(unique_images(data.pairs("val"))), [[0]]).num_workers == 1
    assert plans == [(loading.BatchSize(1, 32), 1, False, 2)]


def test_a_pair_of_other_numbers_of_keypoints_is_refused_by_name(creatures):
    """Two such pairs, whose numbers agree in all: each must be looked at by itself."""
    pairs = Synthetic(root=str(creatures), size=64, train=3, val=2, test=3, pixels=96).pairs("test")[:2]

    def cut(image, rows):
        return image._replace(keypoints=image.keypoints[:rows], visible=image.visible[:rows])

    first = pairs[0]._replace(source=cut(pairs[0].source, 3), target=cut(pairs[0].target, 4))
    second = pairs[1]._replace(source=cut(pairs[1].source, 4), target=cut(pairs[1].target, 3))
    with pytest.raises(UserError, match=f"pair {first.name} has 3 keypoints in its source and 4 in its target"):
        check_pairs([first, second], "birds")
