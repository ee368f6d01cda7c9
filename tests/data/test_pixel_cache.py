"""Resized images shared by loader processes: the same pixels, decoded once, within a budget."""

import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from semcorr.core.errors import UserError
from semcorr.data import views
from semcorr.data import views as pixel_cache
from semcorr.data.dataset import PairDataset
from semcorr.data.image_variants import unique_images
from semcorr.data.synthetic import Synthetic
from semcorr.data.views import LocalProcesses, PixelCache, ViewCache

pytestmark = pytest.mark.integration

SIDE = 32
SQUARE = 3 * SIDE**2 / 1e9  # gigabytes


@pytest.fixture
def data(creatures):
    return Synthetic(root=str(creatures), size=SIDE, train=3, val=2, test=3, pixels=96, workers=0, batch_size=2)


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each image was, in this process."""
    times: Counter = Counter()
    draw = views.render_view

    def counted(record, side, resize):
        times[record.name] += 1
        return draw(record, side, resize)

    monkeypatch.setattr(views, "render_view", counted)
    return times


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_cached_image_is_the_image_bit_for_bit(data, resize):
    records = unique_images(data.pairs("train"))
    cached = ViewCache(records, SIDE, resize, cache_gb=1.0)

    for _ in range(2):
        for place, record in enumerate(records):
            assert torch.equal(cached[place].image, views.make_view(record, SIDE, resize).image)
            assert cached[place].image.is_contiguous()


def test_every_image_is_decoded_once_though_it_is_in_many_pairs(data, decoded):
    pairs = PairDataset(data.pairs("train"), SIDE, "squash", cache_gb=1.0)
    again = PairDataset([p._replace(target=p.target._replace()) for p in pairs.pairs], SIDE, "squash", cache_gb=1.0)

    for dataset in (pairs, again):  # of which the second has many records of the same image
        decoded.clear()
        for index in range(len(dataset)):
            dataset[index]
        assert set(decoded.values()) == {1}


def test_what_has_no_room_is_decoded_at_every_use(data, decoded):
    records = unique_images(data.pairs("train"))
    cached = ViewCache(records, SIDE, "squash", cache_gb=4.5 * SQUARE)

    for _ in range(3):
        for place, _ in enumerate(records):
            cached[place]

    assert sorted(decoded.values()) == [1] * 4 + [3] * (len(records) - 4)


def test_what_one_process_decoded_no_other_decodes(data, decoded):
    pairs = PairDataset(data.pairs("train"), SIDE, "squash", cache_gb=1.0)
    plain = PairDataset(data.pairs("train"), SIDE, "squash")

    found = list(DataLoader(pairs, batch_size=3, num_workers=2))  # they fill it
    decoded.clear()

    assert pairs.views.cache.present.all()
    for batch, expected in zip(found, DataLoader(plain, batch_size=3), strict=True):
        assert torch.equal(batch.source.image, expected.source.image)
    decoded.clear()
    for index in range(len(pairs)):
        assert torch.equal(pairs[index].target.image, plain[index].target.image)
        assert decoded.total() == 2 * (index + 1)  # of `plain`


def test_a_square_half_written_is_written_again():
    cache, square = PixelCache(1, 2, 1.0), torch.full((3, 2, 2), 7, dtype=torch.uint8)
    cache.squares[0, :2] = square[:2]  # a process that was killed

    assert torch.equal(cache.get(0, lambda: square), square)
    assert torch.equal(cache.get(0, lambda: pytest.fail("it is there")), square)


def test_no_cache_is_made_that_pixels_do_not_need(data):
    data.cache_gb = 1.0
    assert data.train_dataloader().dataset.pairs.views.cache is not None

    data.train_pixels = False
    assert data.train_dataloader().dataset.pairs.views.cache is None


def test_batches_of_images_come_from_the_cache_too(data, decoded):
    data.all_pairs, data.steps, data.cache_gb = 3, 12, 1.0

    loaded = {name for batch in data.train_dataloader() for name in batch.view.name}

    assert decoded == dict.fromkeys(loaded, 1)


def test_more_than_the_shared_memory_is_refused_before_it_ends_the_process(monkeypatch):
    usage = namedtuple("usage", "free")(free=20_000_000)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(pixel_cache, "SHARED_MEMORY", pixel_cache.Path("/"))

    PixelCache(6, 1000, 1.0)  # 18 MB
    with pytest.raises(UserError, match=r"`data\.cache_gb`: 0\.02 GB of images do not fit .* Give less, or enlarge"):
        PixelCache(7, 1000, 1.0)


@pytest.mark.parametrize(("room", "fits"), [(3.0, True), (2.5, True), (2.1, True), (1.9, False), (0.9, False)])
@pytest.mark.parametrize("late", [0, 1])
def test_several_processes_are_refused_together_or_not_at_all(monkeypatch, room, fits, late):
    """Whichever is first: its cache would leave less for those that have not asked yet."""
    size, taken = 3 * 1000**2, []

    def share(tensor):
        taken.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(views.shutil, "disk_usage", lambda path: usage(room * size - sum(taken)))
    monkeypatch.setattr(views, "SHARED_MEMORY", views.Path("/"))
    border = threading.Barrier(2, timeout=20)

    def wait() -> None:
        border.wait()

    def make(number: int) -> bool:
        if number == late:
            time.sleep(0.2)
        try:
            PixelCache(1, 1000, 1.0, LocalProcesses(2, wait))
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(make, range(2))) == [fits] * 2


@pytest.mark.parametrize("all_pairs", [None, 3])
def test_caches_are_made_after_the_border_that_lightning_keeps(data, monkeypatch, all_pairs):
    data.all_pairs, data.cache_gb, events = all_pairs, 1.0, []
    strategy = SimpleNamespace(barrier=lambda: events.append("border"), root_device=torch.device("cpu"))
    progress = SimpleNamespace(current=SimpleNamespace(state_dict=lambda: {"processed": 0}))
    data.trainer = SimpleNamespace(
        strategy=strategy, num_devices=1, world_size=1, global_rank=0, fit_loop=SimpleNamespace(epoch_progress=progress)
    )
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda tensor: events.append("cache") or tensor)

    data.train_dataloader()

    assert events == ["border", "cache", "cache"]


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_negative_budget_is_refused(budget):
    with pytest.raises(UserError, match=r"`data\.cache_gb` must be 0, which is off, or more"):
        Synthetic(root=".", size=SIDE, cache_gb=budget)
