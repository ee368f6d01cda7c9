"""The command python -m semcorr.benchmark SUB. Each sub-command imports what it needs when it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import Needs, OneOf, Without
from semcorr.core.ranges import Count, Range, Whole, Window
from semcorr.core.text_files import JsonObject
from semcorr.engine.packages import list_choices

if TYPE_CHECKING:
    from semcorr.benchmark.report import BenchmarkResult


def list_backbone_files() -> list[str]:
    """List the names of backbones."""
    return list_choices("backbone")


def list_head_files() -> list[str]:
    """List the names of heads."""
    return list_choices("head")


app = typer.Typer(
    help="Measure speed and memory, in one run with what others do and with what the machine allows.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Out = Annotated[
    Path, typer.Option("--out", readable=False, help="Output file; figures of other sub-commands in it are kept.")
]
Device = Annotated[str, OneOf(("auto", "cpu", "cuda")), typer.Option("--device", help="Device: auto, cpu or cuda.")]
Together = Annotated[
    bool,
    typer.Option("--together", help="Measure all in one process: faster, but peaks of memory are then of the whole."),
]
Backbone = Annotated[str, OneOf(list_backbone_files), typer.Option("--backbone", help="Name of a backbone.")]
Size = Annotated[
    int | None, Range(least=1), typer.Option("--size", help="Side of the square that images are resized to, in pixels.")
]
Random = Annotated[bool, typer.Option("--random", help="Use random weights.")]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", readable=False, help="Folder of a benchmark in SPair-71k's layout; default: one is generated."
    ),
]
Scale = Annotated[
    str,
    OneOf(("demo", "spair")),
    Without("root"),
    typer.Option("--scale", help="Generated benchmark: demo (drawn creatures) or spair (as large as SPair-71k)."),
]
Folder = Annotated[
    Path | None,
    Without("root"),
    typer.Option("--folder", readable=False, help="Folder of the generated benchmark; default: a temporary one."),
]
Part = Annotated[
    float,
    Range(above=0, most=1),
    Needs("scale"),
    typer.Option("--part", help="Share of the images of --scale spair, at most 1."),
]
OUT = Path("benchmark.json")


@app.command("match")
def benchmark_match(
    pairs: Annotated[Count, typer.Option(help="Number of pairs.")] = 90,
    images: Annotated[Count, typer.Option(help="Number of images.")] = 10,
    grid: Annotated[int, Range(least=2, most=1024), typer.Option(help="Cells along a side of a feature map.")] = 32,
    channels: Annotated[Count, typer.Option(help="Channels of a feature map.")] = 384,
    naive_pairs: Annotated[Count, typer.Option(help="Number of pairs that the naive loops match.")] = 30,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure pairs matched per second from features. Full size: --pairs 600 --images 25 --grid 60 --channels 768."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.match import MatchingShape, benchmark_matching
        from semcorr.benchmark.measurement import resolve_device_name

        return benchmark_matching(
            MatchingShape(pairs, images, grid, channels, naive_pairs, resolve_device_name(device)), not together
        )

    _run_benchmark("match", work, out, locals())


@app.command("evaluate")
def benchmark_evaluate(
    backbone: Backbone = "efficientnet_lite0",
    size: Size = None,
    random: Random = False,
    root: Root = None,
    scale: Scale = "demo",
    folder: Folder = None,
    part: Part = 1.0,
    split: Annotated[str, OneOf(("train", "val", "test")), typer.Option(help="Split: train, val or test.")] = "test",
    pairs: Annotated[
        int | None,
        Range(least=1),
        typer.Option(help="Number of pairs to use, from the start of the split; default: all."),
    ] = None,
    naive_pairs: Annotated[Count, typer.Option(help="Number of pairs that the naive loop scores.")] = 10,
    workers: Annotated[int | None, Range(least=0), typer.Option(help="Number of loader processes.")] = None,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure pairs evaluated per second from files. Full size: --scale spair --backbone dinov2_s --random."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.evaluate import SplitPart, benchmark_evaluation
        from semcorr.benchmark.measurement import resolve_device_name
        from semcorr.benchmark.runs import build_run_spec

        run = build_run_spec(root, scale, folder, resolve_device_name(device), backbone, size, random, part)
        run = run.with_overrides(f"data.workers={'null' if workers is None else workers}")
        return benchmark_evaluation(run, SplitPart(split, pairs, naive_pairs), not together)

    _run_benchmark("evaluate", work, out, locals())


@app.command("read_outs", hidden=True)  # deprecated alias
@app.command("readouts")
def benchmark_many_readouts(
    backbone: Backbone = "efficientnet_lite0",
    size: Size = None,
    random: Random = False,
    root: Root = None,
    scale: Scale = "demo",
    folder: Folder = None,
    part: Part = 1.0,
    split: Annotated[str, OneOf(("train", "val", "test")), typer.Option(help="Split: train, val or test.")] = "test",
    tries: Annotated[Count, typer.Option(help="Repetitions; the fastest counts.")] = 3,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure how much longer a whole evaluation takes with eleven readouts than with one."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.measurement import resolve_device_name
        from semcorr.benchmark.readouts import benchmark_readouts
        from semcorr.benchmark.runs import build_run_spec

        return benchmark_readouts(
            build_run_spec(root, scale, folder, resolve_device_name(device), backbone, size, random, part),
            split,
            tries,
            not together,
        )

    _run_benchmark("read_outs", work, out, locals())


@app.command("head")
def benchmark_head_run_time(
    head: Annotated[str, OneOf(list_head_files), typer.Option("--head", help="Name of a head.")] = "aggregation",
    backbone: Backbone = "dinov2",
    size: Size = None,
    random: Annotated[bool, typer.Option("--random/--pretrained", help="Use random or pretrained weights.")] = True,
    points: Annotated[Count, typer.Option(help="Number of query points of the pair.")] = 8,
    tries: Annotated[Count, typer.Option(help="Repetitions of each part; the fastest counts.")] = 5,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure the run time that a head adds to encoding a pair. As published: --backbone sd_dinov2_geo_aware_raw."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.head import TimedPair, benchmark_head
        from semcorr.benchmark.measurement import resolve_device_name
        from semcorr.benchmark.runs import build_run_spec

        run = build_run_spec(None, "demo", None, resolve_device_name(device), backbone, size, random)
        return benchmark_head(run, TimedPair(head, points, tries), not together)

    _run_benchmark("head", work, out, locals())


@app.command("train")
def benchmark_train(
    backbone: Backbone = "dinov2_s",
    size: Size = 224,
    random: Annotated[bool, typer.Option("--random/--pretrained", help="Use random or pretrained weights.")] = True,
    blocks: Annotated[Count, typer.Option(help="Number of last blocks that are trained.")] = 2,
    steps: Annotated[int, Range(least=3), typer.Option(help="Number of steps of each run.")] = 12,
    pairs: Annotated[
        Count, typer.Option(help="Number of pairs of a batch; training on all pairs takes as many images.")
    ] = 4,
    root: Root = None,
    scale: Scale = "demo",
    folder: Folder = None,
    part: Part = 1.0,
    workers: Annotated[int | None, Range(least=0), typer.Option(help="Number of loader processes.")] = None,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure training steps per second, with and without caching frozen blocks. Full size: --backbone dinov2."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.measurement import resolve_device_name
        from semcorr.benchmark.runs import build_run_spec
        from semcorr.benchmark.train import TrainingSteps, benchmark_training

        run = build_run_spec(root, scale, folder, resolve_device_name(device), backbone, size, random, part)
        return benchmark_training(run, TrainingSteps(steps, blocks, pairs, workers), not together)

    _run_benchmark("train", work, out, locals())


@app.command("loading")
def benchmark_loaders(
    size: Annotated[Count, typer.Option(help="Side of the square that images are resized to, in pixels.")] = 840,
    workers: Annotated[Whole, typer.Option(help="Number of loader processes.")] = 16,
    images: Annotated[Count, typer.Option(help="Number of images encoded at once.")] = 8,
    pairs: Annotated[Count, typer.Option(help="Number of pairs of a training step.")] = 8,
    batches: Annotated[Count, typer.Option(help="Number of batches of each kind.")] = 40,
    root: Root = None,
    scale: Scale = "demo",
    folder: Folder = None,
    part: Part = 1.0,
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure shared and other memory of loading, and the bytes that are copied to the device."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.loading import LoadedBatches, benchmark_loading
        from semcorr.benchmark.runs import build_run_spec

        run = build_run_spec(root, scale, folder, "cpu", "efficientnet_lite0", size, False, part)
        return benchmark_loading(run, LoadedBatches(workers, images, pairs, batches), not together)

    _run_benchmark("loading", work, out, locals())


@app.command("store")
def benchmark_feature_store(
    entries: Annotated[Count, typer.Option(help="Number of images whose features are stored.")] = 32,
    tokens: Annotated[Count, typer.Option(help="Tokens of an image; a ViT-B/14 has 3,601 at 840 pixels.")] = 3601,
    channels: Annotated[Count, typer.Option(help="Channels of a token.")] = 768,
    dtype: Annotated[
        str,
        OneOf(("float16", "bfloat16", "float32")),
        typer.Option(help="Type of the features: float16, bfloat16 or float32."),
    ] = "float16",
    root: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder on the disk to measure; default: that of temporary files."),
    ] = None,
    encode_ms: Annotated[
        float | None, Range(above=0), typer.Option(help="Milliseconds to encode an image; default: measured.")
    ] = None,
    backbone: Annotated[Backbone, Without("encode_ms")] = "dinov2",
    size: Annotated[
        Count, Without("encode_ms"), typer.Option(help="Side of the image that is encoded, in pixels.")
    ] = 840,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure the feature store's GB/s, writing and reading, beside a plain write and a copy in memory."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.measurement import resolve_device_name
        from semcorr.benchmark.store import StoredFeatures, benchmark_store

        folder = None if root is None else str(root)
        entries_spec = StoredFeatures(
            entries, tokens, channels, dtype, folder, encode_ms, backbone, size, resolve_device_name(device)
        )
        return benchmark_store(entries_spec, not together)

    _run_benchmark("store", work, out, locals())


@app.command("conv4d")
def benchmark_convolution(
    side: Annotated[
        list[int],
        Range(least=1, most=512),
        typer.Option(help="Cells along each axis of a volume; repeatable."),
    ] = [  # noqa: B006
        16,
        32,
    ],
    channels: Annotated[Count, typer.Option(help="Number of input and of output channels.")] = 8,
    kernel: Annotated[Window, typer.Option(help="Cells along each axis of a kernel.")] = 3,
    device: Device = "auto",
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure a 4-D convolution's seconds and memory, forward and with backward, beside a loop of 3-D convolutions."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.conv4d import benchmark_conv4d
        from semcorr.benchmark.measurement import resolve_device_name

        return benchmark_conv4d(side, channels, kernel, resolve_device_name(device), not together)

    _run_benchmark("conv4d", work, out, locals())


@app.command("scaling")
def benchmark_growth(
    images: Annotated[
        int,
        Range(least=2, most=100),
        typer.Option(help="Number of images of each of 18 categories at size 1; each is paired with all others."),
    ] = 4,
    size: Annotated[
        list[int], Range(least=1, most=1000), typer.Option(help="Size: times as many images and pairs; repeatable.")
    ] = [  # noqa: B006
        1,
        4,
        16,
    ],
    tries: Annotated[Count, typer.Option(help="Repetitions of each size; the fastest counts.")] = 2,
    processes: Annotated[
        list[int], Range(least=1, most=64), typer.Option(help="Number of processes that train together; repeatable.")
    ] = [  # noqa: B006
        1,
        2,
        4,
    ],
    steps: Annotated[int, Range(least=3), typer.Option(help="Number of steps of each training.")] = 10,
    pairs: Annotated[Count, typer.Option(help="Number of pairs of a step in each process.")] = 4,
    side: Annotated[
        int, Range(least=32, most=1024), typer.Option(help="Side of the square that images are resized to, in pixels.")
    ] = 160,
    folder: Annotated[
        Path | None, typer.Option(readable=False, help="Folder of the generated benchmarks; default: a temporary one.")
    ] = None,
    together: Together = False,
    out: Out = OUT,
) -> None:
    """Measure how time and memory of evaluation grow with images and pairs, and training with processes; on the CPU."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.scaling import ScalingShape, benchmark_scaling

        shape = ScalingShape(images, size, tries, processes, steps, pairs, side)
        return benchmark_scaling(shape, folder, not together)

    _run_benchmark("scaling", work, out, locals())


@app.command("startup")
def benchmark_start(
    tries: Annotated[Count, typer.Option(help="Repetitions; the fastest counts.")] = 3,
    out: Out = OUT,
) -> None:
    """Measure the seconds until a fresh process is ready, beside the import of PyTorch."""

    def work() -> "BenchmarkResult":
        from semcorr.benchmark.startup import benchmark_startup

        return benchmark_startup(tries)

    _run_benchmark("startup", work, out, locals())


def _run_benchmark(name: str, work: "Callable[[], BenchmarkResult]", out: Path, arguments: JsonObject) -> None:
    with report_user_errors("evaluate"):
        from semcorr.benchmark.report import publish_result, read_benchmark_file

        read_benchmark_file(out)
        settings = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in arguments.items()
            if key not in ("work", "out")
        }
        publish_result(name, work(), out, settings)
