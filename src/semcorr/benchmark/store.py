"""Features written to the disk and read back, beside a plain write and a plain copy of as many bytes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from semcorr.benchmark.measurement import Measurement, best_time, measure, measure_machine, synchronised_time
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.errors import UserError
from semcorr.store import FeatureStore
from semcorr.store.frozen import DTYPES

KEY = {"benchmark": "store"}
RING = 16  # tensors copied in turn: more than a processor's cache holds


class StoredFeatures(NamedTuple):
    """The features that are stored, and the encoding that they are compared with."""

    images: int  # whose features are stored
    tokens: int  # of an image
    channels: int  # of a token
    dtype: str  # a key of `DTYPES`
    root: str | None  # a folder on the disk in question; None, that of temporary files
    encode_ms: float | None  # milliseconds to encode an image; measured if None
    backbone: str  # by which an image is encoded
    size: int  # side of the image that is encoded, in pixels
    device: str  # `cpu` or `cuda`


def benchmark_store(entries: StoredFeatures, isolated: bool = True) -> BenchmarkResult:
    """Measure writing, the first reading and a later reading, each beside its limit."""
    if min(entries.images, entries.tokens, entries.channels) < 1:
        raise UserError(
            "--entries, --tokens and --channels must be at least 1, got "
            f"{entries.images}, {entries.tokens} and {entries.channels}"
        )
    if entries.dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {entries.dtype!r}")
    if entries.root is not None and not Path(entries.root).is_dir():
        raise UserError(f"--root: {entries.root} is not a folder. Make it, or choose another disk")
    if entries.encode_ms is not None and not entries.encode_ms > 0:
        raise UserError(f"--encode-ms must be more than 0, got {entries.encode_ms}")
    measurement = measure(run_store, entries, isolated=isolated)
    encoding = entries.encode_ms and entries.encode_ms / 1e3
    return _build_result(entries, measurement, encoding or measure(time_encoding, entries, isolated=isolated).value)


def run_store(entries: StoredFeatures) -> dict[str, float]:
    """Measure the seconds for all entries, by kind of access."""
    values = torch.randn(entries.tokens, entries.channels).to(DTYPES[entries.dtype])
    names, buffer = [f"{i:032x}" for i in range(entries.images)], torch.empty_like(values)
    with tempfile.TemporaryDirectory(dir=entries.root, prefix="semcorr-benchmark-") as root:
        folder, writer = Path(root), FeatureStore(Path(root) / "store", KEY)
        reader = FeatureStore(Path(root) / "store", KEY)  # this instance has verified no entry yet
        seconds = {
            "plain write": _time_all(names, lambda name: _write_plain(folder / f"{name}.bin", values)),
            "naive write": _time_all(names, lambda name: torch.save(values, folder / f"{name}.pt")),
            "write": _time_all(names, lambda name: _put(writer, name, values)),
            "naive read": _time_all(names, lambda name: buffer.copy_(torch.load(folder / f"{name}.pt"))),
            "first read": _time_all(names, lambda name: buffer.copy_(_get(reader, name))),
            "later read": _time_all(names, lambda name: buffer.copy_(_get(reader, name))),
        }
        if not torch.equal(_get(reader, names[-1]), values):
            raise RuntimeError("the store gave back something else than was put into it")
    sources = [values.clone() for _ in range(min(entries.images, RING))]
    copied = best_time(lambda: [buffer.copy_(tensor) for tensor in sources]) / len(sources)
    return {**seconds, "copy": copied * entries.images, "bytes": values.nbytes}


def time_encoding(entries: StoredFeatures) -> float:
    """Measure the seconds to encode an image by itself, with random weights."""
    from semcorr.benchmark.runs import RunSpec, compose_run
    from semcorr.engine.build import build_backbone

    overrides = (f"backbone={entries.backbone}", f"backbone.size={entries.size}", "backbone.pretrained=false")
    with compose_run("evaluate", RunSpec("synthetic", "", entries.device, overrides)) as cfg, torch.no_grad():
        backbone = build_backbone(cfg).to(entries.device).eval()
        image = torch.rand(1, 3, backbone.size, backbone.size, device=entries.device)
        return best_time(lambda: backbone(image), entries.device, times=1)


def _time_all(names: list[str], work: Callable[[str], object]) -> float:
    start = synchronised_time()
    for name in names:
        work(name)
    return synchronised_time() - start


def _write_plain(path: Path, values: Tensor) -> None:
    with path.open("wb") as file:
        file.write(values.flatten().view(torch.uint8).numpy().data)


def _put(store: FeatureStore, name: str, values: Tensor) -> None:
    if not store.put(name, {"features": values}, name):
        raise UserError(f"--root: there is no room for the entries in {store.root}. Give --entries fewer")


def _get(store: FeatureStore, name: str) -> Tensor:
    values = store.get(name)
    assert values is not None
    return values["features"]


def _build_result(
    entries: StoredFeatures, measurement: Measurement[dict[str, float]], encoding: float
) -> BenchmarkResult:
    limits = measure_machine(entries.device)
    size = int(measurement.value["bytes"])
    speed = {
        access: size * entries.images / seconds / 1e9
        for access, seconds in measurement.value.items()
        if access != "bytes"
    }  # GB/s
    limit_of = {"write": "plain write", "first read": "copy", "later read": "copy"}
    naive_of = {"write": "naive write", "first read": "naive read", "later read": "naive read"}
    ratios = {access: speed[access] / speed[naive_of[access]] for access in limit_of}
    rows = [
        BenchmarkRow(
            f"GB/s, {access}",
            format_rate(speed[naive_of[access]]),
            format_rate(speed[access]),
            format_ratio(ratios[access]),
            f"{format_rate(speed[limit])} ({limit}; {speed[access] / speed[limit]:.0%} reached)",
        )
        for access, limit in limit_of.items()
    ]
    written = speed["write"] * 1e9 / size
    rows += [
        BenchmarkRow(
            "images/s written; encoded",
            "",
            f"{format_rate(written)}; {format_rate(1 / encoding)}",
            format_ratio(written * encoding),
        ),
        BenchmarkRow("peak memory in MB", "", measurement.description),
    ]
    caption = (
        f"{limits.description}; {os.cpu_count()} cores. {entries.images} entries of {size:,} bytes, "
        f"{encoding * 1e3:,.0f} ms to encode an image. Naive: torch.save and torch.load of one file per image, as "
        "GeoAware-SC does. Nothing waits for the disk; what is read was written just now; a read ends with all of it "
        "in the reader's own tensor."
    )
    content = {
        "ratio": ratios["later read"],
        "ratios": ratios,
        "entry_bytes": size,
        "entries": entries.images,
        "gb_s": speed,
        "floor": {
            kind: {"gb_s": speed[limit], "reached": speed[kind] / speed[limit]} for kind, limit in limit_of.items()
        },
        "images_per_second": {"written": written, "encoded": 1 / encoding, "ratio": written * encoding},
        "peak": {"ours": measurement.peak},
        "machine": limits.as_json(),
    }
    return BenchmarkResult(
        f"Feature store: {entries.tokens} x {entries.channels} {entries.dtype}", rows, caption, content
    )
