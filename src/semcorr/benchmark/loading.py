"""Memory of loading and bytes handed to the device: pixels in bytes against pixels in single precision.

The consumer waits until the loader processes have made all that they make ahead, as where the device is the slower one.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semcorr.benchmark.measurement import Measurement, MemoryWatch, measure
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.core.types import View
from semcorr.data.datamodule import PairDataModule

PATIENCE = 300.0  # seconds that the loader processes have to make what they make ahead


class LoadedBatches(NamedTuple):
    """The number of loader processes, images encoded at once, training pairs of a step, and batches of each."""

    workers: int
    images: int
    pairs: int
    batches: int


class FloatViews(Dataset[object]):
    """Items of a data set with their pixels in single precision, as loaders that convert them pass them on."""

    def __init__(self, dataset: Dataset[object]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: object) -> object:
        return convert_pixels(self.dataset[index])  # type: ignore[index]  # a list of them, of a data set of batches


def benchmark_loading(run: RunSpec, spec: LoadedBatches, isolated: bool = True) -> BenchmarkResult:
    """Load batches to encode and batches to train on, each in single precision and in bytes."""
    if spec.batches < 1 or spec.images < 1 or spec.pairs < 1:
        raise UserError(
            f"--images, --pairs and --batches must be at least 1, got {spec.images}, {spec.pairs} and {spec.batches}"
        )
    run = run.with_overrides(
        f"data.workers={spec.workers}",
        f"data.encode_batch={spec.images}",
        f"data.batch_size={spec.pairs}",
        f"data.steps={spec.batches}",
    )
    floats, ours = (measure(run_loading, run, spec, as_floats, isolated=isolated) for as_floats in (True, False))
    return _build_result(run, spec, floats, ours)


def run_loading(run: RunSpec, spec: LoadedBatches, as_floats: bool) -> JsonObject:
    """Measure the peaks of shared and of all memory, and the bytes of a batch, to encode and to train on."""
    from semcorr.engine.build import build_datamodule

    with compose_run("train", run) as cfg:
        data = build_datamodule(cfg, "data", ("fit",))
        assert isinstance(data, PairDataModule)
        variants = data.images_to_train_on(1)
        chunks = [
            [(start * spec.images + i) % len(variants) for i in range(spec.images)] for start in range(spec.batches)
        ]
        loaders = {"encode": data.encoding_loader(variants, chunks), "train": data.train_dataloader()}
        counts = {"encode": spec.images, "train": 2 * spec.pairs}
        pixels = {name: count * 3 * data.size**2 * (4 if as_floats else 1) for name, count in counts.items()}
        return {name: _measure_loader(loaders[name], spec, as_floats, pixels[name]) for name in loaders}


def _measure_loader(loader: Iterable[object], spec: LoadedBatches, as_floats: bool, pixels: int) -> JsonObject:
    """Load batches, of so many bytes of pixels, when all are made ahead; measure the peaks and the bytes of a batch."""
    assert isinstance(loader, DataLoader)
    if as_floats:
        loader = _convert_loader(loader)
    sizes = []
    with MemoryWatch() as watch:
        stream: Iterator[object] = iter(loader)
        ahead = min(spec.batches, loader.num_workers * (loader.prefetch_factor or 0))
        start = time.monotonic()
        while watch.shared < ahead * pixels and time.monotonic() - start < PATIENCE:
            time.sleep(0.02)
        for batch in islice(stream, spec.batches):
            sizes.append(count_bytes(batch))
        del stream
    return {"shared": watch.shared, "memory": watch.memory, "bytes": sum(sizes) / len(sizes)}


def _convert_loader(loader: DataLoader[object]) -> DataLoader[object]:
    """Return the same loader of pixels in single precision."""
    whole = {"batch_size": None, "sampler": loader.sampler}
    return DataLoader(
        FloatViews(loader.dataset),
        **(whole if loader.batch_sampler is None else {"batch_sampler": loader.batch_sampler}),
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
    )


def convert_pixels(item: object) -> object:
    """Convert the bytes of all views of an item to single precision."""
    if isinstance(item, View):
        return item._replace(image=item.image.float() / 255)
    if isinstance(item, tuple) and hasattr(item, "_make"):
        return item._make([convert_pixels(field) for field in item])
    return item


def count_bytes(item: object) -> int:
    """Count the bytes of all tensors of a batch, which are copied to the device.

    >>> import torch
    >>> count_bytes((torch.zeros(2, 3), "a", [torch.zeros(5, dtype=torch.uint8)]))
    29
    """
    if isinstance(item, Tensor):
        return item.nbytes
    return sum(map(count_bytes, item)) if isinstance(item, tuple | list) else 0


def _build_result(
    run: RunSpec, spec: LoadedBatches, floats: Measurement[JsonObject], ours: Measurement[JsonObject]
) -> BenchmarkResult:
    units = {"encode": spec.images, "train": 1}
    names = {
        "encode": ("batches to encode", "an image encoded"),
        "train": ("batches to train on", f"a step of {spec.pairs} pairs"),
    }
    rows = []
    for key, (batches, unit) in names.items():
        before, after = floats.value[key], ours.value[key]
        values = {
            f"peak shared memory in MB, {batches}": (before["shared"], after["shared"]),
            "peak memory in MB, loader processes included": (before["memory"], after["memory"]),
            f"MB to the device for {unit}": (before["bytes"] / units[key], after["bytes"] / units[key]),
        }
        rows += [
            BenchmarkRow(what, format_rate(a / 1e6), format_rate(b / 1e6), format_ratio(a / b) if b else "")
            for what, (a, b) in values.items()
        ]
    rows.append(BenchmarkRow("peak memory in MB, this process", floats.description, ours.description))
    before, after = floats.value["encode"], ours.value["encode"]
    content = {
        "ratio": before["bytes"] / after["bytes"],
        "floor": {"bytes_per_image": after["bytes"] / spec.images},
        "floats": floats.value,
        "bytes": ours.value,
        "peak": {"ours": ours.peak, "naive": floats.peak},
    }
    caption = (
        f"naive: pixels in single precision. {spec.workers} loader processes, batches of {spec.images} images to "
        f"encode, of {2 * spec.pairs} to train on. Memory is proportional (PSS): shared pages count once."
    )
    return BenchmarkResult(f"Loading: {' '.join(run.overrides)}", rows, caption, content)
