"""Pages in W&B besides scalars: pictures, tables of categories and curves, and the best of each curve."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from semcorr.core.text_files import JsonMapping
from semcorr.engine.run_dir import flatten_config
from semcorr.metrics.pck import ALPHAS, SUBSETS

STEP = "trainer/global_step"
SUMMARY = ("pairs", "trained_parameters", "seconds.encode", "seconds.match")  # numbers of metrics.json in the summary


def define_summaries(board: WandbLogger) -> None:
    """Let the summary of a run hold the best of its validations and its smallest loss, not the last."""
    best = {f"val/{subset}/pck@{alpha:g}": "max" for subset in SUBSETS for alpha in ALPHAS} | {"train/loss": "min"}
    for name, summary in best.items():
        board.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=summary)


def log_wandb_pictures(board: WandbLogger, pictures: Mapping[str, tuple[Image.Image, str]], step: int) -> None:
    """Log pictures with their captions, by their names."""
    import wandb

    images = {name: wandb.Image(picture, caption=caption) for name, (picture, caption) in pictures.items()}
    board.experiment.log({**images, STEP: step})


def log_categories(board: WandbLogger, stage: str, categories: JsonMapping, step: int) -> None:
    """Log one table of PCK by category.

    Args:
        board: The logger.
        stage: `val` or `test`, with which the name of the table begins.
        categories: Section `category` of metrics.json, with PCK as fractions.
        step: Number of training steps.
    """
    import wandb

    columns, rows = tabulate_categories(categories)
    board.experiment.log({f"{stage}/categories": wandb.Table(columns=[*columns], data=rows), STEP: step})


def tabulate_categories(categories: JsonMapping) -> tuple[list[str], list[list[object]]]:
    """Tabulate PCK per image by category, subset and alpha, in percent; None where a category has no such keypoints.

    >>> columns, rows = tabulate_categories({"cat": {s: {"image": {"0.1": 0.5}} for s in ("all", "geo", "std")}})
    >>> columns, rows
    (['category', 'all@0.1', 'geo@0.1', 'std@0.1'], [['cat', 50.0, 50.0, 50.0]])
    """
    alphas = [alpha for scores in [*categories.values()][:1] for alpha in scores[SUBSETS[0]]["image"]]
    cells = [(subset, alpha) for alpha in alphas for subset in SUBSETS]

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return ["category", *(f"{subset}@{alpha}" for subset, alpha in cells)], [
        [name, *(percent(scores[subset]["image"].get(alpha)) for subset, alpha in cells)]
        for name, scores in categories.items()
    ]


def log_scores(board: WandbLogger, metrics: JsonMapping, run_dir: Path, step: int) -> None:
    """Log all PCK as one table, metrics.json as a file, and few numbers to compare runs by.

    Args:
        board: The logger.
        metrics: Content of metrics.json, of pairs.
        run_dir: Directory of the run.
        step: Number of training steps.
    """
    import wandb

    curve = [
        [subset, by, float(alpha), value]
        for subset in SUBSETS
        for by, values in metrics["pck"][subset].items()
        for alpha, value in values.items()
    ]
    table = wandb.Table(columns=["keypoints", "per", "alpha", "pck"], data=curve)
    board.experiment.log({"test/curves": table, STEP: step})
    log_categories(board, "test", metrics["category"], step)
    numbers = flatten_config(metrics)
    board.experiment.summary.update({f"scores/{name.replace('.', '/')}": numbers[name] for name in SUMMARY})
    folder = Path(board.experiment.dir)
    if folder.is_dir():  # none where W&B is disabled
        copy = shutil.copy(run_dir / "metrics.json", folder)  # else W&B makes a link, and says so
        board.experiment.save(copy, base_path=str(folder), policy="now")
